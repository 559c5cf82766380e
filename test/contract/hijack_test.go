//go:build linux

package contract

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestAHijackedConnectionIsARealTCPConn(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "unread")
	harness.Expect[tcpio.Readable](t, events)
	tc, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	defer tc.Close()
	if closed := harness.Expect[tcpio.Closed](t, events).Conn; closed != c || c.Err() != tcpio.ErrHijacked {
		t.Fatalf("Closed of %v with Err %v", closed, c.Err())
	}
	testnet.ExpectBytes(t, tc, "unread")
	if tc.RemoteAddr().String() != peer.LocalAddr().String() {
		t.Errorf("RemoteAddr = %v, want %v", tc.RemoteAddr(), peer.LocalAddr())
	}
	if err := tc.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := tc.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Read past its deadline: %v", err)
	}
	// tcpio has let go of it: neither its methods nor the listener's end reach the socket.
	for name, f := range map[string]func() error{
		"Read":     func() error { _, err := c.Read(make([]byte, 1)); return err },
		"TryRead":  func() error { _, err := c.TryRead(make([]byte, 1)); return err },
		"TryWrite": func() error { _, err := c.TryWrite([]byte("x")); return err },
		"Post":     func() error { return c.Post(1) },
		"Hijack":   func() error { _, err := c.Hijack(); return err },
	} {
		if err := f(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Hijack: %v, want net.ErrClosed", name, err)
		}
	}
	c.Abort()
	l.Close()
	testnet.Send(t, peer, "ping")
	if err := tc.SetDeadline(time.Now().Add(testnet.Limit)); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, tc, "ping")
	testnet.Send(t, tc, "pong")
	testnet.ExpectBytes(t, peer, "pong")
	tc.Close()
	testnet.ExpectEOF(t, peer)
}

func TestHijackFlushesWhatIsQueued(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.ShrinkSendBuffer(t, c)
	queued := harness.Fill(t, c, 64<<10)
	// With a peer that reads nothing it takes until the write deadline, and changes nothing.
	if err := c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hijack(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Hijack past the write deadline: %v", err)
	}
	if err := c.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	type result struct {
		tc  *net.TCPConn
		err error
	}
	done := make(chan result, 1)
	go func() {
		tc, err := c.Hijack()
		done <- result{tc, err}
	}()
	testnet.ExpectBytes(t, peer, queued)
	r := testnet.Await(t, "the end of Hijack", done)
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.tc.Close()
	testnet.Send(t, r.tc, "behind")
	testnet.ExpectBytes(t, peer, "behind")
}

func TestHijackIsRefusedWhileFramesHasBytes(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "half a line")
	harness.Expect[tcpio.Readable](t, events)
	for range c.Frames(bufio.ScanLines) {
		t.Fatal("half a line is no frame")
	}
	if _, err := c.Hijack(); err == nil || errors.Is(err, net.ErrClosed) {
		t.Fatalf("Hijack with buffered bytes: %v", err)
	}
	buf := make([]byte, 64)
	n, err := c.TryRead(buf)
	if err != nil || string(buf[:n]) != "half a line" {
		t.Fatalf("TryRead = %q, %v", buf[:n], err)
	}
	tc, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	defer tc.Close()
	testnet.Send(t, peer, "x")
	testnet.ExpectBytes(t, tc, "x")
}

func TestHijackWakesABlockedReader(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{})
	read := goRead(c, make([]byte, 1))
	waitBlocked(t, 1, "(*Conn).Read")
	tc, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	defer tc.Close()
	if r := testnet.Await(t, "the end of Read", read); r.n != 0 || !errors.Is(r.err, net.ErrClosed) {
		t.Fatalf("Read = %d, %v", r.n, r.err)
	}
	testnet.Send(t, peer, "x")
	testnet.ExpectBytes(t, tc, "x")
}

func TestAUnixSocketCannotBeHijacked(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{Network: "unix", Addr: t.TempDir() + "/s"})
	if _, err := c.Hijack(); err == nil {
		t.Fatal("Hijack of a unix socket succeeded")
	}
	testnet.Send(t, peer, "x")
	testnet.ExpectBytes(t, c, "x")
}

func TestAdoptMovesADialledConnection(t *testing.T) {
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

func TestAnAdoptedConnectionMayBeHijackedAgain(t *testing.T) {
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

func TestAConnectionAdoptedAfterItsResetIsStillTCP(t *testing.T) {
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
