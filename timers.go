package tcpio

import (
	"math"
	"time"
)

type timerKind uint8

const (
	timerClose     timerKind = iota // CloseTimeout is over
	timerAccept                     // try accepting again
	timerWake                       // the loop wants to look at the clock
	timerMessage                    // post value to c
	timerHandshake                  // HandshakeTimeout is over
	timerReadable                   // announce unread input again
)

// A timer is due once, in the timers of its loop. It costs no goroutine: the loop waits in the
// poller until the first one is due. One that is stopped leaves at once. It takes 48 bytes, and 16
// of the heap; a time limit takes 24 and 16, see limitState, which is why limits are no timers.
type timer struct {
	// Immutable.
	c     *Conn
	value any
	kind  timerKind

	place int32 // in the loop's timers

	// Guarded by c.mu: the connection's other timers.
	next, prev *timer
}

// Place implements sched.Item.
func (tm *timer) Place() *int32 { return &tm.place }

// epoch makes now a small positive number.
var epoch = time.Now().Add(-time.Second)

// now is the monotonic clock in nanoseconds.
func now() int64 { return int64(time.Since(epoch)) }

// addTimer starts tm, due d from now, and makes sure that the loop wakes up in time for it.
func (sh *shard) addTimer(tm *timer, d time.Duration) {
	at := now() + max(int64(d), 0)
	if at < 0 {
		at = math.MaxInt64 // centuries from now
	}
	if sh.timers.Add(tm, at) {
		sh.kick()
	}
}
