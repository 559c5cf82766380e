package tcpio

import (
	"runtime"
	"time"
)

// begin readies the loop, which polls p, for drive.
func (lp *loop) begin(p poller) {
	lp.p = p
	lp.shard.pollForLoop, lp.shard.willBlock, lp.resume = lp.pollForLoop, lp.willBlock, lp.drive
	lp.watchdog = time.AfterFunc(time.Hour, lp.tickWatchdog)
	lp.watchdog.Stop()
}

// drive polls and dispatches until the loop has ended or another goroutine took over the role. The
// caller has the role, and perhaps the rest of a batch.
func (lp *loop) drive() {
	for lp.runReady() {
		if lp.ended() {
			lp.enter(over)
			close(lp.done)
			return
		}
		timeout := lp.pollTimeout()
		n, err := lp.p.wait(lp.events, timeout)
		if lp.asleep {
			lp.asleep = false
			lp.enter(running)
		}
		lp.tickClock()
		if err != nil {
			lp.err = err
			lp.l.abortAll()
			<-lp.l.allClosed // every connection is aborted; there is nothing left to poll with
		}
		lp.startBatch(n)
	}
}

// pollForLoop is called by a consumer that has answered every event delivered. If the loop is
// parked, the consumer's goroutine polls in its place, once and without blocking, and delivers what
// it finds, which saves two switches of goroutines for every batch. A poll that finds nothing hands
// the role to the loop's own goroutine, which sleeps in the poller; but with more, which says that
// the consumer's channel still holds something, the consumer is about to come again: beside a
// consumer that a single busy peer keeps busy, that goroutine might wait for a processor, and
// nobody would poll. pollForLoop never calls user code: its caller is already inside TryRead.
func (lp *loop) pollForLoop(more bool) {
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
		lp.startBatch(n)
		lp.dispatch(false)
		lp.runTimers()
		if o := &lp.l.opts; o.NewActor == nil && o.Admit == nil && o.AcceptRate == nil {
			lp.runAccept() // it calls no hook, so that the role stays here
		}
		if n == 0 && !more || lp.accept == acceptMore || lp.kicked.Load() || !lp.demand.Outstanding() {
			lp.emptyPoll = n == 0
			lp.wakeup <- struct{}{}
			return
		}
		lp.parkedAt = lp.demand.Word()
		lp.enter(parked)
		if !lp.kicked.Load() && lp.demand.Outstanding() {
			break
		}
	}
	if lp.helped.Add(1)%yieldMark == 0 {
		runtime.Gosched()
	}
}

// runReady dispatches the batch and then runs the queue, the timers and the accepting. It returns
// false if another goroutine took over the loop meanwhile; the caller must then return without
// touching it.
func (lp *loop) runReady() bool {
	if lp.n > 0 {
		lp.watch()
	}
	if !lp.dispatch(true) {
		return false
	}
	if lp.kicked.Load() && lp.kicked.Swap(false) {
		lp.deliverReports()
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

// deliverReports passes on what was reported.
func (lp *loop) deliverReports() {
	for whose := range troubles {
		if err := lp.trouble[whose].Swap(nil); err != nil {
			lp.l.deliverFailed(whose, *err)
		}
	}
}

// startBatch finds the connections of the n events that a poll has returned.
func (lp *loop) startBatch(n int) {
	lp.next, lp.n = 0, n
	if n == 0 {
		return
	}
	lp.conns.Lock()
	for i := range n {
		lp.batch[i] = lp.conns.Find(lp.events[i].key())
	}
	lp.conns.Unlock()
}

// dispatch hands the rest of the batch to its connections. Actors run only if own says that this is
// one of the loop's goroutines. It returns false as runReady does.
func (lp *loop) dispatch(own bool) bool {
	for lp.next < lp.n {
		i := lp.next
		lp.next++
		c := lp.batch[i]
		if c == nil {
			if lp.events[i].key() == listenKey && lp.accept == acceptIdle {
				lp.accept = acceptMore // a pause is not ended by more peers
			}
			continue
		}
		lp.batch[i] = nil
		c.mu.Lock()
		turn := own && c.actor != nil && !c.inActor() && !c.released() && !c.relayed()
		if turn {
			c.route.add(routeRunning)
		}
		direct := own && c.relayed() && c.wants.empty()
		if direct {
			c.wants.add(wantRelay) // not by way of the queue
		}
		c.readyLocked(lp.events[i].bits())
		if direct {
			side, todo := c.relayTurnLocked()
			if c.wants.drop(wantRelay); !c.wants.empty() {
				lp.schedule(c)
			}
			c.unlock()
			side.run(todo)
			continue
		}
		c.unlock()
		if turn && !lp.runActor(c) {
			return false
		}
	}
	return true
}

// runQueue gives a turn to every connection that is in the queue now. It returns false as runReady
// does.
func (lp *loop) runQueue() bool {
	for range lp.queue.Len() {
		c, ok := lp.queue.Pop()
		if !ok {
			break
		}
		c.mu.Lock()
		wants := c.wants
		c.wants = set[want]{}
		// A turn that is running, in a handler that lost its loop, looks again before it ends.
		turn := wants.has(wantTurn) && c.stream == nil && !c.inActor()
		if turn {
			c.route.add(routeRunning)
		}
		if wants.has(wantFlush) {
			c.flushLocked()
		}
		var side *relaySide
		var todo relayTodo
		if wants.has(wantRelay) && c.relayed() {
			side, todo = c.relayTurnLocked()
		}
		if wants.has(wantDiscard) {
			c.todo.add(todoProgress)
		}
		if c.user.has(userStarved) {
			c.user.drop(userStarved)
			c.todo.add(todoProgress)
		}
		c.unlock()
		if side != nil {
			side.run(todo)
		}
		if turn && !lp.runActor(c) || wants.has(wantPreface) && !lp.runPreface(c) {
			return false
		}
	}
	return true
}

// timerBudget is how many timers one turn fires before others have theirs: many may be due at once.
const timerBudget = 256

// runTimers fires what is due.
func (lp *loop) runTimers() {
	t := now()
	lp.runLimits(t)
	for range timerBudget {
		tm, ok := lp.timers.Due(t)
		if !ok {
			return
		}
		switch tm.kind {
		case timerAccept:
			lp.l.retryAccept()
			continue
		case timerWake:
			continue
		case timerDial:
			tm.value.(dialler).step()
			continue
		}
		tm.c.mu.Lock()
		tm.c.expireLocked(tm)
		tm.c.unlock()
	}
	lp.kick() // there may be more
}

// runLimits ends the connections whose limit is reached at time t.
func (lp *loop) runLimits(t int64) {
	for range limitBudget {
		due, ok := lp.limits.Due(t)
		if !ok {
			if due, ok = lp.eofs.Due(t); !ok {
				return
			}
		}
		due.c.mu.Lock()
		due.c.limitDueLocked()
		due.c.unlock()
	}
	lp.kick() // there may be more
}

// tickWatchdog is the watchdog's tick. When it sees the same visit of a state for the second time,
// it ends a park, and takes the role from a handler or a hook.
func (lp *loop) tickWatchdog() {
	lp.tickClock()
	w := lp.state.Load()
	again := lp.lastTick.Swap(w) == w
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
			lp.lookOnce = lp.demand.Word() != lp.parkedAt
			if !lp.lookOnce {
				lp.demand.WriteOff()
			}
			lp.wakeup <- struct{}{}
		}
	case handler, hook:
		if again {
			lp.takeOver(w, false)
		}
	}
	lp.watchdog.Reset(tickEvery)
}
