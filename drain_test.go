//go:build linux

package tcpio_test

import (
	"context"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// What Shutdown tells connections, and what they may still do.

// An hour stands for "never" here: what the library did by itself after it would fail the test by its deadline.
const drainNever = time.Hour

func TestShutdownTellsTheStream(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{DrainTimeout: drainNever})
	c, peer := open(t, l, events)
	closing, late := open(t, l, events)
	closing.Close() // knows already; its peer keeps it from ending
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(contextWithLimit(t)) }()
	if ev := expect[tcpio.Draining](t, events); ev.Conn != c {
		t.Fatal("Draining of a connection that is closing")
	}
	// Everything works as before: a request is answered, and a goodbye said.
	send(t, peer, []byte("request"))
	got, err := readStream(t, events, c, len("request"), 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.TryWrite(append(got, " answered, goodbye"...)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	expectBytes(t, peer, []byte("request answered, goodbye"))
	expectEOF(t, peer)
	peer.Close()
	late.Close()
	for range 2 {
		expect[tcpio.Closed](t, events)
	}
	if err := receive(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

func TestShutdownTellsAClaimedConnection(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{DrainTimeout: drainNever})
	c, peer := open(t, l, events)
	mailbox := c.Events()
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(contextWithLimit(t)) }()
	expect[tcpio.Draining](t, mailbox)
	if _, err := c.TryWrite([]byte("goodbye")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	expectBytes(t, peer, []byte("goodbye"))
	peer.Close()
	expect[tcpio.Closed](t, mailbox)
	if err := receive(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

// A stream has 250 ms without an option: a request that is under way is answered, then the library closes.
func TestShutdownLetsAStreamAnswerAndThenCloses(t *testing.T) {
	t.Parallel()
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(contextWithLimit(t)) }()
	expect[tcpio.Draining](t, events)
	if _, err := c.TryWrite([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	expectBytes(t, peer, []byte("answer"))
	expectEOF(t, peer) // nobody here called Close
	peer.Close()
	expect[tcpio.Closed](t, events)
	if err := receive(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

func TestDrainTimeoutEndsTheWaiting(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{DrainTimeout: time.Millisecond})
	c, peer := open(t, l, events)
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(contextWithLimit(t)) }()
	expect[tcpio.Draining](t, events)
	expectEOF(t, peer)
	peer.Close()
	expect[tcpio.Closed](t, events)
	if err := receive(t, "the end of Shutdown", done); err != nil || c.Err() != nil {
		t.Errorf("Shutdown = %v, Err = %v", err, c.Err())
	}
}

// An actor's handler that blocks when Shutdown begins finishes: its answer goes out, then it is told, and the
// connection closes behind that.
func TestShutdownWaitsForABlockedHandler(t *testing.T) {
	t.Parallel()
	inside, release := make(chan struct{}), make(chan struct{})
	l := hookServe(t, tcpio.ListenerOptions{CloseTimeout: drainNever, Actor: func(*tcpio.Conn) tcpio.Actor {
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
	peer := dial(t, l)
	send(t, peer, []byte("request"))
	receive(t, "the handler", inside)
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(contextWithLimit(t)) }()
	// Longer than what a stream's consumer has; the answer must still be taken.
	select {
	case err := <-done:
		t.Fatalf("Shutdown = %v, while a handler runs", err)
	case <-time.After(400 * time.Millisecond):
	}
	close(release)
	expectBytes(t, peer, []byte("request answered, goodbye"))
	expectEOF(t, peer)
	peer.Close()
	if err := receive(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

// With DrainTimeout an actor's connection stays open until somebody closes it.
func TestAnActorMayFinishLater(t *testing.T) {
	l := hookServe(t, tcpio.ListenerOptions{DrainTimeout: drainNever, Actor: func(*tcpio.Conn) tcpio.Actor {
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
	peer := dial(t, l)
	waitFor(t, "the connection", func() bool { return l.Len() == 1 })
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(contextWithLimit(t)) }()
	expectBytes(t, peer, []byte("goodbye"))
	expectEOF(t, peer)
	peer.Close()
	if err := receive(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

// Close beside a Shutdown that waits ends it at once.
func TestCloseEndsADrain(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{DrainTimeout: drainNever})
	open(t, l, events)
	done := make(chan error, 1)
	go func() { done <- l.Shutdown(context.Background()) }()
	expect[tcpio.Draining](t, events)
	l.Close()
	expect[tcpio.Closed](t, events)
	if err := receive(t, "the end of Shutdown", done); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}
