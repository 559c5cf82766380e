package tcpio

import (
	"cmp"
	"errors"
	"io"
	"net"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/sys"
)

// discardBudget is how many bytes of unwanted input one turn of a closing connection reads before
// others have theirs.
const discardBudget = 256 << 10

// Close ends the connection in order and returns at once, with nil, also when called again: what is
// queued is flushed, then a FIN is sent, then input is discarded until the peer's end, so that
// unread input does not turn the peer's last bytes into a reset (RFC 1122, 4.2.2.13). All of that
// together is limited by [ListenerOptions.CloseTimeout], after which the connection is cut off and,
// if output was left, Err is [ErrCloseTimeout].
//
// From the call on, reads, writes and posts fail with net.ErrClosed; what was posted before is
// delivered before Closed. Closed is always a later event: Close called from a handler does not
// re-enter it.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closeLocked(nil)
	c.unlock()
	return nil
}

// Abort cuts the connection off: what is queued is dropped, the peer sees a reset, Err is
// net.ErrClosed unless something else ended the connection before. It does not block and may be
// called again, or after Close to end the flushing.
func (c *Conn) Abort() error {
	c.mu.Lock()
	c.abortLocked(net.ErrClosed)
	c.unlock()
	return nil
}

// CloseWrite sends a FIN behind everything queued and leaves reading as it is (shutdown(2) with
// SHUT_WR). It does not block. Later writes fail with an error that matches syscall.EPIPE; called
// again it does nothing and returns nil. After Close it fails with net.ErrClosed.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	defer c.unlock()
	if c.ended() {
		return c.endedLocked("close")
	}
	if c.relayed() {
		return c.relayedLocked("close")
	}
	if c.handshaking() {
		return c.opErrorLocked("close", errors.New("the TLS handshake, or Preface, is not done"))
	}
	reach(&c.sendEnd, sendShut)
	c.todo.add(todoProgress)
	return nil
}

// closeLocked begins the orderly end; cause, if not nil, is what Err will say.
func (c *Conn) closeLocked(cause error) {
	if c.ended() {
		return
	}
	if c.relayed() && !c.side().relay.inOrder() {
		if cause == nil {
			cause = c.causeLocked()
		}
		c.abortLocked(cmp.Or(cause, net.ErrClosed)) // the peer has not received all that the other sent
		return
	}
	c.enterLocked(phaseClosing)
	if cause == nil {
		cause = c.causeLocked()
	}
	if cause != nil {
		c.extLocked().err = cause
	}
	c.withdrawReadableLocked()
	c.user.drop(userWantsRoom)
	c.pending.drop(pendWritable)
	c.dropResourcesLocked()
	c.todo.add(todoProgress)
}

// advanceCloseLocked goes as far towards the end as it can without blocking.
func (c *Conn) advanceCloseLocked() {
	c.sendCloseNotifyLocked()
	if c.out != nil {
		return // the next edge of writability flushes and comes back here
	}
	if err := c.sendErrLocked(); err != nil {
		c.releaseLocked(err)
		return
	}
	if c.sock.has(sockFinSeen) {
		c.releaseLocked(nil) // the peer has nothing more to say: close sends the FIN
		return
	}
	c.sendFinLocked()
	c.discardInputLocked()
}

// sendFinLocked sends our FIN as soon as the queue is empty.
func (c *Conn) sendFinLocked() {
	if c.released() || c.finSent() || c.out != nil {
		return
	}
	reach(&c.sendEnd, sendFin)
	_ = sys.ShutdownWrite(c.fd) // ENOTCONN after a reset: the read that follows says so
}

// silentEnd is how long Shutdown waits for a peer that has acknowledged everything and says
// nothing.
const silentEnd = 250 * time.Millisecond

// armCloseLocked has the loop look at a closing connection when CloseTimeout is over, and in
// Shutdown every silentEnd.
func (c *Conn) armCloseLocked() {
	left := time.Duration(c.ext.closeBy - now())
	if c.sh.hurried.Load() {
		left = min(left, silentEnd)
	}
	c.ext.heard = false
	c.sh.addTimer(c.ext.timer, left)
}

// tellShutdown tells the connection's handler of the Shutdown. A close that is under way need not
// wait for a silent peer any more.
func (c *Conn) tellShutdown() {
	c.mu.Lock()
	if c.phase == phaseClosing && c.ext != nil && c.ext.timer != nil {
		c.sh.timers.Remove(c.ext.timer)
		c.armCloseLocked()
	}
	c.announceDrainingLocked()
	c.unlock()
}

