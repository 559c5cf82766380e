package tcpio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// NetListener returns the listener as a net.Listener, the same on every call: Accept hands out
// connections as plain blocking net.Conns, for http.Server.Serve or any other server. Such a
// connection has no events and no EOFTimeout until Conn.Events or Conn.Attach gives it a route,
// which begins with Opened. Serve must run beside it. With [ListenerOptions.DeferAccept] a
// connection is handed out once its first bytes have arrived, and costs no goroutine until then.
//
// For HTTP with TLS call http.Server.ServeTLS on it and leave [ListenerOptions.TLSConfig] nil:
// net/http looks for a *tls.Conn to set Request.TLS and to speak HTTP/2. With TLSConfig the
// connections are tcpio's own, and it has neither.
//
// To stop, call http.Server.Shutdown first, and end Serve's ctx behind it. If l stops first,
// http.Server.Serve returns an error that matches net.ErrClosed, not http.ErrServerClosed.
//
// Its Close stops accepting, as Shutdown does. It leaves alone the connections that were handed
// out, and aborts the others. Accept then fails with net.ErrClosed. NetListener panics after Events
// or EventsPerLoop, and with NewActor or OnConnEvent.
func (l *Listener) NetListener() net.Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.netListener == nil {
		if l.routesFixed() && !l.stopping.Load() {
			panic("tcpio: Listener.NetListener called after Events or EventsPerLoop, or with an actor")
		}
		l.accepted = newStream(&l.shared, l.opts.EventBuffer, false)
		l.netListener = &netListener{l: l, closed: make(chan struct{})}
		if l.finished {
			close(l.accepted.ch)
		}
		l.fixRoutesLocked(defaultLoops(), false)
	}
	return l.netListener
}

// A netListener hands out connections. Their Opened, and nothing else of them, goes to
// Listener.accepted.
type netListener struct {
	l      *Listener
	once   sync.Once
	closed chan struct{}
}

// Accept blocks until a connection is there, or the listener has stopped.
func (n *netListener) Accept() (net.Conn, error) {
	select {
	case <-n.closed:
		return nil, n.over()
	default:
	}
	select {
	case <-n.closed:
	case ev := <-n.l.accepted.ch:
		if o, ok := ev.(Opened); ok {
			return o.Conn, nil
		}
	}
	return nil, n.over()
}

func (n *netListener) over() error {
	return &net.OpError{Op: "accept", Net: n.l.addr.Network(), Addr: n.l.addr, Err: net.ErrClosed}
}

// Close stops accepting. It does not wait.
func (n *netListener) Close() error {
	n.once.Do(func() {
		close(n.closed)
		n.l.endAt(endCut) // what is accepted now is not handed out
		n.l.stopAccepting()
		n.l.finishUnserved() // without Serve there is nothing to wait for
		for c := range n.l.Conns() {
			c.mu.Lock()
			if !c.isClaimed() && !c.opened() {
				c.abortLocked(net.ErrClosed) // it is still waiting for its first bytes
			}
			c.unlock()
		}
		go func() {
			for ev := range n.l.accepted.ch { // until Serve has ended
				if o, ok := ev.(Opened); ok {
					o.Conn.Abort()
				}
			}
		}()
	})
	return nil
}

// Addr returns the listener's address.
func (n *netListener) Addr() net.Addr { return n.l.addr }

// File returns a duplicate of the listening socket, that of Addr, CLOEXEC, for another process that
// goes on listening, for instance by exec.Cmd.ExtraFiles. The caller closes it. Unlike File of the
// package net it leaves the socket, which the duplicate shares, non-blocking.
//
// The socket lives until the last duplicate is closed, longer than l: peers go on connecting, and
// wait in the backlog for the next process that accepts. Shutdown still serves what it finds there.
// From now on Close leaves a unix socket's path alone. After Close File fails with net.ErrClosed.
//
// A process with the duplicate may change the socket's blocking mode. If it uses accepted sockets
// with blocking calls, it has to set SO_RCVTIMEO and SO_SNDTIMEO of them, or of the listening
// socket, to zero: TCP connections inherit the millisecond that l has set there so that no call of
// its own can block.
func (l *Listener) File() (*os.File, error) {
	l.socket.mu.Lock()
	defer l.socket.mu.Unlock()
	return l.fileLocked(l.entries[0])
}

