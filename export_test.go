package tcpio

// What tests of the package's users' kind look at inside.

// RaceEnabled and LongTests say how the tests were built.
const (
	RaceEnabled = raceEnabled
	LongTests   = longTests
)

// StarvedOf is the number of connections that wait for room in MaxBuffered.
func StarvedOf(l *Listener) int { return l.budget.Waiting() }

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

// FeedersOf is the number of goroutines that wait for somebody to receive from a full channel.
func FeedersOf(l *Listener) int { return int(l.feeders.Load()) }
