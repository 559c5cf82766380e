package tcpio

import (
	"iter"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/rabbit-backend/tcpio/internal/buf"
)

// SlowPolicy says what a Group does with a member that does not keep up: one whose queue has no
// room for a Write.
type SlowPolicy int

const (
	// SkipSlow leaves the member out of that Write, and counts it; a Writable follows when it has
	// room. It is the default.
	SkipSlow SlowPolicy = iota
	// CloseSlow closes the member with ErrSlow: what is queued goes out within CloseTimeout, then
	// Group.Notice.
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

// A Group is a set of connections that are written to together, a chat room say. The zero value is
// an empty one. Its methods may be called from any goroutine; its fields must not be changed after
// the first use. [Groups] is a map of them by a key.
//
// A group never waits for a member. One that does not keep up misses what it has no room for, or is
// closed with SlowPolicy CloseSlow. What it misses is counted, by [Group.Skipped] and in [Stats],
// and a Writable says when it has room again, so that its handler can bring it up to date.
type Group struct {
	// Slow is what happens to a member that does not keep up.
	Slow SlowPolicy
	// Notice is sent to a member that CloseSlow closes, as its last bytes, whatever is queued
	// already.
	Notice []byte
	// Left is called after a member has left: by Leave or LeaveGroups, or since it is closing or has
	// been hijacked. It is the place to forget what belonged to the membership. Calls are made one at
	// a time, in the order of leaving, under no lock, on a goroutine that lives while there is
	// something to say, so the member may have joined again by then: [Group.Has] tells. It may block
	// and may call any method; a panic in it is logged. The groups of a [Groups] have none.
	Left func(c *Conn)

	home    groupHome     // immutable; nil unless the group is one of a Groups
	skipped atomic.Uint64 // see Skipped

	writing sync.Mutex // of Write and Post: members see the same order. Taken before a Conn's mu.

	mu sync.Mutex
	// Guarded by mu, which is taken under a Conn's mu.
	index   map[*Conn]int // place in members
	members []*Conn       // shared with running Writes once shared: then copied before a change
	shared  bool
	left    []*Conn // those that Left does not know, with Left set
	telling bool    // a goroutine calls Left
}

// A groupHome is the map that a group is in. Its methods are called with the Conn's mu held.
type groupHome interface {
	join(c *Conn) *Group     // joins the group that is under the key now; nil if c is a member already
	leave(g *Group, c *Conn) // removes c from g
}

// Join makes c a member. Joining twice, or a connection that is closing, does nothing. A member
// leaves by itself when it closes. Join does not block.
func (g *Group) Join(c *Conn) {
	c.mu.Lock()
	defer c.unlock()
	if c.ended() {
		return
	}
	if g.home != nil {
		if g = g.home.join(c); g == nil {
			return
		}
	} else if !g.insert(c) {
		return
	}
	x := c.extLocked()
	x.groups = append(x.groups, g)
}

// Leave ends c's membership. On a connection that is no member it does nothing. A Write that is
// running may still reach c.
func (g *Group) Leave(c *Conn) {
	c.mu.Lock()
	defer c.unlock()
	if c.ext == nil {
		return
	}
	if i := slices.Index(c.ext.groups, membership(g)); i >= 0 {
		c.ext.groups = slices.Delete(c.ext.groups, i, i+1)
		g.letGo(c)
	}
}

// letGo implements membership: it removes c, whose mu the caller holds.
func (g *Group) letGo(c *Conn) {
	if g.home != nil {
		g.home.leave(g, c)
	} else {
		g.remove(c)
	}
}

// LeaveGroups ends c's membership in every group at once, as Group.Leave does. It does not block.
// After Close it does nothing: the connection has left them all.
func (c *Conn) LeaveGroups() {
	for all := false; !all; {
		c.mu.Lock()
		all = c.ext == nil || c.leaveGroupsLocked()
		c.unlock()
	}
}

// Len returns the number of members.
func (g *Group) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.members)
}

// Has reports whether c is a member.
func (g *Group) Has(c *Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.index[c]
	return ok
}

// All iterates over the members of the moment at which the iteration begins. No lock is held while
// the body runs, so a member may have left or closed by then; the body may call any method of the
// group.
func (g *Group) All() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		for _, c := range g.snapshot() {
			if !yield(c) {
				return
			}
		}
	}
}

// Skipped returns how often a member missed a Write for which it had no room, or a Post for which
// its mailbox had none. Members that CloseSlow closed do not count, nor do those that have failed.
// [Stats] has the sum over all groups.
func (g *Group) Skipped() uint64 { return g.skipped.Load() }

// skip counts a member that misses something.
func (g *Group) skip(c *Conn) {
	g.skipped.Add(1)
	c.sh.count.skipped.Add(1)
}

// Post posts v to every member as Conn.Post does, without waiting for any, and returns how many
// members missed it since their mailbox was full; Skipped counts these. Concurrent Posts and Writes
// are made one after the other, so that all members get the values in the same order.
func (g *Group) Post(v any) (missed int) {
	g.writing.Lock()
	defer g.writing.Unlock()
	for _, c := range g.snapshot() {
		if c.Post(v) == ErrMailboxFull {
			g.skip(c)
			missed++
		}
	}
	return missed
}

