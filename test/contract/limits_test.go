//go:build linux

package contract

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// served is a listener whose closed connections come out of a channel, and whose events are
// otherwise answered by on.
type served struct {
	l      *tcpio.Listener
	closed chan *tcpio.Conn
}

func serveLimited(t *testing.T, opts tcpio.ListenerOptions, on func(tcpio.Event)) *served {
	t.Helper()
	opts.CloseTimeout = 200 * time.Millisecond // the peers here keep their end open
	s := &served{closed: make(chan *tcpio.Conn, 100)}
	s.l = harness.Stream(t, opts, func(ev tcpio.Event) {
		if on != nil {
			on(ev)
		}
		if c, ok := ev.(tcpio.Closed); ok {
			s.closed <- c.Conn
		}
	})
	return s
}

func (s *served) dial(t *testing.T) net.Conn {
	t.Helper()
	return testnet.Dial(t, s.l)
}

// nextLimit waits for a connection to end by the limit of that name.
func (s *served) nextLimit(t *testing.T, name string) {
	t.Helper()
	select {
	case c := <-s.closed:
		var limit *tcpio.TimeoutError
		if err := c.Err(); !errors.As(err, &limit) || limit.Kind.String() != name || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the connection ended with %v, want the %s limit", err, name)
		}
	case <-time.After(testnet.Limit):
		t.Fatalf("no connection ended by the %s limit", name)
	}
}

func readAll(ev tcpio.Event) {
	if r, ok := ev.(tcpio.Readable); ok {
		buf := make([]byte, 1000)
		if n, err := r.Conn.TryRead(buf); err == nil {
			_, _ = r.Conn.TryWrite(buf[:n])
		} else if !errors.Is(err, tcpio.ErrWouldBlock) {
			r.Conn.Close()
		}
	}
}

func TestIdleTimeoutClosesASilentConnection(t *testing.T) {
	t.Parallel()
	s := serveLimited(t, tcpio.ListenerOptions{IdleTimeout: 50 * time.Millisecond}, readAll)
	c := s.dial(t)
	s.nextLimit(t, "idle")
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer sees %v, want an orderly end", err)
	}
	if n := s.l.Stats().Timeouts.Idle; n != 1 {
		t.Errorf("%d idle time-outs counted, want 1", n)
	}
}

// Activity either way puts the limit off: a connection that is talked to for many times the limit
// stays.
func TestActivityPutsTheIdleTimeoutOff(t *testing.T) {
	t.Parallel()
	outlivesLimit(t, "idle", func(limit time.Duration) tcpio.ListenerOptions {
		return tcpio.ListenerOptions{IdleTimeout: limit}
	})
}

func TestSetIdleTimeoutChangesOneConnection(t *testing.T) {
	t.Parallel()
	first := true
	s := serveLimited(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) {
		readAll(ev)
		if o, ok := ev.(tcpio.Opened); ok {
			if err := o.Conn.SetIdleTimeout(-1); err == nil {
				t.Error("a negative limit was taken")
			}
			if first {
				first = false
				if err := o.Conn.SetIdleTimeout(20 * time.Millisecond); err != nil {
					t.Error(err)
				}
			}
		}
	})
	c1, c2 := s.dial(t), s.dial(t)
	s.nextLimit(t, "idle")
	alive := 0
	for _, c := range []net.Conn{c1, c2} {
		_, _ = c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
			alive++
		}
	}
	if alive != 1 {
		t.Errorf("%d connections live on, want 1", alive)
	}
}

func TestReadStallTimeoutEndsAPeerThatNeverBegins(t *testing.T) {
	t.Parallel()
	s := serveLimited(t, tcpio.ListenerOptions{ReadStallTimeout: 50 * time.Millisecond}, readAll)
	s.dial(t)
	s.nextLimit(t, "read")
}