// endDrainLocked closes a connection whose handler has had the time for that.
func (c *Conn) endDrainLocked() {
	if c.ended() {
		return
	}
	_, over := c.peekLocked() // it may meet an error, which is the cause then
	var cause error
	if !over && !c.returnedEOF() && c.causeLocked() == nil {
		c.sh.count.timeouts[TimeoutDrain].Add(1)
		cause = ErrDrainTimeout
	}
	c.closeLocked(cause)
}

// announceDrainingLocked emits Draining, once. A connection whose Opened cannot be sent yet is
// closed at once: its owner does not know of it.
func (c *Conn) announceDrainingLocked() {
	switch {
	case c.phase != phaseOpen:
	case c.isEarly() || !c.opened() && c.isUnheard():
		c.closeLocked(nil) // nobody has heard of it yet
	default:
		c.enterLocked(phaseDraining)
		if !c.announced() && !c.atEOF() && c.isClaimed() && !c.handshaking() && sys.Unread(c.fd) > 0 {
			c.announceReadableLocked() // it came first, though the loop has not come to it yet
		}
		c.emitLocked(pendDraining)
	}
}

// discardInputLocked throws input away until there is none for the moment, or no more for ever.
func (c *Conn) discardInputLocked() {
	scratch := c.sh.pool.Get(buf.Large)
	defer c.sh.pool.Put(scratch)
	for read := 0; read < discardBudget; {
		n, err := c.recvLocked(scratch.Buf)
		if read += n; n > 0 {
			c.extLocked().heard = true
		}
		switch {
		case err == io.EOF:
			c.releaseLocked(nil)
			return
		case err == ErrWouldBlock:
			return // the next edge comes back here
		case err != nil:
			c.releaseLocked(err)
			return
		}
	}
	c.wantLocked(wantDiscard) // more of it, but others first
}

// abortLocked releases with a reset.
func (c *Conn) abortLocked(cause error) {
	if c.released() {
		return
	}
	c.sock.add(sockReset)
	c.releaseLocked(cause)
}

// releaseLocked ends the connection here and now; unlock closes the descriptor. The first cause is
// the one that stays.
func (c *Conn) releaseLocked(cause error) {
	if c.released() {
		return
	}
	c.enterLocked(phaseReleased)
	c.todo.add(todoClose)
	if cause != nil && (c.ext == nil || c.ext.err == nil) {
		c.extLocked().err = cause
	}
	if c.entry().anyAddr || c.origin != accepted {
		c.extLocked().local = c.localLocked()
	}
	c.dropOutLocked()
	c.withdrawReadableLocked()
	c.user.drop(userWantsRoom)
	c.pending.drop(pendWritable)
	if c.ext != nil {
		if c.ext.timer != nil {
			c.sh.timers.Remove(c.ext.timer)
			c.ext.timer = nil
		}
	}
	c.dropResourcesLocked()
	if c.relayed() {
		c.leaveRelayLocked()
	}
}

// dropResourcesLocked lets go of what only an open connection has: buffered input, timers, groups.
// It wakes the goroutines that are blocked.
func (c *Conn) dropResourcesLocked() {
	c.endLimitsLocked()
	c.unstarveLocked()
	x := c.ext
	if x == nil {
		return
	}
	x.frames.drop(&c.sh.pool)
	if x.preface != nil {
		c.sh.timers.Remove(x.preface.timer)
	}
	if x.tls != nil {
		c.endTLSLocked()
	}
	if x.dial != nil {
		x.dial.poke() // it has failed
	}
	if !c.dropSomeLocked() {
		c.todo.add(todoDrop)
	}
	x.waits.end()
}

// dropMost is how many timers, and how many groups, one hold of mu lets go of.
const dropMost = 256

// dropSomeLocked stops timers and leaves groups. It reports whether that was all.
func (c *Conn) dropSomeLocked() bool {
	x := c.ext
	for range dropMost {
		tm := x.timers
		if tm == nil {
			break
		}
		c.sh.timers.Remove(tm)
		c.unlinkTimerLocked(tm)
	}
	return c.leaveGroupsLocked() && x.timers == nil
}

// leaveGroupsLocked leaves groups, as many as one hold of mu may. It reports whether that was all.
func (c *Conn) leaveGroupsLocked() bool {
	x := c.ext
	for range dropMost {
		n := len(x.groups)
		if n == 0 {
			x.groups = nil
			break
		}
		g := x.groups[n-1]
		x.groups[n-1] = nil
		x.groups = x.groups[:n-1]
		g.letGo(c)
	}
	return x.groups == nil
}
