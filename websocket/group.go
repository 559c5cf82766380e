package websocket

import (
	"iter"
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
	members tcpio.Group // of the connections under them; it is not written to
	writing sync.Mutex  // held by a write: all members see the same order. Taken before a Conn's mu.
}

// Join makes c a member. Joining twice, or a connection that is closing, does nothing. A member
// leaves by itself when it closes.
func (g *Group) Join(c *Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == open {
		g.members.Join(c.tc)
	}
}

// Leave ends c's membership. On a connection that is no member it does nothing.
func (g *Group) Leave(c *Conn) { g.members.Leave(c.tc) }

// Len returns the number of members.
func (g *Group) Len() int { return g.members.Len() }

// Has reports whether c is a member.
func (g *Group) Has(c *Conn) bool { return c != nil && g.members.Has(c.tc) }

// Skipped returns how many messages, and values of Post, were left out for members, all together.
// [Conn.Skipped] says who misses messages now.
func (g *Group) Skipped() uint64 { return g.skipped.Load() + g.members.Skipped() }

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

// Post sends v to every member as Conn.Post does, and returns how many did not take it since their
// mailbox was full; see [tcpio.Group.Post].
func (g *Group) Post(v any) (missed int) { return g.members.Post(v) }

// All iterates over the members of the moment at which the iteration begins. No lock is held while
// the body runs, so a member may have left or closed by then.
func (g *Group) All() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		for tc := range g.members.All() {
			if !yield(tc.Data().(*Conn)) {
				return
			}
		}
	}
}

// A shared is a frame for many members: what their sockets do not take at once waits in one copy.
type shared struct {
	f *frame
	s *tcpio.Shared
}

func (m payload) shared() shared {
	f := m.joined()
	return shared{f, tcpio.Share(f.b)}
}

// free ends the use of the frame, if it was made.
func (s shared) free() {
	if s.f != nil {
		s.s.Release()
		s.f.free()
	}
}

func (g *Group) write(op ws.OpCode, except *Conn, p []byte) (took int) {
	g.writing.Lock()
	defer g.writing.Unlock()
	var plain, packed shared // made when the first member needs one
	for c := range g.All() {
		switch m := (payload{op: op, p: p}); {
		case c == except:
		case c.client:
			m = c.payloadOf(op, p)
			f := m.whole(true)
			took += g.put(c, f.sendLocked)
			f.free()
			m.free()
		case c.packs && len(p) >= c.s.opts.CompressMin:
			if packed.f == nil {
				m.z = deflate(p)
				m.p = m.z.b
				packed = m.shared()
				m.free()
			}
			took += g.put(c, packed.sendLocked)
		default:
			if plain.f == nil {
				plain = m.shared()
			}
			took += g.put(c, plain.sendLocked)
		}
	}
	plain.free()
	packed.free()
	return took
}

func (s shared) sendLocked(c *Conn) error { return c.tc.TryWriteShared(s.s) }

// put sends a frame to c, and deals with a member that has no room. It returns 1 if c took it.
func (g *Group) put(c *Conn, send func(*Conn) error) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.putLocked(send) {
	case nil:
		return 1
	case tcpio.ErrWouldBlock:
		g.skipped.Add(1)
		c.skipped++
		// One without output that waits is not slow: others' output has taken the room. Nor is one
		// that is writing a long message by itself.
		if g.Slow == tcpio.CloseSlow && !c.sending && c.tc.Buffered() > 0 {
			c.closeLocked(ending{code: TryAgainLater, by: Local, reason: "too slow", err: tcpio.ErrSlow})
		}
	}
	return 0
}
