//go:build linux

package hazards

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// O_NONBLOCK belongs to the open file description, which others may share and change. To see these
// tests fail: make sys.Accept call accept4 at once, raw or not, or leave out a MSG_DONTWAIT.

// sharedSockets are listening sockets of every kind and origin.
func sharedSockets(t *testing.T) map[string]tcpio.ListenerOptions {
	t.Helper()
	taken := func(multipath bool) net.Listener {
		var lc net.ListenConfig
		lc.SetMultipathTCP(multipath)
		ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	return map[string]tcpio.ListenerOptions{
		"tcp":            {},
		"tcp taken over": {Listener: taken(false)},
		"multipath":      {Listener: taken(true)}, // what net.Listen makes
		"unix":           {Network: "unix", Addr: filepath.Join(t.TempDir(), "s")},
	}
}

func duplicate(t testing.TB, fd int) int {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(dup) })
	return dup
}

func TestNothingBlocksWhenTheListeningSocketIsMadeBlocking(t *testing.T) {
	for name, opts := range sharedSockets(t) {
		t.Run(name, func(t *testing.T) {
			l := harness.Stream(t, opts, harness.Echo(t))
			held := otherHolder(t, l)
			first := testnet.Dial(t, l)
			testnet.Ping(t, first, "before")
			setNonblock(t, held, false)
			for range 20 {
				peer := testnet.Dial(t, l)
				testnet.Ping(t, peer, "accepted")
				testnet.Ping(t, first, "served")
				peer.Close()
			}
			collects(t)
			if l.GetListener() == nil && l.Addr().Network() == "tcp" {
				t.Error("no GetListener")
			}
			setNonblock(t, held, false) // GetListener has set it
			again := otherHolder(t, l)
			if v, err := unix.FcntlInt(uintptr(again), unix.F_GETFL, 0); err != nil || v&unix.O_NONBLOCK != 0 {
				t.Errorf("the flag is %#x, %v: the library must get by without it", v, err)
			}
			testnet.Ping(t, testnet.Dial(t, l), "accepted")
			done := make(chan struct{})
			go func() {
				l.Close()
				close(done)
			}()
			testnet.Await(t, "the end of Close", done)
		})
	}
}

func TestShutdownsCtxHoldsWhenTheListeningSocketIsMadeBlocking(t *testing.T) {
	for name, opts := range sharedSockets(t) {
		t.Run(name, func(t *testing.T) {
			opts.DrainTimeout = time.Hour
			l, events := harness.Manual(t, opts)
			held := otherHolder(t, l)
			harness.Open(t, l, events)
			setNonblock(t, held, false)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- l.Shutdown(ctx) }()
			if err := testnet.Await(t, "the end of Shutdown", done); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Shutdown: %v", err)
			}
			collects(t)
		})
	}
}

// The flag changes, and connections are taken, at any moment: also between the look and the call.
func TestRivalAtTheListeningSocketDoesNotHoldUpTheLoop(t *testing.T) {
	for name, opts := range sharedSockets(t) {
		t.Run(name, func(t *testing.T) {
			l := harness.Stream(t, opts, harness.Echo(t))
			held := otherHolder(t, l)
			peer := testnet.Dial(t, l)
			testnet.Ping(t, peer, "before")
			var stop atomic.Bool
			defer stop.Store(true)
			taken := 0
			rival := make(chan struct{})
			go func() {
				defer close(rival)
				for !stop.Load() {
					unix.SetNonblock(held, true)
					if fd, _, err := unix.Accept4(held, unix.SOCK_CLOEXEC); err == nil {
						unix.Close(fd)
						taken++
					}
					unix.SetNonblock(held, false)
					runtime.Gosched()
				}
			}()
			for range 200 {
				nc, err := net.DialTimeout(l.Addr().Network(), l.Addr().String(), testnet.Limit)
				if err != nil {
					t.Fatal(err)
				}
				testnet.Ping(t, peer, "served")
				nc.Close()
			}
			collects(t)
			// The rival's own call may block where the flag is off for it: multipath, once the loop
			// has set it again.
			stop.Store(true)
			l.Close()
			testnet.Await(t, "the end of the rival", rival)
			t.Logf("the rival took %d of 200 connections", taken)
		})
	}
}

