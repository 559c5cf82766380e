//go:build linux

package contract

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

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

// The header may be cut anywhere; what is behind it is read on every route, and nothing comes before
// Opened.
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

// Each refusal is a reset without an event, is counted, and says why; nobody else notices.
func TestPrefaceRefuses(t *testing.T) {
	long := strings.Repeat("x", 100)
	for _, tc := range []struct {
		name, sent string
		end        func(*net.TCPConn)
		preface    func(c *tcpio.Conn, head []byte) (int, error)
		want       string // in the error
		err        error
		quiet      bool
	}{
		{name: "an error", sent: "GET /", err: errBadHeader, want: "no header of a proxy"},
		{name: "a bad address", sent: "@nowhere\n", want: "not an ip:port"},
		{name: "the end within it", sent: header[:5], end: func(c *net.TCPConn) { _ = c.CloseWrite() }, err: io.ErrUnexpectedEOF},
		{name: "a reset within it", sent: header[:5], end: func(c *net.TCPConn) { _ = c.SetLinger(0); c.Close() }, err: syscall.ECONNRESET},
		{name: "a health check", end: func(c *net.TCPConn) { _ = c.CloseWrite() }, quiet: true},
		{name: "a health check that resets", end: func(c *net.TCPConn) { _ = c.SetLinger(0); c.Close() }, quiet: true},
		{name: "too long", sent: "@" + long[:63], want: "MaxPreface (64 bytes)"},
		{name: "too long and more", sent: "@" + long, want: "MaxPreface (64 bytes)"},
		{name: "too many taken", sent: "x", want: "taken 2 bytes of 1", preface: func(_ *tcpio.Conn, head []byte) (int, error) {
			if len(head) == 0 {
				return 0, tcpio.ErrShortPreface
			}
			return len(head) + 1, nil
		}},
		{name: "a negative number", want: "taken -1 bytes", preface: func(*tcpio.Conn, []byte) (int, error) { return -1, nil }},
		{name: "a panic", want: "panicked", preface: func(*tcpio.Conn, []byte) (int, error) { testnet.Misdeeds["panic"](); return 0, nil }},
		{name: "Goexit", want: "Goexit", preface: func(*tcpio.Conn, []byte) (int, error) { testnet.Misdeeds["Goexit"](); return 0, nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var good atomic.Bool
			good.Store(true)
			log := new(testnet.Log)
			o := tcpio.ListenerOptions{Loops: 1, MaxPreface: 64, Proxies: localhost, Logger: slog.New(log),
				Preface: func(c *tcpio.Conn, head []byte) (int, error) {
					if good.Load() {
						return 0, nil
					}
					if tc.preface != nil {
						return tc.preface(c, head)
					}
					return readHeader(c, head)
				}}
			l, events := harness.Manual(t, o)
			_, old := harness.Open(t, l, events)
			good.Store(false)
			var peer *net.TCPConn
			if c, err := net.Dial("tcp", l.Addr().String()); err == nil { // else it is reset already
				peer = c.(*net.TCPConn)
				defer peer.Close()
				_ = peer.SetDeadline(time.Now().Add(testnet.Limit))
				_, _ = peer.Write([]byte(tc.sent))
			}
			if tc.end != nil {
				testnet.WaitFor(t, "it is accepted", func() bool { return l.Len() == 2 })
				tc.end(peer)
			}
			if !tc.quiet {
				f := harness.Expect[tcpio.Failed](t, events)
				var op *net.OpError
				if !errors.As(f.Err, &op) || op.Op != "preface" || !strings.Contains(f.Err.Error(), tc.want) ||
					tc.err != nil && !errors.Is(f.Err, tc.err) {
					t.Errorf("Failed: %v", f.Err)
				}
			}
			testnet.WaitFor(t, "it is gone", func() bool { return l.Len() == 1 })
			if tc.end == nil && peer != nil {
				if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the refused peer read %v", err)
				}
			}
			if n := l.Stats().Refused; n != (tcpio.RefusedStats{Preface: 1}) {
				t.Errorf("counted %+v", n)
			}
			if panicked := tc.want == "panicked" || tc.want == "Goexit"; (log.Count("panicked") == 1) != panicked {
				t.Errorf("logged: %s", log)
			}
			good.Store(true)
			testnet.Send(t, old, "x")
			harness.Expect[tcpio.Readable](t, events)
			harness.Open(t, l, events)
		})
	}
}

