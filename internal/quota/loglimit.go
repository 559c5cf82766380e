// Package quota holds the bounds on what peers together can make a server spend: lines of a log,
// connections of one address, queued bytes, TLS handshakes. None of it knows what a connection is.
package quota

import (
	"sync"
	"time"
)

const (
	logBurst = 10          // lines at once
	logEvery = time.Second // after them, one line
)

// A LogLimit bounds the lines that peers can cause: ten at once, then one a second. It counts the
// lines that it suppresses, so that a later line can say how many they were. The zero value is
// ready. It may be used by several goroutines.
type LogLimit struct {
	mu sync.Mutex
	// Guarded by mu.
	full       int64 // when the whole burst is available again, on the caller's clock
	suppressed uint64
}

// Take asks for a line at time now, in nanoseconds of a monotonic clock. If the line may be
// written, Take returns ok and the number of lines suppressed before it, which begins again at 0.
func (l *LogLimit) Take(now int64) (suppressed uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full = max(l.full, now); l.full-now > (logBurst-1)*int64(logEvery) {
		l.suppressed++
		return 0, false
	}
	l.full += int64(logEvery)
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}

// Suppress counts a line that could not be written.
func (l *LogLimit) Suppress() {
	l.mu.Lock()
	l.suppressed++
	l.mu.Unlock()
}

// Suppressed returns the number of suppressed lines that no line has reported, and begins again
// at 0.
func (l *LogLimit) Suppressed() (n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, l.suppressed = l.suppressed, 0
	return n
}
