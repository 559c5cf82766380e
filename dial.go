package tcpio

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"syscall"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// Dial is DialWith with the zero net.Dialer, and never multipath TCP.
func (l *Listener) Dial(ctx context.Context, network, address string) (*Conn, error) {
	d := new(net.Dialer)
	d.SetMultipathTCP(false) // as for the listening socket, also if GODEBUG says otherwise
	return l.DialWith(ctx, d, network, address)
}

// DialWith connects to address with d, on "tcp", "tcp4", "tcp6" or "unix", and then serves the
// connection on l's loops beside the accepted ones. Every field of a net.Dialer has its effect:
// source address, Resolver, Timeout, Deadline, Cancel, FallbackDelay, Control.
//
// TCP_NODELAY, KeepAlive and TCPUserTimeout are set as on accepted connections, behind d's Control
// or ControlContext, with two exceptions. A KeepAlive that is not zero, or an enabled
// KeepAliveConfig, holds in place of l's. A TCP_USER_TIMEOUT that Control has set stays. An error
// of Control's ends the attempt and is in what DialWith returns. Multipath TCP is used if d says so
// (net.Dialer.SetMultipathTCP); where it lacks one of l's options the connection goes without. d is
// neither changed nor kept, and may be used elsewhere at the same time; nil is the zero Dialer.
//
// DialWith blocks until the connection is established, ctx ends, or l has stopped. An actor may
// call it, since it may block; the hooks Admit and NewActor must not.
//
// If the events of accepted connections go to Events or EventsPerLoop, those of this one do too,
// Opened first. Otherwise it has no route, like a connection that NetListener hands out: it is a
// plain blocking net.Conn without events and without EOFTimeout, until Conn.Attach or Conn.Events
// gives it a route, which begins with Opened.
//
// The options for accepted connections have no effect on it: NewActor, OnConnEvent, the bounds on
// which connections are served (but it counts for MaxConns), and TLSConfig, which is a server's: a
// dialed connection is plain. DialTLS and Conn.StartTLSClient are for TLS.
//
// Before Serve runs DialWith waits for it, as long as ctx allows. Errors are *net.OpError: around
// net.ErrClosed once l is stopping, around ctx's error if Serve did not run in time, and otherwise
// what net.Dialer returns, whose Timeout tells that ctx had a deadline.
func (l *Listener) DialWith(ctx context.Context, d *net.Dialer, network, address string) (*Conn, error) {
	return l.dial(ctx, d, network, address, nil)
}

// DialTLS is DialWith with the handshake of a TLS client, and returns when that is done. On the
// stream Opened comes behind it. An established connection has no goroutine.
//
// A config without ServerName has the host of address as its name; nil is the zero config. For the
// rest see Conn.StartTLSClient. HandshakeTimeout bounds the handshake, as ctx does. If it fails,
// DialTLS returns the error that is the connection's Err, a *net.OpError around what crypto/tls
// says; [Stats] counts it.
func (l *Listener) DialTLS(ctx context.Context, d *net.Dialer, network, address string, config *tls.Config) (*Conn, error) {
	if config == nil {
		config = new(tls.Config)
	}
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName, _, _ = net.SplitHostPort(address)
	}
	config, err := guardTLSClient(config)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	return l.dial(ctx, d, network, address, config)
}

// dial is DialTLS, and without a config DialWith.
func (l *Listener) dial(ctx context.Context, d *net.Dialer, network, address string, config *tls.Config) (*Conn, error) {
	fail := func(err error) (*Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return fail(net.UnknownNetworkError(network))
	}
	if err := l.awaitServe(ctx); err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go l.endDial(ctx, cancel)
	nc, err := l.tuned(d).DialContext(ctx, network, address)
	if err != nil {
		if context.Cause(ctx) == net.ErrClosed {
			err = net.ErrClosed
		}
		if errors.As(err, new(*net.OpError)) {
			return nil, err
		}
		return fail(err)
	}
	c, err := l.serveOther(nc, dialed, config)
	if err != nil {
		nc.Close()
		return fail(err)
	}
	if config != nil {
		if err := c.awaitHandshake(ctx); err != nil {
			if errors.As(err, new(*net.OpError)) {
				return nil, err
			}
			return fail(err)
		}
	}
	return c, nil
}

