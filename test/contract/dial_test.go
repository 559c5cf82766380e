//go:build linux

package contract

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func tcpUpstream(t testing.TB) (string, <-chan net.Conn) {
	return testnet.Upstream(t, "tcp", "127.0.0.1:0")
}

// serving waits until Serve has begun: before, Dial fails.
func serving(t testing.TB, l *tcpio.Listener) {
	t.Helper()
	addr, _ := tcpUpstream(t)
	testnet.WaitFor(t, "Serve", func() bool {
		c, err := l.Dial(t.Context(), "tcp", addr)
		if err == nil {
			c.Abort()
			_, _ = c.Read(make([]byte, 1))
		}
		return err == nil
	})
	testnet.WaitFor(t, "the end of the trial", func() bool { return l.Len() == 0 })
}

func TestDialedConnectionIsOnTheStreamLikeAcceptedOnes(t *testing.T) {
	for network, addr := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		t.Run(network, func(t *testing.T) {
			address, accepted := testnet.Upstream(t, network, addr)
			l, events := harness.Manual(t, tcpio.ListenerOptions{})
			harness.Open(t, l, events) // Serve is there
			c, err := l.Dial(t.Context(), network, address)
			if err != nil {
				t.Fatal(err)
			}
			if got := harness.Expect[tcpio.Opened](t, events).Conn; got != c {
				t.Fatalf("Opened of connection %d, want %d", got.ID(), c.ID())
			}
			if !c.Dialed() {
				t.Error("it is not known as dialed")
			}
			peer := testnet.Await(t, "the dialed connection", accepted)
			if network == "tcp" && (c.LocalAddr().String() != peer.RemoteAddr().String() || c.RemoteAddr().String() != address) {
				t.Errorf("addresses %v, %v", c.LocalAddr(), c.RemoteAddr())
			}
			if n := sameSocket(t, c); n != 1 {
				t.Errorf("%d descriptors of the socket", n)
			}
			testnet.Send(t, peer, "ping")
			if got, err := harness.ReadStream(t, events, c, 4, 16); string(got) != "ping" || err != nil {
				t.Fatalf("read %q, %v", got, err)
			}
			if _, err := c.TryWrite([]byte("pong")); err != nil {
				t.Fatal(err)
			}
			testnet.ExpectBytes(t, peer, "pong")
			// It ends as accepted ones do.
			testnet.FIN(t, peer)
			if got, err := harness.ReadStream(t, events, c, -1, 16); len(got) != 0 || err != io.EOF {
				t.Fatalf("read %q, %v, want the end", got, err)
			}
			c.Close()
			testnet.ExpectEOF(t, peer)
			if got := harness.Expect[tcpio.Closed](t, events).Conn; got != c || c.Err() != nil {
				t.Errorf("Closed of %v: %v", got, c.Err())
			}
		})
	}
}

