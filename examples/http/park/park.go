// Package park serves an http.Server on actors: a connection has a goroutine and buffers while a
// request is on its way, as net/http gives it, and neither between two requests.
//
// There is no HTTP in it but a few lines at the end of this file. When bytes arrive, the actor
// lends its connection to the http.Server, which parses, refuses, answers and closes as on any
// other listener. When the server has answered and asks for a next request that has not come, the
// connection is taken back.
package park

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// A Server makes actors that serve an http.Server's requests.
type Server struct {
	srv      *http.Server
	idle     time.Duration
	grace    time.Duration
	draining atomic.Bool
}

// waiting is the http.Server's own IdleTimeout. The deadline that comes of it says that the server
// waits for a request.
const waiting = 100 * 365 * 24 * time.Hour

// New returns a Server for srv, whose Handler, ConnState, ConnContext and IdleTimeout it replaces;
// srv is not to be used otherwise. ConnState and ConnContext are called for each loan of a
// connection. ReadHeaderTimeout holds from the first byte of a request on and IdleTimeout between
// two requests; for the first byte of a connection there is
// [tcpio.ListenerOptions.ReadStallTimeout].
//
// When the listener drains, the next answer on a connection is its last one and says so, and a
// connection on which nothing comes for grace is closed. ListenerOptions.DrainTimeout must leave
// time for that.
func New(srv *http.Server, grace time.Duration) *Server {
	s := &Server{srv: srv, idle: srv.IdleTimeout, grace: grace}
	if s.idle == 0 {
		s.idle = srv.ReadTimeout
	}
	srv.IdleTimeout = waiting
	handler, connState, connContext := srv.Handler, srv.ConnState, srv.ConnContext
	if handler == nil {
		handler = http.DefaultServeMux
	}
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Context().Value(loanKey{}).(*loan).posted = r.Method == http.MethodPost
		a := &answer{w, s}
		handler.ServeHTTP(a, r)
		a.last() // if nothing was written
	})
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		if l := c.(*loan); state == http.StateActive { // before the handler
			l.used, l.posted = true, false
		}
		if connState != nil {
			connState(c, state)
		}
	}
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if ctx = context.WithValue(ctx, loanKey{}, c); connContext != nil {
			ctx = connContext(ctx, c)
		}
		return ctx
	}
	return s
}

type loanKey struct{}

// Actor is for ListenerOptions.NewActor.
func (s *Server) Actor(*tcpio.Conn) tcpio.Actor { return &session{s: s} }

// A session is the actor of one connection: all that there is of a parked one.
type session struct {
	s  *Server
	mu sync.Mutex
	// Guarded by mu.
	lent   bool // the http.Server has the connection; if it closes it, for good
	missed bool // Readable came meanwhile
	over   bool // grace is over: a connection that comes back is closed
	used   bool // the connection has had a request
	posted bool // the last one was a POST
}

// graceOver is what a session posts to itself.
type graceOver struct{}

// Receive implements tcpio.Actor.
func (n *session) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Readable:
		n.lend(ev.Conn)
	case tcpio.Draining:
		n.s.draining.Store(true)
		n.mu.Lock()
		defer n.mu.Unlock()
		if !n.lent {
			ev.Conn.After(n.s.grace, graceOver{})
		}
	case tcpio.Message: // graceOver
		n.mu.Lock()
		n.over = true
		n.mu.Unlock()
		n.lend(ev.Conn) // a request may have come just now
	}
	return nil
}

// lend gives the connection to the http.Server.
func (n *session) lend(c *tcpio.Conn) {
	n.mu.Lock()
	if n.lent {
		n.missed = true
		n.mu.Unlock()
		return
	}
	n.lent, n.missed = true, false
	l := &loan{Conn: c, session: n, fresh: true}
	n.mu.Unlock()
	_ = c.SetIdleTimeout(0) // it fails on a closed connection, which needs none
	// Serve starts the goroutine of the one connection that it accepts here, and returns.
	_ = n.s.srv.Serve(&offer{l})
	if !l.accepted {
		c.Close() // the server has been shut down
	}
}

