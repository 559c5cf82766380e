package websocket

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// An Actor receives the events of a connection, one at a time and in order, as a [tcpio.Actor]
// does; it may block. An error it returns closes the connection with InternalError, and Conn.Err
// is that error; io.EOF closes it with Normal. A panic closes it with InternalError, and Conn.Err
// is a *[tcpio.PanicError]. Both are counted and logged as those of tcpio's actors are; see
// [tcpio.Conn.HandlerFailed].
type Actor interface{ Receive(ev Event) error }

// ActorFunc is a function as an Actor.
type ActorFunc func(ev Event) error

// Receive calls f.
func (f ActorFunc) Receive(ev Event) error { return f(ev) }

// A Conn is one WebSocket connection. While idle it costs neither a goroutine nor a buffer. Every
// method may be called from any goroutine at any time, also after the connection closed.
type Conn struct {
	// What a message needs comes first, and lies in one line of a processor's cache.

	// Immutable.
	tc     *tcpio.Conn
	s      *Server
	client bool // made by Dial: what it sends is masked

	packs bool // permessage-deflate was negotiated; set once, before Opened

	mu sync.Mutex // taken before the tcpio.Conn's own lock, behind Server.naming
	// Guarded by mu.
	phase     phase
	busy      bool // a turn is decoding, or Dial is at work
	again     bool // something happened meanwhile: another turn has to follow
	streamed  bool // events go to the server's Events
	driven    bool // the core's route is the driver
	paused    bool
	announced bool // Opened was delivered
	gone      bool // Closed was delivered, or is being delivered
	nudged    bool // a nudge is on its way
	heard     bool // since the ping's deadline was armed
	pinged    bool // and not heard since
	refused   bool // a write was: Writable is owed
	sending   bool // WriteText or WriteBinary may be between two fragments
	actor     Actor
	out       *control // control frames that wait for room
	end       *ending  // why and how it ends
	skipped   int      // messages that Groups have left out since the last Writable
	data      any

	writing sync.Mutex // held by WriteText and WriteBinary; taken before mu

	// Owned by the turn that holds busy.
	in     *input // what has not arrived whole; nil when there is nothing
	tokens float32
	filled int64 // when tokens was last added to

	// Guarded by Server.timers.mu.
	armed      deadline
	due        int64
	next, prev *Conn

	// Set once, before Opened.
	proto string     // the subprotocol
	peer  netip.Addr // behind trusted proxies
}

// phase is how far the life of a connection has come:
//
//	opening --handshake done--> open --our Close frame--> closing --the peer's Close frame--> over
//	opening --refused, too late--> over
//	open --the peer's Close frame: ours answers it--> over
//	open, closing --protocol error, TCP's end, a time limit--> over
//
// Over, the connection under it flushes, ends and reports tcpio.Closed.
type phase uint8

const (
	opening phase = iota
	open
	closing
	over
)

// An ending is how a connection ends.
type ending struct {
	code   Code
	by     Side
	reason string
	err    error
}

// Underlying returns the connection under c: for its ID, its addresses, its TLS state and its
// limits. What is read from it, or written to it, breaks the framing. Its Data is taken.
func (c *Conn) Underlying() *tcpio.Conn { return c.tc }

// String names the connection in a log, as [tcpio.Conn.String] does.
func (c *Conn) String() string {
	if c == nil {
		return "no conn"
	}
	return c.tc.String()
}

// Subprotocol returns the subprotocol that was chosen, or "".
func (c *Conn) Subprotocol() string { return c.proto }

// Addr returns the peer's address. If that is in one of [Options].TrustedProxies, it is the last
// address in X-Forwarded-For that is not. It is the zero Addr for a unix socket.
func (c *Conn) Addr() netip.Addr { return c.peer }

// Compressed reports whether permessage-deflate was negotiated.
func (c *Conn) Compressed() bool { return c.packs }

// SetData attaches a value of the user's to the connection, for Data to return.
func (c *Conn) SetData(v any) {
	c.mu.Lock()
	c.data = v
	c.mu.Unlock()
}

// Data returns what SetData set last, nil before.
func (c *Conn) Data() any {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.data
}

// Skipped returns how many messages Groups have left out for the connection since the last
// [Writable], because it did not keep up; 0 for one that does.
func (c *Conn) Skipped() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skipped
}

// Post sends v to the connection as a Message; see [tcpio.Conn.Post].
func (c *Conn) Post(v any) error { return c.tc.Post(v) }

// Ask posts v and waits for a Reply; see [tcpio.Conn.Ask].
func (c *Conn) Ask(ctx context.Context, v any) (any, error) { return c.tc.Ask(ctx, v) }

// After posts v d from now; see [tcpio.Conn.After].
func (c *Conn) After(d time.Duration, v any) (stop func() bool) { return c.tc.After(d, v) }

