package tcpio

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"
)

// ListenerOptions says where Listen listens and how its connections behave. The zero value of a
// field is its default. A number that is negative or over its field's bound is an error that names
// the field. No time may exceed 20 days. Listen copies the struct.
type ListenerOptions struct {
	// Addr is the address to listen on, as in net.Listen: "host:port", ":port", "[::1]:0", or a
	// path for "unix".
	Addr string
	// Network is "tcp" (the default), "tcp4", "tcp6", "unix", or "none" for a program that is only a
	// client: then there is no listening socket, Addr must be empty, and all connections come from
	// Listener.Dial and Adopt. It has to be asked for, so that an address that somebody has forgotten
	// stays an error.
	Network string
	// Listener is a listening socket to take over instead of opening Addr: a *net.TCPListener or
	// *net.UnixListener, as socket activation and hot restart have it. Its descriptor moves: once
	// Listen has succeeded the original is closed. The path of a unix socket is then left alone at
	// Close. Addr and Network must be empty. A multipath TCP socket
	// (net.ListenConfig.SetMultipathTCP) takes no TCPUserTimeout: Listen then fails with ENOPROTOOPT.
	// Listen changes options of the socket, also for others that share it; see Listener.File.
	Listener net.Listener

	// More is further endpoints of the same listener: a port for TLS beside a plain one, a unix socket
	// beside a port. All share loops, route, limits and Stats; Conn.Endpoint tells a connection's.
	// At most 255. With Network "none" it is all there is. Listen opens all or none.
	More []Endpoint

	// Loops is the number of epoll loops, at most 1,024. 0 means 1 for Events, and otherwise
	// GOMAXPROCS-1, but at least 1. A loop that waits in epoll keeps its processor for a moment.
	// With as many loops as processors none is left for the network of the rest of the program,
	// whose requests were seen to wait 10 ms at the 99th percentile.
	Loops int
	// EventBuffer is the capacity of each event channel, in events; 0 means 1,024, and 1,048,576
	// (of 16 bytes each, 8 on a 32-bit system) is the most. When a channel is full, reading and
	// accepting pause.
	EventBuffer int
	// MailboxSize bounds the posted values that wait for one connection; 0 means 128, and 1,048,576
	// is the most.
	MailboxSize int
	// WriteBuffer bounds the queued output of one connection, in bytes; 0 means 1 MiB, and 1 GiB is
	// the most. See Conn.TryWrite.
	WriteBuffer int
	// MaxBuffered bounds the queued output of all connections together, in bytes. 0 means a quarter
	// of the memory that the process may use when Listen is called, and at least 1 MiB: of the least
	// of Go's own limit (GOMEMLIMIT, debug.SetMemoryLimit), its control groups', and the machine's
	// memory. Stats has the number. 1 TiB is the most, on a 32-bit system 1 GiB, and as good as no
	// bound. While more than half of it is used, a write that would exceed it is refused, as by
	// WriteBuffer; a Writable follows when half is free. A connection that has nothing queued may
	// still write up to 4 KiB, so that peers that read are served; WriteStallTimeout ends the
	// connections of those that do not.
	MaxBuffered int
	// MaxFrame bounds a frame of Conn.Frames, in bytes of the stream: its header or the end of its
	// line counts. 0 means 64 KiB, and 1 GiB is the most.
	MaxFrame int
	// MaxBlocked bounds the goroutines that blocked handlers keep, beyond one for each loop; 0
	// means 10,000, and 1,048,576 is the most. At the bound a loop waits until the handler returns,
	// and so do the loop's other connections. It does not wait for a handler that is blocked in
	// Read or Write of its own connection, or in a Dial, since those need the loop.
	MaxBlocked int

	// MaxConns bounds the open connections. MaxConnsPerIP bounds those of one address: an IPv4
	// address, or the /64 network of an IPv6 address. 0 means no bound, and 1,073,741,824 is the
	// most. Further connections are refused.
	MaxConns      int
	MaxConnsPerIP int
	// AcceptRate is called for every connection, and refuses it by returning false. A *rate.Limiter
	// of golang.org/x/time/rate fits. The rules for Admit hold for it too.
	AcceptRate RateLimiter
	// Admit is called for every connection before anything is allocated for it, and refuses it by
	// returning an error. For a unix socket the address is zero. It runs on a loop and must not
	// block, since accepting waits for it. Calls of AcceptRate, Admit and NewActor are made one at a
	// time. A call that panics, or calls runtime.Goexit, refuses the peer and is logged.
	Admit func(netip.AddrPort) error
	// RefuseReply is sent to a peer that is refused, before its connection is closed. At most 64
	// KiB. Without it, or with TLSConfig, the connection is only closed.
	RefuseReply []byte

	// EOFTimeout is a safety net for programs that ignore io.EOF. Once the peer's end of stream has
	// been read, it closes the connection in order when for this time no output was written or
	// queued, but not while a copy to it, or a Receive of its actor, runs. 0 means 10 s. When
	// descriptors run out or MaxConns is reached, such connections are closed to make room for new
	// ones, first the one that has waited longest. Connections that NetListener or Dial handed out
	// as net.Conns are exempt until they have a route.
	//
	// It also ends a connection that the peer has reset, or that has failed otherwise, when your
	// code has received its Readable and for this time has not read: what arrived before the reset
	// is kept no longer. Conn.Context ends at the reset itself.
	EOFTimeout time.Duration
	// CloseTimeout bounds what Close does in the background, flushing and discarding together, and
	// with it the end of Serve; 0 means 5 s. In Shutdown a peer that has everything and is silent
	// is not waited for.
	CloseTimeout time.Duration
	// DrainTimeout is how long Shutdown leaves a connection open after Draining, for its handler to
	// finish and call Close; then Shutdown closes it, with ErrDrainTimeout if the peer has not
	// ended. 0 means: a connection with an actor until the Receive of Draining has returned, at
	// most CloseTimeout, and any other 250 ms. A relay should set it: an actor's return from
	// Draining does not mean that its peer has said everything.
	DrainTimeout time.Duration
	// IdleTimeout closes a connection when for this time nothing has arrived, was read or went out;
	// see Conn.SetIdleTimeout. 0 means no bound. Only bytes that can be read count as arrived: not
	// urgent data, and with TLS only plain text, so not records without data, nor key updates and the
	// answers to them.
	IdleTimeout time.Duration
	// InputTimeout closes a connection from which nothing has arrived for this time, whatever goes out
	// to it: what a keep-alive wants of MQTT or WebSocket, whose peers send something from time to
	// time. Bytes count as for IdleTimeout. Time in which received bytes wait for your code does not
	// count, nor does what follows the peer's end of stream. It holds for dialed connections too. 0
	// means no bound; see Conn.SetInputTimeout.
	InputTimeout time.Duration
	// ReadStallTimeout closes a connection that sends no byte within it after opening, or that for
	// this time adds no byte to a frame that Conn.Frames has begun. Time in which received bytes wait
	// for your code does not count. Bytes count as for IdleTimeout; with TLS both times begin when the
	// handshake is done. Behind the peer's end of stream nothing can arrive, and it does not count. 0
	// means no bound.
	ReadStallTimeout time.Duration
	// FrameTimeout bounds the time from a frame's first byte to its last: it closes a connection on
	// which Conn.Frames has begun a frame and finds it incomplete after this time, however steadily
	// its bytes come. The frame begins when an iteration first leaves a part of it. Time in which
	// received bytes wait for your code does not count. 0 means no bound.
	FrameTimeout time.Duration
	// WriteStallTimeout aborts a connection whose queued output makes no progress for this time. 0
	// means no bound.
	WriteStallTimeout time.Duration
	// TCPUserTimeout is the socket option TCP_USER_TIMEOUT (tcp(7)): how long sent data may stay
	// without acknowledgement, or data may wait because the peer does not read and keeps its window
	// closed, before the kernel drops the connection. A peer that pauses for longer is cut off
	// although it is alive. 0 leaves both to the system, which waits a quarter of an hour for an
	// acknowledgement, and without limit for a peer that only pauses.
	TCPUserTimeout time.Duration
	// TLSConfig makes every accepted or adopted connection a TLS server, on the standard crypto/tls;
	// dialed ones stay plain, see Listener.DialTLS. Opened comes when the handshake is done. A
	// handshake that fails has no Opened: Stats counts it, and Failed reports it, once a second at
	// most. Everything else works as without TLS, on plain text; an end of stream without close_notify
	// is io.ErrUnexpectedEOF. The config must have a certificate or a function that finds one, and
	// must not be changed any more.
	TLSConfig *tls.Config
	// HandshakeTimeout bounds a TLS handshake, from accepting, the end of Preface, or StartTLS on; 0
	// means 10 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes bounds the TLS handshakes that have a goroutine, which a handshake has once its
	// first whole record has arrived; 0 means 4,096, and 1,048,576 is the most. Others wait for a
	// place, and the newest is served first. While some wait, a client that has a place and sends
	// nothing for a second is dropped.
	MaxHandshakes int

	// Preface looks at the first bytes of every accepted connection, before Opened, before NewActor
	// and before the TLS of TLSConfig: for the header of a proxy, as the module proxyproto reads it,
	// or for the server name in a ClientHello, see ParseClientHello. head is what has arrived, up to
	// MaxPreface bytes. It returns how many of these bytes to discard; the rest is what your code, or
	// TLS, reads first. Nil opens the connection. With ErrShortPreface nothing is discarded, and it is
	// called again, with the same bytes and more, when more has arrived. Any other error refuses the
	// connection, which is reset; so do the peer's end of stream and PrefaceTimeout while more is
	// needed. Stats counts those, and Failed reports them, once a second at most, but for peers that
	// end without having sent a byte. A refused connection has no event.
	//
	// The first call is made at once, also if nothing has arrived: then head is empty. Calls for one
	// connection are made one after the other, on a loop, which goes on without a call that blocks.
	// head is valid until the call returns. The call may use SetRemoteAddr, SetData, Events, Attach
	// and Close of the Conn; reads and writes would block. A call that panics, or calls
	// runtime.Goexit, refuses the connection and is logged.
	//
	// The bytes stay in the socket meanwhile, so that a connection that waits costs no buffer. Dialed
	// and adopted connections have no preface: their first bytes may have been read. It costs a
	// connection some 450 bytes for as long as it lives. AcceptRate, Admit and MaxConns count it when
	// it is accepted.
	Preface func(c *Conn, head []byte) (n int, err error)
	// PrefaceTimeout bounds the time from accepting to the call of Preface that returns nil; 0 means
	// 10 s. HandshakeTimeout begins behind it.
	PrefaceTimeout time.Duration
	// MaxPreface bounds what Preface is shown, in bytes; 0 means 16 KiB, and 64 KiB is the most. A
	// connection of which it needs more is refused.
	MaxPreface int
	// Proxies are the addresses of proxies in front, for whose connections Preface may call
	// SetRemoteAddr. MaxConnsPerIP does not count such a connection for the proxy, but for the client,
	// once Preface has told it. Connections from other addresses count from accepting on. Those of a
	// unix socket are a proxy's if there is a Preface. Listen keeps a copy.
	Proxies []netip.Prefix

	// KeepAlive sets TCP keep-alive for accepted connections, and for dialed ones unless their
	// net.Dialer says otherwise. The zero value is the default of the package net: on, with 15 s
	// idle, 15 s interval and 9 probes. A zero field of an enabled config has its default too.
	// Enable false with a negative Idle switches keep-alive off. Idle and Interval are 32,767 s at
	// most, and Count 127, as in Linux.
	KeepAlive net.KeepAliveConfig

	// NewActor returns the actor of a new connection, accepted or adopted. It runs on a loop, before
	// the connection's Opened, and must not block, since accepting waits for it; the actor itself
	// may block. If it returns nil the connection is refused, unless NewActor has claimed it by
	// Conn.Events. If it panics, or calls runtime.Goexit, the connection is refused and the panic
	// logged. Without NewActor, events go to Events or EventsPerLoop.
	NewActor func(*Conn) Actor

	// DeferAccept makes NetListener hand out a connection only once its first bytes have arrived.
	DeferAccept bool

	// OnConnEvent is the callback of the first tcpio, for every connection; see Callback. It
	// excludes NewActor. New programs should take one of the other routes.
	OnConnEvent func(net.Conn) error
	// OnErrorEvent gets the errors that OnConnEvent returned, and the listener's failures when neither
	// Events nor EventsPerLoop was called. One call is made at a time. It may block; a panic in it is
	// logged and ends nothing.
	OnErrorEvent func(error)
	// ConcurrentCallbacks lets OnConnEvent run for different connections at once. By default one
	// call is made at a time.
	ConcurrentCallbacks bool

	// Logger gets what no event and no callback reports. Nil means slog.Default(), as it is when a
	// line is written; slog.New(slog.DiscardHandler) silences the listener. The lines are:
	//
	//   - Error: a panic in your code, with its stack, ten lines at once and then one a second.
	//   - Error: a failure of the listener when neither Events nor EventsPerLoop was called and
	//     OnErrorEvent is nil, one a second at most.
	//   - Info: under the same conditions, a peer that Preface has refused or whose TLS handshake has
	//     failed, one a second at most.
	//   - Info: how many connections Shutdown has cut off, if any: "drain" counts those with
	//     ErrDrainTimeout, "close" those whose CloseTimeout ended; with any of these it is a Warn.
	//   - Warn: Serve has waited for a second for a route, and accepts nothing.
	//   - Debug: an error other than io.EOF that a handler has returned, if OnErrorEvent does not get
	//     it; at most as many as of panics.
	//
	// The attribute "suppressed" of the next line, or of one at the end of Serve, counts the lines
	// left out. No line has anything that a peer sent, unless a handler's own error or panic has it.
	// Stats counts panics and handlers' errors, whoever is told.
	//
	// Its handler runs on a goroutine of its own, so that no connection waits if it blocks or panics,
	// or if a method of a value does. Lines lost that way count as suppressed.
	Logger *slog.Logger
}

