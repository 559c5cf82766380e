//go:build linux

package contract

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestConsumersOwnGoroutineMayStop(t *testing.T) {
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
	l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: drainNever, DrainTimeout: drainNever})
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
	if err := quiet.Err(); err != tcpio.ErrDrainTimeout {
		t.Errorf("Err with nothing left = %v, want ErrDrainTimeout", err)
	}
	if s := l.Stats().Timeouts; s.Close != 1 || s.Drain != 1 {
		t.Errorf("Stats count %d and %d, want one each", s.Close, s.Drain)
	}
}

func TestShutdownWaitsForWhatIsQueued(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: testnet.Limit})
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

func TestConsumerThatLeftDoesNotKeepServeFromReturning(t *testing.T) {
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

func TestStopsFromSeveralSidesAtOnceAllReturn(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 2, CloseTimeout: time.Hour})
	c, _ := harness.Open(t, l, events)
	harness.Fill(t, c, 64<<10) // Shutdown alone would wait for its peer
	for range 5 {
		harness.Open(t, l, events)
	}
	stopped := make(chan error)
	for range 3 {
		go func() { stopped <- l.Shutdown(testnet.Context(t)) }()
		go func() { stopped <- l.Close() }()
	}
	for range 6 {
		if err := testnet.Await(t, "the end of a stop", stopped); err != nil {
			t.Error(err)
		}
	}
	if n := l.Len(); n != 0 {
		t.Errorf("%d descriptors left", n)
	}
	if err := l.Shutdown(testnet.Context(t)); err != nil {
		t.Errorf("Shutdown after the end: %v", err)
	}
}

// What the kernel has accepted is opened and closed in order, not reset.
func TestShutdownOpensWhatWaitsInTheBacklog(t *testing.T) {
	t.Parallel()
	const n = 12
	l := harness.Listen(t, tcpio.ListenerOptions{EventBuffer: 1, CloseTimeout: testnet.Limit})
	events := l.Events()
	served := harness.Go(t.Context(), l)
	var peers []net.Conn
	for i := range n {
		if i == 1 { // the first one's Opened fills the stream, so the others stay in the backlog
			testnet.WaitFor(t, "its Readable waits for room", func() bool { return l.Stats().Events == 2 })
		}
		p := testnet.Dial(t, l)
		testnet.Send(t, p, "hello")
		peers = append(peers, p)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- l.Shutdown(testnet.Context(t)) }()
	var order harness.Order
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		for ev := range events {
			if err := order.Check(ev); err != nil {
				t.Error(err)
			}
		}
	}()
	for _, p := range peers {
		testnet.ExpectEOF(t, p)
		p.Close()
	}
	if err := testnet.Await(t, "the end of Shutdown", stopped); err != nil {
		t.Error(err)
	}
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
	testnet.Await(t, "the end of the stream", counted)
	if order.Seen != n || len(order.Open) != 0 {
		t.Errorf("%d connections opened, %d of them not closed, want %d and 0", order.Seen, len(order.Open), n)
	}
}

// What Shutdown tells connections, and what they may still do.

// An hour stands for "never" here: what the library did by itself after it would fail the test by
// its deadline.
const drainNever = time.Hour

