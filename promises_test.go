//go:build linux

package tcpio_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

func TestOpenedComesFirstAndClosedLastEachOnce(t *testing.T) {
	var opened, closed atomic.Int64
	var order eventOrder // of this consumer; startStream checks the same, but the counts are wanted here
	handle := echo(t)
	l := startStream(t, tcpio.ListenerOptions{EventBuffer: 2}, func(ev tcpio.Event) {
		if err := order.check(ev); err != nil {
			t.Error(err)
		}
		switch ev.(type) {
		case tcpio.Opened:
			opened.Add(1)
		case tcpio.Closed:
			closed.Add(1)
		}
		handle(ev)
	})
	const rounds, workers = 40, 4
	worker := func() {
		for i := range rounds {
			peer := dial(t, l)
			switch i % 4 {
			case 0:
				ping(t, peer, pattern(100))
			case 1:
				send(t, peer, pattern(100))
				sendFIN(t, peer)
				expectBytes(t, peer, pattern(100))
				expectEOF(t, peer)
			case 2:
				send(t, peer, pattern(10))
				sendRST(t, peer)
			}
			peer.Close()
		}
	}
	together(worker, worker, worker, worker)
	waitFor(t, "Closed of every connection", func() bool { return closed.Load() == rounds*workers })
	if n := opened.Load(); n != rounds*workers {
		t.Errorf("%d Opened for %d connections", n, rounds*workers)
	}
}

func TestAtMostOneReadableIsOutstanding(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	other, otherPeer := open(t, l, events)
	buf := make([]byte, 100)

	send(t, peer, []byte("a"))
	if ev := expect[tcpio.Readable](t, events); ev.Conn != c {
		t.Fatal("Readable of the wrong connection")
	}
	// A second packet is an edge of its own for epoll, yet no second event: the loop sees it before the byte that
	// the other connection gets afterwards.
	for range 3 {
		send(t, peer, []byte("b"))
		send(t, otherPeer, []byte("x"))
		if ev := expect[tcpio.Readable](t, events); ev.Conn != other {
			t.Fatal("a second Readable while one is outstanding")
		}
		if n, err := other.TryRead(buf); n != 1 || err != nil {
			t.Fatalf("TryRead = %d, %v", n, err)
		}
	}
	if n, err := c.TryRead(buf); n != 4 || err != nil {
		t.Fatalf("TryRead = %d, %v, want all 4 bytes", n, err)
	}
	expectSilence(t, events, 20*time.Millisecond)
	if n, err := c.TryRead(buf); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryRead = %d, %v, want ErrWouldBlock", n, err)
	}
	send(t, peer, []byte("c"))
	if ev := expect[tcpio.Readable](t, events); ev.Conn != c {
		t.Fatal("Readable of the wrong connection")
	}
}

func TestAFullReadIsFollowedByAReadable(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	want := pattern(1000)
	send(t, peer, want)
	got, err := readStream(t, events, c, len(want), 7)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes, %v; they differ at %d", len(got), err, firstDifference(got, want))
	}
}

func TestATryReadAtOpenedArmsTheConnection(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	if n, err := c.TryRead(make([]byte, 10)); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryRead = %d, %v, want ErrWouldBlock", n, err)
	}
	send(t, peer, []byte("x"))
	expect[tcpio.Readable](t, events)
}

func TestNotReadingHoldsThePeerBack(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	chunk := pattern(64 << 10)
	sent := 0
	for { // until the peer gets nothing off for a while: TCP holds it back
		peer.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := peer.Write(chunk)
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if sent > 64<<20 {
			t.Fatalf("the peer sent %d bytes to a connection that nobody reads", sent)
		}
	}
	expect[tcpio.Readable](t, events)
	expectSilence(t, events, 20*time.Millisecond)
	got := 0
	buf := make([]byte, 64<<10)
	for first := true; got < sent; first = false {
		if !first {
			expect[tcpio.Readable](t, events)
		}
		n, err := c.TryRead(buf)
		if err != nil && err != tcpio.ErrWouldBlock {
			t.Fatalf("after %d of %d bytes: %v", got, sent, err)
		}
		for i, b := range buf[:n] {
			if b != chunk[(got+i)%len(chunk)] {
				t.Fatalf("byte %d of %d differs", got+i, sent)
			}
		}
		got += n
	}
}

