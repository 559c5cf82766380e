package tcpio

import "errors"

// Attach gives the connection to a. Called while Opened is handled it takes everything after that;
// called later, from any goroutine, also from an actor's own Receive to change the protocol, the
// switch falls between two events: none is lost, doubled or reordered. Opened is not repeated; a
// Readable still unread is announced again to a. Events already in a channel come out there. A
// channel from Conn.Events is closed behind those.
//
// A nil a is an error, and so is a connection whose Closed has been delivered, or can only come on
// its channel because Serve has no loop left to run a (net.ErrClosed): that one stays where it is.
func (c *Conn) Attach(a Actor) error {
	if a == nil {
		return errors.New("tcpio: Conn.Attach: the actor is nil")
	}
	c.mu.Lock()
	defer c.unlock()
	if c.closedDeliveredLocked() || c.stream != nil && c.pending.has(pendClosed) && !c.sh.oweClosed() {
		return c.endedLocked("attach")
	}
	c.moveLocked(nil, a)
	return nil
}

// claimBuffer is the capacity of a claimed channel: the events of one connection but for messages
// are never more.
const claimBuffer = 8

// Events claims the connection for the goroutine that receives from the returned channel: from now
// on its events come there, in order, and the channel is closed behind Closed. Serve still owns the
// socket. Called while Opened is handled it takes everything after that; called later the switch is
// as described at Attach. While nobody receives, only this connection pauses. Called again it
// returns the same channel, and after Closed was delivered elsewhere a closed one.
func (c *Conn) Events() <-chan Event {
	c.mu.Lock()
	defer c.unlock()
	if c.stream != nil && c.stream.private {
		return c.stream.ch
	}
	s := newStream(c.sh.shared, claimBuffer, true)
	if c.closedDeliveredLocked() {
		close(s.ch)
		return s.ch
	}
	c.moveLocked(s, nil)
	return s.ch
}

// closedDeliveredLocked reports whether Closed has left the connection.
func (c *Conn) closedDeliveredLocked() bool {
	return c.phase == phaseGone && !c.pending.has(pendClosed)
}

// moveLocked changes the route to s, or to a if s is nil. What is undelivered goes along.
func (c *Conn) moveLocked(s *stream, a Actor) {
	unread := c.announced()
	c.withdrawReadableLocked()
	if old := c.stream; old != nil {
		c.route.drop(routeQueued) // the old stream's feeder passes over it
		old.leave()
	} else if s != nil {
		c.wants.drop(wantTurn)
	}
	if c.pending.has(pendClosed) && c.stream == nil && s != nil {
		c.sh.closedOwed.Add(-1) // the other way round Attach has counted it
		c.sh.kick()             // it may be the last one that the end waits for
	}
	c.stream, c.actor, c.sentAt = s, a, 0
	plain := !c.isClaimed()
	if c.ext != nil {
		c.ext.late = 0
	}
	c.claim = claimed
	if plain && !c.isEarly() && !c.pending.has(pendOpened) {
		c.emitLocked(pendOpened) // it was handed out as a net.Conn
	}
	if c.pending.has(^pendReadable) || c.mailReady() > 0 {
		c.queueLocked()
	}
	if unread {
		c.announceReadableLocked()
	}
	// A Writable that was owed before there was a route, or EOFTimeout, comes now.
	c.todo.add(todoProgress | todoIdle)
}

// endTurnLocked ends a turn.
func (c *Conn) endTurnLocked() {
	c.route.drop(routeRunning)
	c.todo.add(todoIdle)
	if c.stream == nil && (!c.pending.empty() || c.mailReady() > 0) {
		c.queueLocked()
	}
}

// isDialing is dialing for who does not hold mu.
func (c *Conn) isDialing() bool {
	if c.origin != dialed {
		return false
	}
	c.mu.Lock()
	defer c.unlock()
	return c.dialing()
}
