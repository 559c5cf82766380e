package tcpio

import (
	"runtime"
	"sync/atomic"
	"time"
)

// The role of a loop is to poll and to dispatch what is ready. One goroutine has it at a time:
//
//	running   a goroutine polls or dispatches
//	handler   it is inside an actor's Receive; the watchdog may give the role to another goroutine
//	hook      it is inside one of the hooks that decide about a new connection; likewise
//	sleeping  it is blocked in the poller, with nothing else to do
//	over      the loop has ended
//	parked    nobody polls: a batch is with the consumer, who takes the role when it has read all of it
//
// Whoever moves the state from parked to running has the role. The word holds the state and a count that tells two
// visits of the same state apart.
type role uint64

const (
	running role = iota
	handler
	hook
	sleeping
	parked
	over
	roleBits = 3
	roleMask = 1<<roleBits - 1
)

const (
	batchSize = 256                    // events one poll takes
	tickEvery = 500 * time.Microsecond // of the watchdog, while the loop is not asleep
	yieldMark = 64                     // events between two yields to the scheduler, which thinks us stuck otherwise
)

// A loop serves the connections of one poller.
type loop struct {
	shard

	// Immutable.
	l      *Listener
	index  int
	done   chan struct{} // closed when the loop has ended
	err    error         // why it had to; read after done is closed
	stream *stream       // of this loop's connections, when Streams was called; guarded by Listener.mu where these have an actor

	// Atomic.
	watching atomic.Bool          // the watchdog is running
	helped   atomic.Uint32        // polls made by consumers
	holder   atomic.Pointer[Conn] // whose handler runs, while the state is handler

	// Owned by the role.
	events  []readyEvent
	batch   []*Conn // the connections of events, nil where there is none any more
	next, n int     // batch[next:n] is still to be dispatched
	visits  role    // counts the states entered
	polled  bool    // a consumer has just polled and found nothing
	slice   bool    // the consumer gets on, but has been at it for long: look once and park again
	asleep  bool    // the state is sleeping
	yield   int     // events since the last yield
	lull    uint64  // the demand when the loop parked
	accept  acceptState

	// The watchdog, which is one goroutine at a time; watching says who may reset it, and a sleep stops it.
	dog  *time.Timer
	seen atomic.Uint64 // the state at the last tick
}

func newLoop(l *Listener, index int) *loop {
	lp := &loop{
		shard:  shard{shared: &l.shared, wakeup: make(chan struct{}, 1)},
		l:      l,
		index:  index,
		done:   make(chan struct{}),
		events: make([]readyEvent, batchSize),
		batch:  make([]*Conn, batchSize),
	}
	lp.shard.help, lp.shard.blocks = lp.help, lp.willBlock
	lp.dog = time.AfterFunc(time.Hour, lp.bark)
	lp.dog.Stop()
	return lp
}

// drive does the loop's work until the loop has ended or the role was lost. The caller has the role, and perhaps the rest
// of a batch.
func (lp *loop) drive() {
	for lp.work() {
		if lp.ended() {
			lp.enter(over)
			close(lp.done)
			return
		}
		timeout := lp.rest()
		n, err := lp.p.wait(lp.events, timeout)
		if lp.asleep {
			lp.asleep = false
			lp.enter(running)
		}
		lp.tickClock()
		if err != nil {
			lp.err = err
			lp.l.abortAll()
			<-lp.l.gone // every connection is aborted; there is nothing left to poll with
		}
		lp.take(n)
	}
}