// An Endpoint is one more address that a listener listens on. What it does not have is the
// listener's.
type Endpoint struct {
	// Name is what Conn.Endpoint returns for connections that come here. It need not be unique.
	Name string
	// Addr, Network and Listener are as those of ListenerOptions; Network is not "none".
	Addr     string
	Network  string
	Listener net.Listener
	// TLSConfig and Preface are as those of ListenerOptions, and in their place: an endpoint without
	// them is plain, and has no preface.
	TLSConfig *tls.Config
	Preface   func(c *Conn, head []byte) (n int, err error)
}

// A RateLimiter says whether one more event may happen now, without waiting. A *rate.Limiter of
// golang.org/x/time/rate is one.
type RateLimiter interface{ Allow() bool }

// check validates the options and fills in the defaults.
func (o *ListenerOptions) check() error {
	if err := o.checkNumbers(); err != nil {
		return err
	}
	if err := o.checkTimes(); err != nil {
		return err
	}
	if n := len(o.RefuseReply); n > longestReply {
		return badOption("RefuseReply", fmt.Sprintf("over %d bytes: %d", longestReply, n))
	}
	for _, p := range o.Proxies {
		if !p.IsValid() || p.Addr().Is4In6() {
			return badOption("Proxies", fmt.Sprintf("not a network of IPv4 or IPv6: %v", p))
		}
	}
	prefaced := func(e Endpoint) bool { return e.Preface != nil }
	if len(o.Proxies) > 0 && !slices.ContainsFunc(o.endpoints(), prefaced) {
		return badOption("Proxies", "set without Preface")
	}
	o.Proxies = slices.Clone(o.Proxies)
	if o.OnConnEvent != nil && o.NewActor != nil {
		return badOption("OnConnEvent", "set together with NewActor")
	}
	return o.checkEndpoints()
}

