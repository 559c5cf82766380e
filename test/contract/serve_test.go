//go:build linux

package contract

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestServeMayStartBeforeTheConsumer(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{})
	served := harness.Go(t.Context(), l)
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "early")
	events := l.Events()
	c := harness.Expect[tcpio.Opened](t, events).Conn
	if got, err := harness.ReadStream(t, events, c, 5, 100); string(got) != "early" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if l.Events() != events {
		t.Error("Events is another channel the second time")
	}
	l.Close()
	harness.Expect[tcpio.Closed](t, events)
	testnet.AwaitClosed(t, "the stream", events)
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestPeersWaitInTheBacklogBeforeServe(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{})
	events := l.Events()
	const n = 20
	peers := make([]net.Conn, n)
	for i := range peers {
		peers[i] = testnet.Dial(t, l)
		testnet.Send(t, peers[i], []byte{byte(i)})
	}
	harness.ExpectSilence(t, events, 20*time.Millisecond)
	if l.Len() != 0 {
		t.Errorf("Len = %d before Serve", l.Len())
	}
	harness.Go(t.Context(), l)
	handle := harness.Echo(t)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		for i, peer := range peers {
			testnet.ExpectBytes(t, peer, []byte{byte(i)})
		}
	}()
	for opened, done := 0, false; !done || opened < n; {
		select {
		case ev := <-events:
			if _, ok := ev.(tcpio.Opened); ok {
				opened++
			}
			handle(ev)
		case <-answered:
			done = true
		}
	}
}

func TestServeASecondTimeIsAnError(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	harness.Open(t, l, events) // it is serving
	if err := l.Serve(t.Context()); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve = %v", err)
	}
	harness.Open(t, l, events) // and goes on
}

func TestServeAfterCloseMatchesErrClosed(t *testing.T) {
	for name, stop := range map[string]func(l *tcpio.Listener) error{
		"Close":    (*tcpio.Listener).Close,
		"Shutdown": func(l *tcpio.Listener) error { return l.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			l := harness.Listen(t, tcpio.ListenerOptions{})
			if err := stop(l); err != nil {
				t.Fatal(err)
			}
			if err := l.Serve(t.Context()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Serve = %v, want net.ErrClosed", err)
			}
			if err := stop(l); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

func TestCloseWithoutServeClosesTheChannels(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{})
	events := l.Events()
	peer := testnet.Dial(t, l)
	addr := l.Addr().String()
	l.Close()
	testnet.AwaitClosed(t, "the stream", events)
	if _, err := peer.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the peer in the backlog read: %v", err)
	}
	if l.Addr().String() != addr {
		t.Errorf("Addr = %v after Close, was %v", l.Addr(), addr)
	}

	l = harness.Listen(t, tcpio.ListenerOptions{Loops: 3})
	streams := l.EventsPerLoop()
	l.Close()
	for _, s := range streams {
		testnet.AwaitClosed(t, "the stream", s)
	}

	l = harness.Listen(t, tcpio.ListenerOptions{})
	l.Close()
	testnet.AwaitClosed(t, "the stream", l.Events()) // asked for afterwards
	l = harness.Listen(t, tcpio.ListenerOptions{})
	l.Close()
	for _, s := range l.EventsPerLoop() {
		testnet.AwaitClosed(t, "the stream", s)
	}
}

func TestServeReturnsNilWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	l := harness.Listen(t, tcpio.ListenerOptions{Addr: testnet.FreeAddr(t)}) // nobody else takes the port
	events := l.Events()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := harness.Go(ctx, l)
	c, peer := harness.Open(t, l, events)
	if _, err := c.TryWrite([]byte("goodbye")); err != nil {
		t.Fatal(err)
	}
	cancel()
	testnet.ExpectBytes(t, peer, "goodbye")
	testnet.ExpectEOF(t, peer)
	peer.Close()
	harness.Expect[tcpio.Draining](t, events)
	if err := harness.Expect[tcpio.Closed](t, events).Conn.Err(); err != tcpio.ErrDrainTimeout {
		t.Errorf("Err = %v, want ErrDrainTimeout: the end of ctx is a Shutdown", err)
	}
	testnet.AwaitClosed(t, "the stream", events)
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("somebody listens still")
	}
}

func TestServeWithAnEndedContextReturnsNil(t *testing.T) {
	for _, consumer := range []bool{true, false} {
		l := harness.Listen(t, tcpio.ListenerOptions{})
		if consumer {
			l.Events()
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := testnet.Await(t, "the end of Serve", harness.Go(ctx, l)); err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
		testnet.AwaitClosed(t, "the stream", l.Events())
	}
}

func TestServeFitsAnErrgroup(t *testing.T) {
	before := runtime.NumGoroutine()
	l := harness.Listen(t, tcpio.ListenerOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(ctx) })
	handle := harness.Echo(t)
	g.Go(func() error {
		for ev := range l.Events() {
			handle(ev)
		}
		return nil
	})
	peer := testnet.Dial(t, l)
	testnet.Ping(t, peer, "hello")
	peer.Close()
	cancel()
	ended := make(chan error, 1)
	go func() { ended <- g.Wait() }()
	if err := testnet.Await(t, "the end of the group", ended); err != nil {
		t.Errorf("Wait = %v", err)
	}
	testnet.WaitFor(t, "no goroutine left", func() bool { return runtime.NumGoroutine() <= before })
}

func TestStatsAddUp(t *testing.T) {
	s := serveLimited(t, tcpio.ListenerOptions{Loops: 2}, readAll)
	for range 10 {
		c := s.dial(t)
		echoed(t, c)
		c.Close()
		<-s.closed
	}
	// Closed is emitted just before the last counters are.
	testnet.WaitFor(t, "the last counters", func() bool { return s.l.Len() == 0 })
	st := s.l.Stats()
	if st.Accepted != 10 || st.Closed != 10 || st.Open != 0 || st.BytesIn != 10 || st.BytesOut != 10 || len(st.Loops) != 2 {
		t.Errorf("stats: %+v", st)
	}
	var sum uint64
	for _, l := range st.Loops {
		sum += l.Events
	}
	// Opened, Readable, Readable for the end, Closed.
	if sum != st.Events || st.Events < 40 {
		t.Errorf("%d events, the loops' sum is %d", st.Events, sum)
	}
}
