//go:build linux

package contract

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

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
		{name: "a panic", want: "tcpio: panic: misdeed", preface: func(*tcpio.Conn, []byte) (int, error) { testnet.Misdeeds["panic"](); return 0, nil }},
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
				if tc.sent != "" { // an empty write would take the error of a reset that has come
					_, _ = peer.Write([]byte(tc.sent))
				}
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
				if peer != nil && strings.Count(f.Err.Error(), peer.LocalAddr().String()) > 1 {
					t.Errorf("the peer is named twice: %v", f.Err)
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
			lines := 0
			if tc.name == "a panic" || tc.name == "Goexit" {
				lines = 1
			}
			log.Await(t, "panicked", lines)
			good.Store(true)
			testnet.Send(t, old, "x")
			harness.Expect[tcpio.Readable](t, events)
			harness.Open(t, l, events)
		})
	}
}

func TestPrefaceTimeoutBoundsIt(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{Preface: readHeader, Proxies: localhost, PrefaceTimeout: 50 * time.Millisecond,
		IdleTimeout: time.Millisecond, ReadStallTimeout: time.Millisecond})
	events := l.Events()
	peer := testnet.DialTCP(t, l)
	testnet.Send(t, peer, header[:3])
	start := time.Now() // before the limit begins, which is when the connection is accepted
	harness.Start(t, l)
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
						continue // refused already
					}
					defer c.Close()
					_, _ = io.WriteString(c, header[:i]) // fails where the refusal has come
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