func badOption(field, why string) error {
	return fmt.Errorf("tcpio: ListenerOptions.%s: %s", field, why)
}

func (o *ListenerOptions) checkNumbers() error {
	// The bounds leave room in an int of 32 bits for sums of two, and what is made at once,
	// channels and loops, can be made.
	for _, f := range []struct {
		name  string
		value *int
		def   int
		most  int
	}{
		{"Loops", &o.Loops, 0, 1024},
		{"EventBuffer", &o.EventBuffer, 1024, 1 << 20},
		{"MailboxSize", &o.MailboxSize, 128, 1 << 20},
		{"WriteBuffer", &o.WriteBuffer, 1 << 20, mostBytes},
		{"MaxBuffered", &o.MaxBuffered, 0, mostBuffered},
		{"MaxFrame", &o.MaxFrame, 64 << 10, mostBytes},
		{"MaxBlocked", &o.MaxBlocked, 10000, 1 << 20},
		{"MaxPreface", &o.MaxPreface, 16 << 10, 64 << 10},
		{"MaxHandshakes", &o.MaxHandshakes, 4096, 1 << 20},
		{"MaxConns", &o.MaxConns, 0, 1 << 30},
		{"MaxConnsPerIP", &o.MaxConnsPerIP, 0, 1 << 30},
	} {
		if *f.value < 0 {
			return badOption(f.name, fmt.Sprintf("negative: %d", *f.value))
		}
		if *f.value > f.most {
			return badOption(f.name, fmt.Sprintf("over %d: %d", f.most, *f.value))
		}
		if *f.value == 0 {
			*f.value = f.def
		}
	}
	return nil
}

