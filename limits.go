package tcpio

import (
	"fmt"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// Time limits. A connection notes when it last read and wrote, on a coarse clock: that is all that
// activity costs. It is in one list of its loop with the earliest time at which a limit could be
// reached; when that comes, the notes say whether it was, or when it could be next. A limit costs
// no goroutine.

// SetIdleTimeout replaces [ListenerOptions.IdleTimeout] for this connection, from its last activity
// on; 0 means none. It fails on a negative or too long (20 days) limit and, after Close, with
// net.ErrClosed.
func (c *Conn) SetIdleTimeout(d time.Duration) error {
	return c.setTimeout("idle", d, func() {
		c.limit.idle = uint32((d + time.Millisecond - 1) / time.Millisecond)
	})
}

// SetInputTimeout replaces [ListenerOptions.InputTimeout] for this connection, from the last
// arrival on; 0 means none. A keep-alive that a protocol negotiates, as MQTT's does, is set here.
// It fails on a negative or too long (20 days) limit and, after Close, with net.ErrClosed. It does
// not block; any goroutine may call it.
func (c *Conn) SetInputTimeout(d time.Duration) error {
	return c.setTimeout("input", d, func() {
		x := c.extLocked()
		x.inputTimeout, x.ownInput = d, true
	})
}

// setTimeout checks a connection's own limit of d, has setLocked note it, and begins it.
func (c *Conn) setTimeout(name string, d time.Duration, setLocked func()) error {
	c.mu.Lock()
	defer c.unlock()
	if d < 0 || d > longestLimit {
		return c.opErrorLocked("set", fmt.Errorf("tcpio: %s timeout out of range: %v", name, d))
	}
	if c.ended() {
		return c.endedLocked("set")
	}
	c.sh.timed.Store(true)
	c.sh.tick() // it may have stood still so far
	c.beginNotesLocked()
	setLocked()
	c.armLimitLocked()
	return nil
}

// inputTimeoutLocked returns the connection's own InputTimeout, or the listener's.
func (c *Conn) inputTimeoutLocked() time.Duration {
	if c.ext != nil && c.ext.ownInput {
		return c.ext.inputTimeout
	}
	return c.sh.opts.InputTimeout
}

// beginLimitsLocked starts the limits of a new connection.
func (c *Conn) beginLimitsLocked() {
	o := &c.sh.opts
	if !c.sh.timed.Load() {
		return
	}
	c.sh.tick()
	c.beginNotesLocked()
	c.limit.idle = uint32((o.IdleTimeout + time.Millisecond - 1) / time.Millisecond)
	c.armLimitLocked()
}

// beginNotesLocked starts the notes of a connection's activity, which it has none of without a
// limit.
func (c *Conn) beginNotesLocked() {
	if !c.sock.has(sockTimed) {
		c.sock.add(sockTimed)
		c.limit.lastIn = c.sh.coarse()
		c.limit.lastOut = c.limit.lastIn
	}
}

// awaitUserLocked starts EOFTimeout for a connection whose user has received the peer's end of
// stream, and is to close it. One that was handed out as a net.Conn has none, and a handler that
// runs has all the time it takes.
func (c *Conn) awaitUserLocked() {
	if c.peerEnd != peerTold || !c.announces() || c.ended() || c.inActor() || c.callWaitsLocked() {
		return
	}
	c.endLimitsLocked()
	c.beginNotesLocked()
	c.limit.lastIn = c.sh.coarse()
	reach(&c.peerEnd, peerTimed)
	c.armLimitLocked()
}

// awaitReaderLocked starts EOFTimeout for a connection that has failed. What arrived before can be
// read until then. A user who does not read, and so is told nothing more, does not keep it for
// ever.
func (c *Conn) awaitReaderLocked() {
	if c.ended() || c.atEOF() || c.sock.has(sockFailed) {
		return
	}
	c.sock.add(sockFailed)
	c.beginNotesLocked()
	c.limit.lastIn = c.sh.coarse()
	c.armLimitLocked()
}

// toldLocked reports whether the user has received the outstanding Readable, and has had the time
// to read.
func (c *Conn) toldLocked() bool {
	return !c.inActor() && !c.callWaitsLocked() && !c.pending.has(pendReadable) && !c.inChannelLocked()
}

// unreadForLocked returns for how long the user of a connection that has failed has not read,
// though told. Nobody notes when a Readable is received: it counts from the first look behind that.
func (c *Conn) unreadForLocked(t int64) time.Duration {
	x := c.extLocked()
	switch {
	case !c.toldLocked():
		x.toldAt = 0
		return 0
	case x.toldAt == 0:
		x.toldAt = t
	}
	return time.Duration(t - max(c.limit.lastIn, x.toldAt))
}

// busyLocked reports whether output is under way, or a handler runs that may write.
func (c *Conn) busyLocked() bool {
	return c.out != nil || !c.outputFree() || c.inActor() || c.ext != nil && (c.ext.copies > 0 || c.ext.late > 0)
}

// outputWaitsLocked notes that output begins to wait for the socket.
func (c *Conn) outputWaitsLocked() {
	if c.sock.has(sockTimed) {
		c.limit.lastOut = c.sh.coarse()
		c.armLimitLocked()
	}
}

// limitsLocked is where the connection's limits are.
func (c *Conn) limitsLocked() *limits {
	if c.eofTimed() {
		return &c.sh.eofs
	}
	return &c.sh.limits
}

// nextLimitLocked returns the limit that comes first, and how long it takes from t; a limit of 0
// means none.
func (c *Conn) nextLimitLocked(t int64) (kind TimeoutKind, limit, wait time.Duration) {
	o := &c.sh.opts
	consider := func(k TimeoutKind, d, quiet time.Duration) {
		if left := d - quiet; d > 0 && (limit == 0 || left < wait) {
			kind, limit, wait = k, d, left
		}
	}
	s := &c.limit
	in, out := time.Duration(t-s.lastIn), time.Duration(t-s.lastOut)
	if !c.handshaking() { // which has a limit of its own, and the others begin behind it
		consider(TimeoutIdle, time.Duration(s.idle)*time.Millisecond, min(in, out))
		if !c.atEOF() {
			if c.inputWaits() {
				in = 0 // the peer has sent, and it is not its fault that nobody has read
			}
			consider(TimeoutInput, c.inputTimeoutLocked(), in)
			if !c.sock.has(sockHeard) || c.ext != nil && c.ext.frames.partial {
				consider(TimeoutReadStall, o.ReadStallTimeout, in)
			}
		}
		if f := c.frameLocked(); f != nil && f.partial && f.Len() > 0 && !c.atEOF() && !c.inputWaits() {
			consider(TimeoutFrame, o.FrameTimeout, time.Duration(t-f.since))
		}
	}
	if c.out != nil || c.sock.has(sockWaiting) {
		consider(TimeoutWriteStall, o.WriteStallTimeout, out)
	}
	if c.eofTimed() {
		quiet := min(in, out)
		if c.busyLocked() {
			quiet = 0
		}
		consider(timeoutEOF, o.EOFTimeout, quiet)
	} else if c.sock.has(sockFailed) && c.announces() && !c.atEOF() {
		consider(timeoutEOF, o.EOFTimeout, c.unreadForLocked(t))
	}
	return kind, limit, wait
}

// inputWaits reports whether bytes of the peer's wait for the user to read them.
func (c *Conn) inputWaits() bool { return c.announced() && (c.tls() == nil || c.ext.tls.waits) }

// frameLocked returns what Frames has read and not handed out, nil if it was never called.
func (c *Conn) frameLocked() *frameBuffer {
	if c.ext == nil {
		return nil
	}
	return &c.ext.frames
}

// armLimitLocked makes sure that the loop looks at the connection when its next limit could be
// reached. It is called when that may have come nearer; later is noticed when the time comes.
func (c *Conn) armLimitLocked() {
	if !c.sock.has(sockTimed) || c.ended() {
		return
	}
	_, limit, wait := c.nextLimitLocked(c.sh.coarse())
	if limit == 0 {
		return
	}
	if c.limitsLocked().Add(limited{c}, now()+max(int64(wait), 0)) {
		c.sh.kick()
	}
}

// endLimitsLocked takes the connection out of the heap of time limits.
func (c *Conn) endLimitsLocked() {
	if c.sock.has(sockTimed) {
		c.limitsLocked().Remove(limited{c})
	}
}

// limitBudget is how many connections one turn looks at before others have theirs: many may be due
// at once.
const limitBudget = 256

// noteEdgeLocked notes what an edge says of input. Urgent data and the peer's end are no input, but
// may come with some. What TLS has sealed is noted when it is read, or when a limit is due.
func (c *Conn) noteEdgeLocked(bits uint32) {
	if !c.sock.has(sockTimed) || c.tls() != nil || bits&pollIn == 0 || c.handshaking() {
		return // only a limit asks whether input has arrived; TLS notes it in its reads
	}
	if bits&(pollHup|pollErr|pollRdHup|pollPri) == 0 || sys.Unread(c.fd) > 0 {
		c.heardLocked()
	}
}

// heardLocked notes that bytes have arrived.
func (c *Conn) heardLocked() {
	if c.sock.has(sockTimed) {
		c.sock.add(sockHeard)
		c.limit.lastIn = c.sh.coarse()
	}
}
