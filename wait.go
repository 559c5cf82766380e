package tcpio

// A gate is where goroutines block until something happens to their connection. It is guarded by the Conn's mu; the zero
// value works.
type gate struct {
	ch chan struct{}
	n  int // goroutines waiting for ch
}

// enter returns a channel that is closed when the gate opens next. Who does not wait for it any more says leave.
func (g *gate) enter() chan struct{} {
	if g.ch == nil {
		g.ch = make(chan struct{})
	}
	g.n++
	return g.ch
}

// leave takes back an enter. It reports whether the gate has opened since.
func (g *gate) leave(ch chan struct{}) (opened bool) {
	if g.ch != ch {
		return true
	}
	if g.n--; g.n == 0 {
		g.ch = nil
	}
	return false
}

// open lets everybody through who is waiting, and reports whether anybody was.
func (g *gate) open() bool {
	if g.n == 0 {
		return false
	}
	close(g.ch)
	*g = gate{}
	return true
}
