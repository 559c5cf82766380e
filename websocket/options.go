package websocket

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"time"
)

// Options says which peers are served and how. The zero value of a field is its default. A
// negative number is an error that names the field. The struct is copied.
type Options struct {
	// NewActor returns the actor of a connection whose opening handshake is done, before its Opened.
	// It must not block. If it returns nil and has not claimed the connection by Conn.Events, the
	// connection is closed with PolicyViolation. Without NewActor, events go to Server.Events, or, for
	// Upgrade on a NetListener, where Conn.Attach or Conn.Events says.
	NewActor func(*Conn) Actor

	// Check is called with a request that is a valid WebSocket handshake and has passed the check
	// of its origin. It returns 0 to admit the peer, or the HTTP status to refuse it with. What it
	// changes in the request is there in Opened: *r = *r.WithContext(ctx) passes a user on. On the
	// server's own port it must not block: it runs on a loop, or on the consumer of Events; there a
	// panic refuses the peer with 500, and is counted and logged. In Upgrade a panic is the handler's.
	Check func(*http.Request) (status int)
	// Origins are patterns of hosts whose pages may connect, beside the host that the request
	// names itself: as in path.Match, without regard to case. A pattern with "://" is matched with
	// scheme and host. A request without Origin, which no browser sends, passes.
	Origins []string
	// AnyOrigin lets every page connect. With cookies for authentication that is an open door.
	AnyOrigin bool
	// Subprotocols are those that the server speaks. The first that the client offers too is
	// chosen; without one in common the connection has none. Dial offers them.
	Subprotocols []string
	// ClientTLS is the configuration of Dial for wss; nil is the zero one. Its Certificates are those
	// that a server may ask for. Its NextProtos are not used: a WebSocket needs "http/1.1".
	ClientTLS *tls.Config
	// TrustedProxies are the networks of proxies whose X-Forwarded-For is believed; see Conn.Addr.
	TrustedProxies []netip.Prefix

	// MaxMessage bounds a message, in bytes, decompressed; 0 means 1 MiB, and 1 GiB is the most. A
	// larger one ends the connection with MessageTooBig.
	MaxMessage int
	// MaxFrame bounds a frame's payload, in bytes; 0 means MaxMessage.
	MaxFrame int
	// PieceSize, if not 0, has a message that is larger delivered as Pieces of about that size,
	// while it arrives. It excludes Compress.
	PieceSize int
	// MaxRate bounds the frames of a peer, control frames too, a second; 0 means no bound. A peer
	// may save up one second's worth. One that sends more is closed with PolicyViolation.
	MaxRate int
	// NoText and NoBinary close a connection that sends such a message with UnsupportedData.
	NoText, NoBinary bool

	// Compress negotiates permessage-deflate (RFC 7692) with peers that offer it, without context
	// takeover: nothing is kept between messages, and an idle connection costs no memory for it.
	// While a message is compressed or decompressed, a state from a pool is used: some 1.2 MiB for
	// one, 40 KiB for the other.
	Compress bool
	// CompressMin is the size from which on a message is compressed, in bytes; 0 means 512.
	CompressMin int

	// HandshakeTimeout bounds the opening handshake, from accepting on; 0 means 10 s.
	HandshakeTimeout time.Duration
	// PingInterval, if not 0, is how long a peer may be silent before it gets a ping, and at most
	// once as much longer. If it is silent for PongTimeout behind the ping, the connection is
	// closed with PolicyViolation. 0 for PongTimeout means 10 s.
	PingInterval, PongTimeout time.Duration
	// MessageTimeout, if not 0, bounds how long a message may take from its first frame to its last.
	// It is looked at when the peer sends something: a message that is late then closes the
	// connection with PolicyViolation. Against a peer that sends nothing there is PingInterval.
	MessageTimeout time.Duration
	// CloseTimeout is how long a closing handshake waits for the peer's Close frame; 0 means 5 s.
	CloseTimeout time.Duration
}

// maxHead is how long a handshake's request may be, in bytes.
const maxHead = 16 << 10

func badOption(field string, why any) error {
	return fmt.Errorf("websocket: Options.%s: %v", field, why)
}

// check validates the options and fills in the defaults.
func (o *Options) check() error {
	for _, f := range []struct {
		name  string
		value *int
		def   int
	}{
		{"MaxMessage", &o.MaxMessage, 1 << 20},
		{"MaxFrame", &o.MaxFrame, 0},
		{"PieceSize", &o.PieceSize, 0},
		{"MaxRate", &o.MaxRate, 0},
		{"CompressMin", &o.CompressMin, 512},
	} {
		if *f.value < 0 {
			return badOption(f.name, fmt.Sprintf("negative: %d", *f.value))
		}
		if *f.value > 1<<30 {
			return badOption(f.name, fmt.Sprintf("over %d: %d", 1<<30, *f.value))
		}
		if *f.value == 0 {
			*f.value = f.def
		}
	}
	if o.MaxFrame == 0 {
		o.MaxFrame = o.MaxMessage
	}
	for _, f := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"HandshakeTimeout", &o.HandshakeTimeout, 10 * time.Second},
		{"PingInterval", &o.PingInterval, 0},
		{"MessageTimeout", &o.MessageTimeout, 0},
		{"PongTimeout", &o.PongTimeout, 10 * time.Second},
		{"CloseTimeout", &o.CloseTimeout, 5 * time.Second},
	} {
		if *f.value < 0 {
			return badOption(f.name, "negative: "+f.value.String())
		}
		if *f.value == 0 {
			*f.value = f.def
		}
	}
	if o.PieceSize > 0 && o.Compress {
		return badOption("PieceSize", "set together with Compress")
	}
	for _, p := range o.Origins {
		if _, err := path.Match(p, ""); err != nil {
			return badOption("Origins", fmt.Sprintf("%q: %v", p, err))
		}
	}
	for _, p := range o.Subprotocols {
		if p == "" || strings.ContainsFunc(p, notToken) {
			return badOption("Subprotocols", fmt.Sprintf("not a token: %q", p))
		}
	}
	return nil
}

// notToken reports whether r may not be in a token of RFC 7230, 3.2.6.
func notToken(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
}
