package tcpio

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// ListenerOptions says what Listen listens to and how its connections behave. The zero value of every field is a default;
// a negative number is an error that names the field. Listen copies the struct.
type ListenerOptions struct {
	// Addr is the address to listen on, as in net.Listen: "host:port", ":port", "[::1]:0", or a path for "unix".
	Addr string
	// Network is "tcp" (the default), "tcp4", "tcp6" or "unix".
	Network string
	// Listener is a listening socket to take over instead of opening Addr: a *net.TCPListener or *net.UnixListener, as
	// socket activation and hot restart have it. Its descriptor moves; once Listen has succeeded the original is closed.
	// A unix socket's path is then left alone at Close. Addr and Network must be empty.
	Listener net.Listener

	// Loops is the number of epoll loops. 0 means 1 for Events, and otherwise GOMAXPROCS less one, but at least 1: a loop
	// that waits in epoll keeps its processor for a while, and the rest of the program's network needs one too. With as
	// many loops as processors, other network users of the process were seen to wait 10 ms at the 99th percentile.
	Loops int
	// EventBuffer is the capacity of each event channel, in events; 0 means 1,024. When a channel is full, reading and
	// accepting pause.
	EventBuffer int
	// MailboxSize bounds the posted values that wait for one connection; 0 means 128.
	MailboxSize int
	// WriteBuffer bounds the queued output of one connection, in bytes; 0 means 1 MiB. See Conn.TryWrite.
	WriteBuffer int
	// MaxBuffered bounds the queued output of all connections together, in bytes; 0 means no bound. While more than half
	// of it is used, a write is refused that would go past it, as WriteBuffer refuses, and gets its Writable when half is
	// free. Writes of up to 4 KiB to a connection that has nothing queued are taken all the same, so that peers who read
	// are served; WriteTimeout gets rid of those who do not.
	MaxBuffered int
	// MaxFrame bounds a frame of Conn.Frames, in bytes; 0 means 64 KiB.
	MaxFrame int
	// MaxBlocked bounds the goroutines that are kept in actors' Receive beyond the loops' own, because a handler blocked;
	// 0 means 10,000. At the bound a loop waits for its handler, and so do the other connections of that loop; but never
	// for one that is blocked in Read or Write of its own connection, which needs the loop.
	MaxBlocked int

	// MaxConns bounds the connections that are open at once, and MaxConnsPerIP those of one address: an IPv4 address, or
	// the /64 network of an IPv6 one. 0 means no bound. What is over a bound is refused.
	MaxConns      int
	MaxConnsPerIP int
	// AcceptRate is asked for every connection, which is refused when it says false. A *rate.Limiter of
	// golang.org/x/time/rate fits.
	AcceptRate interface{ Allow() bool }
	// Admit is asked for every connection before anything is allocated for it; an error refuses it. A unix socket's peer
	// has the zero address. It runs on a loop and must not block.
	Admit func(netip.AddrPort) error
	// RefuseReply, a short one, is sent to a peer that is refused, before the close. Without it, and with TLSConfig,
	// the close is all.
	RefuseReply []byte

	// AllowHalfOpen leaves a connection open after its peer's end of stream was read, until Close.
	AllowHalfOpen bool
	// CloseTimeout bounds what Close does in the background, flushing and draining together, and with it the end of
	// Serve; 0 means 5 s.
	CloseTimeout time.Duration
	// DrainTimeout is how long Shutdown leaves connections open once it has told them by Draining, for their handlers to
	// finish and call Close; after that they are closed. 0 means until the actor's Receive that was told has returned,
	// for which it has CloseTimeout, and 250 ms where there is no actor.
	DrainTimeout time.Duration
	// IdleTimeout closes a connection on which nothing has arrived, was read or went out for so long; see
	// Conn.SetIdleTimeout.
	IdleTimeout time.Duration
	// ReadTimeout closes a connection whose first byte does not come within it, and one on which so long no byte was added
	// to a frame that Conn.Frames has begun. Input that waits for its reader holds it up.
	ReadTimeout time.Duration
	// WriteTimeout aborts a connection whose queued output makes no progress for so long.
	WriteTimeout time.Duration
	// UserTimeout is how long sent data may stay without acknowledgement before the kernel drops the connection
	// (TCP_USER_TIMEOUT, tcp(7)); 0 leaves that to the system, which takes a quarter of an hour.
	UserTimeout time.Duration
	// TLSConfig makes every accepted connection a TLS server's, on the standard crypto/tls: Opened comes when the
	// handshake is done, and not for one that fails, which is counted and told by Failed, one a second at most. Everything
	// works as without, on plain text; an end without close_notify is io.ErrUnexpectedEOF. The config must have a
	// certificate or a function that finds one, and must not be changed any more. It applies to adopted connections too,
	// not to dialled ones.
	TLSConfig *tls.Config
	// HandshakeTimeout bounds a TLS handshake, from the accept or StartTLS on; 0 means 10 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes bounds the handshakes that have a goroutine, which one has from its whole ClientHello on; 0 means
	// 4,096. The others wait; meanwhile a client that has a place must go on within a second.
	MaxHandshakes int

	// KeepAlive sets TCP keep-alive for accepted and dialled connections. The zero value is the package net's default, on
	// with 15 s idle, 15 s interval and 9 probes, and so is a zero field of an enabled one. Enable false with a negative
	// Idle switches keep-alive off.
	KeepAlive net.KeepAliveConfig

	// Actor makes the actor of every new connection. It runs on a loop, before the connection's Opened, and must not
	// block; the actor may. Nil refuses the connection, unless Actor has claimed it by Conn.Events, and so does a panic,
	// which is logged. Without it, events go to Events or Streams.
	Actor func(*Conn) Actor

	// DeferAccept makes NetListener hand out a connection only once its first bytes have arrived.
	DeferAccept bool

	// OnConnEvent is the callback of the first tcpio, for every connection; see Callback. It excludes Actor. New programs
	// want one of the other routes.
	OnConnEvent func(net.Conn) error
	// OnErrorEvent gets errors that OnConnEvent returned, and listener failures when neither Events nor Streams was called.
	OnErrorEvent func(error)
	// ConcurrentCallbacks lets OnConnEvent run for different connections at once. By default calls are made one at a time.
	ConcurrentCallbacks bool

	// Logger gets what nobody else is told: failures while neither Events nor Streams was called, one a second at most,
	// and panics and what goes wrong at Closed, ten lines at once and then one a second. How many were suppressed is the
	// attribute "suppressed" of the next line, or of one at the end of Serve. Nothing that a peer sent is logged, unless
	// it is in a handler's own error or panic. Nil means no logging.
	Logger *slog.Logger
}