// rest says how long the next poll may wait. While a batch is with its consumer the loop does not poll but parks: polls
// made beside a working consumer find one event each, and each costs a wake-up.
func (lp *loop) rest() time.Duration {
	switch {
	case lp.kicked.Load() || lp.accept == acceptMore:
		return 0
	case lp.demand.outstanding() && (lp.n > 0 || lp.slice):
		lp.park()
		if !lp.polled {
			return 0
		}
	case lp.n > 0:
		return 0 // a look that cannot block comes before a wait that can
	}
	lp.slice = false
	lp.yield = 0
	runtime.Gosched() // who is ready to run comes first: a blocked wait would keep the processor for a while
	if lp.watching.Load() && lp.dog.Stop() {
		lp.watching.Store(false) // it would wake up only to find the loop asleep
	}
	lp.asleep = true
	lp.holder.Store(nil) // an idle loop keeps no connection alive
	lp.enter(sleeping)
	if lp.kicked.Load() {
		return 0
	}
	return lp.untilDue()
}

// untilDue is how long the loop may sleep; negative means for ever.
func (lp *loop) untilDue() time.Duration {
	first := lp.timers.first.Load()
	for _, limit := range [...]int64{lp.limits.first.Load(), lp.eofs.first.Load()} {
		if first == 0 || limit != 0 && limit < first {
			first = limit
		}
	}
	if first == 0 {
		return -1
	}
	return time.Duration(max(first-now(), 0))
}

// park leaves the polling to the consumer, see help. It returns with the role, when the consumer found nothing more to
// do, or there is work that only the loop's own goroutine does, or the consumer does not get on.
func (lp *loop) park() {
	lp.watch()
	lp.polled, lp.slice = false, false
	lp.lull = lp.demand.word.Load()
	w := lp.enter(parked)
	if (lp.kicked.Load() || !lp.demand.outstanding()) && lp.state.CompareAndSwap(w, w&^roleMask) {
		return
	}
	<-lp.wakeup
}

// help is called by a consumer that has read everything delivered. If the loop is parked, the consumer's goroutine
// polls in its place, once and without blocking, and delivers what it finds, which saves two switches of goroutines for
// every batch. It runs no handler and no hook of the user's, who is inside a TryRead.
func (lp *loop) help() {
	for {
		w := lp.state.Load()
		if role(w&roleMask) != parked || !lp.state.CompareAndSwap(w, w&^roleMask) {
			return
		}
		n, err := lp.p.wait(lp.events, 0)
		if err != nil {
			n = 0 // the loop's own goroutine meets it next
		}
		lp.tickClock()
		lp.take(n)
		lp.dispatch(false)
		lp.runTimers()
		if o := &lp.l.opts; o.Actor == nil && o.Admit == nil && o.AcceptRate == nil {
			lp.runAccept() // it calls no hook, so that the role stays here
		}
		if n == 0 || lp.accept == acceptMore || lp.kicked.Load() || !lp.demand.outstanding() {
			lp.polled = n == 0
			lp.wakeup <- struct{}{}
			return
		}
		lp.lull = lp.demand.word.Load()
		lp.enter(parked)
		if !lp.kicked.Load() && lp.demand.outstanding() {
			break
		}
	}
	if lp.helped.Add(1)%yieldMark == 0 {
		runtime.Gosched()
	}
}

// take prepares the dispatching of n events.
func (lp *loop) take(n int) {
	lp.next, lp.n = 0, n
	if n > 0 {
		lp.conns.resolve(lp.events[:n], lp.batch)
	}
}

// work dispatches the batch and then looks at everything else. It reports false when the role was lost on the way.
func (lp *loop) work() bool {
	if lp.n > 0 {
		lp.watch()
	}
	if !lp.dispatch(true) {
		return false
	}
	if lp.kicked.Load() && lp.kicked.Swap(false) {
		if err := lp.trouble.Swap(nil); err != nil {
			lp.l.failed(*err)
		}
		lp.watch() // a timer or a kick that came before the sleep makes work without an event
		if !lp.runQueue() {
			return false
		}
	}
	lp.runTimers()
	if !lp.runAccept() {
		return false
	}
	if lp.yield += lp.n; lp.yield >= yieldMark {
		lp.yield = 0
		runtime.Gosched()
	}
	return true
}

