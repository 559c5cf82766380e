// Package wait has what goroutines wait at and for: a gate, a deadline, a turn in a queue of calls.
package wait

// A Gate is where goroutines block until something happens. Its owner guards it with a lock; the
// zero value works.
type Gate struct {
	ch chan struct{}
	n  int // goroutines waiting for ch
}

// Enter returns a channel that is closed when the gate opens next. A caller that stops waiting must
// call Leave.
func (g *Gate) Enter() chan struct{} {
	if g.ch == nil {
		g.ch = make(chan struct{})
	}
	g.n++
	return g.ch
}

// Leave takes back an Enter. It reports whether the gate has opened since.
func (g *Gate) Leave(ch chan struct{}) (opened bool) {
	if g.ch != ch {
		return true
	}
	if g.n--; g.n == 0 {
		g.ch = nil
	}
	return false
}

// Open lets all waiting goroutines through, and reports whether there were any.
func (g *Gate) Open() bool {
	if g.n == 0 {
		return false
	}
	close(g.ch)
	*g = Gate{}
	return true
}

// Waiting returns how many goroutines have entered and not left since the gate opened.
func (g *Gate) Waiting() int { return g.n }