// A Listener accepts connections and turns their readiness into events. Its methods may be called from any goroutine.
type Listener struct {
	// Immutable after Listen.
	opts    ListenerOptions // with the defaults filled in
	addr    net.Addr
	anyAddr bool // bound to a wildcard: each connection has a local address of its own

	// With locks of their own, or atomic.
	pool     pool
	socket   listenSocket
	feeders  atomic.Int64  // streams that have a goroutine; a claimed one may get one at any time
	fed      chan struct{} // of one: the last feeder has ended
	timed    atomic.Bool   // there are time limits: the loops keep their coarse clocks
	lines    lineLimit
	peers    peers
	shaking  handshakes
	refusing atomic.Int64  // refused connections that are still open
	queued   atomic.Int64  // bytes of output that wait, of all connections
	starved  starved       // those whose writes are refused for MaxBuffered
	starving atomic.Bool   // there are any
	stopping atomic.Bool   // nothing is accepted any more
	ending   atomic.Int32  // how far the end has come for the connections; see below
	blocked  atomic.Int64  // goroutines in handlers that lost their loop
	failedAt atomic.Int64  // when the last Failed was told, on the clock of now
	routed   chan struct{} // closed when it is known where events go: loops and streams are fixed
	gone     chan struct{} // closed when stopping, and every descriptor is closed
	goneAt   int64         // when that was; read after gone is closed
	giveUp   chan struct{} // closed when undelivered events are dropped

	newPoller func() (poller, error) // epoll; a fake in tests

	mu sync.Mutex
	// Guarded by mu until routed is closed, immutable after that.
	loops   []*loop
	perLoop bool // each loop has a stream of its own
	legacy  *callback
	handOut *netListener // when NetListener was called

	// Guarded by mu.
	events   *stream // when Events was called
	served   bool    // Serve was called
	polling  bool    // the loops have pollers
	finished bool    // the channels are closed
}