func TestShutdownTellsTheStream(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{DrainTimeout: drainNever, CloseTimeout: drainNever})
	c, peer := harness.Open(t, l, events)
	closing, late := harness.Open(t, l, events)
	harness.Fill(t, closing, 64<<10)
	closing.Close() // knows already; its peer, which does not read, keeps it from ending
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(testnet.Context(t)) }()
	if ev := harness.Expect[tcpio.Draining](t, events); ev.Conn != c {
		t.Fatal("Draining of a connection that is closing")
	}
	// Everything works as before: a request is answered, and a goodbye said.
	testnet.Send(t, peer, "request")
	got, err := harness.ReadStream(t, events, c, len("request"), 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.TryWrite(append(got, " answered, goodbye"...)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	testnet.ExpectBytes(t, peer, "request answered, goodbye")
	testnet.ExpectEOF(t, peer)
	peer.Close()
	late.Close()
	for range 2 {
		harness.Expect[tcpio.Closed](t, events)
	}
	if err := testnet.Await(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

func TestShutdownTellsAClaimedConnection(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{DrainTimeout: drainNever})
	c, peer := harness.Open(t, l, events)
	mailbox := c.Events()
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(testnet.Context(t)) }()
	harness.Expect[tcpio.Draining](t, mailbox)
	if _, err := c.TryWrite([]byte("goodbye")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	testnet.ExpectBytes(t, peer, "goodbye")
	peer.Close()
	harness.Expect[tcpio.Closed](t, mailbox)
	if err := testnet.Await(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

// A stream has 250 ms without an option: a request that is under way is answered, then the library
// closes.
func TestShutdownLetsAStreamAnswerAndThenCloses(t *testing.T) {
	t.Parallel()
	for range 20 {
		if answersAtDraining(t) {
			return
		}
	}
	t.Fatal("this machine stood still in every quarter of a second")
}

// answersAtDraining returns false if the answer was late, since the test itself was held up for as
// long as the stream has, which proves nothing.
func answersAtDraining(t *testing.T) (proven bool) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	began := time.Now()
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(testnet.Context(t)) }()
	harness.Expect[tcpio.Draining](t, events)
	_, err := c.TryWrite([]byte("answer"))
	if time.Since(began) > 200*time.Millisecond {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, peer, "answer")
	testnet.ExpectEOF(t, peer) // nobody here called Close
	peer.Close()
	harness.Expect[tcpio.Closed](t, events)
	if err := testnet.Await(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
	return true
}

func TestDrainTimeoutEndsTheWaiting(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{DrainTimeout: time.Millisecond})
	c, peer := harness.Open(t, l, events)
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(testnet.Context(t)) }()
	harness.Expect[tcpio.Draining](t, events)
	testnet.ExpectEOF(t, peer)
	peer.Close()
	harness.Expect[tcpio.Closed](t, events)
	if err := testnet.Await(t, "the end of Shutdown", done); err != nil || c.Err() != tcpio.ErrDrainTimeout {
		t.Errorf("Shutdown = %v, Err = %v", err, c.Err())
	}
}

// An actor's handler that blocks when Shutdown begins finishes: its answer goes out, then it is
// told, and the connection closes behind that.
func TestShutdownWaitsForABlockedHandler(t *testing.T) {
	t.Parallel()
	inside, release := make(chan struct{}), make(chan struct{})
	l := harness.Serve(t, tcpio.ListenerOptions{CloseTimeout: drainNever, NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Readable:
				var buf [100]byte
				n, err := ev.Conn.TryRead(buf[:])
				if err != nil {
					return nil
				}
				close(inside)
				<-release
				_, err = ev.Conn.TryWrite(append(buf[:n], " answered"...))
				return err
			case tcpio.Draining:
				_, err := ev.Conn.TryWrite([]byte(", goodbye"))
				return err
			}
			return nil
		})
	}})
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "request")
	testnet.Await(t, "the handler", inside)
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(testnet.Context(t)) }()
	// Longer than what a stream's consumer has; the answer must still be taken.
	select {
	case err := <-done:
		t.Fatalf("Shutdown = %v, while a handler runs", err)
	case <-time.After(400 * time.Millisecond):
	}
	close(release)
	testnet.ExpectBytes(t, peer, "request answered, goodbye")
	testnet.ExpectEOF(t, peer)
	peer.Close()
	if err := testnet.Await(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

// With DrainTimeout an actor's connection stays open until somebody closes it.
func TestActorMayFinishLater(t *testing.T) {
	opened := make(chan struct{})
	l := harness.Serve(t, tcpio.ListenerOptions{DrainTimeout: drainNever, NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Opened:
				close(opened)
			case tcpio.Draining:
				ev.Conn.After(10*time.Millisecond, "done")
			case tcpio.Message:
				if _, err := ev.Conn.TryWrite([]byte("goodbye")); err != nil {
					return err
				}
				ev.Conn.Close()
			}
			return nil
		})
	}})
	peer := testnet.Dial(t, l)
	testnet.AwaitClosed(t, "Opened", opened) // before it, Shutdown would close it at once
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(testnet.Context(t)) }()
	testnet.ExpectBytes(t, peer, "goodbye")
	testnet.ExpectEOF(t, peer)
	peer.Close()
	if err := testnet.Await(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

// Close beside a Shutdown that waits ends it at once.
func TestCloseEndsADrain(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{DrainTimeout: drainNever})
	harness.Open(t, l, events)
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(context.Background()) }()
	harness.Expect[tcpio.Draining](t, events)
	l.Close()
	harness.Expect[tcpio.Closed](t, events)
	if err := testnet.Await(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

// To see it fail: let announceDrainingLocked leave c.phase alone.
func TestDrainingComesOnceHoweverOftenShutdownIsCalled(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 1, DrainTimeout: 2 * testnet.Limit})
	harness.Open(t, l, events)
	done := make(chan error, 2)
	go func() { done <- l.Shutdown(context.Background()) }()
	harness.Expect[tcpio.Draining](t, events)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- l.Shutdown(ctx) }()
	cancel() // by then every connection has got it
	testnet.Receive(t, "the end of Shutdown", done)
	harness.Expect[tcpio.Closed](t, events)
	testnet.Receive(t, "the end of Shutdown", done)
}