func TestTryWriteTakesAllOrNothing(t *testing.T) {
	const limit = 100_000
	l, events := startManual(t, tcpio.ListenerOptions{WriteBuffer: limit})
	c, peer := open(t, l, events)
	accepted := fill(t, c, 30_000)
	if n := c.Buffered(); n > limit || n <= limit-30_000 {
		t.Errorf("refused with %d bytes queued of %d", n, limit)
	}
	for range 100 { // what fits goes on being taken, what does not is refused whole
		room := limit - c.Buffered()
		if n, err := c.TryWrite(pattern(room + 1)); n != 0 || err != tcpio.ErrWouldBlock {
			t.Fatalf("TryWrite of one byte too many = %d, %v", n, err)
		}
		if room == 0 {
			break
		}
		p := pattern(min(room, 1000))
		if n, err := c.TryWrite(p); n != len(p) || err != nil {
			t.Fatalf("TryWrite of %d with room for %d = %d, %v", len(p), room, n, err)
		}
		accepted = append(accepted, p...)
	}
	c.Close()
	expectBytes(t, peer, accepted)
	expectEOF(t, peer)
}

func TestWritableComesWhenHalfOfTheQueueIsFree(t *testing.T) {
	const limit = 256 << 10
	l, events := startManual(t, tcpio.ListenerOptions{WriteBuffer: limit})
	c, peer := open(t, l, events)
	accepted := fill(t, c, 16<<10)
	expectSilence(t, events, 20*time.Millisecond)
	go io.Copy(io.Discard, io.LimitReader(peer, int64(len(accepted))))
	expect[tcpio.Writable](t, events)
	if n := c.Buffered(); n > limit/2 {
		t.Errorf("Writable with %d bytes of %d queued", n, limit)
	}
	if n, err := c.TryWrite(make([]byte, limit/2)); err != nil || n != limit/2 {
		t.Errorf("TryWrite of half the limit = %d, %v", n, err)
	}
}

func TestNoWritableUnlessAWriteWasRefused(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	p := pattern(8 << 20)
	if n, err := c.TryWrite(p); n != len(p) || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	expectBytes(t, peer, p)
	waitFor(t, "an empty queue", func() bool { return c.Buffered() == 0 })
	expectSilence(t, events, 20*time.Millisecond)
}

func TestAWriteLargerThanTheLimitIsTakenWhenNothingIsQueued(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{WriteBuffer: 4096})
	c, peer := open(t, l, events)
	p := pattern(16 << 20)
	if n, err := c.TryWrite(p); n != len(p) || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	if n, err := c.TryWrite([]byte("x")); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryWrite behind it = %d, %v, want ErrWouldBlock", n, err)
	}
	if n, err := c.TryWritev(net.Buffers{[]byte("x"), []byte("y")}); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryWritev behind it = %d, %v, want ErrWouldBlock", n, err)
	}
	clear(p) // it is the caller's again
	expectBytes(t, peer, pattern(16<<20))
	expect[tcpio.Writable](t, events)
	if n, err := c.TryWrite([]byte("x")); n != 1 || err != nil {
		t.Fatalf("TryWrite at Writable = %d, %v", n, err)
	}
	expectBytes(t, peer, []byte("x"))
}