// How far the end has come. It is set before the connections are gone through: one that is registered meanwhile either is
// seen there or sees it.
const (
	endTold   = 1 + iota // Shutdown has told the connections
	endClosed            // their time is over
	endCut               // Close, or the end of Shutdown's ctx
)

// Listen opens a listening socket. Peers may connect and wait in the backlog from then on; nothing is accepted before
// Serve. The socket is CLOEXEC; its backlog is the system's maximum (net.core.somaxconn), TCP_NODELAY is on, and
// connections inherit both it and KeepAlive.
//
// Errors: a nil opts, a bad field (the error names it), what net.Listen returns, and errors.ErrUnsupported where the
// system is not Linux.
func Listen(opts *ListenerOptions) (*Listener, error) {
	if opts == nil {
		return nil, errors.New("tcpio: Listen: options are nil")
	}
	if !supported {
		return nil, fmt.Errorf("tcpio: Listen: %w", errors.ErrUnsupported)
	}
	l := &Listener{
		opts:   *opts,
		fed:    make(chan struct{}, 1),
		routed: make(chan struct{}),
		gone:   make(chan struct{}),
		giveUp: make(chan struct{}),

		newPoller: newPoller,
		shaking:   handshakes{slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))},
	}
	if err := l.opts.check(); err != nil {
		return nil, err
	}
	l.timed.Store(l.opts.IdleTimeout > 0 || l.opts.ReadTimeout > 0 || l.opts.WriteTimeout > 0)
	if err := l.open(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.opts.Actor != nil:
		l.decideLocked(defaultLoops(), false)
	case l.opts.OnConnEvent != nil:
		l.legacy = &callback{onConn: l.opts.OnConnEvent, onErr: l.opts.OnErrorEvent}
		if l.opts.ConcurrentCallbacks {
			l.decideLocked(defaultLoops(), false)
		} else {
			l.legacy.calls = new(serial)
			l.decideLocked(1, false)
		}
	}
	return l, nil
}