func TestPrefaceTimeoutBoundsIt(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Preface: readHeader, Proxies: localhost, PrefaceTimeout: 50 * time.Millisecond,
		IdleTimeout: time.Millisecond, ReadStallTimeout: time.Millisecond})
	peer := testnet.DialTCP(t, l)
	start := time.Now()
	testnet.Send(t, peer, header[:3])
	err := harness.Expect[tcpio.Failed](t, events).Err
	var limit *tcpio.TimeoutError
	if !errors.As(err, &limit) || limit.Kind != tcpio.TimeoutPreface || limit.After != 50*time.Millisecond ||
		limit.Kind.String() != "preface" {
		t.Errorf("Failed: %v", err)
	}
	if d := time.Since(start); d < 50*time.Millisecond {
		t.Errorf("after %v", d)
	}
	testnet.WaitFor(t, "it is gone", func() bool { return l.Len() == 0 })
	if s := l.Stats(); s.Refused.Preface != 1 || s.Timeouts != (tcpio.TimeoutStats{Preface: 1}) {
		t.Errorf("counted %+v, %+v", s.Refused, s.Timeouts)
	}
}

// The other limits begin behind Preface.
func TestLimitsBeginBehindPreface(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Preface: readHeader, Proxies: localhost, ReadStallTimeout: 50 * time.Millisecond})
	peer := testnet.DialTCP(t, l)
	testnet.Send(t, peer, header[:3])
	harness.ExpectSilence(t, events, 100*time.Millisecond)
	testnet.Send(t, peer, header[3:])
	c := harness.Expect[tcpio.Opened](t, events).Conn
	testnet.ExpectEOF(t, peer)
	peer.Close()
	harness.Expect[tcpio.Closed](t, events)
	var limit *tcpio.TimeoutError
	if !errors.As(c.Err(), &limit) || limit.Kind != tcpio.TimeoutReadStall {
		t.Errorf("Err: %v", c.Err())
	}
}

// A proxy may have any number of connections, each of its clients so many; a stranger counts from
// accepting on.
func TestMaxConnsPerIPCountsClientsBehindAProxy(t *testing.T) {
	proxy := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	for _, route := range []string{"stream", "actor"} {
		for _, reply := range []string{"", "full\n"} {
			t.Run(route+"/"+reply, func(t *testing.T) {
				const most, clients = 2, 20
				o := tcpio.ListenerOptions{Preface: readHeader, Proxies: proxy, MaxConnsPerIP: most, RefuseReply: []byte(reply)}
				l, opened, closed := harness.Route(t, route, o, func(ev tcpio.Event) error {
					if _, ok := ev.(tcpio.Readable); ok {
						c := tcpio.ConnOf(ev)
						if _, err := c.TryRead(make([]byte, 10)); err == io.EOF {
							c.Close()
						}
					}
					return nil
				})
				for round := range 2 { // what was counted is given back
					var peers []net.Conn
					for i := range clients * (most + 1) {
						peer := testnet.DialTCP(t, l)
						testnet.Send(t, peer, fmt.Sprintf("@192.0.2.%d:4711\n", i%clients))
						if i < clients*most {
							testnet.Receive(t, "Opened", opened)
							peers = append(peers, peer)
						} else if got, _ := io.ReadAll(peer); string(got) != reply {
							t.Errorf("the refused peer read %q", got)
						} else {
							peer.Close()
						}
					}
					if n := l.Stats().Refused; n != (tcpio.RefusedStats{PerIP: uint64(clients * (round + 1))}) {
						t.Errorf("refused %+v", n)
					}
					for _, p := range peers {
						p.Close()
						testnet.Receive(t, "Closed", closed)
					}
					testnet.WaitFor(t, "all are gone", func() bool { return l.Len() == 0 })
				}
				before := l.Stats().Refused.PerIP
				for i := range most + 3 { // they send nothing, or half of a header
					c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", l.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					testnet.Send(t, c, header[:i])
				}
				testnet.WaitFor(t, "the strangers are refused", func() bool { return l.Stats().Refused.PerIP == before+3 })
				if n := l.Len(); n != most {
					t.Errorf("%d strangers are left", n)
				}
			})
		}
	}
}

