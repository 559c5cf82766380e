package tcpio

import (
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// What follows from a change is decided in this file. Code below it changes its own part of a
// connection and adds to todo what has changed.

// settleLocked acts on todo until nothing is left that must be done under mu. unlock calls it.
func (c *Conn) settleLocked() {
	for c.todo.has(todoSettle) {
		do := c.todo
		c.todo.drop(todoSettle)
		if do.has(todoProgress) {
			c.roomLocked()
		}
		if do.has(todoSendErr) {
			c.sendFailedLocked()
		}
		if do.has(todoReadErr) {
			c.readFailedLocked()
		}
		if do.has(todoIdle) {
			c.idleLocked()
		}
		if do.has(todoProgress) {
			c.lastBytesLocked()
		}
	}
}

// sendFailedLocked acts on an error of writing. It announces input, which may have arrived before
// the error. If nothing will be read any more it releases the connection, since no edge follows.
func (c *Conn) sendFailedLocked() {
	if c.ended() || c.returnedEOF() || c.relayStuckLocked() {
		c.releaseLocked(c.ext.sendErr)
	} else if !c.atEOF() {
		c.announceReadableLocked()
		c.awaitReaderLocked()
	}
}

// readFailedLocked ends a connection that cannot be read from. With TLS it closes in order, so that
// the peer gets the alert.
func (c *Conn) readFailedLocked() {
	if c.tls() != nil {
		c.closeLocked(c.ext.readErr)
	} else {
		c.releaseLocked(c.ext.readErr)
	}
}

// idleLocked closes a connection whose actor has handled Draining, and begins EOFTimeout for one
// whose user has received io.EOF, unless its actor or a callback is at work.
func (c *Conn) idleLocked() {
	busy := c.inActor() || c.callWaitsLocked()
	if c.phase == phaseDrained && !busy && c.stream == nil && c.sh.opts.DrainTimeout == 0 {
		c.closeLocked(nil)
	}
	c.awaitUserLocked()
	if c.sock.has(sockFailed) {
		c.armLimitLocked() // it has a route now
	}
}

// lastBytesLocked goes on with Close or CloseWrite, as far as queued output lets it. Both wait for
// a large TryWrite that has given up mu.
func (c *Conn) lastBytesLocked() {
	switch {
	case c.writing == writeBulk:
	case c.phase == phaseClosing:
		c.advanceCloseLocked()
	case !c.ended() && c.sendEnd == sendShut:
		c.sendCloseNotifyLocked()
		c.sendFinLocked()
	}
	if c.phase == phaseClosing && c.extLocked().timer == nil {
		c.ext.timer = &timer{kind: timerClose, c: c}
		c.ext.closeBy = now() + int64(c.sh.opts.CloseTimeout)
		c.armCloseLocked()
	}
}

// closeDueLocked ends a closing connection when CloseTimeout is over, and in Shutdown when its peer
// has been silent since the last look and nothing can be lost. The peer's kernel has acknowledged
// our FIN, so it has everything, and ours has no input that it would answer with a reset. What the
// peer may still send would only be thrown away. It is answered with a reset then, which takes away
// nothing that was acknowledged before: a receiver on Linux reads to the end of stream all the
// same, and RFC 9112, 9.6, asks a server to wait for no more. Close outside of Shutdown discards
// on, since a descriptor for some seconds costs less than a peer that is reset in the middle of its
// request.
func (c *Conn) closeDueLocked() {
	switch {
	case c.released():
	case now() >= c.ext.closeBy:
		c.closeTimedOutLocked()
	case c.out == nil && c.finSent() && !c.ext.heard && sys.Unread(c.fd) == 0 &&
		(!c.peer.IsIP || sys.Delivered(c.fd)): // of a unix socket everything is with the peer at once
		c.releaseLocked(nil)
	default:
		c.armCloseLocked()
	}
}

// dropRest drops the timers and groups that dropSomeLocked has left.
func (c *Conn) dropRest() {
	for all := false; !all; {
		c.mu.Lock()
		all = c.dropSomeLocked()
		c.unlock()
	}
}

// readyLocked takes in what epoll said.
func (c *Conn) readyLocked(bits uint32) {
	if c.released() {
		return
	}
	if !c.opened() && !c.isEarly() && (!c.isUnheard() || c.hasSpokenLocked(bits)) {
		c.emitLocked(pendOpened)
	}
	if bits&(pollHup|pollErr|pollRdHup|pollPri) != 0 {
		c.sock.add(sockUnsure)
	}
	if !c.opened() && c.ext != nil && c.ext.connecting {
		c.ext.edges |= uint16(bits)
		if c.ext.dial != nil {
			c.ext.dial.poke()
		}
		return
	}
	if bits&(pollHup|pollErr) != 0 {
		c.endContextLocked() // nobody may be reading who would meet the reset
	}
	c.noteEdgeLocked(bits)
	if bits&(pollOut|pollErr|pollHup) != 0 {
		if c.ext != nil {
			c.ext.waits.openSend()
		}
		if c.sock.has(sockWaiting) && c.relayed() {
			c.todo.add(todoProgress)
		}
		c.flushLocked()
		c.settleLocked() // what follows from that comes before the input
	}
	switch {
	case c.ended():
		c.todo.add(todoProgress)
	case c.handshaking() && c.ext.preface != nil:
		c.prefaceReadyLocked(bits)
	case c.handshaking():
		c.handshakeReadyLocked(bits)
	case bits&(pollIn|pollHup|pollErr|pollRdHup|pollPri) == 0:
	case !c.atEOF():
		if bits&pollErr != 0 && c.relayed() {
			c.relayErrorLocked()
		}
		c.announceReadableLocked()
		// Without a hang-up it may be the error queue of recvmsg(2).
		if bits&pollErr != 0 && bits&pollHup != 0 {
			c.awaitReaderLocked()
		}
	case bits&pollErr != 0:
		// Nothing will be read any more that could show the reset, so it is acted on here.
		if err := c.socketErrorLocked(); err != nil {
			c.releaseLocked(err)
		}
	}
}

// relayErrorLocked acts on an error that epoll has reported. Behind unread input a read finds it
// when the other connection has taken that. If it takes nothing the error comes first.
func (c *Conn) relayErrorLocked() {
	s := c.side()
	s.failed = true
	if c.released() || !s.full() {
		return
	}
	if err := c.sendErrLocked(); err != nil {
		c.releaseLocked(err)
	} else if err := c.socketErrorLocked(); err != nil {
		c.releaseLocked(err)
	} else {
		s.failed = false
	}
}

// hasSpokenLocked says whether the peer has sent anything, which is what an unheard connection
// waits for. With TLS an edge may be of bytes that the handshake has read since, or of a record
// without data.
func (c *Conn) hasSpokenLocked(bits uint32) bool {
	if bits&(pollIn|pollHup|pollErr|pollRdHup) == 0 {
		return false
	}
	if c.tls() == nil {
		return true
	}
	ready, _ := c.peekLocked()
	return ready
}

// expireLocked is called by the loop when the connection's timer is due.
func (c *Conn) expireLocked(tm *timer) {
	switch tm.kind {
	case timerPreface:
		c.prefaceTimedOutLocked()
	case timerHandshake:
		c.handshakeTimedOutLocked()
	case timerReadable:
		if !c.ended() && !c.returnedEOF() {
			c.moreLocked()
		}
	case timerMessage:
		c.timedLocked(tm)
	case timerRelay:
		c.side().relay.idle.due.Store(true)
		c.wantLocked(wantRelay)
	case timerClose:
		c.closeDueLocked()
	}
}

// closeTimedOutLocked ends a connection whose time to close is over.
func (c *Conn) closeTimedOutLocked() {
	if c.released() {
		return
	}
	c.sh.count.timeouts[TimeoutClose].Add(1)
	if c.out != nil {
		if c.ext != nil && c.ext.err == ErrDrainTimeout {
			c.ext.err = nil // that output was left says more
		}
		c.abortLocked(ErrCloseTimeout)
		return
	}
	c.releaseLocked(nil)
}

// cutShort ends a connection now, since Shutdown's ctx has ended.
func (c *Conn) cutShort() {
	c.mu.Lock()
	defer c.unlock()
	if open := !c.ended(); open && c.out == nil {
		c.endDrainLocked()
		c.releaseLocked(nil)
		return
	}
	c.closeTimedOutLocked()
}

// readMoment is how long bytes that have just arrived may take to become the end of a frame.
const readMoment = 10 * time.Millisecond

// limitDueLocked is called when one of the connection's limits could be reached.
func (c *Conn) limitDueLocked() {
	if c.ended() {
		return
	}
	kind, limit, wait := c.nextLimitLocked(c.sh.coarse())
	if limit != 0 && wait <= 0 && kind != TimeoutWriteStall {
		if c.arrivedLocked() {
			c.heardLocked()
			// They may complete it: the loop announces them first. A peer that always has some on
			// their way gains that once.
			if f := c.frameLocked(); kind == TimeoutFrame && !f.late {
				f.late = true
				c.limitsLocked().Add(limited{c}, now()+int64(readMoment))
				return
			}
		}
		kind, limit, wait = c.nextLimitLocked(c.sh.coarse())
	}
	switch {
	case c.ended(): // by what TLS had to answer
	case limit == 0:
	case wait > 0:
		c.armLimitLocked()
	case kind == timeoutEOF:
		c.endWaitLocked()
	default:
		c.sh.count.timeouts[kind].Add(1)
		err := &TimeoutError{kind, limit}
		if kind == TimeoutWriteStall {
			c.abortLocked(err) // there is no point in waiting for what does not move
		} else {
			c.closeLocked(err)
		}
	}
}

// arrivedLocked reports whether bytes have arrived that the loop has not come to yet: it, or the
// whole process, was held up, and the limit is looked at before them. Those of TLS must be
// decrypted before anybody can tell.
func (c *Conn) arrivedLocked() bool {
	switch {
	case c.tls() != nil:
		return c.plainTextWaitsLocked()
	case c.announced() || c.atEOF():
		return false // the loop has seen them
	}
	return sys.Unread(c.fd) > 0
}

// endWaitLocked closes a connection whose user has had the time to close it.
func (c *Conn) endWaitLocked() {
	c.sh.count.timeouts[timeoutEOF].Add(1)
	c.closeLocked(nil)
}

// tellRelayEndLocked sends RelayEnded to the route of the relay's first connection, once.
func (c *Conn) tellRelayEndLocked() {
	s := c.side()
	if r := s.relay; s == &r.sides[0] && !s.told && r.joined() {
		s.told = true
		c.emitLocked(pendRelayEnded)
	}
}

// finish closes the descriptor: out of the table and out of epoll first, so that no event of this
// connection is delivered to a later one of the same number, and a duplicate held elsewhere keeps
// nothing alive in epoll.
func (c *Conn) finish(fd int32, given, reset bool) {
	c.sh.conns.Remove(c.key)
	_ = c.sh.p.remove(int(fd))
	if given {
		sys.CloseFD(fd)
	} else {
		sys.Close(fd, reset)
	}
	c.mu.Lock()
	c.enterLocked(phaseGone)
	if c.relayed() {
		c.tellRelayEndLocked()
	}
	c.emitLocked(pendClosed)
	if c.ext != nil {
		c.ext.waits.openGone()
	}
	c.unlock()
	c.sh.unadmit(c)
	if c.origin != refused && (c.ext == nil || !c.ext.connecting) {
		c.sh.count.closed.Add(1)
	}
	c.sh.onClosed(c)
}
