//go:build linux

package contract

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// established is a connection that the package net has made, and its peer.
func established(t *testing.T, network string) (nc, peer net.Conn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if peer, err = net.DialTimeout(network, ln.Addr().String(), testnet.Limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	if nc, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := peer.SetDeadline(time.Now().Add(testnet.Limit)); err != nil {
		t.Fatal(err)
	}
	return nc, peer
}

// fillKernel writes until the kernel takes nothing more, and returns how many bytes it took.
func fillKernel(t *testing.T, nc net.Conn) (took int) {
	t.Helper()
	onSocket(t, nc, func(fd int) error {
		p := make([]byte, 64<<10)
		for {
			n, err := unix.SendmsgN(fd, p, nil, nil, unix.MSG_DONTWAIT)
			switch {
			case err == nil:
				took += n
				continue
			case err == unix.EINTR:
				continue
			case err != unix.EAGAIN:
				return err
			}
			// What was under way may still make room.
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 50)
			if n == 0 || err != nil && err != unix.EINTR {
				return err
			}
		}
	})
	return took
}

func onSocket(t *testing.T, nc net.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	ctlErr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	if err = errors.Join(ctlErr, err); err != nil {
		t.Fatal(err)
	}
}

// To see it fail: let register leave every Opened to the first edge.
func TestOpenedOfAnAdoptedConnectionComesWhateverItsSocketSays(t *testing.T) {
	kinds := map[string]struct {
		network string
		make    func(t *testing.T, nc, peer net.Conn) (unread int)
	}{
		"fresh":      {"tcp", func(*testing.T, net.Conn, net.Conn) int { return 0 }},
		"fresh unix": {"unix", func(*testing.T, net.Conn, net.Conn) int { return 0 }},
		"full":       {"tcp", func(t *testing.T, nc, _ net.Conn) int { return fillKernel(t, nc) }},
		"full unix":  {"unix", func(t *testing.T, nc, _ net.Conn) int { return fillKernel(t, nc) }},
		"full, with input": {"tcp", func(t *testing.T, nc, peer net.Conn) int {
			testnet.Send(t, peer, "x")
			return fillKernel(t, nc)
		}},
		"full, half-closed": {"tcp", func(t *testing.T, nc, peer net.Conn) int {
			testnet.FIN(t, peer)
			testnet.ExpectEOF(t, nc)
			return fillKernel(t, nc)
		}},
		"full, half-closed by us": {"tcp", func(t *testing.T, nc, peer net.Conn) int {
			n := fillKernel(t, nc)
			testnet.FIN(t, nc)
			return n
		}},
		"full, urgent data": {"tcp", func(t *testing.T, nc, peer net.Conn) int {
			onSocket(t, peer, func(fd int) error { return unix.Sendto(fd, []byte("!"), unix.MSG_OOB, nil) })
			return fillKernel(t, nc)
		}},
		"reset": {"tcp", func(t *testing.T, nc, peer net.Conn) int { testnet.RST(t, peer); return -1 }},
		"reset and seen": {"tcp", func(t *testing.T, nc, peer net.Conn) int {
			testnet.RST(t, peer)
			if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatal(err)
			}
			return -1
		}},
		"without a peer, unix": {"unix", func(t *testing.T, nc, peer net.Conn) int { peer.Close(); return -1 }},
		"full, without a peer, unix": {"unix", func(t *testing.T, nc, peer net.Conn) int {
			fillKernel(t, nc)
			peer.Close()
			return -1
		}},
	}
	actorEvents := make(chan tcpio.Event, 64)
	routes := map[string]struct {
		opts   tcpio.ListenerOptions
		opened func(t *testing.T, l *tcpio.Listener) func() *tcpio.Conn
	}{
		"stream": {tcpio.ListenerOptions{}, func(t *testing.T, l *tcpio.Listener) func() *tcpio.Conn {
			events := l.Events()
			return func() *tcpio.Conn { return harness.Expect[tcpio.Opened](t, events).Conn }
		}},
		"actor": {tcpio.ListenerOptions{Loops: 2, NewActor: func(*tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error { actorEvents <- ev; return nil })
		}}, func(t *testing.T, l *tcpio.Listener) func() *tcpio.Conn {
			return func() *tcpio.Conn { return harness.Expect[tcpio.Opened](t, actorEvents).Conn }
		}},
		"NetListener": {tcpio.ListenerOptions{DeferAccept: true}, func(t *testing.T, l *tcpio.Listener) func() *tcpio.Conn {
			ln := l.NetListener()
			return func() *tcpio.Conn {
				accepted := make(chan net.Conn, 1)
				go func() {
					c, _ := ln.Accept()
					accepted <- c
				}()
				return testnet.Await(t, "the adopted connection", accepted).(*tcpio.Conn)
			}
		}},
	}
	for kind, k := range kinds {
		for route, r := range routes {
			t.Run(kind+" "+route, func(t *testing.T) {
				l := harness.Listen(t, r.opts)
				opened := r.opened(t, l)
				served := harness.Go(t.Context(), l)
				defer func() {
					l.Close()
					testnet.Await(t, "the end of Serve", served)
					for len(actorEvents) > 0 {
						<-actorEvents
					}
				}()
				nc, peer := established(t, k.network)
				unread := k.make(t, nc, peer)
				var c *tcpio.Conn
				testnet.WaitFor(t, "Adopt", func() bool {
					var err error
					c, err = l.Adopt(nc)
					return err == nil
				})
				if got := opened(); got != c {
					t.Fatalf("Opened of connection %d, want %d", got.ID(), c.ID())
				}
				if unread >= 0 { // it works
					if n, err := io.CopyN(io.Discard, peer, int64(unread)); err != nil {
						t.Errorf("the peer read %d of %d: %v", n, unread, err)
					}
				}
				c.Abort()
			})
		}
	}
}

