package tcpio

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// What the parts of a connection below relay.go know of its relay.

// A Relay joins two connections; see Conn.Relay. It has no goroutine: the loops of the two move the
// bytes. What belongs to one connection is guarded by its mu, and nobody holds both.
type Relay struct {
	// Immutable once joined.
	sides  [2]relaySide
	idle   *relayIdle // nil: no limit
	sealed bool       // a connection has TLS

	// Atomic.
	state atomic.Uint32            // relayJoined, relayOver
	first atomic.Int32             // 1 + the side whose peer was the first to end; 0: none
	ends  atomic.Int32             // directions that have ended in order
	end   atomic.Pointer[RelayEnd] // nil while bytes are passed on; set under mu

	mu sync.Mutex
	// Guarded by mu, under which nothing else is locked.
	done chan struct{} // of Done; nil until it is asked for
}

const (
	relayJoined uint32 = 1 << iota // both connections are in it
	relayOver                      // somebody brings its end to both
)

func (r *Relay) joined() bool { return r.state.Load()&relayJoined != 0 }

// A relayIdle is the idle limit of a Relay.
type relayIdle struct {
	timer timer // immutable
	limit time.Duration
	due   atomic.Bool // it could have been reached
}

// A RelayEnd says how a Relay ended.
type RelayEnd struct {
	// By is the connection that began the end: whose peer was the first to end its stream, or that
	// failed, was closed, or reached a time limit of its own. It is nil for
	// RelayOptions.IdleTimeout.
	By *Conn
	// Err is nil if both peers have ended their streams, and received all that the other sent.
	// Otherwise it is By's Err: around syscall.ECONNRESET say, a *[TimeoutError], or net.ErrClosed
	// where your code has closed By.
	Err error
}

// Relayed returns the relay that the connection is in, or was in; nil if there was none. It works
// after the connection closed.
func (c *Conn) Relayed() *Relay {
	if s := c.relaySide(); s != nil {
		return s.relay
	}
	return nil
}

// End returns how the relay ended, and false while it has not.
func (r *Relay) End() (RelayEnd, bool) {
	if end := r.end.Load(); end != nil {
		return *end, true
	}
	return RelayEnd{}, false
}

// Conns returns the connections, the one whose method Relay was called first. It works after the end.
func (r *Relay) Conns() (c, to *Conn) { return r.sides[0].c, r.sides[1].c }

// Passed returns how many bytes of the first connection's peer were passed on to the second, and
// of the second one's to the first: the other connection's socket has them, or its queue. The
// counts are final once both connections have closed.
func (r *Relay) Passed() (out, in uint64) {
	return r.sides[0].passed.Load(), r.sides[1].passed.Load()
}

// Done returns a channel that is closed when the relay has ended. It costs nothing until it is
// called. The connections may still be closing then.
func (r *Relay) Done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done == nil {
		r.done = make(chan struct{})
		if r.end.Load() != nil {
			close(r.done)
		}
	}
	return r.done
}

// A relaySide is what a Relay has of one connection, and the direction from that to the other.
type relaySide struct {
	// Immutable.
	relay *Relay
	c     *Conn

	// Atomic.
	passed atomic.Uint64 // bytes that the other connection took
	mark   atomic.Uint32 // relayMarks
	turn   atomic.Uint32 // a relayTurn
	inPipe atomic.Int32  // bytes in the pipe; the turn changes it

	// Owned by the turn.
	pipe    sys.Pipe // holds inPipe bytes
	atEnd   bool     // the peer's end of stream was read and noted in the other connection
	ended   bool     // it has gone out, or writing has failed
	copies  bool     // a socket refuses splice
	limited bool     // LimitCalls was called
	busy    bool     // the last turn moved bulk
	hasPipe bool     // there is a pipe

	// Guarded by c.mu.
	readable bool // a Readable was out before, which leave owes
	writable bool // likewise a Writable
	failed   bool // epoll has reported an error, which may be behind unread input
	told     bool // RelayEnded was sent
	room     bool // the other direction may go on
}

