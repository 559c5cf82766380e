package tcpio

import "io"

// actorBudget is how many events one turn of an actor handles before others have theirs.
const actorBudget = 16

// runActor runs a turn of c's actor. The caller has set routeRunning, which nobody else clears, and
// has the role. It returns false if the role was lost in a handler that blocked; the turn then ends
// with that handler.
func (lp *loop) runActor(c *Conn) (kept bool) {
	kept = true
	for budget := actorBudget; ; budget-- {
		c.mu.Lock()
		var ev Event
		if budget > 0 && kept && c.stream == nil {
			ev = c.nextLocked()
		}
		if ev == nil {
			c.endTurnLocked()
			c.unlock()
			if !kept {
				lp.endBlocked()
			}
			return kept
		}
		actor := c.actor
		if _, last := ev.(Draining); last && c.phase == phaseDraining {
			c.enterLocked(phaseDrained)
		}
		c.unlock()
		if actor != nil {
			kept = lp.receive(c, actor, ev)
		}
		if lastOf(ev) {
			lp.closedOwed.Add(-1)
		}
	}
}

// lastOf reports whether no event of its connection follows ev. A dial that failed has that one
// event.
func lastOf(ev Event) bool {
	switch ev := ev.(type) {
	case Closed:
		return true
	case Dialed:
		return ev.Conn == nil && ev.To == nil
	}
	return false
}

// receive calls the actor and deals with how it ends. It reports whether the caller still has the
// role.
func (lp *loop) receive(c *Conn, actor Actor, ev Event) (kept bool) {
	lp.handlerConn.Store(c)
	w := lp.enter(handler)
	var err error
	ok := guard("Receive", func() { err = actor.Receive(ev) }, func(p *PanicError, exiting bool) {
		kept = lp.state.CompareAndSwap(w, w&^roleMask)
		c.actorPanicked(ev, p)
		if exiting {
			lp.abandon(c, ev, kept)
		}
	})
	if ok {
		kept = lp.state.CompareAndSwap(w, w&^roleMask)
		if err != nil {
			c.actorFailed(ev, err)
		}
	}
	return kept
}

// abandon is called on a goroutine that is exiting inside a handler. It ends the turn, and another
// goroutine goes on with the loop.
func (lp *loop) abandon(c *Conn, ev Event, kept bool) {
	if lastOf(ev) {
		lp.closedOwed.Add(-1)
	}
	c.mu.Lock()
	c.endTurnLocked()
	c.unlock()
	if kept {
		lp.kicked.Store(true) // resume begins without sleeping in epoll, as after takeOver
		go lp.resume()
	} else {
		lp.endBlocked()
	}
}

// endBlocked ends what takeOver began: a goroutine that has lost its loop is out of user code.
func (lp *loop) endBlocked() {
	lp.l.blocked.Add(-1)
	lp.kick() // it may be the last one that the end waits for
}

// actorFailed ends a connection whose actor returned err.
func (c *Conn) actorFailed(ev Event, err error) {
	if err == io.EOF { // not errors.Is: an error of the user's has methods of the user's
		err = nil
	} else {
		c.handlerFailed(err, false)
	}
	if _, last := ev.(Closed); last {
		return
	}
	c.mu.Lock()
	c.closeLocked(err)
	c.unlock()
}

// actorPanicked ends a connection whose actor panicked, or is exiting.
func (c *Conn) actorPanicked(ev Event, p *PanicError) {
	_, last := ev.(Closed)
	c.mu.Lock()
	said := p.Value == errGoexit && c.ext != nil && exitedCallback(c.ext.err)
	c.unlock()
	if !said {
		c.logPanic(p)
	}
	if !last {
		c.mu.Lock()
		c.abortLocked(p)
		c.unlock()
	}
}

// willBlock is called before a blocking call on c, or of a Dial, which has no connection yet. If
// c's own handler holds the loop, for a Dial any handler or consumer, another goroutine takes it
// over at once, before the watchdog sees it.
func (lp *loop) willBlock(c *Conn) {
	w := lp.state.Load()
	switch role(w & roleMask) {
	case handler:
		if c == nil || lp.handlerConn.Load() == c && lp.state.Load() == w {
			lp.takeOver(w, true)
		}
	case parked:
		if c == nil {
			lp.kick()
		}
	}
}

// takeOver gives the role to a new goroutine, which goes on with the rest of the batch. The owner
// of the role is in user code, in the state w. At MaxBlocked the loop waits for its handler
// instead, unless the handler waits for the loop (must) or the listener is over. A hook does not
// count, since there is one at a time.
func (lp *loop) takeOver(w uint64, must bool) {
	counts := role(w&roleMask) == handler
	if counts && !lp.l.mayBlock(must) {
		return
	}
	if !lp.state.CompareAndSwap(w, w&^roleMask) {
		if counts {
			lp.l.blocked.Add(-1) // the handler has just returned
		}
		return
	}
	lp.kicked.Store(true) // the handler's turn may have come from the queue: the others in it wait
	go lp.resume()
}

// mayBlock counts one more handler that blocks, unless takeOver has to leave it the loop. Stats
// shows the count, so that one that is over the bound must not be in it for a moment either.
func (l *Listener) mayBlock(must bool) bool {
	for {
		n := l.blocked.Load()
		if n >= int64(l.opts.MaxBlocked) && !must && !l.timeIsUp() {
			return false
		}
		if l.blocked.CompareAndSwap(n, n+1) {
			return true
		}
	}
}
