//go:build linux

package contract

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestEveryCallAfterCloseMatchesErrClosed(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
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
	testnet.FIN(t, peer)
	harness.Expect[tcpio.Closed](t, events)
	check()
	if err := c.Abort(); err != nil {
		t.Errorf("Abort after Closed: %v", err)
	}
	harness.ExpectSilence(t, events, 10*time.Millisecond)
}

func TestTryWriteAfterCloseWriteMatchesEPIPE(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	p := testnet.Pattern(8 << 20) // more than the socket takes: the FIN goes out behind it
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
	testnet.ExpectBytes(t, peer, p)
	testnet.ExpectEOF(t, peer)
	testnet.Send(t, peer, "still heard")
	if got, err := harness.ReadStream(t, events, c, 11, 100); string(got) != "still heard" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	peer.Close()
	if _, err := harness.ReadStream(t, events, c, -1, 100); err != io.EOF {
		t.Errorf("TryRead: %v, want io.EOF", err)
	}
	c.Close()
	if ev := harness.Expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
		t.Errorf("Err = %v, want nil", ev.Conn.Err())
	}
}

func TestErrSaysWhyTheConnectionEnded(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		opts tcpio.ListenerOptions
		end  func(t *testing.T, l *tcpio.Listener, c *tcpio.Conn, peer net.Conn)
		want error
	}{
		{name: "the peer ended in order",
			end: func(t *testing.T, _ *tcpio.Listener, _ *tcpio.Conn, peer net.Conn) { peer.Close() }},
		{name: "the user closed and everything went out", opts: tcpio.ListenerOptions{CloseTimeout: testnet.Limit},
			end: func(t *testing.T, _ *tcpio.Listener, c *tcpio.Conn, peer net.Conn) {
				if _, err := c.TryWrite(testnet.Pattern(8 << 20)); err != nil {
					t.Fatal(err)
				}
				c.Close()
				testnet.ExpectBytes(t, peer, testnet.Pattern(8<<20))
				testnet.ExpectEOF(t, peer)
				peer.Close()
			}},
		{name: "the user closed, and the peer lingers", opts: tcpio.ListenerOptions{CloseTimeout: 50 * time.Millisecond},
			end: func(t *testing.T, _ *tcpio.Listener, c *tcpio.Conn, peer net.Conn) { c.Close() }},
		{name: "the peer reset",
			end:  func(t *testing.T, _ *tcpio.Listener, _ *tcpio.Conn, peer net.Conn) { testnet.RST(t, peer) },
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
			}, want: tcpio.ErrDrainTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, events := harness.Manual(t, tc.opts)
			c, peer := harness.Open(t, l, events)
			if err := c.Err(); err != nil {
				t.Errorf("Err of an open connection: %v", err)
			}
			tc.end(t, l, c, peer)
			for {
				switch ev := testnet.Await(t, "Closed", events).(type) {
				case tcpio.Readable:
					if err := c.Err(); err != nil && !errors.Is(err, tc.want) {
						t.Errorf("Err before Closed: %v", err)
					}
					if _, err := c.TryRead(make([]byte, 100)); err == io.EOF {
						c.Close()
					}
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
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	for range 2 {
		if err := c.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	harness.Expect[tcpio.Closed](t, events)
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer read: %v, want a reset", err)
	}
}

func TestClosedFromAHandlerIsALaterEvent(t *testing.T) {
	closed := make(chan struct{})
	inside := false
	l := harness.Stream(t, tcpio.ListenerOptions{EventBuffer: 1}, func(ev tcpio.Event) {
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
	testnet.Await(t, "Closed", closed)
}

// A peer that goes on sending does not prolong the end, whether it takes the output or not.
func TestCloseTimeoutIsATotalOfFlushAndDrain(t *testing.T) {
	t.Parallel()
	const limit = 200 * time.Millisecond
	for name, queued := range map[string]bool{"drain": false, "flush": true} {
		t.Run(name, func(t *testing.T) {
			l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: limit})
			c, peer := harness.Open(t, l, events)
			if queued {
				harness.Fill(t, c, 64<<10)
			}
			sender := make(chan struct{})
			go func() {
				defer close(sender)
				for pause := time.NewTicker(5 * time.Millisecond); ; <-pause.C {
					if _, err := peer.Write([]byte("x")); err != nil {
						return // it was cut off
					}
				}
			}()
			began := time.Now()
			c.Close()
			for closed := false; !closed; {
				_, closed = testnet.Await(t, "Closed", events).(tcpio.Closed)
			}
			if d := time.Since(began); d < limit-5*time.Millisecond {
				t.Errorf("cut off after %v, before the limit", d)
			}
			if err := c.Err(); queued != (err == tcpio.ErrCloseTimeout) || !queued && err != nil {
				t.Errorf("Err = %v", err)
			}
			testnet.Await(t, "the peer is cut off", sender)
		})
	}
}

func TestAbortEndsTheFlushingOfAClose(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: time.Hour})
	c, peer := harness.Open(t, l, events)
	harness.Fill(t, c, 64<<10)
	c.Close()
	c.Abort()
	c.Abort()
	harness.Expect[tcpio.Closed](t, events)
	if err := c.Err(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Err = %v, want net.ErrClosed", err)
	}
	if n := c.Buffered(); n != 0 {
		t.Errorf("%d bytes are still buffered", n)
	}
	if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer sees %v, want a reset", err)
	}
}

func TestQueuedOutputReachesASlowReaderAfterClose(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: testnet.Limit})
	c, peer := harness.Open(t, l, events)
	p := testnet.Pattern(8 << 20)
	if n, err := c.TryWrite(p); n != len(p) || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	c.Close()
	for rest := p; len(rest) > 0; { // 64 KiB every other millisecond
		n := min(len(rest), 64<<10)
		testnet.ExpectBytes(t, peer, rest[:n])
		rest = rest[n:]
		<-time.After(2 * time.Millisecond)
	}
	testnet.ExpectEOF(t, peer)
	peer.Close()
	if ev := harness.Expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
		t.Errorf("Err = %v, want nil", ev.Conn.Err())
	}
}

func TestUnreadInputDoesNotTurnTheReplyIntoAReset(t *testing.T) {
	l := harness.Stream(t, tcpio.ListenerOptions{CloseTimeout: testnet.Limit}, func(ev tcpio.Event) {
		if r, ok := ev.(tcpio.Readable); ok { // the rest of the request is never read
			if _, err := r.Conn.TryWrite(testnet.Pattern(100_000)); err != nil && !testnet.Benign(err) {
				t.Errorf("TryWrite: %v", err)
			}
			r.Conn.Close()
		}
	})
	for range 10 {
		peer := testnet.Dial(t, l)
		wrote := make(chan error, 1)
		go func() { // still sending while the server replies and closes
			_, err := peer.Write(make([]byte, 4<<20))
			wrote <- err
		}()
		testnet.ExpectBytes(t, peer, testnet.Pattern(100_000))
		testnet.ExpectEOF(t, peer)
		if err := testnet.Await(t, "the end of the peer's write", wrote); err != nil {
			t.Errorf("the peer's write: %v", err)
		}
		peer.Close()
	}
}