func TestStrangersCannotSetRemoteAddr(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Preface: readHeader})
	peer := testnet.DialTCP(t, l)
	testnet.Send(t, peer, header)
	if err := harness.Expect[tcpio.Failed](t, events).Err; !strings.Contains(err.Error(), "Proxies") ||
		strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("Failed: %v", err)
	}
}

// A unix socket's peers are proxies: file permissions admit them.
func TestPrefaceOfAUnixSocket(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Network: "unix", Addr: filepath.Join(t.TempDir(), "s"), Preface: readHeader, MaxConnsPerIP: 1})
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, header[:4])
	testnet.Send(t, peer, header[4:]+"hello")
	c := harness.Expect[tcpio.Opened](t, events).Conn
	checkProxied(t, c)
	if got, err := harness.ReadStream(t, events, c, 5, 100); string(got) != "hello" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	again := testnet.Dial(t, l)
	testnet.Send(t, again, header)
	if _, err := again.Read(make([]byte, 1)); err == nil {
		t.Error("the second connection of a client was served")
	}
	if c.SetNoDelay(true) != nil {
		t.Error("SetNoDelay of a unix socket")
	}
}

// A Preface that blocks keeps back its own connection alone.
func TestPrefaceThatBlocksHoldsUpNobodyElse(t *testing.T) {
	for how, end := range map[string]func(){"return": func() {}, "panic": testnet.Misdeeds["panic"], "Goexit": testnet.Misdeeds["Goexit"]} {
		for _, route := range harness.Routes {
			t.Run(how+"/"+route, func(t *testing.T) {
				t.Parallel()
				var blocks atomic.Bool
				inside, release := make(chan struct{}), make(chan struct{})
				o := tcpio.ListenerOptions{Loops: 1, Proxies: localhost, Preface: func(c *tcpio.Conn, head []byte) (int, error) {
					if blocks.CompareAndSwap(true, false) {
						close(inside)
						<-release
						end()
					}
					return readHeader(c, head)
				}}
				l, opened, _ := harness.Route(t, route, o, func(tcpio.Event) error { return nil })
				blocks.Store(true)
				first := testnet.DialTCP(t, l)
				testnet.Await(t, "the call", inside)
				testnet.Send(t, first, header) // while it runs
				for range 5 {
					testnet.Send(t, testnet.DialTCP(t, l), header)
					testnet.Receive(t, "Opened of another", opened)
				}
				if n := l.Stats().Blocked; n != 1 {
					t.Errorf("%d are blocked", n)
				}
				close(release)
				if how == "return" {
					testnet.Receive(t, "Opened", opened)
				} else if _, err := first.Read(make([]byte, 1)); err == nil {
					t.Error("the refused peer got bytes")
				}
				testnet.WaitFor(t, "nobody is blocked", func() bool { return l.Stats().Blocked == 0 })
			})
		}
	}
}