// dispatch hands the batch to its connections. Actors are run only by a goroutine of the loop's own.
func (lp *loop) dispatch(own bool) bool {
	for lp.next < lp.n {
		i := lp.next
		lp.next++
		c := lp.batch[i]
		if c == nil {
			if lp.events[i].token() == listenToken && lp.accept == acceptIdle {
				lp.accept = acceptMore // a pause is not ended by more peers
			}
			continue
		}
		lp.batch[i] = nil
		c.mu.Lock()
		turn := own && c.actor != nil && c.flags&(fRunning|fReleased) == 0
		if turn {
			c.flags |= fRunning
		}
		c.readyLocked(lp.events[i].bits())
		c.unlock()
		if turn && !lp.runActor(c) {
			return false
		}
	}
	return true
}

// runQueue gives every connection that is in the queue now its turn.
func (lp *loop) runQueue() bool {
	for range lp.queue.len() {
		c := lp.queue.pop()
		if c == nil {
			break
		}
		c.mu.Lock()
		if c.flags&fFlush != 0 {
			c.flags &^= fFlush
			c.flushLocked()
		}
		if c.flags&fClosing != 0 {
			c.advanceCloseLocked()
		}
		if c.flags&fStarved != 0 {
			c.flags &^= fStarved
			c.roomLocked()
		}
		turn := false
		if c.stream == nil && c.flags&fQueued != 0 {
			// A turn that is running, in a handler that lost its loop, looks again before it ends.
			turn = c.flags&fRunning == 0
			c.flags = c.flags&^fQueued | fRunning
		}
		c.unlock()
		if turn && !lp.runActor(c) {
			return false
		}
	}
	return true
}

// timerBudget is how many timers one turn fires before others have theirs: many may be due at once.
const timerBudget = 256

// runTimers fires what is due.
func (lp *loop) runTimers() {
	lp.runLimits()
	for range timerBudget {
		tm := lp.timers.due()
		if tm == nil {
			return
		}
		switch tm.kind {
		case timerAccept:
			lp.l.retryAccept()
			continue
		case timerWake:
			continue
		}
		tm.c.mu.Lock()
		tm.c.expireLocked(tm)
		tm.c.unlock()
	}
	lp.kick() // there may be more
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
	lp.dog.Reset(tickEvery)
}

// bark is the watchdog. It ends a park in which the consumer does not get on, and a handler's hold on the loop, when it
// sees the same visit of that state for a second time.
func (lp *loop) bark() {
	lp.tickClock()
	w := lp.state.Load()
	again := lp.seen.Swap(w) == w
	switch role(w & roleMask) {
	case over:
		return
	case sleeping:
		lp.watching.Store(false)
		if role(lp.state.Load()&roleMask) == sleeping || !lp.watching.CompareAndSwap(false, true) {
			return
		}
	case parked:
		if again && lp.state.CompareAndSwap(w, w&^roleMask) {
			lp.slice = lp.demand.word.Load() != lp.lull
			if !lp.slice {
				lp.demand.writeOff()
			}
			lp.wakeup <- struct{}{}
		}
	case handler, hook:
		if again {
			lp.takeOver(w, false)
		}
	}
	lp.dog.Reset(tickEvery)
}

// demand counts the Readables that were delivered to channels and not yet answered by a read. The upper half of the word
// is the batch that the lower half counts: Readables of batches written off are not missed.
type demand struct{ word atomic.Uint64 }

func (d *demand) add() (stamp uint32) { return uint32(d.word.Add(1) >> 32) }

// done reports whether it was the last one outstanding.
func (d *demand) done(stamp uint32) bool {
	for {
		w := d.word.Load()
		if uint32(w>>32) != stamp || uint32(w) == 0 {
			return false
		}
		if d.word.CompareAndSwap(w, w-1) {
			return uint32(w) == 1
		}
	}
}

func (d *demand) outstanding() bool { return uint32(d.word.Load()) > 0 }

// writeOff stops waiting for what is outstanding: its consumer holds on to it.
func (d *demand) writeOff() {
	for {
		w := d.word.Load()
		if d.word.CompareAndSwap(w, (w>>32+1)<<32) {
			return
		}
	}
}
