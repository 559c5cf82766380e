package tcpio

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// timers is one loop's pending timers: a heap ordered by due time. It costs no goroutine; the loop waits in epoll until
// the first is due. A timer that is stopped leaves at once.
type timers struct {
	first atomic.Int64 // when the earliest is due, 0 without any; read without mu

	mu sync.Mutex
	// Guarded by mu.
	heap dueHeap[*timer]
}

type timerKind uint8

const (
	timerClose     timerKind = iota // CloseTimeout is over
	timerAccept                     // try accepting again
	timerWake                       // the loop wants to look at the clock
	timerMessage                    // post value to c
	timerHandshake                  // HandshakeTimeout is over
	timerReadable                   // announce unread input again
)

// A timer belongs to one loop's heap from add until it is due or stopped.
type timer struct {
	// Guarded by the mu of the timers it is in.
	when  int64 // on the clock of now
	index int   // place in the heap plus one; 0 when not in it

	// Immutable.
	c     *Conn
	value any
	kind  timerKind

	// Guarded by c.mu: the connection's other timers.
	next, prev *timer
}

// epoch makes now a small positive number.
var epoch = time.Now().Add(-time.Second)

// now is the monotonic clock in nanoseconds.
func now() int64 { return int64(time.Since(epoch)) }

func (tm *timer) dueAt() int64   { return tm.when }
func (tm *timer) setPlace(i int) { tm.index = i }

// add starts tm, due d from now, and makes sure that the loop wakes up in time for it.
func (ts *timers) add(sh *shard, tm *timer, d time.Duration) {
	ts.mu.Lock()
	tm.when = now() + max(int64(d), 0)
	if tm.when < 0 {
		tm.when = math.MaxInt64 // centuries from now
	}
	ts.heap.push(tm)
	earlier := ts.heap[0] == tm
	ts.first.Store(ts.heap.first())
	ts.mu.Unlock()
	if earlier {
		sh.kick()
	}
}

// stop reports whether it kept tm from being due.
func (ts *timers) stop(tm *timer) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if tm.index == 0 {
		return false
	}
	ts.heap.remove(tm.index - 1)
	ts.first.Store(ts.heap.first())
	return true
}

// due takes a timer whose time has come; nil when there is none.
func (ts *timers) due() *timer {
	first := ts.first.Load()
	if first == 0 || first > now() {
		return nil
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if len(ts.heap) == 0 || ts.heap[0].when > now() {
		return nil
	}
	tm := ts.heap[0]
	ts.heap.remove(0)
	ts.first.Store(ts.heap.first())
	return tm
}
