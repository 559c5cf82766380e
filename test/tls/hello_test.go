//go:build linux

package tls_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// hello is what a client with config sends first.
func hello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		config.InsecureSkipVerify = true
		_ = tls.Client(client, config).Handshake()
	}()
	_ = server.SetDeadline(time.Now().Add(testnet.Limit))
	head := make([]byte, 5)
	if _, err := io.ReadFull(server, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8+int(head[4]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	server.Close()
	return append(head, body...)
}

// inRecords cuts the message of one record into records of size bytes.
func inRecords(record []byte, size int) (records []byte) {
	for part := range slices.Chunk(record[5:], size) {
		records = append(records, record[0], record[1], record[2], byte(len(part)>>8), byte(len(part)))
		records = append(records, part...)
	}
	return records
}

// manyProtos make a ClientHello of some 10 KiB.
func manyProtos() (protos []string) {
	for i := range 100 {
		protos = append(protos, fmt.Sprintf("%d%s", i, strings.Repeat("p", 100)))
	}
	return protos
}

func TestClientHelloIsReadWhereverItIsCut(t *testing.T) {
	for name, config := range map[string]*tls.Config{
		"a name and protocols": {ServerName: "example.org", NextProtos: []string{"h2", "http/1.1"}},
		"TLS 1.2":              {ServerName: "example.org", MaxVersion: tls.VersionTLS12},
		"nothing":              {},
		"a large one":          {ServerName: strings.Repeat("a", 60) + ".example.org", NextProtos: manyProtos()},
	} {
		t.Run(name, func(t *testing.T) {
			one := hello(t, config)
			for _, size := range []int{1, 2, 3, 5, 100, len(one)} {
				all := one
				if size < len(one) {
					all = inRecords(one, size)
				}
				step := 1 + len(all)/2000
				for cut := 0; cut < len(all); cut += step {
					if info, err := tcpio.ParseClientHello(all[:cut]); info != nil || err != tcpio.ErrShortPreface {
						t.Fatalf("records of %d, the first %d bytes: %v, %v", size, cut, info, err)
					}
				}
				before := bytes.Clone(all)
				info, err := tcpio.ParseClientHello(append(all, "behind it"...))
				if err != nil {
					t.Fatalf("records of %d: %v", size, err)
				}
				if info.ServerName != config.ServerName || !slices.Equal(info.SupportedProtos, config.NextProtos) || info.Conn != nil ||
					!bytes.Equal(all, before) {
					t.Errorf("records of %d: %q, %q", size, info.ServerName, info.SupportedProtos)
				}
			}
		})
	}
}

// withExtension puts one more extension before the others of a ClientHello in one record, and cuts
// the result into records of size bytes.
func withExtension(record []byte, kind uint16, body []byte, size int) []byte {
	msg := record[5:]
	at := 4 + 2 + 32                           // the message's header, the version, the random
	at += 1 + int(msg[at])                     // the session
	at += 2 + int(msg[at])<<8 + int(msg[at+1]) // the cipher suites
	at += 1 + int(msg[at])                     // the compressions
	all := binary.BigEndian.AppendUint16(nil, kind)
	all = binary.BigEndian.AppendUint16(all, uint16(len(body)))
	all = append(append(all, body...), msg[at+2:]...)
	out := slices.Clone(msg[4:at])
	out = append(binary.BigEndian.AppendUint16(out, uint16(len(all))), all...)
	out = append(record[:5:5], append([]byte{1, byte(len(out) >> 16), byte(len(out) >> 8), byte(len(out))}, out...)...)
	return inRecords(out, size)
}

// An Encrypted ClientHello of a client that only pretends, and the largest message there may be.
func TestClientHelloWithAnyExtension(t *testing.T) {
	const padding, encrypted = 21, 0xfe0d
	one := hello(t, &tls.Config{ServerName: "example.org", NextProtos: []string{"h2"}})
	most := 64<<10 + 4 - (len(one) - 5) - 4 // bytes of padding
	pretended := append([]byte{0, 0, 1, 0, 1, 42, 0, 32}, make([]byte, 32+2+144)...)
	pretended[8+32+1] = 144
	for name, tc := range map[string]struct {
		kind uint16
		body []byte
		bad  bool
	}{
		"a pretended Encrypted ClientHello": {encrypted, pretended, false},
		"one of 64 KiB":                     {padding, make([]byte, most), false},
		"one byte more":                     {padding, make([]byte, most+1), true},
	} {
		for _, size := range []int{1, 1000, 16 << 10} {
			all := withExtension(one, tc.kind, tc.body, size)
			info, err := tcpio.ParseClientHello(all)
			switch {
			case tc.bad && (err == nil || err == tcpio.ErrShortPreface):
				t.Errorf("%s, in records of %d: %v, %v", name, size, info, err)
			case tc.bad:
			case err != nil || info.ServerName != "example.org" || !slices.Equal(info.SupportedProtos, []string{"h2"}):
				t.Errorf("%s, in records of %d: %v, %v", name, size, info, err)
			}
			if part, err := tcpio.ParseClientHello(all[:len(all)-1]); !tc.bad && (part != nil || err != tcpio.ErrShortPreface) {
				t.Errorf("%s, in records of %d, without its last byte: %v, %v", name, size, part, err)
			}
		}
	}
}

func TestWhatIsNoClientHelloIsAnError(t *testing.T) {
	good := testnet.ClientHello()
	change := func(at int, b byte) string { p := bytes.Clone(good); p[at] = b; return string(p) }
	for name, tc := range map[string]struct {
		head string
		none bool // no TLS
	}{
		"HTTP":                  {"GET / HTTP/1.1\r\n\r\n", true},
		"one byte":              {"S", true},
		"SSH":                   {"SSH-2.0-OpenSSH\r\n", true},
		"the PROXY protocol":    {"\r\n\r\n\x00\r\nQUIT\n", true},
		"an alert":              {"\x15\x03\x01\x00\x02\x02\x28", true},
		"a version of none":     {change(1, 0x10), true},
		"a ServerHello":         {change(5, 2), false},
		"a record too long":     {"\x16\x03\x01\xff\xff\x01\x00\x00\x01", false},
		"a message too long":    {"\x16\x03\x01\x00\x04\x01\xff\xff\xff", false},
		"a broken extension":    {change(len(good)-1, 0x7f) + "x", false},
		"no record behind one":  {"\x16\x03\x01\x00\x04\x01\x00\x01\x00" + "GET / HTTP/1.1\r\n", false},
		"a message of no bytes": {"\x16\x03\x01\x00\x04\x01\x00\x00\x00", false},
	} {
		info, err := tcpio.ParseClientHello([]byte(tc.head))
		if name == "a broken extension" && err == nil {
			continue // the last byte may mean nothing
		}
		if info != nil || err == nil || err == tcpio.ErrShortPreface || errors.Is(err, tcpio.ErrNotTLS) != tc.none {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// seen is what crypto/tls itself finds in p.
func seen(p []byte) (info *tls.ClientHelloInfo) {
	_ = tls.Server(readOnly{bytes.NewReader(p)}, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		info = i
		return nil, errors.New("enough")
	}}).Handshake()
	return info
}

type readOnly struct{ io.Reader }

func (readOnly) Write(p []byte) (int, error)      { return len(p), nil }
func (readOnly) Close() error                     { return nil }
func (readOnly) LocalAddr() net.Addr              { return nil }
func (readOnly) RemoteAddr() net.Addr             { return nil }
func (readOnly) SetDeadline(time.Time) error      { return nil }
func (readOnly) SetReadDeadline(time.Time) error  { return nil }
func (readOnly) SetWriteDeadline(time.Time) error { return nil }

// What crypto/tls takes, ParseClientHello takes, and finds the same in it; what it refuses, nobody
// waits for.
func FuzzClientHello(f *testing.F) {
	plain := testnet.ClientHello()
	f.Add(plain, uint16(100))
	f.Add(inRecords(plain, 50), uint16(7))
	f.Add(append(slices.Clone(plain), "behind"...), uint16(0))
	f.Add([]byte("\x16\x03\x01\x00\x00\x16\x03\x01\x00\x04\x01\x00\x00\x00"), uint16(3))
	oddVersion := slices.Clone(plain)
	oddVersion[1], oddVersion[2] = 0, 1
	f.Add(oddVersion, uint16(1))
	f.Fuzz(func(t *testing.T, p []byte, cut uint16) {
		info, err := tcpio.ParseClientHello(p)
		if (info == nil) == (err == nil) {
			t.Fatalf("%v, %v", info, err)
		}
		want := seen(p)
		switch {
		case (want == nil) != (info == nil):
			t.Fatalf("crypto/tls finds %v, and we %v, %v", want, info, err)
		case want != nil && (want.ServerName != info.ServerName || !slices.Equal(want.SupportedProtos, info.SupportedProtos)):
			t.Fatalf("crypto/tls finds %q, %q, and we %q, %q", want.ServerName, want.SupportedProtos, info.ServerName, info.SupportedProtos)
		}
		// An answer does not change when more comes, and no beginning of a good one is refused.
		if part := p[:min(int(cut), len(p))]; true {
			got, early := tcpio.ParseClientHello(part)
			switch {
			case info != nil && got == nil && early != tcpio.ErrShortPreface:
				t.Fatalf("the first %d of %d bytes: %v", len(part), len(p), early)
			case got != nil && info == nil, early != nil && early != tcpio.ErrShortPreface && info != nil:
				t.Fatalf("the first %d of %d bytes: %v, %v, and of all %v, %v", len(part), len(p), got, early, info, err)
			}
		}
	})
}

// One port: connections for one name are TLS here, those for the other go on as they are.
func TestPrefaceRoutesByServerName(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Preface: func(c *tcpio.Conn, head []byte) (int, error) {
		info, err := tcpio.ParseClientHello(head)
		if err != nil {
			return 0, err
		}
		if info.ServerName == "nobody.example" {
			return 0, errors.New("nobody has that name")
		}
		c.SetData(info.ServerName)
		return 0, nil
	}})
	for _, size := range []int{1, 100, 1 << 16} {
		peer := testnet.DialTCP(t, l)
		config := testnet.ClientTLS()
		done := make(chan error, 1)
		client := tls.Client(&pieces{peer, size}, config)
		go func() { done <- client.Handshake() }()
		c := harness.Expect[tcpio.Opened](t, events).Conn
		if c.Data() != config.ServerName {
			t.Errorf("the name is %v, want %q", c.Data(), config.ServerName)
		}
		if err := c.StartTLS(testnet.ServerTLS()); err != nil {
			t.Fatal(err)
		}
		if err := testnet.Receive(t, "the handshake", done); err != nil {
			t.Errorf("pieces of %d: %v", size, err)
		}
		peer.Close()
		for {
			if _, over := testnet.Receive(t, "Closed", events).(tcpio.Closed); over {
				break
			}
			_, _ = c.TryRead(make([]byte, 100))
			c.Close()
		}
	}
	peer := testnet.DialTCP(t, l)
	testnet.Send(t, peer, hello(t, &tls.Config{ServerName: "nobody.example"}))
	harness.Expect[tcpio.Failed](t, events)
	if n := l.Stats().Refused.Preface; n != 1 {
		t.Errorf("%d refused", n)
	}
}

// pieces writes so many bytes at a time.
type pieces struct {
	net.Conn
	size int
}

func (p *pieces) Write(b []byte) (n int, err error) {
	for part := range slices.Chunk(b, p.size) {
		m, err := p.Conn.Write(part)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

func BenchmarkParseClientHello(b *testing.B) {
	whole := testnet.ClientHello()
	for name, p := range map[string][]byte{"whole": whole, "short": whole[:len(whole)-1], "HTTP": []byte("GET / HTTP/1.1\r\n"),
		"large": hello(b, &tls.Config{ServerName: "a.example", NextProtos: manyProtos()})} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = tcpio.ParseClientHello(p)
			}
		})
	}
}