func TestReadStallTimeoutEndsAnUnfinishedFrame(t *testing.T) {
	t.Parallel()
	split := func(data []byte, atEOF bool) (int, []byte, error) {
		if len(data) < 4 {
			return 0, nil, nil
		}
		return 4, data[:4], nil
	}
	for _, tc := range []struct{ first, frame, rest string }{
		{"wholeha", "whol", ""},
		{"four", "four", "ha"}, // between frames there is no limit
	} {
		l := harness.Listen(t, tcpio.ListenerOptions{ReadStallTimeout: 100 * time.Millisecond, CloseTimeout: 100 * time.Millisecond})
		frames, closed := make(chan string, 10), make(chan *tcpio.Conn, 1)
		events := l.Events()
		go func() {
			for ev := range events {
				switch ev := ev.(type) {
				case tcpio.Readable:
					for frame, err := range ev.Conn.Frames(split) {
						if err != nil {
							break
						}
						frames <- string(frame)
					}
				case tcpio.Closed:
					closed <- ev.Conn
				}
			}
		}()
		peer := testnet.Dial(t, l)
		testnet.Send(t, peer, tc.first) // before anything is accepted, so that it cannot be late
		harness.Start(t, l)
		if f := testnet.Receive(t, "the frame", frames); f != tc.frame {
			t.Errorf("the first frame is %q", f)
		}
		if tc.rest != "" {
			select {
			case c := <-closed:
				t.Fatalf("a connection between two frames ended: %v", c.Err())
			case <-time.After(300 * time.Millisecond):
			}
			testnet.Send(t, peer, tc.rest)
		}
		if c := testnet.Receive(t, "Closed", closed); !limitIs("read")(c.Err()) {
			t.Errorf("%q: the connection ended with %v", tc.first, c.Err())
		}
	}
}

func TestWriteStallTimeoutAbortsOutputThatDoesNotMove(t *testing.T) {
	t.Parallel()
	s := serveLimited(t, tcpio.ListenerOptions{WriteStallTimeout: 100 * time.Millisecond, WriteBuffer: 32 << 20}, func(ev tcpio.Event) {
		if o, ok := ev.(tcpio.Opened); ok {
			if _, err := o.Conn.TryWrite(make([]byte, 30<<20)); err != nil && !errors.Is(err, net.ErrClosed) { // cut off already: the machine is slow
				t.Error(err)
			}
		}
	})
	c := s.dial(t)
	s.nextLimit(t, "write")
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer sees %v, want a reset", err)
	}
	if q := s.l.Stats().Buffered; q != 0 {
		t.Errorf("%d bytes are still counted as queued", q)
	}
}

func TestTCPUserTimeoutIsInherited(t *testing.T) {
	got := make(chan int, 1)
	s := serveLimited(t, tcpio.ListenerOptions{TCPUserTimeout: 12345 * time.Millisecond}, func(ev tcpio.Event) {
		if o, ok := ev.(tcpio.Opened); ok {
			raw, err := o.Conn.SyscallConn()
			if err != nil {
				t.Error(err)
				return
			}
			_ = raw.Control(func(fd uintptr) {
				const tcpTCPUserTimeout = 18 // tcp(7)
				v, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpTCPUserTimeout)
				if err != nil {
					t.Error(err)
				}
				got <- v
			})
		}
	})
	s.dial(t)
	if v := <-got; v != 12345 {
		t.Errorf("TCP_USER_TIMEOUT is %d ms, want 12345", v)
	}
}

func echoed(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatalf("not served: %v", err)
	}
}

// The peer has sent in time; that the consumer, or the loop, does not come to it is not the peer's
// fault.
func TestReadStallTimeoutDoesNotCountInputThatWaitsForItsReader(t *testing.T) {
	t.Parallel()
	for limit := 500 * time.Millisecond; limit < testnet.Limit; limit *= 2 {
		if readStallLeavesTheReaderItsTime(t, limit) {
			return
		}
	}
	t.Fatal("this machine stood still for longer than every limit")
}

