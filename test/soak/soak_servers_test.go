//go:build linux

package soak

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A soakServer is a listener of one route. What it serves is an echo, but for the group's.
type soakServer struct {
	soak   *soak
	name   string
	l      *tcpio.Listener
	served <-chan error
	kinds  []*soakKind
	tls    bool // from the first byte on
	lines  bool // the bytes are lines, and the line STARTTLS begins TLS
	posted bool // values are posted to its connections

	opened, closed atomic.Int64 // events, or connections handed out and ended
	goroutines     atomic.Int64 // of connections that have one
	messages       atomic.Int64 // delivered
}

// soakOptions suit all: limits far beyond what an honest client needs, and little room for output.
func soakOptions() tcpio.ListenerOptions {
	return tcpio.ListenerOptions{
		WriteBuffer: 32 << 10, CloseTimeout: soakPatience, IdleTimeout: soakPatience, WriteStallTimeout: soakPatience,
		HandshakeTimeout: soakPatience,
	}
}

func (s *soak) listen() {
	s.group.soak = s
	echoes := []*soakKind{kindWhole, kindHalfClose, kindReset, kindSlowReader, kindStaller, kindNeverReader, kindSlowWriter, kindQuitter}
	plain := echoes
	secure := append(slices.Clone(echoes), kindPlainText, kindHandshakeQuitter)

	s.add("stream", plain, true, func(o *tcpio.ListenerOptions) { o.EventBuffer = 16 }, (*soakServer).stream)
	s.add("streams", plain, true, func(o *tcpio.ListenerOptions) { o.Loops = 2 }, (*soakServer).streams)
	s.add("mailbox", plain, true, nil, (*soakServer).mailboxes)
	s.add("actor", plain, true, nil, (*soakServer).actors)
	s.add("legacy", plain, false, func(o *tcpio.ListenerOptions) { o.ConcurrentCallbacks = true }, (*soakServer).callbacks)
	s.add("netlistener", plain, false, nil, (*soakServer).netListener)
	s.add("deferred", plain, false, func(o *tcpio.ListenerOptions) { o.DeferAccept = true }, (*soakServer).netListener)
	s.add("tls", secure, true, func(o *tcpio.ListenerOptions) { o.TLSConfig = testnet.ServerTLS() }, (*soakServer).actors)
	s.add("tls stream", secure, false, func(o *tcpio.ListenerOptions) { o.TLSConfig = testnet.ServerTLS() }, (*soakServer).streamOnly)
	s.add("tls netlistener", secure, false, func(o *tcpio.ListenerOptions) { o.TLSConfig = testnet.ServerTLS() },
		(*soakServer).netListener)
	s.add("lines", append(slices.Clone(echoes), kindStartTLS, kindStartTLS), true, nil, (*soakServer).frames)
	s.add("few", []*soakKind{kindRefused}, false, func(o *tcpio.ListenerOptions) {
		o.MaxConns, o.RefuseReply = 2, []byte(refusal)
	}, (*soakServer).actors)
	s.add("group", []*soakKind{kindMember, kindDeafMember}, false, nil, (*soakServer).groupMembers)
}

const refusal = "REFUSED: too many\n"

// add makes a server and lets it run: start begins to consume its events, before Serve.
func (s *soak) add(name string, kinds []*soakKind, posted bool, change func(*tcpio.ListenerOptions),
	start func(*soakServer, *tcpio.ListenerOptions) func(*tcpio.Listener)) {
	s.t.Helper()
	srv := &soakServer{soak: s, name: name, kinds: kinds, posted: posted}
	opts := soakOptions()
	if change != nil {
		change(&opts)
	}
	srv.tls = opts.TLSConfig != nil
	consume := start(srv, &opts)
	srv.l = harness.Listen(s.t, opts)
	// Little room in the kernel, so that output is queued and peers are held back. Accepted sockets
	// inherit it.
	rc, err := srv.l.GetListener().SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 16<<10) })
	if err != nil {
		s.t.Fatal(err)
	}
	if consume != nil {
		consume(srv.l)
	}
	srv.served = harness.Go(s.t.Context(), srv.l)
	s.servers = append(s.servers, srv)
}

// balanced reports that every connection that was opened is closed, as far as the consumers have
// seen.
func (srv *soakServer) balanced() bool {
	return srv.opened.Load() == srv.closed.Load() && srv.live() == 0
}

func (srv *soakServer) live() int64 { return srv.goroutines.Load() }

// spawn runs f on a goroutine that is counted.
func (srv *soakServer) spawn(f func()) {
	srv.goroutines.Add(1)
	go func() { // it ends with its connection
		defer srv.goroutines.Add(-1)
		f()
	}()
}

