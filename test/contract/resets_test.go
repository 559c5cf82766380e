//go:build linux

package contract

import (
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A reset is never an end of stream, whichever call the kernel told it to first, and it is the
// connection's Err.

func wantReset(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) {
		t.Errorf("%s: %v, want the reset", what, err)
	}
}

// waitState waits until the kernel has the socket of c in a state.
func waitState(t *testing.T, c *tcpio.Conn, state byte) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	testnet.WaitFor(t, "the state of the socket", func() bool {
		var info *unix.TCPInfo
		_ = rc.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
		return info != nil && info.State == state
	})
}

func waitErr(t *testing.T, c *tcpio.Conn) error {
	t.Helper()
	c.Close()
	testnet.WaitFor(t, "Err", func() bool { return c.Err() != nil })
	return c.Err()
}

func TestCopyFromAConnectionThatIsResetFails(t *testing.T) {
	for name, size := range map[string]int{"nothing": 0, "a little": 100, "bulk": 3 << 20} {
		t.Run(name, func(t *testing.T) {
			src, feed := blockingPair(t, tcpio.ListenerOptions{})
			dst, peer := blockingPair(t, tcpio.ListenerOptions{})
			done := make(chan error, 1)
			go func() {
				_, err := io.Copy(dst, src)
				done <- err
			}()
			want := testnet.Pattern(size)
			go func() { _, _ = feed.Write(want) }()
			testnet.ExpectBytes(t, peer, want)
			testnet.RST(t, feed)
			wantReset(t, "Copy", testnet.Await(t, "the end of Copy", done))
			_, err := src.Read(make([]byte, 1))
			wantReset(t, "the next Read", err)
			wantReset(t, "Err", waitErr(t, src))
		})
	}
}

func TestCopyToAConnectionThatIsResetFails(t *testing.T) {
	for _, kind := range []string{"Conn", "file", "reader"} {
		t.Run(kind, func(t *testing.T) {
			dst, peer := blockingPair(t, tcpio.ListenerOptions{})
			var r io.Reader = neverEnding{}
			switch kind {
			case "Conn":
				src, feed := blockingPair(t, tcpio.ListenerOptions{})
				go func() { _, _ = io.Copy(feed, neverEnding{}) }()
				t.Cleanup(func() { src.Abort() })
				r = src
			case "file":
				f := tempFile(t, nil, os.O_RDWR)
				if err := f.Truncate(1 << 30); err != nil {
					t.Fatal(err)
				}
				r = f
			}
			done := make(chan error, 1)
			go func() {
				_, err := io.Copy(dst, r)
				done <- err
			}()
			testnet.ExpectBytes(t, peer, make([]byte, 1<<20))
			testnet.RST(t, peer)
			wantReset(t, "Copy", testnet.Await(t, "the end of Copy", done))
			_, err := dst.Write([]byte("x"))
			wantReset(t, "the next Write", err)
			_, err = dst.Read(make([]byte, 1))
			wantReset(t, "the next Read", err)
			wantReset(t, "Err", waitErr(t, dst))
		})
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestCopyToAResetPeerRaisesNoSignal(t *testing.T) {
	signals := make(chan os.Signal, 100)
	signal.Notify(signals, syscall.SIGPIPE)
	defer signal.Stop(signals)
	for range 20 {
		dst, peer := blockingPair(t, tcpio.ListenerOptions{})
		src, feed := blockingPair(t, tcpio.ListenerOptions{})
		go func() { _, _ = io.Copy(feed, neverEnding{}) }()
		go func() {
			_, _ = io.CopyN(io.Discard, peer, 1<<20)
			_ = peer.(*net.TCPConn).SetLinger(0)
			peer.Close()
		}()
		if _, err := io.Copy(dst, src); err == nil {
			t.Fatal("Copy ended without an error")
		}
		_, _ = io.Copy(dst, src) // and again
		src.Abort()
	}
	select {
	case s := <-signals:
		t.Errorf("a signal: %v", s)
	default:
	}
}

func TestCallbacksMeetTheReset(t *testing.T) {
	met, failed := make(chan error, 10), make(chan error, 10)
	l := harness.Listen(t, tcpio.ListenerOptions{
		OnConnEvent: func(c net.Conn) error {
			_, err := c.Read(make([]byte, 10))
			if err != nil {
				met <- err
			}
			return err
		},
		OnErrorEvent: func(err error) { failed <- err },
	})
	served := harness.Go(t.Context(), l)
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "x")
	testnet.WaitFor(t, "the connection", func() bool { return l.Stats().BytesIn == 1 })
	testnet.RST(t, peer)
	wantReset(t, "OnConnEvent", testnet.Await(t, "the call", met))
	wantReset(t, "OnErrorEvent", testnet.Await(t, "the error", failed))
	l.Close()
	testnet.Await(t, "the end of Serve", served)
}

func TestResetThatARawReadWasToldIsNoEndOfStream(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.RST(t, peer)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var told error
	testnet.WaitFor(t, "the raw read to meet the reset", func() bool {
		_ = rc.Control(func(fd uintptr) { _, told = unix.Read(int(fd), make([]byte, 1)) })
		return told == unix.ECONNRESET
	})
	_, err = c.TryRead(make([]byte, 1))
	wantReset(t, "TryRead", err)
	for {
		if ev, ok := testnet.Await(t, "Closed", events).(tcpio.Closed); ok {
			wantReset(t, "Err", ev.Conn.Err())
			return
		}
	}
}

// The peer's stream was whole, whatever it did afterwards.
func TestResetBehindTheEndOfStreamLeavesItAnEnd(t *testing.T) {
	for range 20 {
		c, peer := blockingPair(t, tcpio.ListenerOptions{})
		testnet.Send(t, peer, "all")
		testnet.FIN(t, peer)
		testnet.RST(t, peer)
		waitState(t, c, unix.BPF_TCP_CLOSE)
		got, err := io.ReadAll(c)
		if string(got) != "all" || err != nil {
			t.Fatalf("ReadAll: %q, %v", got, err)
		}
	}
}

func TestHijackOfAResetConnectionFails(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{})
	events := l.Events()
	served := harness.Go(t.Context(), l)
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "frame")
	harness.Expect[tcpio.Readable](t, events)
	testnet.RST(t, peer)
	waitState(t, c, unix.BPF_TCP_CLOSE)
	buf := make([]byte, 100)
	if n, err := c.TryRead(buf[:3]); n != 3 || err != nil {
		t.Fatalf("TryRead = %d, %v", n, err)
	}
	if n, err := c.TryRead(buf); n != 2 || err != nil {
		t.Fatalf("TryRead = %d, %v", n, err)
	}
	if nc, err := c.Hijack(); err == nil { // then the socket has yet to tell it
		defer nc.Close()
		_, err := nc.Read(buf)
		wantReset(t, "Read of what Hijack gave", err)
	} else {
		wantReset(t, "Hijack", err)
	}
	go l.Close()
	for range events {
	}
	testnet.Await(t, "the end of Serve", served)
}