// readStallLeavesTheReaderItsTime returns false if the peer was late, since the test itself was
// held up for as long as the limit, which proves nothing.
func readStallLeavesTheReaderItsTime(t *testing.T, limit time.Duration) (proven bool) {
	three := func(data []byte, _ bool) (int, []byte, error) {
		if len(data) < 3 {
			return 0, nil, nil
		}
		return 3, data[:3], nil
	}
	l := harness.Listen(t, tcpio.ListenerOptions{ReadStallTimeout: limit})
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "a") // before anything is accepted, so that it cannot be late
	events := l.Events()
	served := harness.Go(t.Context(), l)
	defer func() {
		go l.Close()
		for range events {
		}
		if err := testnet.Await(t, "the end of Serve", served); err != nil {
			t.Error(err)
		}
	}()
	c := harness.Expect[tcpio.Opened](t, events).Conn
	harness.Expect[tcpio.Readable](t, events)
	harness.ExpectSilence(t, events, 3*limit/2) // the first byte
	frames := func() (got string) {
		for f, err := range c.Frames(three) {
			if err != nil {
				t.Fatal(err)
			}
			got += string(f)
		}
		return got
	}
	began := time.Now() // before the limit begins
	if got := frames(); got != "" {
		t.Fatalf("a frame %q of one byte", got)
	}
	_, err := io.WriteString(peer, "bc")
	if time.Since(began) > limit*9/10 {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	harness.Expect[tcpio.Readable](t, events)
	harness.ExpectSilence(t, events, 3*limit/2) // a frame that has been begun
	if got := frames(); got != "abc" {
		t.Fatalf("the frame is %q", got)
	}
	return true
}

