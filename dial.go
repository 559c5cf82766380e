package tcpio

import (
	"context"
	"crypto/tls"
	"net"
)

// Dial is DialWith without a Dialer.
func (l *Listener) Dial(ctx context.Context, network, address string) (*Conn, error) {
	return l.dial(ctx, DialRequest{Network: network, Address: address})
}

// DialWith connects to address with the options of d, on "tcp", "tcp4", "tcp6" or "unix", and then
// serves the connection on l's loops beside the accepted ones. Every field of a net.Dialer has its
// effect: source address, Resolver, Timeout, Deadline, Cancel, FallbackDelay, Control. d is neither
// changed nor kept, and may be used elsewhere at the same time; nil is the zero Dialer without
// multipath TCP.
//
// TCP_NODELAY, KeepAlive and TCPUserTimeout are set as on accepted connections, behind d's Control
// or ControlContext, with two exceptions. A KeepAlive that is not zero, or an enabled
// KeepAliveConfig, holds in place of l's. A TCP_USER_TIMEOUT that Control has set stays. An error
// of Control's ends the attempt and is in what DialWith returns; so is a panic, as a *[PanicError].
// Multipath TCP is used if d says so (net.Dialer.SetMultipathTCP); where it lacks one of l's
// options the connection goes without.
//
// DialWith blocks until the connection is established, ctx ends, or l has stopped. An actor may
// call it, since it may block; the hooks Admit and NewActor must not. A look-up, and Control, have
// a goroutine of their own meanwhile; where one ignores the end of its context it outlives the
// call.
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
// net.ErrClosed once l is stopping, ctx's error, context.Canceled for Cancel, and otherwise as for
// DialAsync. One of a time limit, ctx's too, is a Timeout and matches context.DeadlineExceeded and
// os.ErrDeadlineExceeded. [Stats] counts the call beside those of DialAsync.
func (l *Listener) DialWith(ctx context.Context, d *net.Dialer, network, address string) (*Conn, error) {
	return l.dial(ctx, DialRequest{Network: network, Address: address, Dialer: d})
}

// DialTLS is DialWith with the handshake of a TLS client, and returns when that is done. On the
// stream Opened comes behind it. An established connection has no goroutine.
//
// A config without ServerName has the host of address as its name; nil is the zero config. For the
// rest see Conn.StartTLSClient. HandshakeTimeout bounds the handshake, and so do ctx and d's time
// limits. If it fails, DialTLS returns the error that is the connection's Err, a *net.OpError
// around what crypto/tls says; [Stats] counts it.
func (l *Listener) DialTLS(ctx context.Context, d *net.Dialer, network, address string, config *tls.Config) (*Conn, error) {
	if config == nil {
		config = new(tls.Config)
	}
	return l.dial(ctx, DialRequest{Network: network, Address: address, Dialer: d, TLS: config})
}

// dial is DialAsync for a caller that waits for the answer.
func (l *Listener) dial(ctx context.Context, r DialRequest) (*Conn, error) {
	d, err := l.newDialing(&r)
	if err != nil {
		return nil, dialError(&r, err)
	}
	d.caller = make(chan *Dialed, 1)
	if err = l.awaitServe(ctx); err == nil {
		err = l.routeOf(d)
	}
	if err == nil {
		err = d.start(ctx)
	}
	if err != nil {
		return nil, d.opError(err)
	}
	if len(d.caller) == 0 {
		d.sh.willBlock(nil)
	}
	//lint:ignore SA1019 programs use it
	cancel := d.dialer.Cancel
	for {
		select {
		case answer := <-d.caller:
			return answer.Conn, answer.Err
		case <-ctx.Done():
			d.leave(ctx.Err())
		case <-cancel:
			d.leave(context.Canceled)
		}
		d.step()
		ctx, cancel = context.WithoutCancel(ctx), nil // the answer follows
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

// Dialed reports whether l connected to the peer, by Dial or DialAsync: this end is the client. It
// does not block, and any goroutine may call it. It holds after Close too.
func (c *Conn) Dialed() bool { return c.origin == dialed }
