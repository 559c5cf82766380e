package tcpio

// What tests of the package's users' kind look at inside.

// WaitingHandshakesOf is the number of whole ClientHellos that wait for a goroutine.
func WaitingHandshakesOf(l *Listener) int {
	l.shaking.mu.Lock()
	defer l.shaking.mu.Unlock()
	return l.shaking.fresh.Len()
}

// StalledHandshakesOf is the number of handshakes that have begun and wait for their client.
func StalledHandshakesOf(l *Listener) int {
	l.shaking.mu.Lock()
	defer l.shaking.mu.Unlock()
	return l.shaking.stalled.Len()
}