func TestEmptyReadsAndWritesDoNothing(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	nothing := func(want error) {
		t.Helper()
		for _, p := range [][]byte{nil, {}} {
			if n, err := c.TryRead(p); n != 0 || !errors.Is(err, want) {
				t.Errorf("TryRead = %d, %v, want 0, %v", n, err, want)
			}
			if n, err := c.TryWrite(p); n != 0 || !errors.Is(err, want) {
				t.Errorf("TryWrite = %d, %v, want 0, %v", n, err, want)
			}
			if n, err := c.TryWritev(net.Buffers{p, p}); n != 0 || !errors.Is(err, want) {
				t.Errorf("TryWritev = %d, %v, want 0, %v", n, err, want)
			}
		}
		if n, err := c.TryWritev(nil); n != 0 || !errors.Is(err, want) {
			t.Errorf("TryWritev = %d, %v, want 0, %v", n, err, want)
		}
	}
	nothing(nil) // with nothing to read
	send(t, peer, []byte("x"))
	expect[tcpio.Readable](t, events)
	nothing(nil) // with something
	buf := make([]byte, 10)
	if n, err := c.TryRead(buf); n != 1 || err != nil {
		t.Fatalf("TryRead = %d, %v", n, err)
	}
	sendFIN(t, peer)
	expect[tcpio.Readable](t, events)
	nothing(nil) // at the end of the stream, which is for a read that asks
	if n, err := c.TryRead(buf); n != 0 || err != io.EOF {
		t.Fatalf("TryRead = %d, %v, want io.EOF", n, err)
	}
	nothing(nil)
	c.Close()
	nothing(net.ErrClosed)
}

func TestTheConnectionCanBeWrittenToAfterEOF(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	send(t, peer, []byte("question"))
	sendFIN(t, peer)
	buf := make([]byte, 100)
	if got, err := readStream(t, events, c, -1, 100); string(got) != "question" || err != io.EOF {
		t.Fatalf("read %q, %v", got, err)
	}
	for range 3 {
		if n, err := c.TryRead(buf); n != 0 || err != io.EOF {
			t.Fatalf("TryRead = %d, %v, want io.EOF again", n, err)
		}
	}
	if n, err := c.TryWrite([]byte("answer")); n != 6 || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	c.Close()
	expectBytes(t, peer, []byte("answer"))
	expectEOF(t, peer)
	if ev := expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
		t.Errorf("Err = %v, want nil", ev.Conn.Err())
	}
}

func TestAConnectionClosesByItselfAQuarterSecondAfterEOF(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	sendFIN(t, peer)
	start := time.Now()
	if _, err := readStream(t, events, c, -1, 100); err != io.EOF {
		t.Fatalf("TryRead: %v, want io.EOF", err)
	}
	c = expect[tcpio.Closed](t, events).Conn
	if d := time.Since(start); d < 240*time.Millisecond {
		t.Errorf("closed after %v, want 250ms", d)
	}
	if c.Err() != nil {
		t.Errorf("Err = %v, want nil", c.Err())
	}
	expectEOF(t, peer)
}

func TestAllowHalfOpenLeavesTheCloseToTheUser(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{AllowHalfOpen: true})
	c, peer := open(t, l, events)
	sendFIN(t, peer)
	if _, err := readStream(t, events, c, -1, 100); err != io.EOF {
		t.Fatalf("TryRead: %v, want io.EOF", err)
	}
	expectSilence(t, events, 600*time.Millisecond) // longer than the grace of the default
	if n, err := c.TryRead(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("TryRead = %d, %v, want io.EOF", n, err)
	}
	if n, err := c.TryWrite([]byte("late")); n != 4 || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	expectBytes(t, peer, []byte("late"))
	c.Close()
	expectEOF(t, peer)
	if ev := expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
		t.Errorf("Err = %v, want nil", ev.Conn.Err())
	}
}

func TestEveryCallAfterCloseMatchesErrClosed(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		for name, call := range map[string]func() error{
			"TryRead":     func() error { _, err := c.TryRead(make([]byte, 1)); return err },
			"TryWrite":    func() error { _, err := c.TryWrite([]byte("x")); return err },
			"TryWritev":   func() error { _, err := c.TryWritev(net.Buffers{[]byte("x")}); return err },
			"CloseWrite":  c.CloseWrite,
			"Post":        func() error { return c.Post(1) },
			"SetNoDelay":  func() error { return c.SetNoDelay(true) },
			"SyscallConn": func() error { _, err := c.SyscallConn(); return err },
			"Control":     func() error { return rc.Control(func(uintptr) { t.Error("Control ran") }) },
			"Read":        func() error { return rc.Read(func(uintptr) bool { t.Error("Read ran"); return true }) },
			"Write":       func() error { return rc.Write(func(uintptr) bool { t.Error("Write ran"); return true }) },
		} {
			var op *net.OpError
			if err := call(); !errors.Is(err, net.ErrClosed) || !errors.As(err, &op) {
				t.Errorf("%s: %v, want a *net.OpError that matches net.ErrClosed", name, err)
			}
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close again: %v", err)
		}
	}
	c.Close()
	check()
	sendFIN(t, peer)
	expect[tcpio.Closed](t, events)
	check()
	if err := c.Abort(); err != nil {
		t.Errorf("Abort after Closed: %v", err)
	}
	expectSilence(t, events, 10*time.Millisecond)
}

