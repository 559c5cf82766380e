package tcpio

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// Time limits. A connection notes when it last read and wrote, on a coarse clock: that is all that activity costs. It is
// in one heap of its loop with the earliest time at which a limit could be reached; when that comes, the notes say
// whether it was, or when it could be next. A limit costs no goroutine and 32 bytes a connection: its place in the heap,
// and limitState.

// ticks is a time of the coarse clock in milliseconds. It wraps after 49 days; differences do not mind.
type ticks uint32

// since is how long before t earlier was. It may be a little below zero, when whoever told the time was late with it.
func (t ticks) since(earlier ticks) time.Duration {
	const late = 60_000
	d := int32(t - earlier)
	if d < -late {
		d = math.MaxInt32 // over 24 days: a connection that only ever reads has an old last write
	}
	return time.Duration(d) * time.Millisecond
}

// limitState is a connection's part. lastIn, lastOut and idle are guarded by its mu, the rest by its loop's limits.
type limitState struct {
	lastIn  ticks // bytes arrived or were read (of TLS: plain text was decrypted), or the connection was accepted
	lastOut ticks // bytes went out, or began to wait
	idle    ticks // the idle limit; 0: none
	place   int32 // in the heap plus one
	at      int64 // due time there
}

// limits is connections of one loop that have a time limit: lp.eofs has those that EOFTimeout runs for, lp.limits the others.
type limits struct {
	first atomic.Int64 // when the earliest is due, 0 without any

	mu sync.Mutex
	// Guarded by mu, which is taken under a Conn's mu.
	heap dueHeap[*Conn]
}

func (c *Conn) dueAt() int64   { return c.limit.at }
func (c *Conn) setPlace(i int) { c.limit.place = int32(i) }

// SetIdleTimeout replaces [ListenerOptions.IdleTimeout] for this connection, from its last activity on; 0 means none. It
// fails on a negative or too long (20 days) limit and, after Close, with net.ErrClosed.
func (c *Conn) SetIdleTimeout(d time.Duration) error {
	c.mu.Lock()
	defer c.unlock()
	if d < 0 || d > longestLimit {
		return c.opErrorLocked("set", fmt.Errorf("tcpio: idle timeout out of range: %v", d))
	}
	if c.ended() {
		return c.endedLocked("set")
	}
	c.sh.timed.Store(true)
	c.sh.tick() // it may have stood still so far
	c.beginNotesLocked()
	c.limit.idle = ticks((d + time.Millisecond - 1) / time.Millisecond)
	c.armLimitLocked()
	return nil
}

// beginLimitsLocked starts the limits of a new connection.
func (c *Conn) beginLimitsLocked() {
	o := &c.sh.opts
	if !c.sh.timed.Load() {
		return
	}
	c.sh.tick()
	c.beginNotesLocked()
	c.limit.idle = ticks((o.IdleTimeout + time.Millisecond - 1) / time.Millisecond)
	c.armLimitLocked()
}

// beginNotesLocked starts the notes of a connection's activity, which it has none of without a limit.
func (c *Conn) beginNotesLocked() {
	if c.flags&fTimed == 0 {
		c.flags |= fTimed
		c.limit.lastIn = c.sh.coarse()
		c.limit.lastOut = c.limit.lastIn
	}
}

// awaitUserLocked starts EOFTimeout for a connection whose user was told of the peer's end of stream, and is to close it. One that
// was handed out as a net.Conn has none, and a handler that runs has all the time it takes.
func (c *Conn) awaitUserLocked() {
	if c.flags&(fTold|fEnded|fMute|fRunning) != fTold || c.ended() || c.callWaitsLocked() {
		return
	}
	c.endLimitsLocked()
	c.beginNotesLocked()
	c.limit.lastIn = c.sh.coarse()
	c.flags |= fEnded
	c.armLimitLocked()
}

// busyLocked reports whether output is under way, or a handler runs that may write.
func (c *Conn) busyLocked() bool {
	return c.out != nil || c.flags&(fWriting|fRunning) != 0 || c.ext != nil && (c.ext.copies > 0 || c.ext.late > 0)
}

// outputWaitsLocked notes that output begins to wait for the socket.
func (c *Conn) outputWaitsLocked() {
	if c.flags&fTimed != 0 {
		c.limit.lastOut = c.sh.coarse()
		c.armLimitLocked()
	}
}

// limitsLocked is where the connection's limits are.
func (c *Conn) limitsLocked() *limits {
	if c.flags&fEnded != 0 {
		return &c.sh.eofs
	}
	return &c.sh.limits
}