// check validates the options and fills in the defaults.
func (o *ListenerOptions) check() error {
	bad := func(field, why string) error { return fmt.Errorf("tcpio: ListenerOptions.%s: %s", field, why) }
	for _, f := range []struct {
		name  string
		value *int
		def   int
	}{
		{"Loops", &o.Loops, 0},
		{"EventBuffer", &o.EventBuffer, 1024},
		{"MailboxSize", &o.MailboxSize, 128},
		{"WriteBuffer", &o.WriteBuffer, 1 << 20},
		{"MaxBuffered", &o.MaxBuffered, 0},
		{"MaxFrame", &o.MaxFrame, 64 << 10},
		{"MaxBlocked", &o.MaxBlocked, 10000},
		{"MaxHandshakes", &o.MaxHandshakes, 4096},
		{"MaxConns", &o.MaxConns, 0},
		{"MaxConnsPerIP", &o.MaxConnsPerIP, 0},
	} {
		if *f.value < 0 {
			return bad(f.name, fmt.Sprintf("negative: %d", *f.value))
		}
		if *f.value == 0 {
			*f.value = f.def
		}
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"CloseTimeout", o.CloseTimeout},
		{"DrainTimeout", o.DrainTimeout},
		{"IdleTimeout", o.IdleTimeout},
		{"ReadTimeout", o.ReadTimeout},
		{"WriteTimeout", o.WriteTimeout},
		{"UserTimeout", o.UserTimeout},
		{"HandshakeTimeout", o.HandshakeTimeout},
	} {
		if f.value < 0 {
			return bad(f.name, "negative: "+f.value.String())
		}
		if f.value > longestLimit {
			return bad(f.name, "over 20 days: "+f.value.String())
		}
	}
	if o.CloseTimeout == 0 {
		o.CloseTimeout = 5 * time.Second
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if t := o.TLSConfig; t != nil && len(t.Certificates) == 0 && t.GetCertificate == nil && t.GetConfigForClient == nil {
		return bad("TLSConfig", "has no certificate: neither Certificates nor GetCertificate nor GetConfigForClient")
	}
	switch ka := &o.KeepAlive; {
	case *ka == net.KeepAliveConfig{}:
		ka.Enable = true
	case !ka.Enable && ka.Idle >= 0:
		return bad("KeepAlive", "has values but is not enabled; a negative Idle switches keep-alive off")
	}
	if o.OnConnEvent != nil && o.Actor != nil {
		return bad("OnConnEvent", "set together with Actor")
	}
	if o.Listener != nil {
		if o.Addr != "" {
			return bad("Addr", "set together with Listener")
		}
		if o.Network != "" {
			return bad("Network", "set together with Listener")
		}
		switch ln := o.Listener.(type) {
		case *net.TCPListener:
			if ln == nil {
				return bad("Listener", "a nil *net.TCPListener")
			}
		case *net.UnixListener:
			if ln == nil {
				return bad("Listener", "a nil *net.UnixListener")
			}
			if n := ln.Addr().Network(); n != "unix" {
				return bad("Listener", "not a stream socket: "+n)
			}
		default:
			return bad("Listener", fmt.Sprintf("neither *net.TCPListener nor *net.UnixListener: %T", ln))
		}
		return nil
	}
	switch o.Network {
	case "":
		o.Network = "tcp"
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return bad("Network", fmt.Sprintf("unknown: %q", o.Network))
	}
	if o.Addr == "" {
		return bad("Addr", "empty")
	}
	return nil
}

// open makes or takes over the listening socket.
func (l *Listener) open() error {
	ln := l.opts.Listener
	if ln == nil {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // plain TCP: what is set and measured here does not hold for MPTCP
		var err error
		if ln, err = lc.Listen(context.Background(), l.opts.Network, l.opts.Addr); err != nil {
			return err
		}
		if u, ok := ln.Addr().(*net.UnixAddr); ok && u.Name != "" && u.Name[0] != '@' {
			l.socket.path = u.Name
		}
	}
	l.addr = ln.Addr()
	fd, err := takeListener(ln)
	if err == nil {
		if a, ok := l.addr.(*net.TCPAddr); ok {
			l.anyAddr = a.IP.IsUnspecified()
			if err = tuneListener(fd, l.opts.KeepAlive, l.opts.UserTimeout); err != nil {
				sysClose(int32(fd))
			}
		}
	}
	if err != nil {
		if l.opts.Listener == nil {
			ln.Close()
		}
		return &net.OpError{Op: "listen", Net: l.addr.Network(), Addr: l.addr, Err: err}
	}
	l.opts.Listener = nil
	l.socket.fd = fd
	l.socket.call = sysAccept
	return nil
}

// decideLocked fixes the loops, of which there are n unless the options say otherwise.
func (l *Listener) decideLocked(n int, perLoop bool) {
	if l.decided() {
		return
	}
	if l.opts.Loops > 0 && n > 0 {
		n = l.opts.Loops
	}
	for i := range n {
		lp := newLoop(l, i)
		if perLoop {
			lp.stream = newStream(l, l.opts.EventBuffer, false)
		}
		l.loops = append(l.loops, lp)
	}
	l.perLoop = perLoop
	close(l.routed)
}

