//go:build linux

package contract

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

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
				// A handler that the machine did not run for a while counts until it has returned.
				testnet.WaitFor(t, "one is blocked", func() bool { return l.Stats().Blocked == 1 })
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
	// Preface is asked twice, with nothing and with the first bytes. It works while it is inside.
	testnet.WaitFor(t, "no SetRemoteAddr outside of Preface", func() bool { return c.SetRemoteAddr(netip.AddrPort{}, 1) != nil })
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
	d, err := l.Dial(testnet.Context(t), "tcp", other.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	harness.Expect[tcpio.Opened](t, events)
	c, err := l.Adopt(nc) // in contrast to Dial it does not wait for Serve
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
	before := harness.Goroutines(t, l)
	var peers []net.Conn
	for range 50 {
		peer := testnet.DialTCP(t, l)
		testnet.Send(t, peer, header[:5])
		peers = append(peers, peer)
	}
	testnet.WaitFor(t, "all are accepted", func() bool { return l.Len() == 50 })
	testnet.WaitFor(t, "no goroutine for each", func() bool { return runtime.NumGoroutine() <= before+10 })
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
			var dialed, opened, closed atomic.Int64
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
					dialed.Add(1)
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
			testnet.WaitFor(t, "all are gone", func() bool { // also those that were in the backlog
				s := l.Stats()
				return s.Accepted >= uint64(dialed.Load()) && s.Accepted == s.Closed && l.Len() == 0 &&
					s.Blocked == 0 && opened.Load() == closed.Load()
			})
			if l.Stats().Refused.Preface == 0 {
				t.Error("nobody was refused: the test shows nothing")
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