func TestTryWriteAfterCloseWriteMatchesEPIPE(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	p := pattern(8 << 20) // more than the socket takes: the FIN goes out behind it
	if _, err := c.TryWrite(p); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.CloseWrite(); err != nil {
			t.Fatalf("CloseWrite: %v", err)
		}
	}
	if n, err := c.TryWrite([]byte("x")); n != 0 || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("TryWrite = %d, %v, want EPIPE", n, err)
	}
	if n, err := c.TryWritev(net.Buffers{[]byte("x")}); n != 0 || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("TryWritev = %d, %v, want EPIPE", n, err)
	}
	expectBytes(t, peer, p)
	expectEOF(t, peer)
	send(t, peer, []byte("still heard"))
	if got, err := readStream(t, events, c, 11, 100); string(got) != "still heard" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	peer.Close()
	if _, err := readStream(t, events, c, -1, 100); err != io.EOF {
		t.Errorf("TryRead: %v, want io.EOF", err)
	}
	if ev := expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
		t.Errorf("Err = %v, want nil", ev.Conn.Err())
	}
}

func TestErrSaysWhyTheConnectionEnded(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts tcpio.ListenerOptions
		end  func(t *testing.T, l *tcpio.Listener, c *tcpio.Conn, peer net.Conn)
		want error
	}{
		{name: "the peer ended in order",
			end: func(t *testing.T, _ *tcpio.Listener, _ *tcpio.Conn, peer net.Conn) { peer.Close() }},
		{name: "the user closed and everything went out",
			end: func(t *testing.T, _ *tcpio.Listener, c *tcpio.Conn, peer net.Conn) {
				if _, err := c.TryWrite(pattern(8 << 20)); err != nil {
					t.Fatal(err)
				}
				c.Close()
				expectBytes(t, peer, pattern(8<<20))
				expectEOF(t, peer)
				peer.Close()
			}},
		{name: "the user closed, and the peer lingers", opts: tcpio.ListenerOptions{CloseTimeout: 50 * time.Millisecond},
			end: func(t *testing.T, _ *tcpio.Listener, c *tcpio.Conn, peer net.Conn) { c.Close() }},
		{name: "the peer reset",
			end:  func(t *testing.T, _ *tcpio.Listener, _ *tcpio.Conn, peer net.Conn) { sendRST(t, peer) },
			want: syscall.ECONNRESET},
		{name: "output was left at the limit", opts: tcpio.ListenerOptions{CloseTimeout: 50 * time.Millisecond},
			end: func(t *testing.T, _ *tcpio.Listener, c *tcpio.Conn, peer net.Conn) {
				if _, err := c.TryWrite(make([]byte, 12<<20)); err != nil {
					t.Fatal(err)
				}
				c.Close()
			},
			want: tcpio.ErrCloseTimeout},
		{name: "Abort",
			end:  func(t *testing.T, _ *tcpio.Listener, c *tcpio.Conn, _ net.Conn) { c.Abort() },
			want: net.ErrClosed},
		{name: "Abort while Close flushes",
			end: func(t *testing.T, _ *tcpio.Listener, c *tcpio.Conn, _ net.Conn) {
				if _, err := c.TryWrite(make([]byte, 12<<20)); err != nil {
					t.Fatal(err)
				}
				c.Close()
				c.Abort()
			},
			want: net.ErrClosed},
		{name: "Listener.Close",
			end:  func(t *testing.T, l *tcpio.Listener, _ *tcpio.Conn, _ net.Conn) { l.Close() },
			want: net.ErrClosed},
		{name: "Shutdown",
			end: func(t *testing.T, l *tcpio.Listener, _ *tcpio.Conn, peer net.Conn) {
				go func() {
					io.Copy(io.Discard, peer)
					peer.Close()
				}()
				if err := l.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, events := startManual(t, tc.opts)
			c, peer := open(t, l, events)
			if err := c.Err(); err != nil {
				t.Errorf("Err of an open connection: %v", err)
			}
			tc.end(t, l, c, peer)
			for {
				switch ev := receive(t, "Closed", events).(type) {
				case tcpio.Readable:
					if err := c.Err(); err != nil && !errors.Is(err, tc.want) {
						t.Errorf("Err before Closed: %v", err)
					}
					c.TryRead(make([]byte, 100))
				case tcpio.Draining:
				case tcpio.Closed:
					if err := c.Err(); tc.want == nil && err != nil || !errors.Is(err, tc.want) {
						t.Errorf("Err = %v, want %v", err, tc.want)
					}
					if errors.Is(tc.want, tcpio.ErrCloseTimeout) && !errors.Is(c.Err(), os.ErrDeadlineExceeded) {
						t.Errorf("Err = %v does not match os.ErrDeadlineExceeded", c.Err())
					}
					if err := c.Err(); errors.Is(err, syscall.ECONNRESET) {
						if op := (*net.OpError)(nil); !errors.As(err, &op) || op.Addr == nil {
							t.Errorf("Err = %#v, want a *net.OpError with addresses", err)
						}
					}
					return
				default:
					t.Fatalf("got %T", ev)
				}
			}
		})
	}
}

