package proxyproto

import (
	"encoding/binary"
	"errors"
	"net"

	pp "github.com/pires/go-proxyproto"

	"github.com/rabbit-backend/tcpio"
)

// Send writes a header of version 2 to upstream, before anything else is written there: upstream
// then knows client by its RemoteAddr, and the address that it has connected to, its LocalAddr. If
// client came by a proxy itself, both are those of that proxy's header. The bytes are queued whole:
// Send does not block. It returns an error of AppendV2 or of TryWrite, and has then written
// nothing.
func Send(upstream, client *tcpio.Conn, tlvs ...TLV) error {
	source, destination := client.RemoteAddr(), client.LocalAddr()
	if h := HeaderOf(client); h != nil && h.Command == pp.PROXY && h.SourceAddr != nil {
		source, destination = h.SourceAddr, h.DestinationAddr
	}
	p, err := AppendV2(nil, source, destination, tlvs...)
	if err != nil {
		return err
	}
	_, err = upstream.TryWrite(p)
	return err
}

// AppendV2 appends a header of version 2 to dst. source is the client's address, destination the
// one that the client has connected to: both a *net.TCPAddr, both a *net.UDPAddr or both a
// *net.UnixAddr. For any other pair the header says LOCAL: there is no client's address to tell. If
// one address is IPv4 and the other is not, both go as IPv6.
//
// It fails, and returns dst as it was, when a TLV, or all of the header, is too long: 4 KiB beyond
// the first 16 bytes, which is what Accept takes. A TLV of [Checksum] gets its value.
func AppendV2(dst []byte, source, destination net.Addr, tlvs ...TLV) ([]byte, error) {
	if s, ok := source.(*net.UnixAddr); ok {
		source = unixName(s)
	}
	if d, ok := destination.(*net.UnixAddr); ok {
		destination = unixName(d)
	}
	h := pp.HeaderProxyFromAddrs(2, source, destination)
	if err := h.SetTLVs(tlvs); err != nil {
		return dst, err
	}
	p, err := h.Format()
	if err != nil {
		return dst, err
	}
	if len(p) > longest() {
		return dst, errLong(len(p))
	}
	at, err := sumAt(p, h.TransportProtocol)
	if err != nil {
		return dst, errors.New("proxyproto: more than one TLV of Checksum, or of a wrong size")
	}
	if at != 0 {
		binary.BigEndian.PutUint32(p[at:], 0)
		binary.BigEndian.PutUint32(p[at:], sum(p, at))
	}
	return append(dst, p...), nil
}

// Checksum returns the TLV in which AppendV2 and Send write the checksum (CRC32C) of the header.
func Checksum() TLV { return TLV{Type: pp.PP2_TYPE_CRC32C, Value: make([]byte, 4)} }

// unixName is a as it goes into a header: a peer without a name, which is @ in Go, has none there,
// and an abstract name begins with a zero byte.
func unixName(a *net.UnixAddr) *net.UnixAddr {
	name := a.Name
	switch {
	case name == "@":
		name = ""
	case len(name) > 0 && name[0] == '@':
		name = "\x00" + name[1:]
	}
	return &net.UnixAddr{Name: name, Net: a.Net}
}
