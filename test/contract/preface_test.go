//go:build linux

package contract

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// localhost are the addresses of this machine's proxies.
var localhost = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

var errBadHeader = errors.New("no header of a proxy")

// readHeader is a Preface for a header of one line: the client's address behind an @.
func readHeader(c *tcpio.Conn, head []byte) (int, error) {
	if len(head) == 0 {
		return 0, tcpio.ErrShortPreface
	}
	if head[0] != '@' {
		return 0, errBadHeader
	}
	end := bytes.IndexByte(head, '\n')
	if end < 0 {
		return 0, fmt.Errorf("the line has no end: %w", tcpio.ErrShortPreface)
	}
	client, err := netip.ParseAddrPort(string(head[1:end]))
	if err != nil {
		return 0, err
	}
	if err := c.SetRemoteAddr(client, string(head[:end])); err != nil {
		return 0, err
	}
	c.SetData("seen")
	return end + 1, nil
}

const header = "@192.0.2.1:4711\n"

func checkProxied(t testing.TB, c *tcpio.Conn) {
	t.Helper()
	addr, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok || addr.String() != "192.0.2.1:4711" {
		t.Errorf("RemoteAddr is %T %v", c.RemoteAddr(), c.RemoteAddr())
	}
	if want := fmt.Sprintf("conn %d, 192.0.2.1:4711", c.ID()); c.String() != want {
		t.Errorf("String is %q, want %q", c.String(), want)
	}
	if v := c.LogValue().String(); !strings.Contains(v, "peer=192.0.2.1:4711") {
		t.Errorf("LogValue is %s", v)
	}
	if c.ProxyHeader() != "@192.0.2.1:4711" || c.Data() != "seen" || !c.FromProxy() {
		t.Errorf("header %v, data %v, from a proxy: %v", c.ProxyHeader(), c.Data(), c.FromProxy())
	}
}

// The header may be cut anywhere; what is behind it is read on every route, and nothing comes
// before Opened.
func TestPrefaceTakesItsBytesAndNoOthersOnEveryRoute(t *testing.T) {
	for _, route := range harness.Routes {
		t.Run(route, func(t *testing.T) {
			buf := make([]byte, 100)
			o := tcpio.ListenerOptions{Preface: readHeader, Proxies: localhost, Loops: 2}
			l, opened, closed := harness.Route(t, route, o, func(ev tcpio.Event) error {
				switch ev := ev.(type) {
				case tcpio.Opened:
					checkProxied(t, ev.Conn)
				case tcpio.Readable:
					n, err := ev.Conn.TryRead(buf)
					if err == tcpio.ErrWouldBlock {
						return nil
					}
					if err != nil {
						ev.Conn.Close()
						return nil
					}
					_, err = ev.Conn.TryWrite(buf[:n])
					return err
				}
				return nil
			})
			sent := header + "hello"
			for cut := range len(sent) {
				peer := testnet.DialTCP(t, l)
				testnet.Send(t, peer, sent[:cut])
				if cut%3 == 0 {
					testnet.WaitFor(t, "the first part is seen", func() bool { return l.Len() == 1 })
				}
				testnet.Send(t, peer, sent[cut:])
				testnet.FIN(t, peer)
				testnet.ExpectBytes(t, peer, "hello")
				testnet.ExpectEOF(t, peer)
				peer.Close()
				if c := testnet.Receive(t, "Opened", opened); c != testnet.Receive(t, "Closed", closed) {
					t.Error("Closed of another")
				}
			}
			if s := l.Stats(); s.Refused != (tcpio.RefusedStats{}) || s.BytesIn != uint64(len(sent)*len(sent)) {
				t.Errorf("refused %+v, %d bytes in", s.Refused, s.BytesIn)
			}
		})
	}
}