// A soakConn is what a server knows of a connection, its Data. It belongs to the route that the
// connection is on.
type soakConn struct {
	srv     *soakServer
	route   atomic.Int32 // counts the moves
	ended   atomic.Bool
	mailbox <-chan tcpio.Event // that it is claimed by
	pending []byte             // was read, and TryWrite had no room
	rng     *rand.Rand
	roam    bool // it may change its route again and again
	mixed   bool // its messages may come on two routes at once, between which there is no order
	last    [soakPosters]int
}

// handle is the echo on every route of events. stale events of a route that the connection has left
// do nothing.
func (srv *soakServer) handle(ev tcpio.Event, route int32) error {
	c := tcpio.ConnOf(ev)
	if c == nil {
		if !srv.tls { // where it says that a handshake has failed
			srv.soak.t.Errorf("%s: %v", srv.name, ev)
		}
		return nil
	}
	st, _ := c.Data().(*soakConn)
	switch ev := ev.(type) {
	case tcpio.Opened:
		if st != nil {
			srv.soak.t.Errorf("%s: Opened twice", srv.name)
		}
		srv.opened.Add(1)
		roam := srv.name == "stream" || srv.name == "actor"
		c.SetData(&soakConn{
			srv: srv, rng: rand.New(rand.NewPCG(srv.soak.seed, c.ID())), roam: roam, mixed: roam || srv.name == "mailbox",
		})
		return nil
	case tcpio.Closed:
		if st == nil || st.ended.Swap(true) {
			srv.soak.t.Errorf("%s: Closed without Opened, or twice", srv.name)
		}
		srv.closed.Add(1)
		if err := c.Err(); err != nil && !harmless(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
			srv.soak.t.Errorf("%s: a connection ended with %v", srv.name, err)
		}
		return nil
	case tcpio.Message:
		srv.messages.Add(1)
		v := ev.Value.(soakValue)
		switch {
		case st == nil:
			srv.soak.t.Errorf("%s: a message before Opened", srv.name)
		case st.mixed:
		case v.n <= st.last[v.poster]:
			srv.soak.t.Errorf("%s: message %d of poster %d behind %d", srv.name, v.n, v.poster, st.last[v.poster])
		default:
			st.last[v.poster] = v.n
		}
		ev.Reply(v)
		return nil
	}
	switch {
	case st == nil, st.ended.Load() && !st.mixed: // what an old channel still holds has no order with the new route's
		srv.soak.t.Errorf("%s: %T before Opened or after Closed", srv.name, ev)
		return nil
	case st.route.Load() != route:
		return nil
	}
	return st.echo(c)
}

// echo moves what there is, as far as there is room. Whatever it could not write is kept until
// Writable.
func (st *soakConn) echo(c *tcpio.Conn) error {
	if len(st.pending) > 0 {
		switch _, err := c.TryWrite(st.pending); {
		case err == tcpio.ErrWouldBlock:
			return nil
		case err != nil:
			return st.over(c, err)
		}
		st.pending = nil
	}
	if st.roam && c.Buffered() == 0 && st.rng.IntN(8) == 0 && st.move(c) {
		return nil
	}
	buf := make([]byte, 1+st.rng.IntN(16<<10))
	n, err := c.TryRead(buf)
	switch {
	case err == tcpio.ErrWouldBlock:
		return nil
	case err != nil:
		return st.over(c, err)
	}
	switch _, err := c.TryWrite(buf[:n]); {
	case err == tcpio.ErrWouldBlock:
		st.pending = buf[:n] // no read before there is room: the peer is held back
	case err != nil:
		return st.over(c, err)
	}
	return nil
}

// over ends a connection, which a failed write does not do by itself.
func (st *soakConn) over(c *tcpio.Conn, err error) error {
	c.Close()
	if err != io.EOF && !harmless(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
		st.srv.soak.t.Errorf("%s: %v", st.srv.name, err)
	}
	return nil
}

// move changes the connection's route, at a moment at which nothing of it is pending.
func (st *soakConn) move(c *tcpio.Conn) bool {
	srv := st.srv
	switch st.rng.IntN(4) {
	case 0, 1: // to a goroutine of its own
		events := c.Events()
		if events == st.mailbox {
			return false
		}
		st.mailbox = events
		route := st.route.Add(1)
		srv.spawn(func() {
			for ev := range events {
				srv.handle(ev, route)
			}
		})
	case 2:
		st.mailbox = nil
		route := st.route.Add(1)
		if err := c.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error { return srv.handle(ev, route) })); err != nil && !harmless(err) {
			srv.soak.t.Errorf("%s: Attach: %v", srv.name, err) // it fails only when Closed has been delivered
		}
	case 3:
		tc, err := c.Hijack()
		if err != nil {
			if !harmless(err) {
				srv.soak.t.Errorf("%s: Hijack: %v", srv.name, err)
			}
			return false // a read says what it has come to
		}
		st.route.Add(1) // what the channel still holds is nobody's
		srv.spawn(func() { srv.hijacked(tc, st.rng) })
	}
	return true
}