// Whoever has a duplicate of a connection's socket can make it blocking too.
func TestNothingBlocksWhenAConnectionIsMadeBlocking(t *testing.T) {
	t.Parallel()
	routes := map[string]func(t *testing.T, c *tcpio.Conn, peer net.Conn){
		"TryRead": func(t *testing.T, c *tcpio.Conn, _ net.Conn) {
			if n, err := c.TryRead(make([]byte, 10)); n != 0 || err != tcpio.ErrWouldBlock {
				t.Errorf("TryRead = %d, %v", n, err)
			}
		},
		"TryWrite": func(t *testing.T, c *tcpio.Conn, peer net.Conn) {
			testnet.ExpectBytes(t, peer, harness.Fill(t, c, 64<<10))
		},
		"TryWritev": func(t *testing.T, c *tcpio.Conn, peer net.Conn) {
			p := testnet.Pattern(8 << 20) // more than the sockets take
			if n, err := c.TryWritev(net.Buffers{p[:10], p[10:]}); n != int64(len(p)) || err != nil {
				t.Errorf("TryWritev = %d, %v", n, err)
			}
			testnet.ExpectBytes(t, peer, p)
		},
		"Frames": func(t *testing.T, c *tcpio.Conn, _ net.Conn) {
			for _, err := range c.Frames(func([]byte, bool) (int, []byte, error) { return 0, nil, nil }) {
				t.Errorf("Frames: %v", err)
			}
		},
		"Read": func(t *testing.T, c *tcpio.Conn, peer net.Conn) {
			got := make(chan error, 1)
			go func() {
				_, err := c.Read(make([]byte, 1))
				got <- err
			}()
			collects(t)
			testnet.Send(t, peer, "x")
			if err := testnet.Await(t, "the end of Read", got); err != nil {
				t.Error(err)
			}
		},
		"StartTLS": func(t *testing.T, c *tcpio.Conn, _ net.Conn) {
			if err := c.StartTLS(testnet.ServerTLS()); err != nil {
				t.Error(err)
			}
		},
		"a limit in time": func(t *testing.T, c *tcpio.Conn, _ net.Conn) {
			if err := c.SetIdleTimeout(time.Millisecond); err != nil {
				t.Error(err)
			}
		},
		"Close": func(t *testing.T, c *tcpio.Conn, peer net.Conn) {
			testnet.Send(t, peer, testnet.Pattern(100))
			c.Close()
			testnet.ExpectEOF(t, peer)
		},
		"Hijack": func(t *testing.T, c *tcpio.Conn, _ net.Conn) {
			tc, err := c.Hijack()
			if err != nil {
				t.Fatal(err)
			}
			tc.Close()
		},
	}
	for name, use := range routes {
		t.Run(name, func(t *testing.T) {
			l := harness.Listen(t, tcpio.ListenerOptions{CloseTimeout: time.Second})
			opened := make(chan *tcpio.Conn, 2)
			events := l.Events()
			served := harness.Go(t.Context(), l)
			consumed := make(chan struct{})
			handle := harness.Echo(t)
			var subject atomic.Pointer[tcpio.Conn]
			go func() {
				defer close(consumed)
				for ev := range events {
					switch c := tcpio.ConnOf(ev); ev.(type) {
					case tcpio.Opened:
						opened <- c
					default:
						if c != subject.Load() {
							handle(ev)
						}
					}
				}
			}()
			other := testnet.Dial(t, l)
			testnet.Await(t, "Opened", opened)
			peer := testnet.Dial(t, l)
			c := testnet.Await(t, "Opened", opened)
			subject.Store(c)
			testnet.ShrinkSendBuffer(t, c)
			testnet.Control(t, c, func(fd int) error {
				setNonblock(t, duplicate(t, fd), false)
				return nil
			})
			use(t, c, peer)
			testnet.Ping(t, other, "served")
			collects(t)
			l.Close()
			testnet.Await(t, "the end of Serve", served)
			testnet.Await(t, "the end of the consumer", consumed)
		})
	}
}

