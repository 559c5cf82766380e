//go:build linux

package contract

import (
	"context"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// What Shutdown tells connections, and what they may still do.

// An hour stands for "never" here: what the library did by itself after it would fail the test by its deadline.
const drainNever = time.Hour

func TestShutdownTellsTheStream(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{DrainTimeout: drainNever})
	c, peer := harness.Open(t, l, events)
	closing, late := harness.Open(t, l, events)
	closing.Close() // knows already; its peer keeps it from ending
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

// A stream has 250 ms without an option: a request that is under way is answered, then the library closes.
func TestShutdownLetsAStreamAnswerAndThenCloses(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(testnet.Context(t)) }()
	harness.Expect[tcpio.Draining](t, events)
	if _, err := c.TryWrite([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, peer, "answer")
	testnet.ExpectEOF(t, peer) // nobody here called Close
	peer.Close()
	harness.Expect[tcpio.Closed](t, events)
	if err := testnet.Await(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
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
	if err := testnet.Await(t, "the end of Shutdown", done); err != nil || c.Err() != nil {
		t.Errorf("Shutdown = %v, Err = %v", err, c.Err())
	}
}

// An actor's handler that blocks when Shutdown begins finishes: its answer goes out, then it is told, and the
// connection closes behind that.
func TestShutdownWaitsForABlockedHandler(t *testing.T) {
	t.Parallel()
	inside, release := make(chan struct{}), make(chan struct{})
	l := harness.Serve(t, tcpio.ListenerOptions{CloseTimeout: drainNever, Actor: func(*tcpio.Conn) tcpio.Actor {
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
func TestAnActorMayFinishLater(t *testing.T) {
	l := harness.Serve(t, tcpio.ListenerOptions{DrainTimeout: drainNever, Actor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
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
	testnet.WaitFor(t, "the connection", func() bool { return l.Len() == 1 })
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