// hijacked echoes over a connection of the package net, and gives it back after a while.
func (srv *soakServer) hijacked(tc *net.TCPConn, rng *rand.Rand) {
	buf := make([]byte, 8<<10)
	for range rng.IntN(4) {
		n, err := tc.Read(buf)
		if err == nil {
			_, err = tc.Write(buf[:n])
		}
		if err != nil {
			tc.Close()
			return
		}
	}
	if _, err := srv.l.Adopt(tc); err != nil {
		srv.soak.t.Errorf("%s: Adopt: %v", srv.name, err)
		tc.Close()
	}
}

// The routes. Each begins to consume.

func (srv *soakServer) stream(o *tcpio.ListenerOptions) func(*tcpio.Listener) {
	return srv.streamOnly(o)
}

func (srv *soakServer) streamOnly(*tcpio.ListenerOptions) func(*tcpio.Listener) {
	return func(l *tcpio.Listener) { srv.consume(l.Events()) }
}

func (srv *soakServer) streams(*tcpio.ListenerOptions) func(*tcpio.Listener) {
	return func(l *tcpio.Listener) {
		for _, ch := range l.EventsPerLoop() {
			srv.consume(ch)
		}
	}
}

func (srv *soakServer) consume(events <-chan tcpio.Event) {
	go func() { // it ends with Serve
		for ev := range events {
			srv.handle(ev, 0)
		}
	}()
}

func (srv *soakServer) mailboxes(*tcpio.ListenerOptions) func(*tcpio.Listener) {
	return func(l *tcpio.Listener) {
		events := l.Events()
		go func() {
			for ev := range events {
				srv.handle(ev, 0)
				if o, ok := ev.(tcpio.Opened); ok {
					route := o.Conn.Data().(*soakConn).route.Add(1)
					mailbox := o.Conn.Events()
					srv.spawn(func() {
						for ev := range mailbox {
							srv.handle(ev, route)
						}
					})
				}
			}
		}()
	}
}

func (srv *soakServer) actors(o *tcpio.ListenerOptions) func(*tcpio.Listener) {
	o.NewActor = func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error { return srv.handle(ev, 0) })
	}
	return nil
}

func (srv *soakServer) callbacks(o *tcpio.ListenerOptions) func(*tcpio.Listener) {
	o.OnConnEvent = func(c net.Conn) error {
		buf := make([]byte, 5000)
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		_, err = c.Write(buf[:n])
		return err
	}
	o.OnErrorEvent = func(err error) {
		if err != io.EOF && !harmless(err) {
			srv.soak.t.Errorf("%s: %v", srv.name, err)
		}
	}
	return nil
}

// netListener serves with a goroutine for each connection: half of them copy in the kernel, where
// that is possible.
func (srv *soakServer) netListener(*tcpio.ListenerOptions) func(*tcpio.Listener) {
	return func(l *tcpio.Listener) {
		ln := l.NetListener()
		go func() {
			for i := 0; ; i++ {
				c, err := ln.Accept()
				if err != nil {
					return // Serve has ended
				}
				srv.opened.Add(1)
				srv.spawn(func() {
					defer srv.closed.Add(1)
					defer c.Close()
					var err error
					if i%2 == 0 {
						_, err = io.Copy(c, c)
					} else {
						_, err = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
					}
					if err != nil && !harmless(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
						srv.soak.t.Errorf("%s: %v", srv.name, err)
					}
				})
			}
		}()
	}
}

// frames echoes lines, by Frames, in actors that block when there is no room.
func (srv *soakServer) frames(o *tcpio.ListenerOptions) func(*tcpio.Listener) {
	srv.lines = true
	o.NewActor = func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			r, ok := ev.(tcpio.Readable)
			if !ok {
				return srv.handle(ev, 0)
			}
			for line, err := range r.Conn.Frames(testnet.SplitRawLines) {
				switch {
				case errors.Is(err, io.ErrUnexpectedEOF):
					return io.EOF // a client that has quit inside a line
				case err != nil:
					return r.Conn.Data().(*soakConn).over(r.Conn, err)
				}
				if string(line) == startTLSLine {
					if _, err := r.Conn.TryWrite([]byte(startTLSReply)); err != nil {
						return r.Conn.Data().(*soakConn).over(r.Conn, err)
					}
					if err := r.Conn.StartTLS(testnet.ServerTLS()); err != nil && !harmless(err) {
						srv.soak.t.Errorf("%s: StartTLS: %v", srv.name, err)
					}
					return nil
				}
				if _, err := r.Conn.Write(line); err != nil {
					return r.Conn.Data().(*soakConn).over(r.Conn, err)
				}
			}
			return nil
		})
	}
	return nil
}

const (
	startTLSLine  = "STARTTLS\n"
	startTLSReply = "GO AHEAD\n"
)