// hasTimeLimit reports whether connections have a limit that is counted from their activity, which
// they note then; see limits.go. EOFTimeout begins its notes itself.
func (o *ListenerOptions) hasTimeLimit() bool {
	return max(o.IdleTimeout, o.InputTimeout, o.ReadStallTimeout, o.FrameTimeout, o.WriteStallTimeout) > 0
}

func (o *ListenerOptions) checkTimes() error {
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"CloseTimeout", o.CloseTimeout},
		{"DrainTimeout", o.DrainTimeout},
		{"EOFTimeout", o.EOFTimeout},
		{"IdleTimeout", o.IdleTimeout},
		{"ReadStallTimeout", o.ReadStallTimeout},
		{"InputTimeout", o.InputTimeout},
		{"FrameTimeout", o.FrameTimeout},
		{"WriteStallTimeout", o.WriteStallTimeout},
		{"TCPUserTimeout", o.TCPUserTimeout},
		{"HandshakeTimeout", o.HandshakeTimeout},
		{"PrefaceTimeout", o.PrefaceTimeout},
	} {
		if f.value < 0 {
			return badOption(f.name, "negative: "+f.value.String())
		}
		if f.value > longestLimit {
			return badOption(f.name, "over 20 days: "+f.value.String())
		}
	}
	if o.CloseTimeout == 0 {
		o.CloseTimeout = 5 * time.Second
	}
	if o.EOFTimeout == 0 {
		o.EOFTimeout = 10 * time.Second
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.PrefaceTimeout == 0 {
		o.PrefaceTimeout = 10 * time.Second
	}
	switch ka := &o.KeepAlive; {
	case ka.Idle > keepAliveMost:
		return badOption("KeepAlive", fmt.Sprintf("Idle over %v: %v", keepAliveMost, ka.Idle))
	case ka.Interval > keepAliveMost:
		return badOption("KeepAlive", fmt.Sprintf("Interval over %v: %v", keepAliveMost, ka.Interval))
	case ka.Count > keepAliveCount:
		return badOption("KeepAlive", fmt.Sprintf("Count over %d: %d", keepAliveCount, ka.Count))
	case *ka == net.KeepAliveConfig{}:
		ka.Enable = true
	case !ka.Enable && ka.Idle >= 0:
		return badOption("KeepAlive", "has values but is not enabled; a negative Idle switches keep-alive off")
	}
	return nil
}

