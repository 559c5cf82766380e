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
// a number that is negative or over the field's bound is an error that names the field. A time is 20 days at most. Listen
// copies the struct.
type ListenerOptions struct {
	// Addr is the address to listen on, as in net.Listen: "host:port", ":port", "[::1]:0", or a path for "unix".
	Addr string
	// Network is "tcp" (the default), "tcp4", "tcp6" or "unix".
	Network string
	// Listener is a listening socket to take over instead of opening Addr: a *net.TCPListener or *net.UnixListener, as
	// socket activation and hot restart have it. Its descriptor moves; once Listen has succeeded the original is closed.
	// A unix socket's path is then left alone at Close. Addr and Network must be empty. A multipath TCP socket takes no
	// UserTimeout: Listen then fails with ENOPROTOOPT (net.ListenConfig.SetMultipathTCP). Whoever else has the socket finds it
	// changed, as Listener.File says.
	Listener net.Listener

	// Loops is the number of epoll loops. 0 means 1 for Events, and otherwise GOMAXPROCS less one, but at least 1: a loop
	// that waits in epoll keeps its processor for a while, and the rest of the program's network needs one too. With as
	// many loops as processors, other network users of the process were seen to wait 10 ms at the 99th percentile. At most
	// 1,024.
	Loops int
	// EventBuffer is the capacity of each event channel, in events; 0 means 1,024, and 1,048,576 (of 16 bytes each, 8 on a
	// 32-bit system) is the most. When a channel is full, reading and accepting pause.
	EventBuffer int
	// MailboxSize bounds the posted values that wait for one connection; 0 means 128, and 1,048,576 is the most.
	MailboxSize int
	// WriteBuffer bounds the queued output of one connection, in bytes; 0 means 1 MiB, and 1 GiB is the most. See
	// Conn.TryWrite.
	WriteBuffer int
	// MaxBuffered bounds the queued output of all connections together, in bytes; 0 means no bound, and 1 TiB is the most,
	// on a 32-bit system 1 GiB. While more than half of it is used, a write is refused that would go past it, as WriteBuffer refuses, and gets its Writable when half is
	// free. Writes of up to 4 KiB to a connection that has nothing queued are taken all the same, so that peers who read
	// are served; WriteTimeout gets rid of those who do not.
	MaxBuffered int
	// MaxFrame bounds a frame of Conn.Frames, in bytes; 0 means 64 KiB, and 1 GiB is the most.
	MaxFrame int
	// MaxBlocked bounds the goroutines that are kept in actors' Receive beyond the loops' own, because a handler blocked;
	// 0 means 10,000, and 1,048,576 is the most. At the bound a loop waits for its handler, and so do the other connections of that loop; but never
	// for one that is blocked in Read or Write of its own connection, which needs the loop.
	MaxBlocked int

	// MaxConns bounds the connections that are open at once, and MaxConnsPerIP those of one address: an IPv4 address, or
	// the /64 network of an IPv6 one. 0 means no bound, and 1,073,741,824 is the most. What is over a bound is refused.
	MaxConns      int
	MaxConnsPerIP int
	// AcceptRate is asked for every connection, which is refused when it says false. A *rate.Limiter of
	// golang.org/x/time/rate fits. It is called as Admit is.
	AcceptRate interface{ Allow() bool }
	// Admit is asked for every connection before anything is allocated for it; an error refuses it. A unix
	// socket's peer has the zero address. It runs on a loop, and must not block: accepting waits for it.
	// AcceptRate, Admit and Actor are never called two at once. A panic, or runtime.Goexit, refuses the peer
	// and is logged.
	Admit func(netip.AddrPort) error
	// RefuseReply, a short one, is sent to a peer that is refused, before the close. Without it, and with TLSConfig,
	// the close is all. At most 64 KiB.
	RefuseReply []byte

	// EOFTimeout is a safety net for programs that ignore io.EOF: it closes, in order, a connection whose peer's end of stream was
	// read, and on which nothing has been written, queued, or is being written or copied for so long, while no Receive of its
	// actor runs. 0 means 10 s. When descriptors run out or MaxConns is reached, those connections are closed to make room for
	// new ones, the one that has waited longest first. Connections that NetListener or Dial handed out as net.Conns are exempt.
	EOFTimeout time.Duration
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
	// UserTimeout is how long sent data may stay without acknowledgement before the kernel drops the connection, and also
	// how long data may wait for a peer that keeps its window closed because it does not read (TCP_USER_TIMEOUT, tcp(7)): a
	// peer that pauses for longer than that is cut although it is alive. 0 leaves both to the system, which waits a quarter
	// of an hour for an acknowledgement, and for as long as it likes for a peer that only pauses.
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
	// 4,096, and 1,048,576 is the most. The others wait, and the newest goes first; meanwhile a client that has a place must
	// go on within a second.
	MaxHandshakes int

	// KeepAlive sets TCP keep-alive for accepted connections, and for dialled ones unless their net.Dialer says otherwise.
	// The zero value is the package net's default, on with 15 s idle, 15 s interval and 9 probes, and so is a zero field of
	// an enabled one. Enable false with a negative Idle switches keep-alive off. Idle and Interval are 32,767 s at most, and
	// Count 127, as in Linux.
	KeepAlive net.KeepAliveConfig

	// Actor makes the actor of every new connection, also of an adopted one. It runs on a loop, before the
	// connection's Opened, and must not block, since accepting waits for it; the actor may. Nil refuses the
	// connection, unless Actor has claimed it by Conn.Events, and so does a panic, or runtime.Goexit, which
	// is logged. Without it, events go to Events or Streams.
	Actor func(*Conn) Actor

	// DeferAccept makes NetListener hand out a connection only once its first bytes have arrived.
	DeferAccept bool

	// OnConnEvent is the callback of the first tcpio, for every connection; see Callback. It excludes Actor. New programs
	// want one of the other routes.
	OnConnEvent func(net.Conn) error
	// OnErrorEvent gets errors that OnConnEvent returned, and listener failures when neither Events nor Streams was called.
	// Calls are made one at a time. It may block; a panic in it is logged and ends nothing.
	OnErrorEvent func(error)
	// ConcurrentCallbacks lets OnConnEvent run for different connections at once. By default calls are made one at a time.
	ConcurrentCallbacks bool

	// Logger gets what nobody else is told: failures while neither Events nor Streams was called, one a
	// second at most, and panics and what goes wrong at Closed, ten lines at once and then one a second. How
	// many were suppressed is the attribute "suppressed" of the next line, or of one at the end of Serve.
	// Nothing that a peer sent is logged, unless it is in a handler's own error or panic. Its handler has a
	// goroutine of its own: what blocks or panics in it, and in methods of the values, holds up no
	// connection. Lines so lost count as suppressed. Nil means no logging.
	Logger *slog.Logger
}

