package tcpio

import (
	"math"
	"runtime"
	"sync/atomic"
	"time"
)

const (
	batchSize = 256                    // events one poll takes
	tickEvery = 500 * time.Microsecond // of the watchdog, while the loop is not asleep
	yieldMark = 64                     // events between two yields to the scheduler
)

// A loop serves the connections of one poller.
type loop struct {
	shard

	// Immutable.
	l      *Listener
	index  int
	done   chan struct{} // closed when the loop has ended
	err    error         // why it had to; read after done is closed
	resume func()        // see loop.drive
	stream *stream       // what EventsPerLoop returned; guarded by Listener.mu, as Listener.perLoop is

	// Atomic.
	watching    atomic.Bool          // the watchdog is running
	helped      atomic.Uint32        // polls made by consumers
	handlerConn atomic.Pointer[Conn] // whose handler runs, while the state is handler

	// Owned by the role.
	events    []readyEvent
	batch     []*Conn // the connections of events, nil where there is none any more
	next, n   int     // batch[next:n] is still to be dispatched
	visits    role    // counts the states entered
	emptyPoll bool    // a consumer has just polled and found nothing
	lookOnce  bool    // the watchdog saw a slow consumer that reads: poll once, then park again
	asleep    bool    // the state is sleeping
	yield     int     // events since the last yield
	parkedAt  uint64  // the demand when the loop parked
	accept    acceptState

	// The watchdog, of one goroutine at a time: only what sets watching may reset it. A sleep stops
	// it.
	watchdog *time.Timer
	lastTick atomic.Uint64 // the state at the last tick
}

func newLoop(l *Listener, index int) *loop {
	return &loop{
		shard:  shard{shared: &l.shared, wakeup: make(chan struct{}, 1)},
		l:      l,
		index:  index,
		done:   make(chan struct{}),
		events: make([]readyEvent, batchSize),
		batch:  make([]*Conn, batchSize),
	}
}

// pollTimeout returns how long the next poll may wait. While a consumer has a batch the loop does
// not poll but parks: polls made beside a working consumer find one event each, and each costs a
// wake-up.
func (lp *loop) pollTimeout() time.Duration {
	switch {
	case lp.kicked.Load() || lp.accept == acceptMore:
		return 0
	case lp.demand.Outstanding() && (lp.n > 0 || lp.lookOnce):
		lp.park()
		if !lp.emptyPoll {
			return 0
		}
	case lp.n > 0:
		return 0 // a look that cannot block comes before a wait that can
	}
	lp.lookOnce = false
	lp.yield = 0
	runtime.Gosched() // goroutines that are ready come first: a wait keeps the processor for a while
	if lp.watching.Load() && lp.watchdog.Stop() {
		lp.watching.Store(false) // it would wake up only to find the loop asleep
	}
	lp.asleep = true
	lp.handlerConn.Store(nil) // an idle loop keeps no connection alive
	lp.enter(sleeping)
	if lp.kicked.Load() {
		return 0
	}
	return lp.untilDue()
}

// untilDue is how long the loop may sleep; negative means until something happens.
func (lp *loop) untilDue() time.Duration {
	first := lp.timers.First()
	for _, limit := range [...]int64{lp.limits.First(), lp.eofs.First()} {
		if first == 0 || limit != 0 && limit < first {
			first = limit
		}
	}
	if first == 0 {
		return -1
	}
	return time.Duration(max(first-now(), 0))
}

// park leaves the polling to the consumer, see pollForLoop. It returns with the role when a
// consumer's poll found nothing, when there is work that only the loop's own goroutine does, or
// when the watchdog sees that the consumer is slow.
func (lp *loop) park() {
	lp.watch()
	lp.emptyPoll, lp.lookOnce = false, false
	lp.parkedAt = lp.demand.Word()
	w := lp.enter(parked)
	if (lp.kicked.Load() || !lp.demand.Outstanding()) && lp.state.CompareAndSwap(w, w&^roleMask) {
		return
	}
	<-lp.wakeup
}

// enter stores a new visit of r and returns its word. Only the owner of the role calls it.
func (lp *loop) enter(r role) uint64 {
	lp.visits++
	w := uint64(lp.visits<<roleBits | r)
	lp.state.Store(w)
	return w
}

// watch makes sure that the watchdog runs while the loop is awake. An idle loop has none.
func (lp *loop) watch() {
	if lp.watching.Load() || !lp.watching.CompareAndSwap(false, true) {
		return
	}
	lp.watchdog.Reset(tickEvery)
}

// closedGivenUp is the closedOwed of a loop that has ended. It is so far below zero that late
// decrements cannot bring it back to zero.
const closedGivenUp = math.MinInt64 / 2

// ended tells a loop that it has nothing more to do: every descriptor is closed, and every actor of
// its own has received Closed, for which a handler that still blocks has CloseTimeout.
func (lp *loop) ended() bool {
	if !lp.l.stopping.Load() {
		return false
	}
	select {
	case <-lp.l.allClosed:
		if lp.closedOwed.CompareAndSwap(0, closedGivenUp) {
			return true
		}
		if !lp.l.timeIsUp() {
			return false
		}
		lp.closedOwed.Store(closedGivenUp)
		return true
	default:
		return false
	}
}