// Whatever ends the listener ends a connection within its preface, without an event, also while
// Preface blocks.
func TestListenerEndsWithinPreface(t *testing.T) {
	stops := map[string]func(l *tcpio.Listener, cancel func()) error{
		"Close":             func(l *tcpio.Listener, _ func()) error { return l.Close() },
		"Shutdown":          func(l *tcpio.Listener, _ func()) error { return l.Shutdown(context.Background()) },
		"the end of ctx":    func(_ *tcpio.Listener, cancel func()) error { cancel(); return nil },
		"NetListener.Close": func(l *tcpio.Listener, _ func()) error { return l.NetListener().Close() },
	}
	for name, stop := range stops {
		for _, blocks := range []bool{false, true} {
			t.Run(fmt.Sprint(name, "/", blocks), func(t *testing.T) {
				t.Parallel()
				inside, release, over := make(chan struct{}, 10), make(chan struct{}), make(chan struct{}, 10)
				l := harness.Listen(t, tcpio.ListenerOptions{Loops: 1, CloseTimeout: 50 * time.Millisecond,
					Preface: func(*tcpio.Conn, []byte) (int, error) {
						defer func() { over <- struct{}{} }()
						inside <- struct{}{}
						if blocks {
							<-release
						}
						return 0, tcpio.ErrShortPreface
					}})
				var events <-chan tcpio.Event
				if name == "NetListener.Close" {
					l.NetListener()
				} else {
					events = l.Events()
				}
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				served := harness.Go(ctx, l)
				peer := testnet.DialTCP(t, l)
				testnet.Receive(t, "the call", inside)
				if !blocks {
					testnet.Receive(t, "its end", over)
					over <- struct{}{}
				}
				if err := stop(l, cancel); err != nil {
					t.Error(err)
				}
				if err := testnet.Receive(t, "the end of Serve", served); err != nil {
					t.Errorf("Serve: %v", err)
				}
				if _, err := peer.Read(make([]byte, 1)); err == nil {
					t.Error("the peer got bytes")
				}
				if events != nil {
					for ev := range events {
						t.Errorf("%T", ev)
					}
				}
				close(release)
				testnet.Receive(t, "the end of the call", over)
			})
		}
	}
}

// Until Preface is done nobody reads or writes, whoever has got hold of the connection.
func TestNothingIsReadOrWrittenBeforePreface(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Preface: readHeader, Proxies: localhost})
	peer := testnet.DialTCP(t, l)
	testnet.Send(t, peer, header[:7])
	var c *tcpio.Conn
	testnet.WaitFor(t, "it is there", func() bool {
		all := slices.Collect(l.Conns())
		if len(all) == 1 {
			c = all[0]
		}
		return c != nil
	})
	if n, err := c.TryRead(make([]byte, 10)); n != 0 || err != tcpio.ErrWouldBlock {
		t.Errorf("TryRead: %d, %v", n, err)
	}
	if n, err := c.TryWrite([]byte("x")); n != 0 || err != tcpio.ErrWouldBlock {
		t.Errorf("TryWrite: %d, %v", n, err)
	}
	for range c.Frames(testnet.SplitRawLines) {
		t.Error("a frame")
	}
	_, hijacked := c.Hijack()
	if hijacked == nil || c.StartTLS(testnet.ServerTLS()) == nil || c.CloseWrite() == nil {
		t.Error("Hijack, StartTLS or CloseWrite worked")
	}
	if _, err := c.Relay(new(tcpio.Conn), nil); err == nil {
		t.Error("Relay worked")
	}
	if err := c.SetRemoteAddr(netip.AddrPort{}, 1); err == nil {
		t.Error("SetRemoteAddr outside of Preface worked")
	}
	if err := c.Post("early"); err != nil {
		t.Error(err)
	}
	read := make(chan string, 1)
	go func() {
		buf := make([]byte, 10)
		n, _ := c.Read(buf)
		read <- string(buf[:n])
	}()
	testnet.Send(t, peer, header[7:])
	harness.Expect[tcpio.Opened](t, events)
	harness.Expect[tcpio.Writable](t, events) // TryWrite was refused
	if m := harness.Expect[tcpio.Message](t, events); m.Value != "early" {
		t.Errorf("%v", m)
	}
	testnet.Send(t, peer, "late")
	if got := testnet.Receive(t, "the read", read); got != "late" {
		t.Errorf("read %q", got)
	}
	if _, err := c.TryWrite([]byte("x")); err != nil {
		t.Error(err)
	}
}

