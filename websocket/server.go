package websocket

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// A Server is what the connections of one kind have in common: their options, their timers, and,
// if Listen made it, the listener with its loops. Its methods may be called from any goroutine.
type Server struct {
	// Immutable.
	opts  Options
	l     *tcpio.Listener // nil: New made it
	drain time.Duration   // how long a connection has behind Draining
	tls   bool            // l has a TLSConfig
	over  chan struct{}   // closed when Serve has returned; nil without a listener

	timers timers
	served atomic.Bool // Serve was called
	naming sync.Mutex  // held while a tcpio.Conn gets its Conn; taken before a Conn's mu
}

// Listen opens a listening socket for WebSocket connections. The options of tcp hold for the
// connections under them, with TLSConfig as wss; its fields Actor, DeferAccept, OnConnEvent and
// ConcurrentCallbacks must not be set. At the end of DrainTimeout a closing handshake begins. If
// PingInterval is set and tcp's WriteStallTimeout is not, WriteStallTimeout is PongTimeout.
//
// With Network "none" the server has no port: it serves the connections of [Server.Upgrade] and
// [Server.Dial].
//
// A nil opts is the zero Options. Errors are those of [tcpio.Listen], and of a bad field.
func Listen(tcp *tcpio.ListenerOptions, opts *Options) (*Server, error) {
	s, err := New(opts)
	if err != nil {
		return nil, err
	}
	if tcp == nil {
		return nil, errors.New("websocket: Listen: tcp is nil")
	}
	if tcp.NewActor != nil || tcp.OnConnEvent != nil || tcp.ConcurrentCallbacks || tcp.DeferAccept {
		return nil, errors.New("websocket: Listen: tcp has an Actor, callbacks or DeferAccept")
	}
	o := *tcp
	if o.DrainTimeout >= 0 {
		s.drain = o.DrainTimeout
		o.DrainTimeout += s.opts.CloseTimeout
	}
	if o.WriteStallTimeout == 0 && s.opts.PingInterval > 0 {
		o.WriteStallTimeout = s.opts.PongTimeout
	}
	if s.opts.NewActor != nil {
		o.NewActor = func(tc *tcpio.Conn) tcpio.Actor { return (*driver)(s.connOf(tc)) }
	}
	s.tls = o.TLSConfig != nil
	s.timers.init(s)
	if s.l, err = tcpio.Listen(&o); err != nil {
		return nil, err
	}
	s.over = make(chan struct{})
	return s, nil
}

// New returns a Server without a listener, for [Server.Upgrade] in net/http handlers that run on
// a [tcpio.Listener.NetListener]: their connections stay on its loops.
func New(opts *Options) (*Server, error) {
	s := new(Server)
	if opts != nil {
		s.opts = *opts
		s.opts.Origins = slices.Clone(opts.Origins)
		s.opts.Subprotocols = slices.Clone(opts.Subprotocols)
		s.opts.TrustedProxies = slices.Clone(opts.TrustedProxies)
	}
	if err := s.opts.check(); err != nil {
		return nil, err
	}
	s.timers.init(s)
	return s, nil
}

// Listener returns the listener that Listen opened: for its address, its statistics, Shutdown and
// Close. Its Events and EventsPerLoop are for [Server.Receive] alone. It is nil if New made s.
func (s *Server) Listener() *tcpio.Listener { return s.l }

// Serve serves until ctx ends, or the listener was shut down or closed; see
// [tcpio.Listener.Serve]. At the end of ctx every peer gets a Close frame with GoingAway.
func (s *Server) Serve(ctx context.Context) error {
	if s.l == nil {
		return errors.New("websocket: Serve: the server has no listener")
	}
	if !s.served.CompareAndSwap(false, true) {
		return errors.New("websocket: Serve was called before on this server")
	}
	defer close(s.over)
	defer s.timers.stop()
	return s.l.Serve(ctx)
}

// Events iterates over the events of all connections, until Serve returns, on one goroutine, which
// decodes them: no other one is needed. While the body runs nothing is received, so the body must
// not block. To select from other channels too, receive from s.Listener().Events() and call
// [Server.Receive]. Behind a break, Events can be called again.
//
// With [Options].NewActor it has only Failed. Events panics if New made s, and after EventsPerLoop.
func (s *Server) Events() iter.Seq[Event] { return s.decoded(s.l.Events()) }

// EventsPerLoop returns an iteration for each loop, each for a goroutine of its own, as
// [tcpio.Listener.EventsPerLoop] does. It panics if New made s, and after Events.
func (s *Server) EventsPerLoop() []iter.Seq[Event] {
	var all []iter.Seq[Event]
	for _, ch := range s.l.EventsPerLoop() {
		all = append(all, s.decoded(ch))
	}
	return all
}

func (s *Server) decoded(ch <-chan tcpio.Event) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for ev := range ch {
			if !s.receive(ev, yield) {
				return
			}
		}
	}
}

// Conns iterates over the connections of the server's own listener whose Opened was delivered, and
// that are open or closing. No lock is held while the body runs, so a connection may have closed by
// then. Connections that Upgrade took on a NetListener are not among them; a Group can hold those.
func (s *Server) Conns() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		if s.l == nil {
			return
		}
		for tc := range s.l.Conns() {
			if c, ok := tc.Data().(*Conn); ok && c.isAnnounced() && !yield(c) {
				return
			}
		}
	}
}

// Receive iterates over what an event of s.Listener().Events(), or EventsPerLoop, means: none or
// more events. It does not block. Every event that is received from the channel has to be passed to
// it, in order. Behind a break the rest follows with a later event, by itself.
func (s *Server) Receive(ev tcpio.Event) iter.Seq[Event] {
	return func(yield func(Event) bool) { s.receive(ev, yield) }
}

func (s *Server) receive(ev tcpio.Event, yield func(Event) bool) (goOn bool) {
	if ev, ok := ev.(tcpio.Failed); ok {
		return yield(Failed{ev.Err})
	}
	tc := tcpio.ConnOf(ev)
	if tc == nil {
		return true // an event of a later version
	}
	t := turn{c: s.connOf(tc), stream: true, yield: yield}
	t.receive(ev)
	return !t.broken
}

// connOf returns tc's Conn, and makes it if it has none: an accepted connection's handshake begins.
func (s *Server) connOf(tc *tcpio.Conn) *Conn {
	if c, ok := tc.Data().(*Conn); ok {
		return c
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	if c, ok := tc.Data().(*Conn); ok {
		return c
	}
	c := s.newConn(tc)
	if !c.client { // Dial has a time limit of its own
		s.timers.arm(c, forHandshake)
	}
	return c
}

// newConn makes the Conn of a connection of the server's own listener. It is called with naming
// held. One that Dial makes is busy until Dial hands it over: its handshake is Dial's to read.
func (s *Server) newConn(tc *tcpio.Conn) *Conn {
	client, actors := tc.Dialed(), s.opts.NewActor != nil
	c := &Conn{tc: tc, s: s, client: client, busy: client, streamed: !actors, driven: actors && !client}
	tc.SetData(c)
	return c
}

// String names the server in a log.
func (s *Server) String() string {
	if s.l == nil {
		return "websocket server"
	}
	return fmt.Sprintf("websocket server on %v", s.l.Addr())
}