// The loop that asks for the actor of an adopted connection outlives the asking, and no other loop
// waits for an actor that nobody is to ask for.
func TestServeReturnsAtOnceThoughConnectionsAreAdoptedDuringClose(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for range 200 {
		l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", Loops: 2, CloseTimeout: time.Hour, NewActor: func(*tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(tcpio.Event) error { return nil })
		}})
		if err != nil {
			t.Fatal(err)
		}
		served := harness.Go(context.Background(), l)
		first := testnet.Connect(t, l) // Close has something to do
		defer first.Close()
		testnet.WaitFor(t, "the first connection", func() bool { return l.Len() == 1 })
		var ncs []net.Conn
		for range 6 {
			peer, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			nc, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			ncs = append(ncs, nc)
		}
		var adopting sync.WaitGroup
		for _, nc := range ncs {
			adopting.Go(func() {
				if _, err := l.Adopt(nc); err != nil {
					nc.Close()
				}
			})
		}
		runtime.Gosched()
		l.Close()
		if err := testnet.Receive(t, "the end of Serve", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
		adopting.Wait()
	}
}

func TestAdoptMovesADialedConnection(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			var nc, peer net.Conn
			if network == "tcp" {
				nc, peer = testnet.TCPPair(t)
			} else {
				nc, peer = unixPair(t)
			}
			l, events := harness.Manual(t, tcpio.ListenerOptions{})
			harness.Open(t, l, events) // Serve is there
			oldFD := fdOf(t, nc)
			oldRead := goRead(nc, make([]byte, 1))
			testnet.Send(t, peer, "early")
			if r := testnet.Await(t, "the original's Read", oldRead); r.n != 1 {
				t.Fatal(r.err)
			}
			rest := make([]byte, 4)
			if _, err := io.ReadFull(nc, rest); err != nil {
				t.Fatal(err)
			}
			blocked := goRead(nc, make([]byte, 1))
			local, remote := nc.LocalAddr().String(), nc.RemoteAddr().String()
			c, err := l.Adopt(nc)
			if err != nil {
				t.Fatal(err)
			}
			if got := harness.Expect[tcpio.Opened](t, events).Conn; got != c {
				t.Fatalf("Opened of %v", got)
			}
			if r := testnet.Await(t, "the end of the original's Read", blocked); !errors.Is(r.err, net.ErrClosed) {
				t.Fatalf("the original's Read ended with %v, want net.ErrClosed", r.err)
			}
			if _, err := nc.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Fatalf("the original's Write: %v, want net.ErrClosed", err)
			}
			if c.LocalAddr().String() != local || network == "tcp" && c.RemoteAddr().String() != remote {
				t.Errorf("addresses %v, %v, want %v, %v", c.LocalAddr(), c.RemoteAddr(), local, remote)
			}
			// Moved, not shared: one descriptor of this socket is left.
			if n := sameSocket(t, c); n != 1 {
				t.Errorf("%d descriptors of the socket, the original's was %d", n, oldFD)
			}
			runtime.GC()
			runtime.GC() // a finalizer of the original must not touch the socket
			testnet.Control(t, c, func(fd int) error {
				flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
				if err == nil && flags&unix.O_NONBLOCK == 0 {
					t.Error("the socket blocks")
				}
				cloexec, err2 := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
				if err2 == nil && cloexec&unix.FD_CLOEXEC == 0 {
					t.Error("the socket would survive exec")
				}
				return errors.Join(err, err2)
			})
			testnet.Send(t, peer, "ping")
			if got, err := harness.ReadStream(t, events, c, 4, 16); string(got) != "ping" || err != nil {
				t.Fatalf("read %q, %v", got, err)
			}
			if _, err := c.TryWrite([]byte("pong")); err != nil {
				t.Fatal(err)
			}
			testnet.ExpectBytes(t, peer, "pong")
			c.Close()
			testnet.ExpectEOF(t, peer)
		})
	}
}

