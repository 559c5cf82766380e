package tcpio

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"
)

// ErrNotTLS says that what begins a connection is no TLS.
var ErrNotTLS = errors.New("tcpio: not TLS")

// ParseClientHello looks at the beginning of a TLS connection, in a [ListenerOptions].Preface: for
// the server name (ServerName) and the protocols (SupportedProtos, ALPN) that the client asks for,
// to route it by them. It decrypts nothing and takes nothing: TLSConfig, StartTLS or an upstream
// get the same bytes.
//
// It returns [ErrShortPreface] when head ends within the ClientHello, [ErrNotTLS] as soon as the
// first bytes are none of TLS, and otherwise an error of crypto/tls, whose parser it is, when there
// is no ClientHello or a bad one. The message may come in any number of records. MaxPreface must
// have room for it: 2 KiB are usual, and crypto/tls takes 64.
//
// The names are as the client has sent them: of any bytes, and not proven. Conn of the result is
// nil. With Encrypted ClientHello the name is the public one. ParseClientHello keeps nothing of
// head.
func ParseClientHello(head []byte) (*tls.ClientHelloInfo, error) {
	switch whole, err := helloWhole(head); {
	case err != nil:
		return nil, err
	case !whole:
		return nil, ErrShortPreface
	}
	var hello *tls.ClientHelloInfo
	in := &helloReader{rest: head}
	err := tls.Server(in, &tls.Config{
		SessionTicketsDisabled: true, // no key for them is made
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = info
			return nil, errHelloSeen
		},
	}).Handshake()
	switch {
	case hello != nil:
		hello.Conn = nil
		return hello, nil
	case in.short:
		return nil, ErrShortPreface
	}
	return nil, err
}

// errHelloSeen ends a handshake that has come as far as it is needed.
var errHelloSeen = errors.New("tcpio: the ClientHello is read")

const (
	recordHeader    = 5 // a type, a version, two bytes of length; RFC 8446, 5.1
	recordHandshake = 22
	messageHeader   = 4 // a type, three bytes of length; RFC 8446, 4
	messageHello    = 1
	noVersion       = 0x10 // a version says nothing (RFC 8446, 5.1); crypto/tls takes none above
)

// helloWhole reports whether crypto/tls can say what head is. Before that it need not be asked,
// with all of head at each segment. It does not judge the rest.
func helloWhole(head []byte) (bool, error) {
	var message [messageHeader]byte
	for have := 0; len(head) > 0; {
		if head[0] != recordHandshake || len(head) > 1 && head[1] >= noVersion {
			if have == 0 {
				return false, ErrNotTLS
			}
			return true, nil
		}
		if len(head) < recordHeader {
			return false, nil
		}
		size := int(binary.BigEndian.Uint16(head[3:]))
		body := head[recordHeader:]
		part := body[:min(size, len(body))]
		if have < messageHeader {
			copy(message[have:], part)
		}
		have += len(part)
		if have > 0 && message[0] != messageHello || size > maxRecord {
			return true, nil
		}
		if have >= messageHeader {
			length := int(binary.BigEndian.Uint32(message[:]) & 0xffffff)
			if whole := have >= messageHeader+length && len(part) == size; whole || length > maxHello {
				return true, nil
			}
		}
		head = body[len(part):]
	}
	return false, nil
}

const (
	maxRecord = 16<<10 + 2048 // crypto/tls refuses a longer one by its header
	maxHello  = 64 << 10      // likewise
)

// A helloReader is a peer that has sent so much and no more.
type helloReader struct {
	rest  []byte
	short bool // more was asked for
}

func (r *helloReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		r.short = true
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (*helloReader) Write(p []byte) (int, error)      { return len(p), nil } // an alert
func (*helloReader) Close() error                     { return nil }
func (*helloReader) LocalAddr() net.Addr              { return nil }
func (*helloReader) RemoteAddr() net.Addr             { return nil }
func (*helloReader) SetDeadline(time.Time) error      { return nil }
func (*helloReader) SetReadDeadline(time.Time) error  { return nil }
func (*helloReader) SetWriteDeadline(time.Time) error { return nil }
