package tcpio

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"
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
	// A unix socket's path is then left alone at Close. Addr and Network must be empty. A multipath TCP socket takes no
	// UserTimeout: Listen then fails with ENOPROTOOPT (net.ListenConfig.SetMultipathTCP).
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
	// Conn.SetIdleTimeout. What arrives is bytes that can be read: with TLS plain text, and neither urgent data, records
	// without data nor key updates and the answers to them.
	IdleTimeout time.Duration
	// ReadTimeout closes a connection whose first byte does not come within it, and one on which so long no byte was added
	// to a frame that Conn.Frames has begun. Input that waits for its reader holds it up. Bytes are those of IdleTimeout;
	// with TLS both begin behind the handshake.
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
	// MaxHandshakes bounds the handshakes that have a goroutine, which one has from the first whole record on; 0 means
	// 4,096. The others wait, and the newest goes first; meanwhile a client that has a place must go on within a second.
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

// seconds is a keep-alive time in whole seconds, as the package net rounds it; 0 is the default, negative leaves the
// system's value.
func seconds(d time.Duration, def int) int {
	if d == 0 {
		return def
	}
	return int((d + time.Second - 1) / time.Second)
}