// Err says why the connection ended: nil before, and when it ended by a closing handshake or as
// the peer's [Closed] says. A *[FrameError] is what the peer did wrong; otherwise it is as for
// [tcpio.Conn.Err].
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil && c.end.err != nil {
		return c.end.err
	}
	return c.tc.Err()
}

// Pause holds back the peer's messages: none follows until Resume, what has arrived is kept, and
// TCP holds the peer back. Pings are not answered meanwhile, and the peer's end is not seen; a
// missing pong does not count. Call it when what a message leads to has no room, and Resume at
// Writable. An actor that blocks needs neither.
func (c *Conn) Pause() {
	c.mu.Lock()
	c.paused = true
	c.mu.Unlock()
}

// Resume ends a Pause.
func (c *Conn) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused {
		c.paused, c.heard = false, true
		c.nudgeLocked()
	}
}

// nudge is a Message to ourselves: a turn has to follow.
type nudge struct{}

// nudgeLocked has a turn follow on the connection's route, whichever that is then. A timer's value
// does not count against MailboxSize, so it always finds room.
func (c *Conn) nudgeLocked() {
	if !c.nudged {
		c.nudged = true
		c.tc.After(0, nudge{})
	}
}

// Attach gives the connection to a: every event that follows goes there, from any route. Called
// while an event is handled it takes everything behind that one. A nil a is an error, and so is a
// connection that has ended.
func (c *Conn) Attach(a Actor) error {
	if a == nil {
		return errors.New("websocket: Conn.Attach: the actor is nil")
	}
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return c.errEnded("attach")
	}
	old, driven := c.actor, c.driven
	c.actor, c.streamed, c.driven = a, false, true
	c.mu.Unlock()
	if cl, ok := old.(*claim); ok {
		cl.leave()
	}
	if driven {
		return nil // the driver asks for the actor each time
	}
	return c.tc.Attach((*driver)(c))
}

// Events claims the connection for the goroutine that receives from the returned channel: every
// event that follows comes there, and the channel is closed behind Closed. A Data is the
// receiver's to keep. While nobody receives, only this connection pauses, at the cost of a
// goroutine; so receive until the channel is closed, or call Attach. Called again it returns the
// same channel; on a connection that has ended, a closed one.
func (c *Conn) Events() <-chan Event {
	c.mu.Lock()
	cl, ok := c.actor.(*claim)
	c.mu.Unlock()
	if ok {
		return cl.ch
	}
	cl = &claim{ch: make(chan Event), left: make(chan struct{}), over: c.s.over}
	if c.Attach(cl) != nil {
		cl.leave()
	}
	return cl.ch
}

// A claim is an actor that hands its events to a channel.
type claim struct {
	ch   chan Event
	left chan struct{} // closed when the connection moved to another actor
	over chan struct{} // closed when the server has ended

	mu     sync.Mutex // held to send an event, and to close ch
	closed bool       // guarded by mu
}

// errMoved is what a claim returns that the connection has left: the event is for the next actor.
var errMoved = errors.New("websocket: the connection has moved")

// leave ends a claim whose connection has moved.
func (cl *claim) leave() {
	close(cl.left)
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.closeLocked()
}

func (cl *claim) closeLocked() {
	if !cl.closed {
		cl.closed = true
		close(cl.ch)
	}
}

// Receive waits until ev is received.
func (cl *claim) Receive(ev Event) error {
	last := false
	switch e := ev.(type) {
	case Text:
		e.Data = append([]byte{}, e.Data...)
		ev = e
	case Binary:
		e.Data = append([]byte{}, e.Data...)
		ev = e
	case Piece:
		e.Data = append([]byte{}, e.Data...)
		ev = e
	case Closed:
		last = true
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.closed {
		return errMoved
	}
	select {
	case cl.ch <- ev:
	case <-cl.left:
		return errMoved
	case <-cl.over:
	}
	if last {
		cl.closeLocked()
	}
	return nil
}

// A FrameError is the Err of a connection whose peer broke the protocol or a limit.
type FrameError struct {
	Code Code   // what the peer was sent
	Text string // what was wrong
}

func (e *FrameError) Error() string { return "websocket: " + e.Text }

// errEnded is what a write or a Close gets when the connection no longer takes it.
func (c *Conn) errEnded(op string) error {
	return &net.OpError{Op: op, Net: "websocket", Addr: c.tc.RemoteAddr(), Err: net.ErrClosed}
}

// opened is what the handshake has found out; see Conn.open.
type opened struct {
	req   *http.Request
	proto string
	peer  netip.Addr
	packs bool
	rest  []byte // what came behind the handshake
}

// open begins the connection's life behind the handshake. Opened is for the next turn. It reports
// false if the connection has ended meanwhile.
func (c *Conn) open(o opened) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != opening {
		return false
	}
	c.proto, c.peer, c.packs = o.proto, o.peer, o.packs
	c.phase, c.heard = open, true
	c.in = &input{hello: true, req: o.req, rest: o.rest}
	c.s.timers.arm(c, forPing)
	return true
}