// Files is File for all the listener's sockets, in the order of Addrs. It returns all or none.
func (l *Listener) Files() (files []*os.File, err error) {
	l.socket.mu.Lock()
	defer l.socket.mu.Unlock()
	for _, e := range l.entries {
		if e.addr == (noAddr{}) {
			continue
		}
		f, err := l.fileLocked(e)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func (l *Listener) fileLocked(e *entry) (*os.File, error) {
	err := net.ErrClosed
	if e.addr == (noAddr{}) {
		err = errors.ErrUnsupported
	}
	if e.fd >= 0 {
		var f *os.File
		if f, err = sys.DupFile(e.fd); err == nil {
			e.path = ""
			return f, nil
		}
	}
	return nil, &net.OpError{Op: "file", Net: e.addr.Network(), Addr: e.addr, Err: err}
}

// Adopt takes over a connection that was established elsewhere: a *net.TCPConn or *net.UnixConn.
// Its descriptor moves: nc is closed, calls that are blocked in it fail with net.ErrClosed, and the
// connection goes on as the returned Conn. Its events go where those of accepted connections go,
// Opened first and at once. NetListener too hands it out at once, even with DeferAccept: its first
// bytes may have been read. Bytes that were read from nc before do not come again.
//
// Serve must be running: Adopt waits 5 s at most for one that a goroutine is about to call, and
// fails then. It fails with net.ErrClosed once the listener is stopping. nc is untouched after any
// error.
func (l *Listener) Adopt(nc net.Conn) (*Conn, error) {
	fail := func(err error) (*Conn, error) {
		return nil, &net.OpError{Op: "adopt", Net: l.addr.Network(), Addr: l.addr, Err: err}
	}
	switch nc := nc.(type) {
	case *net.TCPConn:
		if nc == nil {
			return fail(errors.New("a nil *net.TCPConn"))
		}
	case *net.UnixConn:
		if nc == nil || nc.LocalAddr() != nil && nc.LocalAddr().Network() != "unix" {
			return fail(errors.New("not a stream socket"))
		}
	default:
		return fail(fmt.Errorf("neither *net.TCPConn nor *net.UnixConn: %T", nc))
	}
	c, err := l.adoptSocket(nc)
	if err != nil {
		return fail(err)
	}
	return c, nil
}

// servePatience is how long Adopt waits for Serve. Nothing tells a program that the goroutine in
// which it calls Serve has begun.
const servePatience = 5 * time.Second

// adoptSocket serves nc's connection. On an error nc is as it was.
func (l *Listener) adoptSocket(nc net.Conn) (*Conn, error) {
	if err := l.mayAdd(); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), servePatience)
		defer cancel()
		_ = l.awaitServe(ctx)
		if err = l.mayAdd(); err != nil {
			return nil, err
		}
	}
	local, remote := nc.LocalAddr(), nc.RemoteAddr()
	fd, peer, err := sys.Take(nc)
	if err != nil {
		return nil, err
	}
	c := l.newConn(l.leastBusy(true), fd, peer, adopted)
	if local == nil {
		local = sys.LocalAddr(fd, sys.Zone{}) // it was reset before nc asked
	}
	c.ext = &connExt{local: local, remote: remote}
	c.claim = min(c.claim, unclaimed) // its first bytes may have been read from nc
	if _, ok := nc.(*net.TCPConn); ok && sys.Multipath(fd) {
		c.sock.add(sockUnsure) // a short read of it proves nothing
	}
	asks := l.asksForActor(c)
	if err := l.register(c); err != nil {
		sys.Disown(nc)
		return nil, err
	}
	if asks {
		l.adopt(c)
	}
	nc.Close() // the duplicate keeps the connection
	return c, nil
}

// GetListener returns the listening socket as a *net.TCPListener, the same on every call, for its
// address and options: a duplicate in the Go runtime's poller, closed with l. Accepting from it
// takes connections away from l. It returns nil for a unix socket, after Close, and when the system
// has no descriptor left. New programs want Addr.
func (l *Listener) GetListener() *net.TCPListener {
	l.socket.mu.Lock()
	defer l.socket.mu.Unlock()
	e := l.entries[0]
	if _, ok := e.addr.(*net.TCPAddr); !ok || e.fd < 0 {
		return nil
	}
	if e.std == nil {
		e.std, _ = sys.DupListener(e.fd)
	}
	return e.std
}