// nextLimitLocked says which limit comes first, and how long it takes from now; a limit of 0 means none.
func (c *Conn) nextLimitLocked(t ticks) (kind limitKind, limit, wait time.Duration) {
	o := &c.sh.opts
	consider := func(k limitKind, d, quiet time.Duration) {
		if left := d - quiet; d > 0 && (limit == 0 || left < wait) {
			kind, limit, wait = k, d, left
		}
	}
	s := &c.limit
	in, out := t.since(s.lastIn), t.since(s.lastOut)
	if c.flags&fHandshake == 0 { // which has a limit of its own, and the others begin behind it
		consider(limitIdle, time.Duration(s.idle)*time.Millisecond, min(in, out))
		if c.flags&fEOF == 0 && (c.flags&fHeard == 0 || c.ext != nil && c.ext.frames.partial) {
			if c.flags&fReadable != 0 && (c.flags&fTLS == 0 || c.ext.tls.waits) {
				in = 0 // the peer has sent, and it is not its fault that nobody has read
			}
			consider(limitRead, o.ReadTimeout, in)
		}
	}
	if c.out != nil || c.ext != nil && c.ext.waiting {
		consider(limitWrite, o.WriteTimeout, out)
	}
	if c.flags&fEnded != 0 {
		quiet := min(in, out)
		if c.busyLocked() {
			quiet = 0
		}
		consider(limitEOF, o.EOFTimeout, quiet)
	}
	return kind, limit, wait
}

// armLimitLocked makes sure that the loop looks at the connection when its next limit could be reached. It is called when
// that may have come nearer; later is noticed when the time comes.
func (c *Conn) armLimitLocked() {
	if c.flags&fTimed == 0 || c.ended() {
		return
	}
	_, limit, wait := c.nextLimitLocked(c.sh.coarse())
	if limit == 0 {
		return
	}
	at := now() + max(int64(wait), 0)
	lim := c.limitsLocked()
	lim.mu.Lock()
	switch {
	case c.limit.place == 0:
		c.limit.at = at
		lim.heap.push(c)
	case at < c.limit.at:
		c.limit.at = at
		lim.heap.fix(int(c.limit.place) - 1)
	}
	earlier := lim.heap[0] == c
	lim.first.Store(lim.heap.first())
	lim.mu.Unlock()
	if earlier {
		c.sh.kick()
	}
}

// endLimitsLocked takes the connection out.
func (c *Conn) endLimitsLocked() {
	if c.flags&fTimed == 0 {
		return
	}
	lim := c.limitsLocked()
	lim.mu.Lock()
	if c.limit.place != 0 {
		lim.heap.remove(int(c.limit.place) - 1)
		lim.first.Store(lim.heap.first())
	}
	lim.mu.Unlock()
}

// due takes a connection whose time to be looked at has come by the time t.
func (lim *limits) due(t int64) *Conn {
	first := lim.first.Load()
	if first == 0 || first > t {
		return nil
	}
	lim.mu.Lock()
	defer lim.mu.Unlock()
	if len(lim.heap) == 0 || lim.heap[0].limit.at > t {
		return nil
	}
	c := lim.heap[0]
	lim.heap.remove(0)
	lim.first.Store(lim.heap.first())
	return c
}

// limitBudget is how many connections one turn looks at before others have theirs: many may be due at once.
const limitBudget = 256

// limitDueLocked is called when one of the connection's limits could be reached.
func (c *Conn) limitDueLocked() {
	if c.ended() {
		return
	}
	kind, limit, wait := c.nextLimitLocked(c.sh.coarse())
	if limit != 0 && wait <= 0 && kind != limitWrite {
		if c.arrivedLocked() {
			c.heardLocked()
		}
		kind, limit, wait = c.nextLimitLocked(c.sh.coarse())
	}
	switch {
	case c.ended(): // by what TLS had to answer
	case limit == 0:
	case wait > 0:
		c.armLimitLocked()
	case kind == limitEOF:
		c.endWaitLocked()
	default:
		c.sh.count.timeouts[kind].Add(1)
		err := &LimitError{limitNames[kind], limit}
		if kind == limitWrite {
			c.abortLocked(err) // there is no point in waiting for what does not move
		} else {
			c.closeLocked(err)
		}
	}
}

// arrivedLocked reports whether bytes have arrived that the loop has not come to yet: it, or the whole process, was held
// up, and the limit is looked at before them. Those of TLS must be decrypted before anybody can tell.
func (c *Conn) arrivedLocked() bool {
	switch {
	case c.flags&fTLS != 0:
		return c.spokenLocked()
	case c.flags&(fReadable|fEOF) != 0:
		return false // the loop has seen them
	}
	return sys.Unread(c.fd) > 0
}

// endWaitLocked closes a connection whose user has had the time to close it.
func (c *Conn) endWaitLocked() {
	c.sh.count.timeouts[limitEOF].Add(1)
	c.closeLocked(nil)
}

// noteEdgeLocked notes what an edge says of input. Urgent data and the peer's end are no input, but may come with some.
// What TLS has sealed is noted when it is read, or when a limit is due.
func (c *Conn) noteEdgeLocked(bits uint32) {
	if c.flags&(fTimed|fTLS) != fTimed || bits&pollIn == 0 {
		return // a limit must not come between the bytes and who will read them; without a limit it cannot
	}
	if bits&(pollHup|pollErr|pollRdHup|pollPri) == 0 || sys.Unread(c.fd) > 0 {
		c.heardLocked()
	}
}

// heardLocked notes that bytes have arrived.
func (c *Conn) heardLocked() {
	if c.flags&fTimed != 0 {
		c.flags |= fHeard
		c.limit.lastIn = c.sh.coarse()
	}
}
