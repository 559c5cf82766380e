package tcpio

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
)

// A DialRequest is what [Listener.DialAsync] is asked for.
//
// Who gets the answer, and the events of the new connection behind it, is one of three:
//
//   - To: the answer is among the events of the connection To, on whichever route that has. The new
//     connection has no route and loses nothing: its handler gives it one by Conn.Attach or
//     Conn.Events, which begins with Opened, or uses it as a net.Conn.
//   - Actor: it receives the answer, and behind that Opened and all that follows. If the dial
//     fails, the answer is all that it receives.
//   - Neither: the answer comes on the stream (Events; with EventsPerLoop the channel of any loop),
//     and behind it Opened and all that follows.
type DialRequest struct {
	Network string // "tcp", which "" means too, "tcp4", "tcp6" or "unix"
	Address string // as for net.Dial: host:port, or a path

	// Dialer has the options of the dial; nil is the zero net.Dialer. Timeout and Deadline bound
	// all of it: the name, every address, the TLS handshake. LocalAddr, FallbackDelay (happy
	// eyeballs), Resolver, KeepAlive, KeepAliveConfig, Control, ControlContext and multipath TCP
	// have their effect as with DialWith; the context that ControlContext gets has no values.
	// Cancel is refused: stop is in its place.
	Dialer *net.Dialer

	// TLS has the connection begin with a client's handshake, within HandshakeTimeout. Without
	// ServerName the host of Address is the name. It must not be changed any more; see
	// StartTLSClient.
	TLS *tls.Config

	To    *Conn // asks; it must have a route
	Actor Actor // receives the answer; not together with To
	Value any   // comes back in Dialed
}

// DialAsync dials as DialWith does and returns at once. The answer is a [Dialed], with the
// request's Value. Nothing waits meanwhile: no goroutine for a dial to an IP address or to a unix
// socket, and for names at most 32 goroutines of the listener, as many as look one up at the
// moment; those also run Control and ControlContext. A dial under way costs one descriptor, or two
// while happy eyeballs try both kinds of addresses, and about a kilobyte.
//
// An error of DialAsync is one of the request, and no answer follows: a bad field, which the error
// names; no route for the answer; To has MailboxSize values waiting ([ErrMailboxFull]: the place
// for the answer is taken at the request, and so it is never refused later) or is closed; l is
// stopping (net.ErrClosed). Whatever fails later is in Dialed.Err, a *net.OpError as net.Dialer
// returns it: around a *net.DNSError, a system's error, what crypto/tls says. Of several addresses
// the first one's error is reported.
//
// stop gives the dial up, and reports whether that kept the answer from being delivered: nothing
// more comes of the request then, and its descriptors are closed. After an answer it does nothing.
// It does not block, and may be called from anywhere, more than once. When To begins to close, the
// dial is given up in the same way. If To has closed behind the answer that it has not received
// yet, it still receives it, and owns the connection.
//
// Before Serve runs DialAsync waits for it, and so does the answer; the time limit counts. Shutdown
// and Close answer what is under way at once, around net.ErrClosed, so a proxy that is to finish
// its clients' dials in a drain dials on a second listener, of Network "none", and stops that one
// last. If Serve has never run, an Actor gets no answer, since nothing runs it. Any goroutine may
// call DialAsync, also a handler. On a listener without an address (Network "none") it may be the
// first call, if Actor is set; otherwise it comes behind Events or EventsPerLoop, which say where
// events go.
func (l *Listener) DialAsync(r DialRequest) (stop func() bool, err error) {
	if r.Network == "" {
		r.Network = "tcp"
	}
	d, err := l.newDialing(&r)
	if err == nil {
		err = d.mayBeAsync()
	}
	if err == nil {
		err = l.routeOf(d)
	}
	if err == nil {
		err = d.start(context.Background())
	}
	if err == ErrMailboxFull {
		return nil, err
	}
	if err != nil {
		return nil, dialError(&r, err)
	}
	return d.stop, nil
}

// dialError is the error of a request.
func dialError(r *DialRequest, err error) error {
	if _, ok := err.(*net.OpError); ok {
		return err
	}
	return &net.OpError{Op: "dial", Net: r.Network, Err: err}
}

// mayBeAsync says what DialAsync refuses.
func (d *dialing) mayBeAsync() error {
	switch {
	//lint:ignore SA1019 it must not be left out in silence
	case d.dialer.Cancel != nil:
		return errors.New("Dialer.Cancel is set: call stop instead")
	case d.to != nil && d.actor != nil:
		return errors.New("both To and Actor are set")
	}
	return nil
}

// newDialing checks r, but for who gets the answer.
func (l *Listener) newDialing(r *DialRequest) (*dialing, error) {
	d := &dialing{l: l, dialAnswer: dialAnswer{value: r.Value, to: r.To, actor: r.Actor}}
	d.network = r.Network
	d.opts, d.given, d.dialer = &l.opts, r.Dialer, &l.plainDialer
	if own := r.Dialer; own != nil && !onlyTimes(own) {
		theirs := *own
		d.dialer = &theirs
	}
	if d.given != nil && d.given.Timeout < 0 {
		return nil, errors.New("Dialer.Timeout is negative")
	}
	if err := d.setAddress(r.Address); err != nil {
		return nil, err
	}
	if r.TLS != nil {
		config := r.TLS
		if config.ServerName == "" {
			config = config.Clone()
			config.ServerName = d.host
		}
		var err error
		if d.config, err = guardTLSClient(config); err != nil {
			return nil, err
		}
	}
	d.timer = timer{kind: timerDial, value: d}
	return d, nil
}

// onlyTimes reports whether d has nothing but Timeout and Deadline.
func onlyTimes(d *net.Dialer) bool {
	//lint:ignore SA1019 programs use it
	return d.Cancel == nil && d.LocalAddr == nil && d.FallbackDelay == 0 && d.KeepAlive == 0 && !d.KeepAliveConfig.Enable &&
		d.Resolver == nil && d.Control == nil && d.ControlContext == nil && !d.MultipathTCP()
}

// routeOf finds d's loop and where its answer goes.
func (l *Listener) routeOf(d *dialing) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopping.Load() {
		return net.ErrClosed
	}
	if !l.routesFixed() && l.opts.Network == "none" && d.actor != nil {
		l.fixRoutesLocked(defaultLoops(), false)
	}
	if !l.routesFixed() {
		return errors.New("DialAsync was called before Events or EventsPerLoop")
	}
	var best *loop
	least := int64(0)
	for _, lp := range l.loops {
		busy := lp.live.Load() + lp.count.dialing.Load()
		if d.to != nil && d.to.sh == &lp.shard {
			best = lp // where what the two send each other crosses no loop
			break
		}
		if best == nil || busy < least {
			best, least = lp, busy
		}
	}
	d.sh = &best.shard
	if d.to == nil && d.actor == nil {
		if l.netListener == nil {
			d.stream = l.streamFor(best)
		}
		if d.stream == nil && d.caller == nil {
			return errors.New("the listener has no stream: set To or Actor")
		}
	}
	return nil
}
