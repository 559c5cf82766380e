package proxyproto

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"

	pp "github.com/pires/go-proxyproto"

	"github.com/rabbit-backend/tcpio"
)

// A Header is what a proxy has sent. Its methods TLVs, TCPAddrs and UnixAddrs have what is in it;
// the package tlvparse of github.com/pires/go-proxyproto decodes the TLVs of HAProxy, AWS and
// Azure.
type Header = pp.Header

// A TLV is a value of version 2 beside the addresses: the server name or the certificate of the
// client, say.
type TLV = pp.TLV

// Options say what Accept does. The zero value is the default.
type Options struct {
	// Others is for connections that do not come from a proxy.
	Others Others
}

// Others says what becomes of a connection from an address that is not in
// [tcpio.ListenerOptions].Proxies.
type Others uint8

const (
	// RefuseOthers resets it at once: only proxies may connect. It is the default.
	RefuseOthers Others = iota
	// InspectOthers waits for its first bytes, and refuses it if they begin a header. Otherwise it
	// opens as it is, and these bytes are yours. It is for protocols in which the client speaks
	// first, and costs clients of others PrefaceTimeout.
	InspectOthers
	// OpenOthers opens it at once. Whatever it sends is yours: also a header, which nobody believes.
	OpenOthers
)

var (
	errOthers    = errors.New("proxyproto: not from a proxy")
	errForged    = errors.New("proxyproto: a header that is not from a proxy")
	errNoHeader  = errors.New("proxyproto: a proxy's connection begins without a header")
	errLongLine  = errors.New("proxyproto: version 1 header over 107 bytes")
	errChecksum  = errors.New("proxyproto: version 2 header fails its checksum")
	errChecksums = errors.New("proxyproto: version 2 header with a checksum of a wrong size, or with two")
)

// Accept returns a [tcpio.ListenerOptions].Preface that takes the header of a proxy off each
// connection, and sets the client's address. A connection whose header is bad, or missing, is
// refused, and so is one whose checksum (CRC32C) is there and wrong. The command LOCAL, and
// UNKNOWN, by which proxies check a server's health, keep the proxy's own address.
//
// A header of version 2 may have 4 KiB beyond its first 16 bytes, unless MaxV2HeaderSize of
// go-proxyproto says otherwise; MaxPreface must not be less. The function may be used by any number
// of listeners. It panics on an unknown Others.
func Accept(opts Options) func(*tcpio.Conn, []byte) (int, error) {
	if opts.Others > OpenOthers {
		panic(fmt.Sprintf("proxyproto: Options.Others is unknown: %d", opts.Others))
	}
	return func(c *tcpio.Conn, head []byte) (int, error) {
		if !c.FromProxy() {
			return 0, admitOther(opts.Others, head)
		}
		n, h, err := parse(head)
		if err != nil {
			return 0, err
		}
		return n, c.SetRemoteAddr(clientOf(h), h)
	}
}

// HeaderOf returns the header that a proxy has sent on c, nil if there was none. It works at any
// time from Opened on, also after Close. The header must not be changed.
func HeaderOf(c *tcpio.Conn) *Header {
	h, _ := c.ProxyHeader().(*Header)
	return h
}

// admitOther decides about a connection that is not a proxy's.
func admitOther(others Others, head []byte) error {
	switch {
	case others == RefuseOthers:
		return errOthers
	case others == OpenOthers:
		return nil
	case len(head) == 0:
		return tcpio.ErrShortPreface
	}
	for _, begin := range [][]byte{line, pp.SIGV2} {
		switch n := min(len(head), len(begin)); {
		case !bytes.Equal(head[:n], begin[:n]):
		case n < len(begin):
			return tcpio.ErrShortPreface
		default:
			return errForged
		}
	}
	return nil
}

