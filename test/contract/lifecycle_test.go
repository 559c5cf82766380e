//go:build linux

package contract

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
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
	streams := l.Streams()
	l.Close()
	for _, s := range streams {
		testnet.AwaitClosed(t, "the stream", s)
	}

	l = harness.Listen(t, tcpio.ListenerOptions{})
	l.Close()
	testnet.AwaitClosed(t, "the stream", l.Events()) // asked for afterwards
	l = harness.Listen(t, tcpio.ListenerOptions{})
	l.Close()
	for _, s := range l.Streams() {
		testnet.AwaitClosed(t, "the stream", s)
	}
}

func TestServeReturnsNilWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	l := harness.Listen(t, tcpio.ListenerOptions{})
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
	if err := harness.Expect[tcpio.Closed](t, events).Conn.Err(); err != nil {
		t.Errorf("Err = %v, want nil: the end of ctx is a Shutdown", err)
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

func TestTheConsumersOwnGoroutineMayStop(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(l *tcpio.Listener) error{
		"Shutdown": func(l *tcpio.Listener) error { return l.Shutdown(context.Background()) },
		"Close":    (*tcpio.Listener).Close,
	} {
		t.Run(name, func(t *testing.T) {
			// The stream is full, and its only receiver is inside the call.
			l := harness.Listen(t, tcpio.ListenerOptions{EventBuffer: 1})
			events := l.Events()
			served := harness.Go(t.Context(), l)
			var peers []net.Conn
			for range 8 {
				peers = append(peers, testnet.Dial(t, l))
			}
			testnet.WaitFor(t, "a full stream", func() bool { return l.Len() > 1 && len(events) == 1 })
			for _, peer := range peers {
				go func() {
					io.Copy(io.Discard, peer)
					peer.Close()
				}()
			}
			stopped := make(chan error, 1)
			go func() { // this goroutine is the consumer
				stopped <- stop(l)
			}()
			if err := testnet.Await(t, "the end of "+name, stopped); err != nil {
				t.Error(err)
			}
			if n := l.Len(); n != 0 {
				t.Errorf("%s returned with %d descriptors", name, n)
			}
			var order harness.Order
			for ev := range events {
				if err := order.Check(ev); err != nil {
					t.Error(err)
				}
			}
			if len(order.Open) != 0 || order.Seen == 0 {
				t.Errorf("%d connections opened, %d of them not closed", order.Seen, len(order.Open))
			}
			if err := testnet.Await(t, "the end of Serve", served); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestShutdownCutsOffWhatIsLeftWhenItsContextEnds(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: time.Hour})
	c, _ := harness.Open(t, l, events)
	if _, err := c.TryWrite(make([]byte, 12<<20)); err != nil { // the peer does not read
		t.Fatal(err)
	}
	quiet, _ := harness.Open(t, l, events) // nothing is left to flush, but the peer does not end
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.Shutdown(ctx); err != context.DeadlineExceeded {
		t.Errorf("Shutdown = %v, want ctx's error", err)
	}
	if n := l.Len(); n != 0 {
		t.Errorf("Shutdown returned with %d descriptors", n)
	}
	for range 2 {
		harness.Expect[tcpio.Draining](t, events)
	}
	for range 2 {
		harness.Expect[tcpio.Closed](t, events)
	}
	if err := c.Err(); err != tcpio.ErrCloseTimeout {
		t.Errorf("Err with output left = %v, want ErrCloseTimeout", err)
	}
	if err := quiet.Err(); err != nil {
		t.Errorf("Err with nothing left = %v, want nil", err)
	}
}

func TestShutdownWaitsForWhatIsQueued(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	p := testnet.Pattern(12 << 20)
	if _, err := c.TryWrite(p); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(testnet.Context(t)) }()
	testnet.ExpectBytes(t, peer, p)
	testnet.ExpectEOF(t, peer)
	peer.Close()
	if err := testnet.Await(t, "the end of Shutdown", done); err != nil {
		t.Error(err)
	}
}

func TestAConsumerThatLeftDoesNotKeepServeFromReturning(t *testing.T) {
	t.Parallel()
	l := harness.Listen(t, tcpio.ListenerOptions{EventBuffer: 1, CloseTimeout: 100 * time.Millisecond})
	events := l.Events()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := harness.Go(ctx, l)
	for range 5 {
		testnet.Send(t, testnet.Dial(t, l), "x")
	}
	testnet.WaitFor(t, "a full stream", func() bool { return l.Len() > 0 && len(events) == 1 })
	cancel() // nobody receives any more
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Errorf("Serve = %v", err)
	}
	if n := l.Len(); n != 0 {
		t.Errorf("%d descriptors left", n)
	}
	for range events { // closed, behind at most what it holds
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

func TestEventsAndStreamsExcludeEachOther(t *testing.T) {
	panics := func(name string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s did not panic", name)
			}
		}()
		f()
	}
	l := harness.Listen(t, tcpio.ListenerOptions{})
	l.Events()
	panics("Streams after Events", func() { l.Streams() })
	l = harness.Listen(t, tcpio.ListenerOptions{})
	l.Streams()
	l.Streams()
	panics("Events after Streams", func() { l.Events() })
}

func TestStreamsSpreadTheConnectionsEvenly(t *testing.T) {
	const loops, each = 4, 10
	l := harness.Listen(t, tcpio.ListenerOptions{Loops: loops})
	streams := l.Streams()
	if len(streams) != loops {
		t.Fatalf("%d streams, want %d", len(streams), loops)
	}
	served := harness.Go(t.Context(), l)
	var peers []net.Conn
	for range loops * each {
		peers = append(peers, testnet.Dial(t, l))
	}
	opened := make([]int, loops)
	var wg sync.WaitGroup
	for i, stream := range streams {
		handle := harness.Echo(t)
		wg.Go(func() {
			var order harness.Order // a connection stays where it is
			for ev := range stream {
				if err := order.Check(ev); err != nil {
					t.Errorf("stream %d: %v", i, err)
				}
				handle(ev)
			}
			opened[i] = order.Seen
		})
	}
	for _, peer := range peers {
		testnet.Ping(t, peer, testnet.Pattern(1000))
	}
	for _, peer := range peers {
		peer.Close()
	}
	if err := l.Shutdown(testnet.Context(t)); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
	for i, n := range opened {
		if n != each {
			t.Errorf("stream %d had %d connections, want %d", i, n, each)
		}
	}
}