func TestPrefaceComesBeforeTLSAndNetListenerAndCallbacks(t *testing.T) {
	echo := func(c net.Conn) {
		defer c.Close()
		_, _ = io.Copy(c, c)
	}
	check := func(t *testing.T, l *tcpio.Listener) {
		t.Helper()
		for _, pieces := range [][]string{{header}, {header[:5], header[5:]}} {
			peer := testnet.DialTCP(t, l)
			for _, p := range pieces {
				testnet.Send(t, peer, p)
			}
			testnet.Ping(t, peer, "hello")
			peer.Close()
		}
	}
	t.Run("NetListener", func(t *testing.T) {
		for _, deferred := range []bool{false, true} {
			l := harness.Listen(t, tcpio.ListenerOptions{Preface: readHeader, Proxies: localhost, DeferAccept: deferred})
			ln := l.NetListener()
			harness.Start(t, l)
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					checkProxied(t, c.(*tcpio.Conn))
					go echo(c)
				}
			}()
			check(t, l)
		}
	})
	t.Run("callbacks", func(t *testing.T) {
		l := harness.Serve(t, tcpio.ListenerOptions{Preface: readHeader, Proxies: localhost, OnConnEvent: func(c net.Conn) error {
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			if err == nil {
				_, err = c.Write(buf[:n])
			}
			return err
		}})
		check(t, l)
	})
	t.Run("TLS", func(t *testing.T) {
		l := harness.Actor(t, tcpio.ListenerOptions{Preface: readHeader, Proxies: localhost, TLSConfig: testnet.ServerTLS()},
			tcpio.ActorFunc(func(ev tcpio.Event) error {
				if o, ok := ev.(tcpio.Opened); ok {
					checkProxied(t, o.Conn)
					if o.Conn.TLS() == nil {
						t.Error("no TLS at Opened")
					}
				}
				return harness.EchoActor(ev)
			}))
		for _, size := range []int{1, len(header), len(header) + 1, 1 << 20} {
			peer := testnet.DialTCP(t, l)
			client := tls.Client(&behindHeader{peer, []byte(header), size}, testnet.ClientTLS())
			testnet.Ping(t, client, "hello")
			peer.Close()
		}
	})
}

// A behindHeader sends a header before the first bytes, and those in pieces of a size.
type behindHeader struct {
	net.Conn
	header []byte
	size   int
}

func (c *behindHeader) Write(p []byte) (int, error) {
	if c.header == nil {
		return c.Conn.Write(p)
	}
	for piece := range slices.Chunk(slices.Concat(c.header, p), c.size) {
		if _, err := c.Conn.Write(piece); err != nil {
			return 0, err
		}
	}
	c.header = nil
	return len(p), nil
}

// A server that speaks first need not wait for the client: Preface sees an empty head at once.
func TestPrefaceIsAskedBeforeTheFirstByte(t *testing.T) {
	first := make(chan int, 10)
	o := tcpio.ListenerOptions{Preface: func(c *tcpio.Conn, head []byte) (int, error) {
		first <- len(head)
		return 0, nil
	}}
	l, events := harness.Manual(t, o)
	peer := testnet.DialTCP(t, l)
	if n := testnet.Receive(t, "the call", first); n != 0 {
		t.Errorf("%d bytes at the first call", n)
	}
	c := harness.Expect[tcpio.Opened](t, events).Conn
	if _, err := c.TryWrite([]byte("220")); err != nil {
		t.Error(err)
	}
	testnet.ExpectBytes(t, peer, "220")
	if err := c.SetRemoteAddr(netip.MustParseAddrPort("192.0.2.1:1"), nil); err == nil || c.ProxyHeader() != nil {
		t.Errorf("SetRemoteAddr behind Preface: %v", err)
	}
	testnet.Send(t, peer, "x")
	harness.Expect[tcpio.Readable](t, events)
	if n := len(first); n != 0 {
		t.Errorf("%d calls too many", n)
	}
}

// The kernel holds all that Preface may ask for, also when it comes in small pieces.
func TestPrefaceOfTheLargestSize(t *testing.T) {
	const most = 64 << 10
	for _, size := range []int{most, 1000} {
		var calls atomic.Int64
		l, events := harness.Manual(t, tcpio.ListenerOptions{MaxPreface: most, Preface: func(_ *tcpio.Conn, head []byte) (int, error) {
			calls.Add(1)
			if len(head) < most {
				return 0, tcpio.ErrShortPreface
			}
			return len(head), nil
		}})
		peer := testnet.DialTCP(t, l)
		sent := testnet.Pattern(most + 5)
		for piece := range slices.Chunk(sent, size) {
			testnet.Send(t, peer, piece)
		}
		c := harness.Expect[tcpio.Opened](t, events).Conn
		if got, err := harness.ReadStream(t, events, c, 5, 100); !bytes.Equal(got, sent[most:]) || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		t.Logf("%d calls", calls.Load())
	}
}

// What Preface has only looked at is read by who comes behind it.
func TestPrefaceMayOnlyLook(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Preface: func(c *tcpio.Conn, head []byte) (int, error) {
		if len(head) < 4 {
			return 0, tcpio.ErrShortPreface
		}
		c.SetData(string(head))
		return 0, nil
	}})
	peer := testnet.DialTCP(t, l)
	for _, b := range "GET " {
		testnet.Send(t, peer, string(b))
	}
	c := harness.Expect[tcpio.Opened](t, events).Conn
	got, err := harness.ReadStream(t, events, c, 4, 2)
	if string(got) != "GET " || err != nil || c.Data() != "GET " {
		t.Errorf("read %q, %v, looked at %v", got, err, c.Data())
	}
}
