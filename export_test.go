package tcpio

// What tests of the package's users' kind look at inside.

// WaitingHandshakesOf is the number of whole ClientHellos that wait for a goroutine.
func WaitingHandshakesOf(l *Listener) int { return l.handshakes.Waiting() }