// Preface may give the connection a route, or close it.
func TestPrefaceMayClaimAttachAndClose(t *testing.T) {
	got := make(chan string, 10)
	o := tcpio.ListenerOptions{Preface: func(c *tcpio.Conn, head []byte) (int, error) {
		switch string(head) {
		case "claim":
			ch := c.Events()
			go func() {
				for ev := range ch {
					got <- fmt.Sprintf("%T", ev)
				}
				got <- "end"
			}()
		case "attach":
			return 6, c.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error {
				got <- fmt.Sprintf("%T", ev)
				return nil
			}))
		case "close":
			c.Close()
		case "claim, and refuse":
			ch := c.Events()
			go func() {
				for ev := range ch {
					got <- fmt.Sprintf("%T", ev)
				}
				got <- "end"
			}()
			return 0, errBadHeader
		default:
			return 0, tcpio.ErrShortPreface
		}
		return len(head), nil
	}}
	l, events := harness.Manual(t, o)
	for say, want := range map[string][]string{
		"claim":  {"tcpio.Opened", "tcpio.Readable", "tcpio.Closed", "end"},
		"attach": {"tcpio.Opened", "tcpio.Readable", "tcpio.Closed"},
		"close":  nil, "claim, and refuse": {"end"},
	} {
		peer := testnet.DialTCP(t, l)
		testnet.Send(t, peer, say)
		for i, w := range want {
			if ev := testnet.Receive(t, w, got); ev != w {
				t.Fatalf("%s: %s, want %s", say, ev, w)
			}
			if i == 0 && len(want) > 1 {
				_ = peer.SetLinger(0)
				testnet.Send(t, peer, "x")
			}
			if w == "tcpio.Readable" {
				for c := range l.Conns() {
					c.Abort()
				}
			}
		}
		if want == nil {
			testnet.ExpectEOF(t, peer)
		}
		peer.Close()
		testnet.WaitFor(t, "it is gone", func() bool { return l.Len() == 0 })
	}
	harness.Expect[tcpio.Failed](t, events) // of what was refused
	if n := l.Stats().Refused.Preface; n != 1 {
		t.Errorf("%d refused", n)
	}
}

func TestAdoptedAndDialedConnectionsHaveNoPreface(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Proxies: localhost,
		Preface: func(*tcpio.Conn, []byte) (int, error) { return 0, errBadHeader }})
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	nc, err := net.Dial("tcp", other.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Adopt(nc)
	if err != nil {
		t.Fatal(err)
	}
	harness.Expect[tcpio.Opened](t, events)
	d, err := l.Dial(testnet.Context(t), "tcp", other.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if c.FromProxy() || d.FromProxy() || c.ProxyHeader() != nil {
		t.Error("they are taken for a proxy's")
	}
}

// A connection that waits for its header has neither a goroutine nor a buffer.
func TestWaitingForPrefaceCostsNoGoroutine(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Preface: readHeader, Proxies: localhost})
	var peers []net.Conn
	for range 50 {
		peer := testnet.DialTCP(t, l)
		testnet.Send(t, peer, header[:5])
		peers = append(peers, peer)
	}
	testnet.WaitFor(t, "all are accepted", func() bool { return l.Len() == 50 })
	if n := testnet.Goroutines("tcpio.(*"); n > 20 {
		t.Errorf("%d goroutines", n)
	}
	for _, p := range peers {
		testnet.Send(t, p, header[5:])
		harness.Expect[tcpio.Opened](t, events)
	}
}

