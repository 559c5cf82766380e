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
	opened := make(chan *tcpio.Conn, 1)
	s := serveLimited(t, tcpio.ListenerOptions{InputTimeout: limit}, func(ev tcpio.Event) {
		if o, ok := ev.(tcpio.Opened); ok {
			opened <- o.Conn
		}
		readAll(ev)
	})
	c := s.dial(t)
	stop := make(chan struct{})
	defer close(stop)
	conn := testnet.Receive(t, "the connection", opened)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(limit / 10):
				_, _ = conn.TryWrite([]byte("x"))
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
	outlivesLimit(t, "input", func(limit time.Duration) tcpio.ListenerOptions {
		return tcpio.ListenerOptions{InputTimeout: limit}
	})
}

// outlivesLimit has a connection that is talked to for several times the limit, and then not. Where
// the test, or the whole machine, stands still for as long as the limit, which proves nothing, it
// is done again with a longer one.
func outlivesLimit(t *testing.T, name string, opts func(limit time.Duration) tcpio.ListenerOptions) {
	t.Helper()
	proven := func(limit time.Duration) bool {
		s := serveLimited(t, opts(limit), readAll)
		last := time.Now() // before the limit begins
		c := s.dial(t)
		tick := time.NewTicker(limit / 20)
		defer tick.Stop()
		for start := last; time.Since(start) < 3*limit; <-tick.C {
			before := last
			last = time.Now()
			_, err := c.Write([]byte("x"))
			if err == nil {
				_, err = io.ReadFull(c, make([]byte, 1))
			}
			if time.Since(before) > limit*9/10 {
				return false
			}
			if err != nil {
				t.Fatalf("closed while active: %v", err)
			}
		}
		s.nextLimit(t, name)
		return true
	}
	for limit := 400 * time.Millisecond; limit < testnet.Limit; limit *= 2 {
		if proven(limit) {
			return
		}
	}
	t.Fatal("this machine stood still for longer than every limit")
}

// Input that waits for its reader holds the limit up, and behind the peer's end there is none.
func TestInputTimeoutDoesNotCountWhatIsNotThePeersFault(t *testing.T) {
	t.Parallel()
	const limit = 30 * time.Millisecond
	l := harness.Listen(t, tcpio.ListenerOptions{InputTimeout: limit})
	events := l.Events()
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "x") // before anything is accepted, so that it cannot be late
	harness.Start(t, l)
	c := harness.Expect[tcpio.Opened](t, events).Conn
	testnet.WaitFor(t, "Readable", func() bool { return len(events) == 1 })
	time.Sleep(5 * limit) // nobody reads
	testnet.FIN(t, peer)  // before the byte is read, so that it cannot be late either
	if got, err := harness.ReadStream(t, events, c, -1, 10); string(got) != "x" || err != io.EOF {
		t.Fatalf("%q, %v", got, err)
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
	// proven returns false where the limit was reached before it was lifted, which proves nothing.
	proven := func(limit time.Duration) bool {
		l, events := harness.Manual(t, tcpio.ListenerOptions{InputTimeout: limit})
		began := time.Now() // before the limit begins
		c, _ := harness.Open(t, l, events)
		err := c.SetInputTimeout(0)
		if time.Since(began) > limit*9/10 {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		harness.ExpectSilence(t, events, 3*limit/2)
		return true
	}
	for limit := time.Second; limit < testnet.Limit; limit *= 2 {
		if proven(limit) {
			return
		}
	}
	t.Fatal("this machine stood still for longer than every limit")
}