// A sideAndData is Conn.data of a connection with a relay, if SetData was called.
type sideAndData struct {
	side *relaySide
	data any
}

// relayMarks are facts about a direction. They change under the mu of the other connection.
const (
	relayFull   uint32 = 1 << iota // that cannot be written to at the moment
	relayBroken                    // nor ever again
)

func (s *relaySide) full() bool { return s.mark.Load()&relayFull != 0 }

// A relayTurn says whether a goroutine moves the bytes of a direction.
type relayTurn = uint32

const (
	turnIdle    relayTurn = iota
	turnRunning           // somebody does
	turnAgain             // and is to look again before it ends
)

// side is the part of the connection's relay, which it must have.
func (c *Conn) side() *relaySide {
	if s, ok := c.data.(*relaySide); ok {
		return s
	}
	return c.data.(*sideAndData).side
}

// userDataLocked is what SetData has set.
func (c *Conn) userDataLocked() any {
	if !c.relayed() {
		return c.data
	}
	if d, ok := c.data.(*sideAndData); ok {
		return d.data
	}
	return nil
}

// setDataLocked sets the user's data; side is that of the connection's relay, nil if there is none.
func (c *Conn) setDataLocked(side *relaySide, v any) {
	switch {
	case side == nil:
		c.data = v
	case v == nil:
		c.data = side
	default:
		c.data = &sideAndData{side, v}
	}
}

// relaySide is side without mu; nil if the connection is in no relay.
func (c *Conn) relaySide() *relaySide {
	c.mu.Lock()
	defer c.unlock()
	if !c.relayed() {
		return nil
	}
	return c.side()
}

// other is the opposite side.
func (s *relaySide) other() *relaySide {
	if o := &s.relay.sides[0]; o != s {
		return o
	}
	return &s.relay.sides[1]
}

// inOrder reports whether the relay has ended since both peers have ended their streams.
func (r *Relay) inOrder() bool {
	end := r.end.Load()
	return end != nil && end.Err == nil
}

// decide says how the relay ended, if that was not said before.
func (r *Relay) decide(end RelayEnd) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.end.Load() != nil {
		return
	}
	r.end.Store(&RelayEnd{end.By, end.Err}) // end itself would be on the heap each time
	if r.done != nil {
		close(r.done)
	}
}

// A relayTodo says which directions may go on.
type relayTodo uint8

const (
	relayIn  relayTodo = 1 << iota // from the connection
	relayOut                       // to it
	relayAll = relayIn | relayOut
)

// relayTurnLocked returns the side, and takes what it has to do.
func (c *Conn) relayTurnLocked() (s *relaySide, todo relayTodo) {
	s = c.side()
	if c.announced() {
		todo = relayIn
	}
	if s.room {
		s.room = false
		todo |= relayOut
	}
	return s, todo
}

// relayRoomLocked has the relay go on if the connection can be written to. No other output may be
// queued: so a direction never holds more than one buffer.
func (c *Conn) relayRoomLocked() {
	s := c.side()
	if c.out == nil && c.outputFree() && !c.handshaking() && !c.ended() {
		s.other().mark.And(^relayFull)
		s.room = true
		c.wantLocked(wantRelay)
	}
}

// relayStuckLocked reports whether nobody will read the connection before the other one has room.
func (c *Conn) relayStuckLocked() bool { return c.relayed() && c.side().full() }

// leaveRelayLocked ends the relay of a connection that is released.
func (c *Conn) leaveRelayLocked() {
	s := c.side()
	end := RelayEnd{By: c, Err: net.ErrClosed}
	if c.ext != nil && c.ext.err != nil {
		end.Err = c.ext.err
	}
	s.relay.decide(end)
	if s.relay.state.Load()&relayOver == 0 {
		c.wantLocked(wantRelay)
	}
}