// Peers that do anything at any moment, before and behind the header: every connection ends, each
// Opened has its Closed, and no place of an address is left taken.
func TestPrefaceOutlivesAnyPeer(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprint("TLS ", secure), func(t *testing.T) {
			const most, peers, together = 20, 400, 20
			var opened, closed atomic.Int64
			var wild atomic.Bool
			wild.Store(true)
			o := tcpio.ListenerOptions{Loops: 2, Proxies: localhost, MaxConnsPerIP: most, PrefaceTimeout: 100 * time.Millisecond,
				HandshakeTimeout: 100 * time.Millisecond, CloseTimeout: 100 * time.Millisecond, ReadStallTimeout: 300 * time.Millisecond, IdleTimeout: 300 * time.Millisecond,
				EOFTimeout: 50 * time.Millisecond,
				Preface: func(c *tcpio.Conn, head []byte) (int, error) {
					n, err := readHeader(c, head)
					if !wild.Load() {
						return n, err
					}
					switch rand.IntN(20) {
					case 0:
						panic("at random")
					case 1:
						c.Abort()
					case 2:
						time.Sleep(2 * time.Millisecond) // it loses its loop
					}
					return n, err
				}}
			if secure {
				o.TLSConfig = testnet.ServerTLS()
			}
			o.NewActor = func(*tcpio.Conn) tcpio.Actor {
				return tcpio.ActorFunc(func(ev tcpio.Event) error {
					switch ev := ev.(type) {
					case tcpio.Opened:
						opened.Add(1)
						checkProxied(t, ev.Conn)
					case tcpio.Closed:
						closed.Add(1)
					case tcpio.Readable:
						return harness.EchoConn(ev.Conn)
					}
					return nil
				})
			}
			l := harness.Serve(t, o)
			said := header + string(testnet.ClientHello())
			one := func() {
				for range peers / together {
					c, err := net.Dial("tcp", l.Addr().String())
					if err != nil {
						continue // reset already
					}
					for rest := said[:rand.IntN(len(said)+1)]; len(rest) > 0 && err == nil; {
						n := 1 + rand.IntN(len(rest))
						_, err = io.WriteString(c, rest[:n])
						rest = rest[n:]
					}
					switch rand.IntN(4) {
					case 0:
						_ = c.(*net.TCPConn).SetLinger(0)
					case 1:
						_ = c.(*net.TCPConn).CloseWrite()
						fallthrough
					case 2:
						_ = c.SetReadDeadline(time.Now().Add(testnet.Limit))
						_, _ = io.Copy(io.Discard, c) // until the server has had enough
					}
					c.Close()
				}
			}
			all := make([]func(), together)
			for i := range all {
				all[i] = one
			}
			testnet.Together(all...)
			testnet.WaitFor(t, "all are gone", func() bool { return l.Len() == 0 && opened.Load() == closed.Load() })
			if s := l.Stats(); s.Accepted != s.Closed || s.Blocked != 0 || s.Refused.Preface == 0 {
				t.Errorf("%d accepted, %d closed, %d blocked, refused %+v", s.Accepted, s.Closed, s.Blocked, s.Refused)
			}
			t.Logf("%d opened of %d, refused %+v", opened.Load(), l.Stats().Accepted, l.Stats().Refused)
			// Were a place lost, it would be one of the client's.
			wild.Store(false)
			before, at := l.Stats().Refused.PerIP, opened.Load()
			over := func() uint64 { // connections that have had an outcome
				s := l.Stats()
				return uint64(opened.Load()) + s.Refused.PerIP + s.Refused.Preface + s.HandshakesFailed
			}
			for opened.Load() < at+most && l.Stats().Refused.PerIP == before {
				was := over()
				peer, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					continue // PrefaceTimeout on a busy machine
				}
				defer peer.Close()
				_ = peer.SetDeadline(time.Now().Add(testnet.Limit))
				if secure {
					_ = tls.Client(&behindHeader{peer, []byte(header), 1 << 20}, testnet.ClientTLS()).Handshake()
				} else {
					_, _ = io.WriteString(peer, header)
				}
				testnet.WaitFor(t, "an outcome", func() bool { return over() > was })
			}
			if n := l.Stats().Refused.PerIP; n != before {
				t.Errorf("%d places of the client's are lost", n-before)
			}
		})
	}
}

// With DeferAccept it is the first bytes behind the header that count.
func TestDeferAcceptWaitsBehindPreface(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{Preface: readHeader, Proxies: localhost, DeferAccept: true})
	ln := l.NetListener()
	harness.Start(t, l)
	got := make(chan net.Conn, 1)
	go func() {
		if c, err := ln.Accept(); err == nil {
			got <- c
		}
	}()
	peer := testnet.DialTCP(t, l)
	testnet.Send(t, peer, header)
	testnet.WaitFor(t, "the header is taken", func() bool { return l.Stats().BytesIn == uint64(len(header)) })
	select {
	case c := <-got:
		t.Errorf("%v was handed out before its first bytes", c)
	case <-time.After(50 * time.Millisecond):
	}
	testnet.Send(t, peer, "x")
	c := testnet.Receive(t, "the connection", got)
	defer c.Close()
	testnet.ExpectBytes(t, c, "x")
}
