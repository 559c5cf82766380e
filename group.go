package tcpio

import (
	"errors"
	"slices"
	"strconv"
	"sync"
)

// SlowPolicy says what a Group does with a member that does not keep up: one whose queue has no room for a Write.
type SlowPolicy int

const (
	// SkipSlow leaves the member out of that Write. It is the default.
	SkipSlow SlowPolicy = iota
	// CloseSlow closes the member with ErrSlow: what is queued goes out within CloseTimeout, then Group.Notice.
	CloseSlow
)

// String returns the policy's name, or SlowPolicy(n) for a number that has none.
func (p SlowPolicy) String() string {
	switch p {
	case SkipSlow:
		return "SkipSlow"
	case CloseSlow:
		return "CloseSlow"
	}
	return "SlowPolicy(" + strconv.Itoa(int(p)) + ")"
}

// ErrSlow is the Err of a connection that a Group closed because it did not keep up.
var ErrSlow = errors.New("tcpio: connection did not keep up with its group")

// A Group is a set of connections that are written to together, a chat room say. The zero value is an empty one. Its
// methods may be called from any goroutine; its fields must not be changed after the first use.
type Group struct {
	// Slow is what happens to a member that does not keep up.
	Slow SlowPolicy
	// Notice is sent to a member that CloseSlow closes, as its last bytes, whatever is queued already.
	Notice []byte

	writing sync.Mutex // held by Write: all members see the same order. Taken before a Conn's mu.

	mu sync.Mutex
	// Guarded by mu, which is taken under a Conn's mu.
	index   map[*Conn]int // place in members
	members []*Conn       // shared with running Writes once shared: then copied before a change
	shared  bool
}

// Join makes c a member. Joining twice, or a connection that is closing, does nothing. A member leaves by itself when it
// closes.
func (g *Group) Join(c *Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flags&(fClosing|fReleased) != 0 {
		return
	}
	if g.insert(c) {
		x := c.extLocked()
		x.groups = append(x.groups, g)
	}
}

// Leave ends c's membership. On a connection that is no member it does nothing. A Write that is running may still reach c.
func (g *Group) Leave(c *Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ext == nil {
		return
	}
	if i := slices.Index(c.ext.groups, g); i >= 0 {
		c.ext.groups = slices.Delete(c.ext.groups, i, i+1)
		g.remove(c)
	}
}

// Len returns the number of members.
func (g *Group) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.members)
}

// Write writes p to every member as TryWrite does, without waiting for any, and returns len(p), nil. What sockets do not
// take at once is queued as one shared copy. A member without room is dealt with as Slow says, one that has failed is
// passed over. Concurrent Writes are made one after the other, so that all members see them in the same order. p is the
// caller's again afterwards.
func (g *Group) Write(p []byte) (int, error) {
	g.writing.Lock()
	defer g.writing.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	var b *block // the shared copy, made when the first member needs one
	var sh *shared
	for _, c := range g.snapshot() {
		c.mu.Lock()
		waiting := c.flags & fWantRoom
		err := c.mayWriteLocked(len(p))
		if err == nil && b == nil && len(p) > holdMax && c.flags&fTLS == 0 {
			c.unlock() // the copy takes as long as p is, and no socket will take all of p
			sh = c.sh.shared
			b = sh.shareable(p)
			c.mu.Lock()
			waiting = c.flags & fWantRoom
			err = c.mayWriteLocked(len(p))
		}
		switch err {
		case nil:
			if c.flags&fTLS != 0 {
				_, _ = c.writeLocked(p) // every connection has keys of its own: nothing can be shared
				break
			}
			sent := 0
			var err error
			if c.out == nil {
				sent, err = c.sendLocked(p[:min(len(p), holdMax)])
			}
			switch {
			case err != nil || sent == len(p):
			case len(p) <= shareMin:
				c.queueOutLocked().append(c.sh.shared, p[sent:])
			default:
				if b == nil {
					sh = c.sh.shared
					b = sh.shareable(p)
				}
				b.refs.Add(1)
				c.queueOutLocked().share(c.sh.shared, b, sent, len(p))
				if sent == holdMax {
					c.flushSoonLocked() // a socket that has not refused shows no edge
				}
			}
		case ErrWouldBlock:
			c.flags = c.flags&^fWantRoom | waiting // nobody asked for a Writable here
			if c.out != nil && len(p) > c.sh.opts.WriteBuffer-c.queuedLocked() {
				g.slowLocked(c)
			} // else a write or a copy is under way, or others' output has taken the room, and it is only skipped
		}
		c.unlock()
	}
	if b != nil {
		sh.pool.put(b)
	}
	return len(p), nil
}

// shareMin is the size in bytes up to which each slow member gets a copy of its own: a block that is shared can take
// nothing more, and many short ones would hold far more memory than WriteBuffer counts.
const shareMin = 1 << 10

// shareable returns a block with a copy of p and not much more room than that.
func (sh *shared) shareable(p []byte) *block {
	if len(p) > blockSmall && len(p) < blockLarge/2 {
		b := &block{buf: make([]byte, len(p))}
		b.refs.Store(1)
		copy(b.buf, p)
		return b
	}
	b := sh.pool.get(len(p))
	copyPieces(b.buf, p)
	return b
}

// slowLocked deals with a member that has no room.
func (g *Group) slowLocked(c *Conn) {
	if g.Slow != CloseSlow || c.flags&fHandshake != 0 {
		return // in a TLS handshake nobody can take anything
	}
	if len(g.Notice) > 0 && c.flags&fWriting == 0 { // it does not come between a write's bytes
		_ = c.putBulkLocked(g.Notice)
	}
	c.closeLocked(ErrSlow)
}

// snapshot returns the members of the moment; the slice is not changed afterwards.
func (g *Group) snapshot() []*Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shared = true
	return g.members
}

// ownLocked makes members safe to change.
func (g *Group) ownLocked() {
	if g.shared {
		g.members = slices.Clone(g.members)
		g.shared = false
	}
}

func (g *Group) insert(c *Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.index[c]; ok {
		return false
	}
	if g.index == nil {
		g.index = make(map[*Conn]int)
	}
	g.ownLocked()
	g.index[c] = len(g.members)
	g.members = append(g.members, c)
	return true
}

func (g *Group) remove(c *Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	i, ok := g.index[c]
	if !ok {
		return
	}
	g.ownLocked()
	delete(g.index, c)
	last := len(g.members) - 1
	if moved := g.members[last]; moved != c {
		g.members[i] = moved
		g.index[moved] = i
	}
	g.members[last] = nil
	g.members = g.members[:last]
}
