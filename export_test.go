package tcpio

// What tests of the package's users' kind look at inside.

// StarvedOf is the number of connections that wait for room in MaxBuffered.
func StarvedOf(l *Listener) int {
	l.starved.mu.Lock()
	defer l.starved.mu.Unlock()
	return len(l.starved.conns)
}

// WaitingHandshakesOf is the number of whole ClientHellos that wait for a goroutine.
func WaitingHandshakesOf(l *Listener) int {
	l.shaking.mu.Lock()
	defer l.shaking.mu.Unlock()
	return l.shaking.fresh.Len()
}