// back takes the connection back, unless something has arrived since the server looked.
func (n *session) back(l *loan) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.missed {
		n.missed = false
		return false
	}
	l.returned = true
	n.lent = false
	if l.used {
		n.used, n.posted = true, l.posted
	}
	_ = l.Conn.SetReadDeadline(time.Time{})
	switch {
	case n.over:
		l.Conn.Close()
	case n.s.draining.Load():
		l.Conn.After(n.s.grace, graceOver{})
	default:
		_ = l.Conn.SetIdleTimeout(n.s.idle)
	}
	return true
}

// An offer is a net.Listener with one connection.
type offer struct{ l *loan }

// Accept hands the connection out, once.
func (o *offer) Accept() (net.Conn, error) {
	if o.l.accepted {
		return nil, net.ErrClosed
	}
	o.l.accepted = true
	return o.l, nil
}

// Close implements net.Listener.
func (o *offer) Close() error { return nil }

// Addr implements net.Listener.
func (o *offer) Addr() net.Addr { return o.l.LocalAddr() }

// A loan is the connection as the http.Server has it, from the first byte of a request to the end
// of the last one that is there. The server's end of a loan that was taken back is not the end of
// the connection.
type loan struct {
	*tcpio.Conn
	session  *session
	accepted bool
	returned bool // the server's loan is over

	// The server waits for its next request, with a buffer that is empty if it offers all of it to
	// read into.
	between atomic.Bool
	room    int
	fresh   bool // nothing was read yet
	used    bool // there was a request
	posted  bool // the last one was a POST
}

// SetReadDeadline implements net.Conn. It tells what the server is about to do.
func (l *loan) SetReadDeadline(t time.Time) error {
	between := time.Until(t) > waiting/2
	if l.between.Store(between); between {
		t = time.Time{} // see Read
	}
	return l.Conn.SetReadDeadline(t)
}

// Read implements net.Conn. Between two requests a read that would block ends the loan.
func (l *loan) Read(p []byte) (int, error) {
	if l.room == 0 {
		l.room = len(p)
	}
	if between := l.between.Load(); !l.fresh && (!between || len(p) < l.room) {
		if between && l.session.s.idle > 0 { // for the rest of a request's first bytes
			_ = l.Conn.SetReadDeadline(time.Now().Add(l.session.s.idle))
		}
		return l.Conn.Read(p)
	}
	for {
		got, err := l.Conn.TryRead(p)
		switch {
		case err == tcpio.ErrWouldBlock:
			if l.session.back(l) {
				return 0, io.EOF
			}
		case err == nil && l.fresh:
			l.fresh = false
			return l.begin(p, got)
		default:
			return got, err
		}
	}
}

// Close implements net.Conn.
func (l *loan) Close() error {
	if l.returned {
		return nil
	}
	return l.Conn.Close()
}

// peeked is how many bytes of a request http.Server waits for before it looks at any, but for a
// connection's first one.
const peeked = 4

// begin does what the http.Server would have done if it had kept the connection since the request
// before: less than four bytes are no request, and some clients send an empty line behind the body
// of a POST. p has got bytes.
func (l *loan) begin(p []byte, got int) (int, error) {
	n := l.session
	n.mu.Lock()
	used, posted := n.used, n.posted
	n.mu.Unlock()
	if !used {
		return got, nil
	}
	if got < peeked {
		if _, err := io.ReadFull(l.Conn, p[got:peeked]); err != nil {
			return 0, io.EOF
		}
		got = peeked
	}
	skip := 0
	for posted && skip < peeked && (p[skip] == '\r' || p[skip] == '\n') {
		skip++
	}
	got = copy(p, p[skip:got])
	if got == 0 {
		return l.Conn.Read(p)
	}
	return got, nil
}
