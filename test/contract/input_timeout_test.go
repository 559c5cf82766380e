//go:build linux

package contract

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// Output is no sign of life: the peer gets something all the while, and is closed all the same.
// To see it fail: consider min(in, out) in nextLimitLocked.
func TestInputTimeoutClosesAPeerThatOnlyReads(t *testing.T) {
	t.Parallel()
	const limit = 100 * time.Millisecond
	s := serveLimited(t, tcpio.ListenerOptions{InputTimeout: limit}, readAll)
	c := s.dial(t)
	stop := make(chan struct{})
	defer close(stop)
	conns := harness.Conns(t, s.l, 1)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(limit / 10):
				_, _ = conns[0].TryWrite([]byte("x"))
			}
		}
	}()
	s.nextLimit(t, "input")
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the peer sees %v, want an orderly end", err)
	}
	if n := s.l.Stats().Timeouts.Input; n != 1 {
		t.Errorf("%d input time-outs counted, want 1", n)
	}
}

func TestInputPutsTheInputTimeoutOff(t *testing.T) {
	t.Parallel()
	const limit = 400 * time.Millisecond
	s := serveLimited(t, tcpio.ListenerOptions{InputTimeout: limit}, readAll)
	c := s.dial(t)
	tick := time.NewTicker(limit / 20)
	defer tick.Stop()
	last := time.Now()
	for start := last; time.Since(start) < 3*limit; <-tick.C {
		if time.Since(last) > limit*9/10 {
			t.Skip("the machine was busy: this test's own pauses were too long")
		}
		last = time.Now()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	s.nextLimit(t, "input")
}

// Input that waits for its reader holds the limit up, and behind the peer's end there is none.
func TestInputTimeoutDoesNotCountWhatIsNotThePeersFault(t *testing.T) {
	t.Parallel()
	const limit = 30 * time.Millisecond
	l, events := harness.Manual(t, tcpio.ListenerOptions{InputTimeout: limit})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "x")
	harness.Expect[tcpio.Readable](t, events)
	time.Sleep(5 * limit) // nobody reads
	var p [10]byte
	if n, err := c.TryRead(p[:]); n != 1 {
		t.Fatalf("%d, %v", n, err)
	}
	testnet.FIN(t, peer)
	harness.Expect[tcpio.Readable](t, events)
	if _, err := c.TryRead(p[:]); err != io.EOF {
		t.Fatal(err)
	}
	time.Sleep(5 * limit)
	if _, err := c.TryWrite([]byte("answer")); err != nil {
		t.Errorf("behind the peer's end: %v", err)
	}
	c.Close()
	if ev := harness.Expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
		t.Errorf("Err: %v", ev.Conn.Err())
	}
}

func TestSetInputTimeoutChangesOneConnection(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	other, _ := harness.Open(t, l, events)
	for _, d := range []time.Duration{-1, 21 * 24 * time.Hour} {
		if err := c.SetInputTimeout(d); err == nil {
			t.Errorf("%v is taken", d)
		}
	}
	if err := c.SetInputTimeout(20 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	ev := harness.Expect[tcpio.Closed](t, events)
	var limit *tcpio.TimeoutError
	ok := errors.As(ev.Conn.Err(), &limit)
	if ev.Conn != c || !ok || limit.Kind.String() != "input" || limit.After != 20*time.Millisecond {
		t.Errorf("%v: %v", ev.Conn, ev.Conn.Err())
	}
	if err := c.SetInputTimeout(time.Hour); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := other.TryWrite([]byte("x")); err != nil {
		t.Errorf("the other connection: %v", err)
	}
}

func TestSetInputTimeoutOfZeroLiftsTheListeners(t *testing.T) {
	t.Parallel()
	const limit = 300 * time.Millisecond
	l, events := harness.Manual(t, tcpio.ListenerOptions{InputTimeout: limit})
	c, _ := harness.Open(t, l, events)
	if err := c.SetInputTimeout(0); err != nil {
		t.Fatal(err)
	}
	harness.ExpectSilence(t, events, 3*limit/2)
}
