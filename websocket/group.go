package websocket

import (
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gobwas/ws"

	"github.com/rabbit-backend/tcpio"
)

// A Group is a set of connections that are written to together, a chat room say. A message is put
// into a frame once for all members, and compressed once for those that negotiated it. The zero
// value is an empty one. Its methods may be called from any goroutine; its fields must not be
// changed after the first use.
type Group struct {
	// Slow is what happens to a member whose queue has no room for a message: SkipSlow leaves it
	// out, counts that, and tells the member's handler by Writable.Skipped once there is room
	// again. CloseSlow closes it with TryAgainLater, and Conn.Err is [tcpio.ErrSlow].
	Slow tcpio.SlowPolicy

	skipped atomic.Uint64
	writing sync.Mutex // held by a write: all members see the same order. Taken before a Conn's mu.

	mu sync.Mutex // a leaf
	// Guarded by mu.
	index   map[*Conn]int // place in members
	members []*Conn       // shared with running writes once shared: then copied before a change
	shared  bool
}

// Join makes c a member. Joining twice, or a connection that is closing, does nothing. A member
// leaves by itself when it closes.
func (g *Group) Join(c *Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == open && g.insert(c) {
		c.groups = append(c.groups, g)
	}
}

// Leave ends c's membership. On a connection that is no member it does nothing.
func (g *Group) Leave(c *Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.groups, g); i >= 0 {
		c.groups = slices.Delete(c.groups, i, i+1)
		g.remove(c)
	}
}

// Len returns the number of members.
func (g *Group) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.members)
}

// Skipped returns how many messages were left out for members, all together.
func (g *Group) Skipped() uint64 { return g.skipped.Load() }

// WriteText sends p, which must be valid UTF-8, to every member as TryWriteText does, without
// waiting for any, and returns how many took it. Concurrent writes are made one after the other,
// so that all members see them in the same order. p is not kept.
func (g *Group) WriteText(p []byte) int { return g.write(ws.OpText, nil, p) }

// WriteBinary sends p to every member, as WriteText does.
func (g *Group) WriteBinary(p []byte) int { return g.write(ws.OpBinary, nil, p) }

// WriteTextExcept is WriteText to every member but except, which may be nil or no member.
func (g *Group) WriteTextExcept(except *Conn, p []byte) int { return g.write(ws.OpText, except, p) }

// WriteBinaryExcept is WriteBinary to every member but except, which may be nil or no member.
func (g *Group) WriteBinaryExcept(except *Conn, p []byte) int {
	return g.write(ws.OpBinary, except, p)
}

// Post sends v to every member as Conn.Post does, and returns how many did not take it.
func (g *Group) Post(v any) (missed int) {
	for _, c := range g.snapshot() {
		if c.Post(v) != nil {
			missed++
		}
	}
	return missed
}

// All iterates over the members of the moment at which the iteration begins. No lock is held while
// the body runs, so a member may have left or closed by then.
func (g *Group) All() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		for _, c := range g.snapshot() {
			if !yield(c) {
				return
			}
		}
	}
}

func (g *Group) write(op ws.OpCode, except *Conn, p []byte) (took int) {
	g.writing.Lock()
	defer g.writing.Unlock()
	var plain, packed *frame // made when the first member needs one
	for _, c := range g.snapshot() {
		switch m := (payload{op: op, p: p}); {
		case c == except:
		case c.client:
			m = c.payloadOf(op, p)
			f := m.whole(true)
			took += g.put(c, f)
			f.free()
			m.free()
		case c.packs && len(p) >= c.s.opts.CompressMin:
			if packed == nil {
				m.z = deflate(p)
				defer m.z.free()
				m.p = m.z.b
				packed = m.whole(false)
				defer packed.free()
			}
			took += g.put(c, packed)
		default:
			if plain == nil {
				plain = m.whole(false)
				defer plain.free()
			}
			took += g.put(c, plain)
		}
	}
	return took
}

// put sends f to c, and deals with a member that has no room. It returns 1 if c took f.
func (g *Group) put(c *Conn, f *frame) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.putLocked(f) {
	case nil:
		return 1
	case tcpio.ErrWouldBlock:
		g.skipped.Add(1)
		if c.skipped++; g.Slow == tcpio.CloseSlow {
			c.closeLocked(ending{code: TryAgainLater, by: Local, reason: "too slow", err: tcpio.ErrSlow})
		}
	}
	return 0
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