func fdOf(t testing.TB, nc net.Conn) (fd int) {
	t.Helper()
	rc, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Control(func(f uintptr) { fd = int(f) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// sameSocket counts this process's descriptors of c's socket.
func sameSocket(t testing.TB, c *tcpio.Conn) (n int) {
	t.Helper()
	var want unix.Stat_t
	testnet.Control(t, c, func(fd int) error { return unix.Fstat(fd, &want) })
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat("/proc/self/fd/"+e.Name(), &st) == nil && st.Ino == want.Ino && st.Dev == want.Dev {
			n++
		}
	}
	return n
}

func TestAdoptRefusesWhatItCannotServe(t *testing.T) {
	nc, peer := testnet.TCPPair(t)
	l := harness.Listen(t, tcpio.ListenerOptions{})
	events := l.Events()
	refused := func(why string, nc net.Conn, want error) {
		t.Helper()
		c, err := l.Adopt(nc)
		var oe *net.OpError
		if c != nil || err == nil || want != nil && !errors.Is(err, want) || !errors.As(err, &oe) || oe.Op != "adopt" {
			t.Errorf("%s: Adopt = %v, %v", why, c, err)
		}
	}
	refused("before Serve", nc, nil)
	served := harness.Go(context.Background(), l)
	harness.Open(t, l, events)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	packets, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: t.TempDir() + "/s"})
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	refused("a pipe", a, nil)
	refused("datagrams", packets, nil)
	refused("nil", nil, nil)
	refused("a nil *net.TCPConn", (*net.TCPConn)(nil), nil)
	refused("a nil *net.UnixConn", (*net.UnixConn)(nil), nil)
	refused("our own", wrapped{nc}, nil)
	gone, _ := testnet.TCPPair(t)
	gone.Close()
	refused("a closed one", gone, net.ErrClosed)
	go l.Close()
	for range events {
	}
	testnet.Await(t, "the end of Serve", served)
	refused("after Close", nc, net.ErrClosed)
	// Refused means untouched.
	testnet.Send(t, peer, "x")
	testnet.ExpectBytes(t, nc, "x")
}

type wrapped struct{ net.Conn }

func TestAdoptedConnectionMayBeHijackedAgain(t *testing.T) {
	nc, peer := testnet.TCPPair(t)
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	harness.Open(t, l, events)
	for range 3 {
		c, err := l.Adopt(nc)
		if err != nil {
			t.Fatal(err)
		}
		harness.Expect[tcpio.Opened](t, events)
		tc, err := c.Hijack()
		if err != nil {
			t.Fatal(err)
		}
		harness.Expect[tcpio.Closed](t, events)
		testnet.Send(t, peer, "x")
		testnet.ExpectBytes(t, tc, "x")
		nc = tc
	}
	nc.Close()
	if _, err := peer.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Fatalf("the peer's Read: %v", err)
	}
}

func TestConnectionAdoptedAfterItsResetIsStillTCP(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.RST(t, peer)
	harness.Expect[tcpio.Readable](t, events) // the reset has arrived
	tc, err := c.Hijack()                     // getpeername(2) fails from now on
	if err != nil {
		t.Fatal(err)
	}
	harness.Expect[tcpio.Closed](t, events)
	c, err = l.Adopt(tc)
	if err != nil {
		t.Fatal(err)
	}
	harness.Expect[tcpio.Opened](t, events)
	if _, ok := c.RemoteAddr().(*net.TCPAddr); !ok {
		t.Errorf("its peer is a %T", c.RemoteAddr())
	}
	if tc, err = c.Hijack(); err != nil {
		t.Fatalf("hijacked again: %v", err)
	}
	tc.Close()
}

// A program calls Serve in a goroutine, and has the first connection before that has begun.
// To see it fail: have Adopt not wait.
func TestAdoptWaitsForServe(t *testing.T) {
	nc, peer := established(t, "tcp")
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "none", NewActor: func(c *tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if _, ok := ev.(tcpio.Opened); ok {
				_, err := c.TryWrite([]byte("hello"))
				return err
			}
			return nil
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	adopted := make(chan error, 1)
	go func() { // until Adopt returns
		_, err := l.Adopt(nc)
		adopted <- err
	}()
	testnet.WaitFor(t, "Adopt was called", func() bool { return testnet.Goroutines("(*Listener).Adopt(") > 0 || len(adopted) > 0 })
	served := make(chan error, 1)
	go func() { served <- l.Serve(context.Background()) }() // until Close
	t.Cleanup(func() { l.Close(); <-served })
	if err := testnet.Receive(t, "Adopt returns", adopted); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(peer, make([]byte, 5)); err != nil {
		t.Errorf("the peer: %v", err)
	}
}