// defaultLoops is how many loops there are where each has a processor's worth of work. One processor is left to the
// runtime's own poller: it looks at the network when a processor has nothing to run, and a loop blocked in epoll_wait
// has something, until the runtime's monitor takes the processor away, up to 10 ms later.
func defaultLoops() int { return max(1, runtime.GOMAXPROCS(0)-1) }

func (l *Listener) decided() bool {
	select {
	case <-l.routed:
		return true
	default:
		return false
	}
}

// Addr returns the address that the listener is bound to, with the port that the system chose. It works after Close.
func (l *Listener) Addr() net.Addr { return l.addr }

// Events returns the channel of all events, the same on every call. It is closed behind the last event, when Serve
// returns. One goroutine or several may receive from it; with several, the order of one connection's events is theirs
// to keep. With ListenerOptions.Actor it carries Failed only, and what connections Streams would carry.
//
// Events and Streams exclude each other: who calls both gets a panic, since either would lack events.
func (l *Listener) Events() <-chan Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perLoop {
		panic("tcpio: Listener.Events called after Streams")
	}
	if l.events == nil {
		l.events = newStream(l, l.opts.EventBuffer, false)
		if l.finished {
			close(l.events.ch)
		}
		l.decideLocked(1, false)
	}
	return l.events.ch
}

// Streams returns one channel for each loop, for one consumer goroutine each: the connections are spread over them and
// stay where they are. All the events of a connection come on one channel, a Failed on the first. They are closed behind
// their last event, when Serve returns. It must be called before Serve if ListenerOptions.Actor is set, and it panics if
// Events was called.
func (l *Listener) Streams() []<-chan Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.decided() && !l.perLoop && (len(l.loops) > 0 || !l.stopping.Load()) {
		panic("tcpio: Listener.Streams called after Events, or with an Actor")
	}
	l.decideLocked(defaultLoops(), true)
	chans := make([]<-chan Event, len(l.loops))
	for i, lp := range l.loops {
		chans[i] = lp.stream.ch
	}
	return chans
}

// streamFor is where the events of new connections on lp go; nil with an actor.
func (l *Listener) streamFor(lp *loop) *stream {
	switch {
	case l.opts.Actor != nil, l.legacy != nil:
		return nil
	case l.handOut != nil:
		return l.handOut.accepted
	case l.perLoop:
		return lp.stream
	}
	return l.events
}