// check validates the options and fills in the defaults.
func (o *ListenerOptions) check() error {
	bad := func(field, why string) error { return fmt.Errorf("tcpio: ListenerOptions.%s: %s", field, why) }
	// The bounds leave room in an int of 32 bits for sums of two, and what is made at once, channels and loops, can be made.
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
		{"MaxHandshakes", &o.MaxHandshakes, 4096, 1 << 20},
		{"MaxConns", &o.MaxConns, 0, 1 << 30},
		{"MaxConnsPerIP", &o.MaxConnsPerIP, 0, 1 << 30},
	} {
		if *f.value < 0 {
			return bad(f.name, fmt.Sprintf("negative: %d", *f.value))
		}
		if *f.value > f.most {
			return bad(f.name, fmt.Sprintf("over %d: %d", f.most, *f.value))
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
		{"EOFTimeout", o.EOFTimeout},
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
	if o.EOFTimeout == 0 {
		o.EOFTimeout = 10 * time.Second
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if t := o.TLSConfig; t != nil && len(t.Certificates) == 0 && t.GetCertificate == nil && t.GetConfigForClient == nil {
		return bad("TLSConfig", "has no certificate: neither Certificates nor GetCertificate nor GetConfigForClient")
	}
	if n := len(o.RefuseReply); n > longestReply {
		return bad("RefuseReply", fmt.Sprintf("over %d bytes: %d", longestReply, n))
	}
	switch ka := &o.KeepAlive; {
	case ka.Idle > keepAliveMost:
		return bad("KeepAlive", fmt.Sprintf("Idle over %v: %v", keepAliveMost, ka.Idle))
	case ka.Interval > keepAliveMost:
		return bad("KeepAlive", fmt.Sprintf("Interval over %v: %v", keepAliveMost, ka.Interval))
	case ka.Count > keepAliveCount:
		return bad("KeepAlive", fmt.Sprintf("Count over %d: %d", keepAliveCount, ka.Count))
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

// Upper bounds of options.
const (
	mostBytes    = 1 << 30
	mostBuffered = mostBytes << (10 * (^uint(0) >> 63)) // 1 TiB, or 1 GiB where an int has 32 bits
	longestReply = 64 << 10

	keepAliveMost  = 32767 * time.Second // MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL
	keepAliveCount = 127                 // MAX_TCP_KEEPCNT
)

// seconds is a keep-alive time, keepAliveMost at most, in whole seconds, as the package net rounds it; 0 is the default,
// negative leaves the system's value.
func seconds(d time.Duration, def int) int {
	switch {
	case d < 0:
		return -1
	case d == 0:
		return def
	}
	return int((d + time.Second - 1) / time.Second)
}
