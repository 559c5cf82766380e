package tcpio

import (
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
	heap []*timer
}

type timerKind uint8

const (
	timerClose    timerKind = iota // CloseTimeout is over
	timerGrace                     // a handler has had its time after EOF
	timerAccept                    // try accepting again
	timerWake                      // the loop wants to look at the clock
	timerMessage                   // post value to c
	timerReadable                  // announce unread input again
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

// add starts tm, due d from now, and makes sure that lp wakes up in time for it.
func (ts *timers) add(lp *loop, tm *timer, d time.Duration) {
	ts.mu.Lock()
	tm.when = now() + max(int64(d), 0)
	ts.heap = append(ts.heap, tm)
	tm.index = len(ts.heap)
	ts.up(tm.index - 1)
	earlier := ts.heap[0] == tm
	ts.first.Store(ts.heap[0].when)
	ts.mu.Unlock()
	if earlier {
		lp.kick()
	}
}

// stop reports whether it kept tm from being due.
func (ts *timers) stop(tm *timer) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if tm.index == 0 {
		return false
	}
	ts.removeLocked(tm.index - 1)
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
	ts.removeLocked(0)
	return tm
}

// wait is how long the loop may sleep; negative means for ever.
func (ts *timers) wait() time.Duration {
	first := ts.first.Load()
	if first == 0 {
		return -1
	}
	return time.Duration(max(first-now(), 0))
}

func (ts *timers) removeLocked(i int) {
	tm := ts.heap[i]
	last := len(ts.heap) - 1
	ts.swap(i, last)
	ts.heap[last] = nil
	ts.heap = ts.heap[:last]
	tm.index = 0
	if i < last {
		ts.down(i)
		ts.up(i)
	}
	switch {
	case last == 0:
		ts.heap = nil
		ts.first.Store(0)
	default:
		ts.first.Store(ts.heap[0].when)
	}
}

// The heap is four-ary: shallower than a binary one, and the children of a node lie side by side.

func (ts *timers) up(i int) {
	for i > 0 {
		parent := (i - 1) / 4
		if ts.heap[parent].when <= ts.heap[i].when {
			return
		}
		ts.swap(i, parent)
		i = parent
	}
}

func (ts *timers) down(i int) {
	for {
		least := i
		for child := 4*i + 1; child <= 4*i+4 && child < len(ts.heap); child++ {
			if ts.heap[child].when < ts.heap[least].when {
				least = child
			}
		}
		if least == i {
			return
		}
		ts.swap(i, least)
		i = least
	}
}

func (ts *timers) swap(i, j int) {
	h := ts.heap
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}