// Urgent data makes a Readable with nothing to read. It does not put the limit off for ever.
func TestReadStallTimeoutEndsAPeerThatHasSentUrgentDataOnly(t *testing.T) {
	t.Parallel()
	s := serveLimited(t, tcpio.ListenerOptions{ReadStallTimeout: 50 * time.Millisecond}, readAll)
	rc, err := s.dial(t).(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Control(func(fd uintptr) { err = syscall.Sendto(int(fd), []byte("!"), syscall.MSG_OOB, nil) }); err != nil {
		t.Fatal(err)
	}
	s.nextLimit(t, "read")
}

// A process that was stopped, or a loop that was held up, finds limits and bytes at once. More
// bytes than one poll finds have then arrived on connections that seem to have been idle.
func TestLoopThatWasHeldUpLooksAtTheBytesBeforeTheLimit(t *testing.T) {
	t.Parallel()
	const (
		limit = time.Second
		n     = 400 // one poll takes 256
	)
	held, release := make(chan struct{}), make(chan struct{})
	var hold atomic.Bool
	l := harness.Stream(t, tcpio.ListenerOptions{IdleTimeout: limit, Admit: func(netip.AddrPort) error {
		if hold.Load() {
			close(held)
			<-release
			return errors.New("that was all it was for")
		}
		return nil
	}}, readAll)
	began := time.Now()
	var peers []net.Conn
	for range n {
		peers = append(peers, testnet.Dial(t, l))
	}
	testnet.WaitFor(t, "all connections", func() bool { return l.Stats().Accepted == n })
	hold.Store(true)
	testnet.Dial(t, l)
	testnet.Await(t, "the hold-up", held)
	for _, p := range peers {
		_, _ = p.Write([]byte("x")) // one that was closed is lost
	}
	late := time.Since(began) > limit*9/10
	time.Sleep(limit + limit/10)
	released := time.Now()
	hold.Store(false)
	close(release)
	lost := 0
	for _, p := range peers {
		if _, err := io.ReadFull(p, make([]byte, 1)); err != nil {
			lost++
		}
	}
	if late || time.Since(released) > limit*9/10 {
		t.Skip("the machine was busy: the limit was reached while nothing was held up")
	}
	if lost > 0 {
		t.Errorf("%d of %d connections were closed as idle with a request in the socket", lost, n)
	}
}

// A limit ends a connection wherever its events go, and needs nobody to receive them.
func TestTimeLimitsHoldOnEveryRoute(t *testing.T) {
	t.Parallel()
	routes := map[string]func(*testing.T, *tcpio.ListenerOptions) func(*tcpio.Listener) *tcpio.Conn{
		"a stream that nobody receives from": func(_ *testing.T, o *tcpio.ListenerOptions) func(*tcpio.Listener) *tcpio.Conn {
			o.EventBuffer = 1
			return func(l *tcpio.Listener) *tcpio.Conn {
				l.Events()
				return nil
			}
		},
		"streams": func(_ *testing.T, o *tcpio.ListenerOptions) func(*tcpio.Listener) *tcpio.Conn {
			o.EventBuffer = 1
			return func(l *tcpio.Listener) *tcpio.Conn {
				l.EventsPerLoop()
				return nil
			}
		},
		"an actor that blocks": func(t *testing.T, o *tcpio.ListenerOptions) func(*tcpio.Listener) *tcpio.Conn {
			over := make(chan struct{})
			t.Cleanup(func() { close(over) })
			o.NewActor = func(*tcpio.Conn) tcpio.Actor {
				return tcpio.ActorFunc(func(tcpio.Event) error { <-over; return nil })
			}
			return func(*tcpio.Listener) *tcpio.Conn { return nil }
		},
		"callbacks": func(_ *testing.T, o *tcpio.ListenerOptions) func(*tcpio.Listener) *tcpio.Conn {
			o.OnConnEvent = func(net.Conn) error { return nil }
			return func(*tcpio.Listener) *tcpio.Conn { return nil }
		},
		"a claimed channel": func(_ *testing.T, _ *tcpio.ListenerOptions) func(*tcpio.Listener) *tcpio.Conn {
			return func(l *tcpio.Listener) *tcpio.Conn {
				c := (<-l.Events()).(tcpio.Opened).Conn
				c.Events()
				return c
			}
		},
		"a NetListener": func(_ *testing.T, _ *tcpio.ListenerOptions) func(*tcpio.Listener) *tcpio.Conn {
			return func(l *tcpio.Listener) *tcpio.Conn {
				nc, err := l.NetListener().Accept()
				if err != nil {
					return nil
				}
				return nc.(*tcpio.Conn)
			}
		},
		"a NetListener, before the first byte": func(_ *testing.T, o *tcpio.ListenerOptions) func(*tcpio.Listener) *tcpio.Conn {
			o.DeferAccept = true
			return func(l *tcpio.Listener) *tcpio.Conn {
				l.NetListener()
				return nil
			}
		},
	}
	limits := map[string]tcpio.ListenerOptions{
		"idle": {IdleTimeout: 50 * time.Millisecond},
		"read": {ReadStallTimeout: 50 * time.Millisecond},
	}
	for route, prepare := range routes {
		for name, opts := range limits {
			t.Run(route+"/"+name, func(t *testing.T) {
				opts.CloseTimeout = 50 * time.Millisecond
				start := prepare(t, &opts)
				l := harness.Listen(t, opts)
				served := harness.Go(t.Context(), l)
				var conns []net.Conn
				for range 3 {
					conns = append(conns, testnet.Dial(t, l))
				}
				c := start(l)
				for _, p := range conns {
					testnet.ExpectEOF(t, p)
					p.Close()
				}
				testnet.WaitFor(t, "no connection", func() bool { return l.Len() == 0 })
				if st := l.Stats().Timeouts; st.Idle+st.Read != 3 || (name == "idle") != (st.Idle == 3) {
					t.Errorf("%+v were counted for the %s limit", st, name)
				}
				var limit *tcpio.TimeoutError
				if c != nil && (!errors.As(c.Err(), &limit) || limit.Kind.String() != name || !errors.Is(c.Err(), os.ErrDeadlineExceeded)) {
					t.Errorf("Err is %v, want the %s limit", c.Err(), name)
				}
				l.Close()
				testnet.Await(t, "the end of Serve", served)
			})
		}
	}
}

func TestTimeLimitsCostNoGoroutine(t *testing.T) {
	const n = 500
	l, events := harness.Manual(t, tcpio.ListenerOptions{
		IdleTimeout: time.Hour, ReadStallTimeout: time.Hour, WriteStallTimeout: time.Hour, TCPUserTimeout: time.Hour,
	})
	before := harness.Goroutines(t, l)
	for range n {
		harness.Open(t, l, events)
	}
	testnet.WaitFor(t, "no goroutine more", func() bool { return runtime.NumGoroutine() <= before })
}