// endpoints returns the listener's own, and More.
func (o *ListenerOptions) endpoints() []Endpoint {
	own := Endpoint{Addr: o.Addr, Network: o.Network, Listener: o.Listener, TLSConfig: o.TLSConfig, Preface: o.Preface}
	return append([]Endpoint{own}, o.More...)
}

// checkEndpoints checks what says where to listen.
func (o *ListenerOptions) checkEndpoints() error {
	if len(o.More) > mostMore {
		return badOption("More", fmt.Sprintf("over %d: %d", mostMore, len(o.More)))
	}
	o.More = slices.Clone(o.More)
	own := o.endpoints()[0]
	if err := own.check(""); err != nil {
		return err
	}
	o.Network = own.Network
	for i := range o.More {
		in := fmt.Sprintf("More[%d].", i)
		if o.More[i].Network == "none" {
			return badOption(in+"Network", "none, which is for the listener's own")
		}
		if err := o.More[i].check(in); err != nil {
			return err
		}
	}
	return nil
}

const noCertificate = "has no certificate: neither Certificates nor GetCertificate nor GetConfigForClient"

// lacksCertificate reports whether a server's handshake with config can only fail.
func lacksCertificate(config *tls.Config) bool {
	return len(config.Certificates) == 0 && config.GetCertificate == nil && config.GetConfigForClient == nil
}