// The listener's own route is for accepted connections. The caller's begins with Opened, whatever
// has happened before.
func TestWithoutAStreamADialedConnectionIsTheCallersUntilItHasARoute(t *testing.T) {
	never := func(t *testing.T) func(*tcpio.Conn) tcpio.Actor {
		return func(c *tcpio.Conn) tcpio.Actor {
			t.Error("ListenerOptions.NewActor was asked")
			return nil
		}
	}
	for name, opts := range map[string]func(t *testing.T) tcpio.ListenerOptions{
		"Actor": func(t *testing.T) tcpio.ListenerOptions { return tcpio.ListenerOptions{NewActor: never(t)} },
		"OnConnEvent": func(t *testing.T) tcpio.ListenerOptions {
			return tcpio.ListenerOptions{OnConnEvent: func(net.Conn) error {
				t.Error("OnConnEvent was called")
				return nil
			}}
		},
		"NetListener":             func(t *testing.T) tcpio.ListenerOptions { return tcpio.ListenerOptions{} },
		"NetListener DeferAccept": func(t *testing.T) tcpio.ListenerOptions { return tcpio.ListenerOptions{DeferAccept: true} },
	} {
		for _, route := range []string{"Attach", "Events", "none"} {
			t.Run(name+" "+route, func(t *testing.T) {
				l := harness.Listen(t, opts(t))
				if strings.HasPrefix(name, "NetListener") {
					ln := l.NetListener()
					go func() {
						if c, err := ln.Accept(); err == nil {
							t.Errorf("Accept handed out %v", c.RemoteAddr())
						}
					}()
				}
				served := harness.Go(context.Background(), l)
				defer func() {
					l.Close()
					testnet.Await(t, "the end of Serve", served)
				}()
				serving(t, l)
				addr, accepted := tcpUpstream(t)
				c, err := l.Dial(t.Context(), "tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				peer := testnet.Await(t, "the dialed connection", accepted)
				// Blocking, as a net.Conn.
				testnet.Send(t, peer, "hello")
				testnet.ExpectBytes(t, c, "hello")
				if _, err := c.Write([]byte("hello yourself")); err != nil {
					t.Fatal(err)
				}
				testnet.ExpectBytes(t, peer, "hello yourself")
				if route == "none" {
					testnet.FIN(t, peer)
					testnet.ExpectEOF(t, c)
					if _, err := c.Write([]byte("still here")); err != nil {
						t.Fatal(err)
					}
					c.Close()
					testnet.ExpectBytes(t, peer, "still here")
					testnet.ExpectEOF(t, peer)
					return
				}
				if err := c.Post("posted"); err != nil {
					t.Fatal(err)
				}
				testnet.Send(t, peer, "more")
				var events <-chan tcpio.Event
				if route == "Events" {
					events = c.Events()
				} else {
					ch := make(chan tcpio.Event, 16)
					events = ch
					if err := c.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error { ch <- ev; return nil })); err != nil {
						t.Fatal(err)
					}
				}
				harness.Expect[tcpio.Opened](t, events)
				var mail, bytes bool
				for !mail || !bytes {
					switch ev := testnet.Await(t, "an event", events).(type) {
					case tcpio.Message:
						mail = ev.Value == "posted"
					case tcpio.Readable:
						buf := make([]byte, 16)
						n, err := c.TryRead(buf)
						if err == tcpio.ErrWouldBlock {
							continue // the edge was that of what came before
						}
						if string(buf[:n]) != "more" || err != nil {
							t.Fatalf("read %q, %v", buf[:n], err)
						}
						bytes = true
					default:
						t.Fatalf("got %T", ev)
					}
				}
				c.Close()
				testnet.ExpectEOF(t, peer)
				peer.Close()
				for {
					if _, last := testnet.Await(t, "Closed", events).(tcpio.Closed); last {
						break
					}
				}
			})
		}
	}
}

func TestDialedConnectionThatEndsBeforeItHasARouteIsOver(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{NewActor: func(*tcpio.Conn) tcpio.Actor { return nil }})
	harness.Go(t.Context(), l)
	serving(t, l)
	addr, accepted := tcpUpstream(t)
	c, err := l.Dial(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	testnet.Await(t, "the dialed connection", accepted)
	c.Abort()
	testnet.WaitFor(t, "the end of it", func() bool { return l.Len() == 0 })
	if err := c.Attach(tcpio.ActorFunc(func(tcpio.Event) error { return nil })); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Attach: %v, want net.ErrClosed", err)
	}
	testnet.AwaitClosed(t, "the stream", c.Events())
}

func TestDialedConnectionIsPlainAlsoBesideTLS(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS()})
	addr, accepted := tcpUpstream(t)
	var c *tcpio.Conn
	testnet.WaitFor(t, "Serve", func() bool {
		var err error
		c, err = l.Dial(t.Context(), "tcp", addr)
		return err == nil
	})
	harness.Expect[tcpio.Opened](t, events)
	peer := testnet.Await(t, "the dialed connection", accepted)
	testnet.Send(t, peer, "plain")
	if got, err := harness.ReadStream(t, events, c, 5, 16); string(got) != "plain" || err != nil {
		t.Fatalf("read %q, %v", got, err)
	}
	if c.TLS() != nil {
		t.Error("it has TLS")
	}
}

