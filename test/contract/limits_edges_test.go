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

// The peer has sent in time; that the consumer, or the loop, does not come to it is not the peer's fault.
func TestReadTimeoutDoesNotCountInputThatWaitsForItsReader(t *testing.T) {
	t.Parallel()
	const limit = 100 * time.Millisecond
	three := func(data []byte, _ bool) (int, []byte, error) {
		if len(data) < 3 {
			return 0, nil, nil
		}
		return 3, data[:3], nil
	}
	l := harness.Listen(t, tcpio.ListenerOptions{ReadTimeout: limit})
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "a") // before anything is accepted, so that it cannot be late
	events := l.Events()
	served := harness.Go(t.Context(), l)
	c := harness.Expect[tcpio.Opened](t, events).Conn
	harness.Expect[tcpio.Readable](t, events)
	harness.ExpectSilence(t, events, 3*limit) // the first byte
	frames := func() (got string) {
		for f, err := range c.Frames(three) {
			if err != nil {
				t.Fatal(err)
			}
			got += string(f)
		}
		return got
	}
	if got := frames(); got != "" {
		t.Fatalf("a frame %q of one byte", got)
	}
	testnet.Send(t, peer, "bc")
	harness.Expect[tcpio.Readable](t, events)
	harness.ExpectSilence(t, events, 3*limit) // a frame that has been begun
	if got := frames(); got != "abc" {
		t.Fatalf("the frame is %q", got)
	}
	go func() {
		for range events {
		}
	}()
	l.Close()
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
}

// Urgent data makes a Readable with nothing to read. It does not put the limit off for ever.
func TestReadTimeoutEndsAPeerThatHasSentUrgentDataOnly(t *testing.T) {
	t.Parallel()
	s := serveLimited(t, tcpio.ListenerOptions{ReadTimeout: 50 * time.Millisecond}, readAll)
	rc, err := s.dial(t).(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Control(func(fd uintptr) { err = syscall.Sendto(int(fd), []byte("!"), syscall.MSG_OOB, nil) }); err != nil {
		t.Fatal(err)
	}
	s.nextLimit(t, "read")
}

// A process that was stopped, or a loop that was held up, finds limits and bytes at once. More bytes than one poll finds
// have then arrived on connections that seem to have been idle.
func TestALoopThatWasHeldUpLooksAtTheBytesBeforeTheLimit(t *testing.T) {
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
	testnet.WaitFor(t, "all connections", func() bool { return l.Len() == n })
	hold.Store(true)
	testnet.Dial(t, l)
	testnet.Await(t, "the hold-up", held)
	late := time.Since(began) > limit*9/10
	for _, p := range peers {
		testnet.Send(t, p, "x")
	}
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
				l.Streams()
				return nil
			}
		},
		"an actor that blocks": func(t *testing.T, o *tcpio.ListenerOptions) func(*tcpio.Listener) *tcpio.Conn {
			over := make(chan struct{})
			t.Cleanup(func() { close(over) })
			o.Actor = func(*tcpio.Conn) tcpio.Actor {
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
		"read": {ReadTimeout: 50 * time.Millisecond},
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
				var limit *tcpio.LimitError
				if c != nil && (!errors.As(c.Err(), &limit) || limit.Limit != name || !errors.Is(c.Err(), os.ErrDeadlineExceeded)) {
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
		IdleTimeout: time.Hour, ReadTimeout: time.Hour, WriteTimeout: time.Hour, UserTimeout: time.Hour,
	})
	harness.Open(t, l, events) // the loop's goroutines are there
	before := runtime.NumGoroutine()
	for range n {
		harness.Open(t, l, events)
	}
	testnet.WaitFor(t, "no goroutine more", func() bool { return runtime.NumGoroutine() <= before })
}

// One address that is over its bound does not use up what others may have.
func TestMaxConnsPerIPIsAskedBeforeAcceptRate(t *testing.T) {
	var asked atomic.Int64
	s := serveLimited(t, tcpio.ListenerOptions{
		MaxConnsPerIP: 1,
		AcceptRate:    allow(func() bool { return asked.Add(1) != 2 }),
	}, readAll)
	first := s.dial(t)
	echoed(t, first)
	for range 5 {
		refused(t, s.dial(t))
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("AcceptRate was asked %d times for one connection that it could admit", n)
	}
	first.Close()
	testnet.Await(t, "the end of the first", s.closed)
	refused(t, s.dial(t)) // by the rate, which leaves the address its place
	echoed(t, s.dial(t))
	if r := s.l.Stats().Refused; r != (tcpio.RefusedStats{PerIP: 5, Rate: 1}) {
		t.Errorf("refused: %+v", r)
	}
}