// clientOf returns the client's address, the zero value if h has none.
func clientOf(h *Header) netip.AddrPort {
	if h.Command != pp.PROXY {
		return netip.AddrPort{}
	}
	switch a := h.SourceAddr.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// line begins a header of version 1.
var line = []byte("PROXY ")

const (
	longestLine = 107 // bytes, with its CR LF
	fixed       = 16  // bytes of version 2 before the addresses
	atCommand   = 12  // of these, the byte of version and command
	atFamily    = 13
	atLength    = 14 // two bytes: how many come behind the fixed ones
)

// parse finds the header at the beginning of head, and its length. It returns
// tcpio.ErrShortPreface when head ends within one.
func parse(head []byte) (n int, h *Header, err error) {
	switch {
	case bytes.HasPrefix(line, head[:min(len(head), len(line))]):
		n, err = lineLength(head)
	case bytes.HasPrefix(pp.SIGV2, head[:min(len(head), len(pp.SIGV2))]):
		return parseV2(head)
	default:
		return 0, nil, errNoHeader
	}
	if err != nil {
		return 0, nil, err
	}
	return whole(head[:n])
}

// lineLength returns the length of a header of version 1.
func lineLength(head []byte) (int, error) {
	head = head[:min(len(head), longestLine)]
	n := bytes.IndexByte(head, '\n') + 1
	switch {
	case n == 0 && len(head) == longestLine:
		return 0, errLongLine
	case n == 0:
		return 0, tcpio.ErrShortPreface
	}
	return n, nil
}

// parseV2 is parse for version 2.
func parseV2(head []byte) (n int, h *Header, err error) {
	if len(head) < fixed {
		return 0, nil, tcpio.ErrShortPreface
	}
	n = fixed + int(binary.BigEndian.Uint16(head[atLength:]))
	switch {
	case n > longest():
		return 0, nil, errLong(n)
	case len(head) < n:
		return 0, nil, tcpio.ErrShortPreface
	}
	head = head[:n]
	command := pp.ProtocolVersionAndCommand(head[atCommand])
	family := pp.AddressFamilyAndProtocol(head[atFamily])
	if command == pp.LOCAL { // what is behind that is to be discarded, whatever it is: section 2.2
		return whole(head)
	}
	if err := checkSum(head, family); err != nil {
		return 0, nil, err
	}
	if command == pp.PROXY && family == pp.UNSPEC {
		// The client has no address that can be told, but there may be TLVs. pp takes that for LOCAL
		// alone.
		head = bytes.Clone(head)
		head[atCommand] = byte(pp.LOCAL)
	}
	if n, h, err = whole(head); err != nil {
		return 0, nil, err
	}
	if _, err := h.TLVs(); err != nil {
		return 0, nil, err
	}
	return n, h, nil
}

// longest is how long a header of version 2 may be.
func longest() int { return fixed + int(pp.MaxV2HeaderSize) }

func errLong(n int) error {
	return fmt.Errorf("proxyproto: version 2 header of %d bytes, over %d", n, longest())
}

// whole has pp read a header that is all there.
func whole(head []byte) (n int, h *Header, err error) {
	if h, err = pp.Read(bufio.NewReaderSize(bytes.NewReader(head), len(head))); err != nil {
		return 0, nil, err
	}
	return len(head), h, nil
}

// addressSize is how many bytes of version 2 the addresses of a family take.
func addressSize(family pp.AddressFamilyAndProtocol) int {
	switch {
	case family.IsIPv4():
		return 2 * (4 + 2)
	case family.IsIPv6():
		return 2 * (16 + 2)
	case family.IsUnix():
		return 2 * 108
	}
	return 0
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkSum verifies the checksum of a header of version 2, if it has one: section 2.2.4.
func checkSum(head []byte, family pp.AddressFamilyAndProtocol) error {
	at, err := sumAt(head, family)
	if at == 0 || err != nil {
		return err
	}
	want := binary.BigEndian.Uint32(head[at:])
	if sum(head, at) != want {
		return errChecksum
	}
	return nil
}

// sum computes the checksum of head whose place is at.
func sum(head []byte, at int) uint32 {
	crc := crc32.Update(0, castagnoli, head[:at])
	crc = crc32.Update(crc, castagnoli, make([]byte, 4))
	return crc32.Update(crc, castagnoli, head[at+4:])
}

// sumAt returns where in head the value of its checksum is, 0 if there is none. TLVs that are cut
// are left for pp to refuse.
func sumAt(head []byte, family pp.AddressFamilyAndProtocol) (at int, err error) {
	for i := fixed + addressSize(family); i+3 <= len(head); {
		size := int(binary.BigEndian.Uint16(head[i+1:]))
		if pp.PP2Type(head[i]) == pp.PP2_TYPE_CRC32C {
			if at != 0 || size != 4 || i+3+size > len(head) {
				return 0, errChecksums
			}
			at = i + 3
		}
		i += 3 + size
	}
	return at, nil
}