// check checks the endpoint, whose fields are in the struct in, and fills in its Network.
func (e *Endpoint) check(in string) error {
	if e.TLSConfig != nil && lacksCertificate(e.TLSConfig) {
		return badOption(in+"TLSConfig", noCertificate)
	}
	if e.Listener != nil {
		if e.Addr != "" {
			return badOption(in+"Addr", "set together with Listener")
		}
		if e.Network != "" {
			return badOption(in+"Network", "set together with Listener")
		}
		switch ln := e.Listener.(type) {
		case *net.TCPListener:
			if ln == nil {
				return badOption(in+"Listener", "a nil *net.TCPListener")
			}
		case *net.UnixListener:
			if ln == nil {
				return badOption(in+"Listener", "a nil *net.UnixListener")
			}
			if n := ln.Addr().Network(); n != "unix" {
				return badOption(in+"Listener", "not a stream socket: "+n)
			}
		default:
			return badOption(in+"Listener", fmt.Sprintf("neither *net.TCPListener nor *net.UnixListener: %T", ln))
		}
		return nil
	}
	switch e.Network {
	case "":
		e.Network = "tcp"
	case "tcp", "tcp4", "tcp6", "unix":
	case "none":
		if e.Addr != "" {
			return badOption(in+"Addr", "set although Network is none")
		}
		return nil
	default:
		return badOption(in+"Network", fmt.Sprintf("unknown: %q", e.Network))
	}
	if e.Addr == "" {
		return badOption(in+"Addr", "empty")
	}
	return nil
}

// Upper bounds of options.
const (
	mostBytes    = 1 << 30
	mostBuffered = mostBytes << (10 * (^uint(0) >> 63)) // 1 TiB, or 1 GiB where an int has 32 bits
	longestReply = 64 << 10
	mostMore     = 255 // of More: an entry's number is a byte

	keepAliveMost  = 32767 * time.Second // MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL
	keepAliveCount = 127                 // MAX_TCP_KEEPCNT
)

// longestLimit is the longest limit that can be set. In milliseconds it fits into 32 bits, see
// limitState.
const longestLimit = 20 * 24 * time.Hour