func TestDialedConnectionHasTheOptionsOfAcceptedOnes(t *testing.T) {
	for name, ka := range map[string]net.KeepAliveConfig{
		"default": {},
		"set":     {Enable: true, Idle: 33 * time.Second, Interval: 7 * time.Second, Count: 4},
		"off":     {Idle: -1},
	} {
		t.Run(name, func(t *testing.T) {
			read := func(c *tcpio.Conn) (v []int) {
				v = append(v, testnet.Sockopt(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE), testnet.Sockopt(t, c, unix.SOL_SOCKET, unix.SO_PROTOCOL))
				for _, opt := range []int{
					unix.TCP_NODELAY, unix.TCP_KEEPIDLE, unix.TCP_KEEPINTVL, unix.TCP_KEEPCNT, unix.TCP_USER_TIMEOUT,
				} {
					v = append(v, testnet.Sockopt(t, c, unix.IPPROTO_TCP, opt))
				}
				return v
			}
			l, events := harness.Manual(t, tcpio.ListenerOptions{KeepAlive: ka, TCPUserTimeout: 9 * time.Second})
			accepted, _ := harness.Open(t, l, events)
			addr, _ := tcpUpstream(t)
			dialed, err := l.Dial(t.Context(), "tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := read(dialed), read(accepted); !slices.Equal(got, want) {
				t.Errorf("options %v, those of an accepted connection are %v", got, want)
			}
		})
	}
}

// blackHole is an address where nobody answers: the backlog of the listening socket is full.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: sa.(*unix.SockaddrInet4).Port}
	failed := 0
	for range 16 {
		c, err := net.DialTimeout("tcp", addr.String(), 100*time.Millisecond)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			failed = 0
		} else if failed++; failed == 3 { // one alone may be a machine that stood still
			return addr.String()
		}
	}
	t.Skip("this system's backlog has no end")
	return ""
}

func TestDialTellsWhyItFails(t *testing.T) {
	t.Parallel()
	isDialError := func(t *testing.T, c *tcpio.Conn, err, want error) {
		t.Helper()
		var oe *net.OpError
		var unknown net.UnknownNetworkError
		if c != nil || !errors.As(err, &oe) || oe.Op != "dial" || want != nil && !errors.Is(err, want) ||
			oe.Addr == nil && !errors.As(err, &unknown) {
			t.Errorf("Dial = %v, %v, want a *net.OpError of dial with the address, around %v", c, err, want)
		}
	}
	hole := blackHole(t)
	addr := nobodyListens(t)
	l := harness.Listen(t, tcpio.ListenerOptions{})
	events := l.Events()
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	c, err := l.Dial(short, "tcp", addr)
	isDialError(t, c, err, context.DeadlineExceeded) // Serve does not run in time
	served := harness.Go(context.Background(), l)
	harness.Open(t, l, events)

	c, err = l.Dial(t.Context(), "tcp", addr)
	isDialError(t, c, err, syscall.ECONNREFUSED)
	c, err = l.Dial(t.Context(), "unix", filepath.Join(t.TempDir(), "none"))
	isDialError(t, c, err, syscall.ENOENT)
	for _, network := range []string{"udp", "unixgram", ""} {
		c, err = l.Dial(t.Context(), network, addr)
		isDialError(t, c, err, net.UnknownNetworkError(network))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	c, err = l.Dial(ctx, "tcp", hole)
	isDialError(t, c, err, nil)
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v is no timeout", err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	failed := make(chan error, 1)
	dialHole := func(ctx context.Context) {
		c, err := l.Dial(ctx, "tcp", hole)
		if c != nil {
			t.Error("a connection to nobody")
		}
		failed <- err
	}
	go dialHole(ctx)
	waitDialing(t)
	cancel()
	isDialError(t, nil, testnet.Await(t, "the end of Dial", failed), context.Canceled)

	go dialHole(context.Background())
	waitDialing(t)
	go l.Close()
	isDialError(t, nil, testnet.Await(t, "the end of Dial", failed), net.ErrClosed)
	for range events {
	}
	testnet.Await(t, "the end of Serve", served)
	c, err = l.Dial(t.Context(), "tcp", addr)
	isDialError(t, c, err, net.ErrClosed)
}

// waitDialing waits until a Dial waits for its answer.
func waitDialing(t *testing.T) {
	t.Helper()
	waitBlocked(t, 1, "(*Listener).dial")
}
