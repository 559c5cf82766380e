//go:build linux

package contract

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestHijackedConnectionIsARealTCPConn(t *testing.T) {
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

func TestUnixSocketCannotBeHijacked(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{Network: "unix", Addr: t.TempDir() + "/s"})
	if _, err := c.Hijack(); err == nil {
		t.Fatal("Hijack of a unix socket succeeded")
	}
	testnet.Send(t, peer, "x")
	testnet.ExpectBytes(t, c, "x")
}

func TestHijackBesideBlockedReadersAndQueuedOutputLosesNothing(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.ShrinkSendBuffer(t, c)
	out, in := harness.Fill(t, c, 64<<10), testnet.Pattern(1<<20)
	hijacked := make(chan *net.TCPConn, 1)
	go func() {
		tc, err := c.Hijack()
		if err != nil {
			t.Errorf("Hijack: %v", err)
		}
		hijacked <- tc
	}()
	waitBlocked(t, 1, "(*Conn).Hijack")
	early := make(chan []byte, 1)
	go func() {
		var got []byte
		for p := make([]byte, 1000); ; {
			n, err := c.Read(p)
			if got = append(got, p[:n]...); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("Read: %v", err)
				}
				early <- got
				return
			}
		}
	}()
	go func() {
		if _, err := peer.Write(in); err != nil {
			t.Errorf("the peer's write: %v", err)
		}
	}()
	testnet.ExpectBytes(t, peer, out)
	tc := testnet.Await(t, "the hijacked connection", hijacked)
	defer tc.Close()
	_ = tc.SetDeadline(time.Now().Add(testnet.Limit))
	got := testnet.Await(t, "what was read before", early)
	rest := make([]byte, len(in)-len(got))
	if n, err := io.ReadFull(tc, rest); err != nil {
		t.Fatalf("%d bytes read before, %d of %d behind: %v", len(got), n, len(rest), err)
	}
	if i := testnet.FirstDifference(append(got, rest...), in); i >= 0 {
		t.Errorf("byte %d of %d is wrong", i, len(in))
	}
	for {
		if _, last := testnet.Await(t, "Closed", events).(tcpio.Closed); last {
			break
		}
	}
	if c.Err() != tcpio.ErrHijacked {
		t.Errorf("Err: %v", c.Err())
	}
}