func TestAbortResetsThePeer(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	for range 2 {
		if err := c.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	expect[tcpio.Closed](t, events)
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer read: %v, want a reset", err)
	}
}

func TestClosedFromAHandlerIsALaterEvent(t *testing.T) {
	closed := make(chan struct{})
	inside := false
	l := startStream(t, tcpio.ListenerOptions{EventBuffer: 1}, func(ev tcpio.Event) {
		if inside {
			t.Error("re-entered")
		}
		inside = true
		defer func() { inside = false }()
		switch ev := ev.(type) {
		case tcpio.Opened:
			ev.Conn.Abort()
			if err := ev.Conn.Close(); err != nil {
				t.Error(err)
			}
		case tcpio.Closed:
			close(closed)
		}
	})
	if peer, err := net.Dial("tcp", l.Addr().String()); err == nil { // the reset may be faster than the dial
		defer peer.Close()
	}
	receive(t, "Closed", closed)
}

func TestPostedValuesArriveInOrderBetweenOpenedAndClosed(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{EventBuffer: 3})
	dial(t, l)
	c := receive(t, "Opened", events).(tcpio.Opened).Conn
	const n = 100
	for i := range n {
		if err := c.Post(i); err != nil {
			t.Fatal(err)
		}
	}
	c.Abort()
	if err := c.Post(n); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Post after Abort: %v", err)
	}
	for i := range n {
		if ev := expect[tcpio.Message](t, events); ev.Conn != c || ev.Value != i {
			t.Fatalf("Message %v, want %d", ev.Value, i)
		}
	}
	expect[tcpio.Closed](t, events)
}

func TestAFullMailboxIsThePostersError(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{EventBuffer: 1, MailboxSize: 5})
	c, _ := open(t, l, events)
	accepted := 0
	for ; ; accepted++ {
		if err := c.Post(accepted); err == tcpio.ErrMailboxFull {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if accepted > 100 {
			t.Fatal("no bound")
		}
	}
	for i := range accepted {
		if ev := expect[tcpio.Message](t, events); ev.Value != i {
			t.Fatalf("Message %v, want %d", ev.Value, i)
		}
	}
	if err := c.Post("again"); err != nil {
		t.Error(err)
	}
	expect[tcpio.Message](t, events)
}