func socketTimes(t testing.TB, raw interface {
	Control(func(fd uintptr)) error
}) (times [2]unix.Timeval) {
	t.Helper()
	if err := raw.Control(func(fd uintptr) {
		for i, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
			tv, err := unix.GetsockoptTimeval(int(fd), unix.SOL_SOCKET, opt)
			if err != nil {
				t.Error(err)
				return
			}
			times[i] = *tv
		}
	}); err != nil {
		t.Fatal(err)
	}
	return times
}

func TestHijackedSocketMayBlockAsLongAsItsOwnerLikes(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if socketTimes(t, rc) == [2]unix.Timeval{} {
		t.Error("nothing bounds a call on the socket while it is the library's")
	}
	inside, leave := make(chan struct{}), make(chan struct{})
	go rc.Control(func(uintptr) { // keeps the library's descriptor until after SetLinger
		close(inside)
		<-leave
	})
	<-inside
	tc, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	defer tc.Close()
	if err := tc.SetLinger(7); err != nil {
		t.Fatal(err)
	}
	close(leave)
	harness.Expect[tcpio.Closed](t, events)
	raw, err := tc.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if times := socketTimes(t, raw); times != [2]unix.Timeval{} {
		t.Errorf("SO_RCVTIMEO and SO_SNDTIMEO are %v", times)
	}
	if err := raw.Control(func(fd uintptr) {
		if v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_LINGER); err != nil || v == 0 {
			t.Errorf("SO_LINGER is %d, %v: it was changed behind its owner's back", v, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	tc.SetLinger(0)
}

func TestAdoptionLeavesTheSocketNonBlocking(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Somebody holds the same open file as a socket-activated program's parent does; its mode is
	// everybody's.
	rc, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	dup := -1
	rc.Control(func(fd uintptr) { dup, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	l, events := harness.Manual(t, tcpio.ListenerOptions{Listener: ln})
	ln = nil
	for range 5 {
		c, peer := harness.Open(t, l, events)
		runtime.GC() // a finalizer must not close, or change, what is ours
		testnet.Send(t, peer, "x")
		if _, err := harness.ReadStream(t, events, c, 1, 10); err != nil {
			t.Fatal(err)
		}
		testnet.Control(t, c, func(fd int) error {
			if status, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || status&unix.O_NONBLOCK == 0 {
				t.Errorf("flags %#x, %v: blocking", status, err)
			}
			return nil
		})
		if status, err := unix.FcntlInt(uintptr(dup), unix.F_GETFL, 0); err != nil || status&unix.O_NONBLOCK == 0 {
			t.Errorf("the listening socket's flags %#x, %v: blocking", status, err)
		}
	}
}

// Whoever holds the same open file may clear O_NONBLOCK; a call that must not block still does not.
// To see it fail: leave out MSG_DONTWAIT in sys.Recv or sys.Send.
func TestCallsDoNotBlockOnADescriptorThatSomebodyMadeBlocking(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{WriteBuffer: 100 << 10})
	c, peer := harness.Open(t, l, events)
	testnet.ShrinkSendBuffer(t, c)
	testnet.Control(t, c, func(fd int) error { return unix.SetNonblock(fd, false) })
	done := make(chan []byte, 1)
	go func() {
		if _, err := c.TryRead(make([]byte, 1)); err != tcpio.ErrWouldBlock {
			t.Errorf("TryRead with nothing to read: %v", err)
		}
		var accepted []byte
		for p := testnet.Pattern(10 << 10); ; {
			n, err := c.TryWrite(p)
			accepted = append(accepted, p[:n]...)
			if err != nil {
				if err != tcpio.ErrWouldBlock {
					t.Errorf("TryWrite: %v", err)
				}
				break
			}
		}
		done <- accepted
	}()
	accepted := testnet.Await(t, "the calls return", done)
	testnet.ExpectBytes(t, peer, accepted) // flushed by the loop, which has not blocked either
	testnet.Send(t, peer, "x")
	for {
		if _, ok := testnet.Await(t, "Readable", events).(tcpio.Readable); ok {
			break
		}
	}
}