// awaitHandshake waits until the handshake is done. When it fails, or ctx ends, so has the
// connection.
func (c *Conn) awaitHandshake(ctx context.Context) error {
	for {
		c.mu.Lock()
		switch {
		case c.ended():
			err := c.ext.err
			c.unlock()
			if err == nil {
				err = net.ErrClosed
			}
			return err
		case !c.handshaking():
			c.unlock()
			return nil
		}
		done := c.ext.waiting().canSend.Enter()
		c.unlock()
		select {
		case <-done:
		case <-ctx.Done():
			c.mu.Lock()
			c.ext.waiting().canSend.Leave(done)
			if c.handshaking() {
				c.abortLocked(context.Cause(ctx))
			}
			c.unlock()
		}
	}
}

// awaitServe waits until the loops run. It fails when ctx ends, and when l is stopping.
func (l *Listener) awaitServe(ctx context.Context) error {
	if l.stopping.Load() {
		return net.ErrClosed
	}
	select {
	case <-l.started:
	case <-l.allClosed:
	case <-ctx.Done():
		return ctx.Err()
	}
	return l.mayAdd()
}

// endDial ends a Dial when l has stopped. It ends with ctx, which ends with Dial.
func (l *Listener) endDial(ctx context.Context, cancel context.CancelCauseFunc) {
	select {
	case <-l.allClosed:
		cancel(net.ErrClosed)
	case <-ctx.Done():
	}
}

// Dialed reports whether Dial, DialWith or DialTLS made the connection: this end is the client. It
// does not block, and any goroutine may call it. It holds after Close too.
func (c *Conn) Dialed() bool { return c.origin == dialed }

// tuned returns a copy of d that sets l's options behind d's own Control.
func (l *Listener) tuned(d *net.Dialer) *net.Dialer {
	if d == nil {
		d = new(net.Dialer)
	}
	own, multipath := *d, d.MultipathTCP()
	ours := !own.KeepAliveConfig.Enable && own.KeepAlive == 0
	if ours {
		own.KeepAlive = -1 // the dialer leaves alone what Control has set
	}
	before := own.ControlContext
	if plain := own.Control; before == nil && plain != nil {
		before = func(_ context.Context, network, address string, raw syscall.RawConn) error {
			return plain(network, address, raw)
		}
	}
	own.Control = nil
	own.ControlContext = func(ctx context.Context, network, address string, raw syscall.RawConn) (err error) {
		if before != nil {
			if err := before(ctx, network, address, raw); err != nil {
				return err
			}
		}
		if network == "unix" {
			return nil
		}
		ctlErr := raw.Control(func(fd uintptr) {
			err = sys.TuneDialed(int32(fd), ours, multipath, l.opts.KeepAlive, l.opts.TCPUserTimeout)
		})
		return errors.Join(ctlErr, err)
	}
	return &own
}

// mayAdd returns why l cannot serve one more connection, nil if it can.
func (l *Listener) mayAdd() error {
	if l.stopping.Load() {
		return net.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.polling {
		return errors.New("Serve is not running")
	}
	return nil
}

// serveOther serves a connection that was not accepted. On an error nc is as it was.
// With a config it is a TLS client's.
func (l *Listener) serveOther(nc net.Conn, from origin, config *tls.Config) (*Conn, error) {
	if err := l.mayAdd(); err != nil {
		return nil, err
	}
	local, remote := nc.LocalAddr(), nc.RemoteAddr()
	fd, peer, err := sys.Take(nc)
	if err != nil {
		return nil, err
	}
	c := l.newConn(l.leastBusy(true), fd, peer, from)
	if local == nil {
		local = sys.LocalAddr(fd, sys.Zone{}) // it was reset before nc asked
	}
	c.ext = &connExt{local: local, remote: remote}
	if config != nil {
		c.ext.tls = &tlsState{config: config} // register begins it
	}
	c.claim = min(c.claim, unclaimed) // its first bytes may have been read from nc
	if _, ok := nc.(*net.TCPConn); ok && sys.Multipath(fd) {
		c.sock.add(sockUnsure) // a short read of it proves nothing
	}
	if from == dialed && (c.stream == nil || l.netListener != nil) {
		c.stream, c.actor = nil, nil
		c.claim = unclaimed
		c.route.add(routeOpened) // moveLocked emits Opened
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