// Write writes p to every member as TryWrite does, without waiting for any, and returns len(p),
// nil. What sockets do not take at once is queued as one shared copy. A member without room is
// dealt with as Slow says, one that has failed is passed over. A member that was left out gets a
// Writable when it has room. Concurrent Writes are made one after the other, so that all members
// see them in the same order. p is the caller's again afterwards.
func (g *Group) Write(p []byte) (int, error) { return g.WriteExcept(nil, p) }

// WriteExcept is Write to every member but except, from which p came, say, and which need not be a
// member.
func (g *Group) WriteExcept(except *Conn, p []byte) (int, error) {
	g.writing.Lock()
	defer g.writing.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	out := Share(p)
	defer out.Release()
	for _, c := range g.snapshot() {
		if c == except {
			continue
		}
		c.mu.Lock()
		if c.writeSharedLocked(out) == ErrWouldBlock {
			// Otherwise a write or a copy is under way, or others' output has taken the room, and
			// it is only skipped.
			full := c.out != nil && len(p) > c.sh.opts.WriteBuffer-c.queuedLocked()
			if g.Slow == CloseSlow && full && !c.handshaking() { // in which nobody can take anything
				g.closeSlowLocked(c)
			} else {
				g.skip(c)
			}
		}
		c.unlock()
	}
	return len(p), nil
}

// A Shared is bytes for many connections: what their sockets do not take at once waits in one copy
// that all of them share. [Group] has one for each Write; use it where members are to be dealt with
// one by one, as those of a protocol with states of its own. One goroutine at a time may use it.
type Shared struct {
	p  []byte
	b  *buf.Block // the copy, made when the first connection needs one
	sh *shared    // whose pool has it
}

// Share returns p as a Shared. p must not be changed until Release.
func Share(p []byte) *Shared { return &Shared{p: p} }

// Release ends the use of s, which is empty then. Connections keep what they have taken. A Shared
// that is not released costs the garbage collector its copy.
func (s *Shared) Release() {
	if s.b != nil {
		s.sh.pool.Put(s.b)
	}
	*s = Shared{}
}

// copyFor makes the copy, unless there is one.
func (s *Shared) copyFor(sh *shared) *buf.Block {
	if s.b == nil {
		s.sh, s.b = sh, sh.shareable(s.p)
	}
	return s.b
}

// TryWriteShared is TryWrite of all that s has: it writes everything or nothing, does not block,
// and fails as TryWrite does. Up to 1 KiB, and with TLS, whose connections have keys of their own,
// each connection has a copy.
func (c *Conn) TryWriteShared(s *Shared) error {
	c.mu.Lock()
	defer c.unlock()
	return c.writeSharedLocked(s)
}

func (c *Conn) writeSharedLocked(s *Shared) error {
	p := s.p
	err := c.checkRoomLocked(len(p))
	if err == nil && s.b == nil && len(p) > holdMax && c.tls() == nil {
		c.unlock() // the copy takes as long as p is, and no socket will take all of p
		s.copyFor(c.sh.shared)
		c.mu.Lock()
		err = c.checkRoomLocked(len(p))
	}
	if err != nil || len(p) == 0 {
		return err
	}
	if c.tls() != nil {
		_, err := c.writeLocked(p)
		return err
	}
	sent := 0
	if c.out == nil {
		if sent, err = c.sendLocked(p[:min(len(p), holdMax)]); err != nil {
			return err
		}
	}
	switch {
	case sent == len(p):
	case len(p) <= shareMin:
		c.enqueueLocked(p[sent:])
	default:
		b := s.copyFor(c.sh.shared)
		b.Retain()
		c.queueOutLocked(len(p)-sent).Share(b, sent, len(p))
		if sent == holdMax {
			c.flushSoonLocked() // a socket that has not refused shows no edge
		}
	}
	return nil
}

// shareMin is the size in bytes up to which each slow member gets a copy of its own: a block that
// is shared can take nothing more, and many short ones would hold far more memory than WriteBuffer
// counts.
const shareMin = 1 << 10

// shareable returns a block with a copy of p and not much more room than that.
func (sh *shared) shareable(p []byte) *buf.Block {
	var b *buf.Block
	if len(p) > buf.Small && len(p) < buf.Large/2 {
		b = buf.NewBlock(len(p))
	} else {
		b = sh.pool.Get(len(p))
	}
	buf.Copy(b.Buf, p)
	return b
}

// closeSlowLocked closes a member that has no room.
func (g *Group) closeSlowLocked(c *Conn) {
	if len(g.Notice) > 0 && c.outputFree() { // it does not come between a write's bytes
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
	if g.Left == nil {
		return
	}
	g.left = append(g.left, c)
	if !g.telling {
		g.telling = true
		go g.tell() // it ends behind the last one
	}
}

// tell calls Left until it knows all that have left.
func (g *Group) tell() {
	for {
		c := g.nextLeft()
		if c == nil {
			return
		}
		guard("Group.Left", func() { g.Left(c) }, func(p *PanicError, exiting bool) {
			c.sh.logPanic("Group.Left", p)
			if exiting {
				go g.tell() // this goroutine does not return from Left
			}
		})
	}
}

// nextLeft takes one that Left does not know; nil when there is none.
func (g *Group) nextLeft() *Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.left) == 0 {
		g.left, g.telling = nil, false
		return nil
	}
	c := g.left[0]
	g.left = g.left[1:]
	return c
}
