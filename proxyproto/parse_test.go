package proxyproto

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	pp "github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"github.com/rabbit-backend/tcpio"
)

// v2 makes a header of version 2 of its parts.
func v2(command, family byte, rest ...[]byte) string {
	p := slices.Concat(rest...)
	head := append(slices.Clone(pp.SIGV2), command, family)
	head = binary.BigEndian.AppendUint16(head, uint16(len(p)))
	return string(append(head, p...))
}

func tlv(kind byte, value string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value))), value...)
}

var (
	ip4 = []byte{192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x67, 0x01, 0xbb} // 192.0.2.1:4711 to 198.51.100.2:443
	ip6 = slices.Concat(net.ParseIP("2001:db8::1"), net.ParseIP("2001:db8::2"), ip4[8:])

	unixPair = append(append([]byte("/client"), make([]byte, 101)...), append([]byte("/server"), make([]byte, 101)...)...)
)

// headers are those of the specification that are taken, with what they say.
var headers = []struct {
	name, head   string
	client, dest string // "" where there is none
	local        bool
	tlvs         []TLV
}{
	{name: "v1 TCP4", head: "PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\r\n", client: "192.0.2.1:4711", dest: "198.51.100.2:443"},
	{name: "v1 TCP4, the longest", head: "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", client: "255.255.255.255:65535", dest: "255.255.255.255:65535"},
	{name: "v1 TCP6", head: "PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n", client: "[2001:db8::1]:4711", dest: "[2001:db8::2]:443"},
	{name: "v1 TCP6, the longest", head: "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
		client: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", dest: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
	{name: "v1 UNKNOWN", head: "PROXY UNKNOWN\r\n", local: true},
	{name: "v1 UNKNOWN, the longest", head: "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", local: true},
	{name: "v2 TCP4", head: v2(0x21, 0x11, ip4), client: "192.0.2.1:4711", dest: "198.51.100.2:443"},
	{name: "v2 TCP6", head: v2(0x21, 0x21, ip6), client: "[2001:db8::1]:4711", dest: "[2001:db8::2]:443"},
	{name: "v2 UDP4", head: v2(0x21, 0x12, ip4), client: "192.0.2.1:4711", dest: "198.51.100.2:443"},
	{name: "v2 unix", head: v2(0x21, 0x31, unixPair), dest: "/server"},
	{name: "v2 TLVs", head: v2(0x21, 0x11, ip4, tlv(1, "h2"), tlv(2, "example.org"), tlv(4, "\x00\x00"), tlv(0xe1, "")), client: "192.0.2.1:4711",
		dest: "198.51.100.2:443", tlvs: []TLV{{Type: 1, Value: []byte("h2")}, {Type: 2, Value: []byte("example.org")}, {Type: 4, Value: nil}, {Type: 0xe1, Value: []byte{}}}},
	{name: "v2 LOCAL", head: v2(0x20, 0), local: true},
	{name: "v2 LOCAL with a family", head: v2(0x20, 0x11, ip4), local: true},
	{name: "v2 LOCAL with anything", head: v2(0x20, 0x21, []byte("junk")), local: true},
	{name: "v2 UNSPEC", head: v2(0x21, 0), local: true},
	{name: "v2 UNSPEC with a TLV", head: v2(0x21, 0, tlv(5, "id")), local: true, tlvs: []TLV{{Type: 5, Value: []byte("id")}}},
	{name: "v2 a checksum", head: withSum(v2(0x21, 0x11, ip4, tlv(1, "h2"), tlv(3, "\x00\x00\x00\x00"), tlv(5, "id"))), client: "192.0.2.1:4711", dest: "198.51.100.2:443"},
	{name: "v2 4 KiB", head: v2(0x21, 0x11, ip4, tlv(0xea, strings.Repeat("x", 4096-12-3))), client: "192.0.2.1:4711", dest: "198.51.100.2:443"},
}

// withSum fills in the checksum of a header that has a place for it, as the specification says it:
// over the header with zeros there.
func withSum(head string) string {
	p := []byte(head)
	at := bytes.Index(p, []byte{3, 0, 4, 0, 0, 0, 0}) + 3
	crc := ^uint32(0)
	for _, b := range p { // bit by bit: the polynomial of RFC 3720
		crc ^= uint32(b)
		for range 8 {
			crc = crc>>1 ^ 0x82f63b78&-(crc&1)
		}
	}
	binary.BigEndian.PutUint32(p[at:], ^crc)
	return string(p)
}

func TestHeadersOfTheSpecification(t *testing.T) {
	for _, tc := range headers {
		t.Run(tc.name, func(t *testing.T) {
			for cut := range len(tc.head) {
				if n, h, err := parse([]byte(tc.head[:cut])); n != 0 || h != nil || err != tcpio.ErrShortPreface {
					t.Fatalf("the first %d bytes: %d, %v, %v", cut, n, h, err)
				}
			}
			n, h, err := parse([]byte(tc.head + "PROXY behind it\r\n"))
			if n != len(tc.head) || err != nil {
				t.Fatalf("%d of %d bytes, %v", n, len(tc.head), err)
			}
			if got := clientOf(h); tc.client == "" && got.IsValid() || tc.client != "" && got.String() != tc.client {
				t.Errorf("the client is %v, want %q", got, tc.client)
			}
			if tc.dest != "" && h.DestinationAddr.String() != tc.dest {
				t.Errorf("the destination is %v, want %q", h.DestinationAddr, tc.dest)
			}
			if h.Command.IsLocal() != tc.local {
				t.Errorf("the command is %v", h.Command)
			}
			if tlvs, err := h.TLVs(); tc.tlvs != nil && (err != nil || fmt.Sprint(tlvs) != fmt.Sprint(tc.tlvs)) {
				t.Errorf("TLVs %v, %v, want %v", tlvs, err, tc.tlvs)
			}
		})
	}
}

func TestBadHeadersAreRefused(t *testing.T) {
	broken := []byte(withSum(v2(0x21, 0x11, ip4, tlv(3, "\x00\x00\x00\x00"))))
	broken[17]++
	for name, head := range map[string]string{
		"no header":                     "GET / HTTP/1.1\r\n\r\n",
		"TLS":                           "\x16\x03\x01\x02\x00\x01\x00\x01",
		"v1 in small letters":           "proxy TCP4 192.0.2.1 198.51.100.2 4711 443\r\n",
		"v1 with two spaces":            "PROXY  TCP4 192.0.2.1 198.51.100.2 4711 443\r\n",
		"v1 of no family":               "PROXY TCP5 192.0.2.1 198.51.100.2 4711 443\r\n",
		"v1 of one address":             "PROXY TCP4 192.0.2.1 4711 443\r\n",
		"v1 with more":                  "PROXY TCP4 192.0.2.1 198.51.100.2 4711 443 x\r\n",
		"v1 with a name":                "PROXY TCP4 localhost 198.51.100.2 4711 443\r\n",
		"v1 TCP4 with IPv6":             "PROXY TCP4 2001:db8::1 2001:db8::2 4711 443\r\n",
		"v1 with a port over 65535":     "PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
		"v1 with a negative port":       "PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n",
		"v1 without CR":                 "PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\n",
		"v1 over 107 bytes":             "PROXY UNKNOWN " + strings.Repeat("x", 107-14),
		"v2 of version 1":               v2(0x11, 0x11, ip4),
		"v2 of no command":              v2(0x22, 0x11, ip4),
		"v2 of no family":               v2(0x21, 0x41, ip4),
		"v2 of no protocol":             v2(0x21, 0x13, ip4),
		"v2 with addresses cut":         v2(0x21, 0x11, ip4[:11]),
		"v2 TCP6 with those of TCP4":    v2(0x21, 0x21, ip4),
		"v2 with a TLV cut":             v2(0x21, 0x11, ip4, tlv(1, "h2")[:4]),
		"v2 with half a TLV":            v2(0x21, 0x11, ip4, []byte{1, 0}),
		"v2 over 4 KiB":                 v2(0x21, 0x11, ip4, tlv(0xea, strings.Repeat("x", 4096-12-2))),
		"v2 with a bad checksum":        string(broken),
		"v2 with a checksum of 3":       v2(0x21, 0x11, ip4, tlv(3, "abc")),
		"v2 with two checksums":         v2(0x21, 0x11, ip4, tlv(3, "abcd"), tlv(3, "abcd")),
		"v2 with a checksum that's cut": v2(0x21, 0x11, ip4, tlv(3, "abcd")[:5]),
	} {
		t.Run(name, func(t *testing.T) {
			n, h, err := parse([]byte(head))
			if n != 0 || h != nil || err == nil || errors.Is(err, tcpio.ErrShortPreface) {
				t.Errorf("%d, %v, %v", n, h, err)
			}
		})
	}
}

func TestWhatIsSentIsRead(t *testing.T) {
	tcp := func(s string) net.Addr { a, _ := net.ResolveTCPAddr("tcp", s); return a }
	unix := func(s string) net.Addr { return &net.UnixAddr{Name: s, Net: "unix"} }
	for _, tc := range []struct {
		source, dest net.Addr
		client       string
	}{
		{tcp("192.0.2.1:4711"), tcp("198.51.100.2:443"), "192.0.2.1:4711"},
		{tcp("[2001:db8::1]:4711"), tcp("[2001:db8::2]:443"), "[2001:db8::1]:4711"},
		{tcp("192.0.2.1:4711"), tcp("[2001:db8::2]:443"), "[::ffff:192.0.2.1]:4711"}, // SetRemoteAddr unmaps it
		{tcp("[2001:db8::1]:4711"), tcp("192.0.2.1:443"), "[2001:db8::1]:4711"},
		{unix("@"), unix("/server"), ""},
		{unix("@abstract"), unix("/server"), ""},
		{tcp("192.0.2.1:4711"), unix("/server"), ""},
		{nil, nil, ""},
	} {
		for _, tlvs := range [][]TLV{nil, {{Type: pp.PP2_TYPE_ALPN, Value: []byte("h2")}}, {Checksum(), {Type: 5, Value: []byte("id")}}} {
			p, err := AppendV2([]byte("before"), tc.source, tc.dest, tlvs...)
			if err != nil || !bytes.HasPrefix(p, []byte("before")) {
				t.Fatalf("%v, %v: %q, %v", tc.source, tc.dest, p, err)
			}
			p = p[len("before"):]
			n, h, err := parse(append(p, "behind"...))
			if err != nil || n != len(p) {
				t.Fatalf("%v, %v: %d bytes of %d, %v", tc.source, tc.dest, n, len(p), err)
			}
			if got := clientOf(h); tc.client == "" && got.IsValid() || tc.client != "" && got.String() != tc.client {
				t.Errorf("the client is %v, want %q", got, tc.client)
			}
			if got, err := h.TLVs(); err != nil || len(got) != len(tlvs) {
				t.Errorf("%v, %v: TLVs %v, %v", tc.source, tc.dest, got, err)
			}
			theirs, err := pp.Read(bufio.NewReader(bytes.NewReader(p)))
			if err != nil || !theirs.EqualsTo(h) {
				t.Errorf("pp reads %+v, %v, and we %+v", theirs, err, h)
			}
		}
	}
	if tlvs := (TLV{Type: 5, Value: make([]byte, 4096)}); true {
		if p, err := AppendV2([]byte("x"), nil, nil, tlvs); err == nil || string(p) != "x" {
			t.Errorf("a header over the limit: %d bytes, %v", len(p), err)
		}
	}
	if _, err := AppendV2(nil, nil, nil, Checksum(), Checksum()); err == nil {
		t.Error("two checksums were taken")
	}
}

// What HAProxy says of the client's TLS is decoded by the parser's own package.
func TestTLVsAreForTlvparse(t *testing.T) {
	ssl := tlv(0x20, "\x01\x00\x00\x00\x00"+string(tlv(0x21, "TLSv1.3")))
	_, h, err := parse([]byte(v2(0x21, 0x11, ip4, ssl)))
	if err != nil {
		t.Fatal(err)
	}
	tlvs, _ := h.TLVs()
	if s, ok := tlvparse.FindSSL(tlvs); !ok || !s.ClientSSL() {
		t.Errorf("%v, %v", s, ok)
	}
}

// To see it fail: take the longest line for 106 bytes.
func FuzzHeader(f *testing.F) {
	for _, tc := range headers {
		f.Add([]byte(tc.head), uint16(len(tc.head)/2))
		f.Add([]byte(tc.head+"behind"), uint16(1))
	}
	f.Fuzz(func(t *testing.T, p []byte, cut uint16) {
		before := bytes.Clone(p)
		n, h, err := parse(p)
		if !bytes.Equal(p, before) {
			t.Fatal("parse has changed its input")
		}
		switch {
		case err == nil && (h == nil || n <= 0 || n > len(p)), err != nil && (h != nil || n != 0):
			t.Fatalf("%d, %v, %v", n, h, err)
		case err == nil:
			if k := int(cut) % n; k >= 0 { // less of it is never enough, and never wrong
				if _, _, err := parse(p[:k]); err != tcpio.ErrShortPreface {
					t.Fatalf("%d of %d bytes: %v", k, n, err)
				}
			}
			if m, again, err := parse(p[:n]); m != n || err != nil || !again.EqualsTo(h) && h.Command != pp.LOCAL {
				t.Fatalf("without what is behind it: %d of %d, %v, %v, %v", m, n, again, h, err)
			}
			theirs, err := pp.Read(bufio.NewReaderSize(bytes.NewReader(p), 8192))
			if unspec := n > 13 && p[0] == '\r' && p[12] == 0x21 && p[13] == 0; !unspec && (err != nil || theirs.Command == pp.PROXY && !theirs.EqualsTo(h)) {
				t.Fatalf("pp reads %v, %v, and we %v", theirs, err, h)
			}
		case errors.Is(err, tcpio.ErrShortPreface):
			if len(p) >= longest() {
				t.Fatalf("%d bytes are not enough", len(p))
			}
		}
	})
}