// Close behind a failed copy says so too.
func TestErrIsTheCauseThoughTheUserCloses(t *testing.T) {
	dst, peer := blockingPair(t, tcpio.ListenerOptions{})
	src, feed := blockingPair(t, tcpio.ListenerOptions{})
	go func() { _, _ = io.Copy(feed, neverEnding{}) }()
	defer src.Abort()
	testnet.RST(t, peer)
	if _, err := io.Copy(dst, src); err == nil {
		t.Fatal("Copy ended without an error")
	}
	wantReset(t, "Err", waitErr(t, dst))
}

func TestErrorAfterTheEndMatchesErrClosedAndItsCause(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.RST(t, peer)
	testnet.WaitFor(t, "the end", func() bool { _, err := c.TryRead(make([]byte, 1)); return errors.Is(err, net.ErrClosed) })
	_, err := c.TryWrite([]byte("x"))
	if !errors.Is(err, net.ErrClosed) || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("TryWrite: %v, want net.ErrClosed and the reset", err)
	}
	// What the user did has no other cause.
	c, _ = openNext(t, l, events)
	c.Close()
	if _, err := c.TryWrite([]byte("x")); !errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("TryWrite: %v, want net.ErrClosed", err)
	}
}

// openNext is open where other events may come first.
func openNext(t *testing.T, l *tcpio.Listener, events <-chan tcpio.Event) (*tcpio.Conn, net.Conn) {
	t.Helper()
	peer := testnet.Dial(t, l)
	for {
		if ev, ok := testnet.Await(t, "Opened", events).(tcpio.Opened); ok {
			return ev.Conn, peer
		}
	}
}

// A connection whose peer has ended, and then resets while output waits, has nothing more to come
// in either direction.
// To see it fail: let sendFailedLocked look at c.ended only.
func TestResetBehindTheEndWithOutputQueuedClosesTheConnection(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 1})
	c, peer := harness.Open(t, l, events)
	if _, err := c.TryWrite(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	testnet.FIN(t, peer)
	harness.Expect[tcpio.Readable](t, events)
	if _, err := c.TryRead(make([]byte, 1)); err != io.EOF {
		t.Fatalf("got %v, want EOF", err)
	}
	if c.Buffered() == 0 {
		t.Fatal("the socket took everything")
	}
	testnet.RST(t, peer)
	harness.Expect[tcpio.Closed](t, events)
	if err := c.Err(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Err: %v, want the reset", err)
	}
}