// Conns iterates over the connections that are open, or closing, at the moment of the call or opened meanwhile. No lock
// is held while the body runs, so a connection may have closed by then.
func (l *Listener) Conns() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		if !l.decided() {
			return
		}
		for _, lp := range l.loops {
			for _, c := range lp.conns.all() {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// Len returns the number of connections that have a descriptor. It takes no lock.
func (l *Listener) Len() int {
	if !l.decided() {
		return 0
	}
	n := int64(0)
	for _, lp := range l.loops {
		n += lp.live.Load()
	}
	return int(n)
}

// Serve accepts connections and runs the loops until the listener has stopped: the end of ctx, Shutdown and Close are
// orderly ends, for which it returns nil. The end of ctx is a Shutdown, which DrainTimeout and CloseTimeout bound as there. Otherwise it returns
// what made the loops stop. Serve may run before anybody receives; it accepts nothing before it is known where events
// go, by ListenerOptions.Actor, Events or Streams.
//
// When it returns every connection is closed and so are the channels. Events that nobody received meanwhile are given up
// after CloseTimeout. Called a second time, or after Close, it fails; after Close with net.ErrClosed.
func (l *Listener) Serve(ctx context.Context) error {
	l.mu.Lock()
	if l.stopping.Load() {
		l.mu.Unlock()
		return &net.OpError{Op: "serve", Net: l.addr.Network(), Addr: l.addr, Err: net.ErrClosed}
	}
	if l.served {
		l.mu.Unlock()
		return errors.New("tcpio: Serve was called before on this listener")
	}
	l.served = true
	l.mu.Unlock()

	release := context.AfterFunc(ctx, func() { _ = l.Shutdown(context.Background()) })
	defer release()
	<-l.routed
	started, err := l.startLoops()
	if err != nil {
		l.abortAll()
	}
	if started {
		var g errgroup.Group
		for _, lp := range l.loops {
			g.Go(func() error {
				go lp.drive() // a handler that blocks for ever keeps the goroutine it is on, and Serve ends without it
				<-lp.done
				return lp.err
			})
		}
		err = g.Wait()
	}
	l.finish()
	return err
}

// startLoops gives the loops their pollers, unless the listener has stopped already.
func (l *Listener) startLoops() (started bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopping.Load() {
		return false, nil
	}
	pollers := make([]poller, len(l.loops))
	for i := range pollers {
		if pollers[i], err = l.newPoller(); err != nil {
			break
		}
	}
	if err == nil {
		err = pollers[0].add(l.socket.fd, listenToken, pollEdge)
	}
	for i, p := range pollers {
		if err == nil {
			l.loops[i].p = p
		} else if p != nil {
			p.close()
		}
	}
	l.polling = err == nil
	return l.polling, err
}

// abortAll stops everything. It does not wait.
func (l *Listener) abortAll() {
	l.endAt(endCut)
	l.stopAccepting()
	for c := range l.Conns() {
		c.Abort()
	}
}

// finish waits for the last events to be received, for CloseTimeout at most, and closes the channels.
func (l *Listener) finish() {
	<-l.gone
	t := time.NewTimer(l.opts.CloseTimeout)
	defer t.Stop()
	for waiting := true; waiting && l.feeders.Load() > 0; {
		select {
		case <-l.fed:
		case <-t.C:
			waiting = false
		}
	}
	close(l.giveUp)
	for l.feeders.Load() > 0 {
		<-l.fed
	}
	l.logRest()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finished = true
	if l.events != nil {
		close(l.events.ch)
	}
	if l.handOut != nil {
		close(l.handOut.accepted.ch)
	}
	for _, lp := range l.loops {
		if lp.stream != nil {
			close(lp.stream.ch)
		}
		lp.dog.Stop()
		if l.polling {
			lp.p.close()
		}
	}
}

// Shutdown stops in order: it accepts what the backlog holds and then nothing more, tells every connection by [Draining],
// closes each as Conn.Close does once its handler has had its say, see [ListenerOptions].DrainTimeout, and waits until
// every descriptor is closed; then it returns nil. When ctx ends first, what is left is cut off and ctx's error returned.
// It does not wait for events to be received, so a consumer may call it; the Closed events are still to come. With
// whatever ctx, a connection has DrainTimeout, or CloseTimeout while its actor's Receive blocks, and then CloseTimeout.
// A Receive that calls Shutdown blocks in this sense: it waits CloseTimeout for itself, a goroutine of its own does not.
func (l *Listener) Shutdown(ctx context.Context) error {
	l.mu.Lock()
	polling := l.polling && !l.stopping.Load()
	l.mu.Unlock()
	if polling {
		l.acceptRest()
	}
	l.endAt(endTold)
	l.stopAccepting()
	for c := range l.Conns() {
		c.drain()
	}
	var err error
	if d := l.opts.DrainTimeout; d > 0 {
		err = l.awaitGone(ctx, d)
	} else if err = l.awaitGone(ctx, min(eofGrace, l.opts.CloseTimeout)); err == errGrace {
		l.endAt(endClosed)
		for c := range l.Conns() {
			if !c.hasActor() {
				c.Close()
			}
		}
		err = l.awaitGone(ctx, l.opts.CloseTimeout) // for handlers that block, and their answers
	}
	if err == errGrace {
		l.endAt(endClosed)
		for c := range l.Conns() {
			c.Close()
		}
		err = l.awaitGone(ctx, 0)
	}
	if err != nil {
		l.endAt(endCut)
		for c := range l.Conns() {
			c.mu.Lock()
			c.cutLocked()
			c.unlock()
		}
		<-l.gone
	}
	l.finishUnserved()
	return err
}

var errGrace = errors.New("tcpio: handlers have had their time")

// awaitGone waits until every descriptor is closed. It gives up with ctx's error, or after limit, if there is one, with
// errGrace.
func (l *Listener) awaitGone(ctx context.Context, limit time.Duration) error {
	var late <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-l.gone:
		return nil
	case <-late:
		return errGrace
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close stops at once: it accepts nothing more, aborts every connection, and returns nil when every descriptor is closed.
// It does not wait for events to be received. Called again it does nothing more.
func (l *Listener) Close() error {
	l.abortAll()
	<-l.gone
	l.finishUnserved()
	return nil
}

// finishUnserved closes the channels of a listener that Serve was never called on, and now never will be.
func (l *Listener) finishUnserved() {
	l.mu.Lock()
	mine := !l.served
	l.served = true
	l.mu.Unlock()
	if mine {
		l.finish()
	}
}

// endAt notes how far the end has come. It never goes back.
func (l *Listener) endAt(stage int32) {
	for {
		at := l.ending.Load()
		if at >= stage || l.ending.CompareAndSwap(at, stage) {
			return
		}
	}
}

func (l *Listener) stopAccepting() {
	l.mu.Lock()
	l.stopping.Store(true)
	l.decideLocked(0, false)
	var p poller
	if l.polling {
		p = l.loops[0].p
	}
	l.mu.Unlock()
	l.socket.close(p)
	l.checkGone()
}

// checkGone notes that the last descriptor is closed, and ends the loops.
func (l *Listener) checkGone() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, lp := range l.loops {
		if lp.live.Load() != 0 {
			return
		}
	}
	if l.socket.anyArriving() {
		return
	}
	select {
	case <-l.gone:
		return
	default:
	}
	l.goneAt = now()
	close(l.gone)
	for _, lp := range l.loops {
		lp.timers.add(lp, &timer{kind: timerWake}, l.opts.CloseTimeout)
		lp.kick()
	}
}

// allTold is a loop's untold when it has ended: so far below zero that it stays there.
const allTold = math.MinInt64 / 2

// ended tells a loop that it has nothing more to do: every descriptor is closed, and every actor of its own was told, for
// which a handler that still blocks has CloseTimeout.
func (lp *loop) ended() bool {
	if !lp.l.stopping.Load() {
		return false
	}
	select {
	case <-lp.l.gone:
		if lp.untold.CompareAndSwap(0, allTold) {
			return true
		}
		if now() < lp.l.goneAt+int64(lp.l.opts.CloseTimeout) {
			return false
		}
		lp.untold.Store(allTold)
		return true
	default:
		return false
	}
}

// failed tells of trouble that concerns no connection: one a second at most, to whoever listens.
func (l *Listener) failed(err error) {
	t := now()
	if last := l.failedAt.Load(); last != 0 && t-last < int64(time.Second) || !l.failedAt.CompareAndSwap(last, t) {
		return
	}
	l.mu.Lock()
	s := l.events
	if l.perLoop {
		s = l.loops[0].stream
	}
	l.mu.Unlock()
	switch {
	case s != nil:
		s.fail(err)
	case l.opts.OnErrorEvent != nil && l.legacy != nil:
		go l.legacy.listenerFailed(err) // one a second at most; it ends with the user's function, which may block
	case l.opts.OnErrorEvent != nil:
		go l.opts.OnErrorEvent(err) // likewise
	case l.opts.Logger != nil:
		l.opts.Logger.Error("tcpio: listener", "addr", l.addr.String(), "err", err)
	}
}

// seconds is a keep-alive time in whole seconds, as the package net rounds it; 0 is the default, negative leaves the
// system's value.
func seconds(d time.Duration, def int) int {
	if d == 0 {
		return def
	}
	return int((d + time.Second - 1) / time.Second)
}
