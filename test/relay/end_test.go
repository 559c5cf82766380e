//go:build linux

package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestAHalfCloseIsPassedOnAndTheOtherWayGoesOn(t *testing.T) {
	bothWays(t, tcpio.ListenerOptions{EOFTimeout: 50 * time.Millisecond}, func(t *testing.T, x *pair) {
		if err := send(x.p, 100_000); err != nil {
			t.Fatal(err)
		}
		if err := receive(x.q, 100_000); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond) // EOFTimeout would be over
		for range 3 {
			testnet.Send(t, x.q, "answer")
			testnet.ExpectBytes(t, x.p, "answer")
		}
		if err := send(x.q, 300_000); err != nil {
			t.Fatal(err)
		}
		if err := receive(x.p, 300_000); err != nil {
			t.Fatal(err)
		}
		x.expectEnd(t, x.c, nil)
	})
}

func TestAResetIsPassedOnAsAReset(t *testing.T) {
	bothWays(t, tcpio.ListenerOptions{}, func(t *testing.T, x *pair) {
		testnet.Send(t, x.p, "before")
		testnet.ExpectBytes(t, x.q, "before")
		testnet.RST(t, x.p)
		expectReset(t, x.q)
		x.expectEnd(t, x.c, syscall.ECONNRESET)
		for range 2 {
			c := testnet.Receive(t, "Closed", x.gone)
			if want := map[*tcpio.Conn]error{x.c: syscall.ECONNRESET, x.to: tcpio.ErrRelayEnded}[c]; !errors.Is(c.Err(), want) {
				t.Errorf("Err is %v, want %v", c.Err(), want)
			}
		}
	})
}

func TestAResetBehindAnEndIsPassedOn(t *testing.T) {
	bothWays(t, tcpio.ListenerOptions{}, func(t *testing.T, x *pair) {
		testnet.FIN(t, x.p)
		testnet.ExpectEOF(t, x.q)
		testnet.RST(t, x.p)
		x.expectEnd(t, x.c, syscall.EPIPE) // as the kernel calls a reset behind an end
		testnet.WaitFor(t, "a reset", func() bool {
			_, err := x.q.Write([]byte("late"))
			return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		})
	})
}

func TestAResetIsPassedOnThoughTheOtherSideIsFull(t *testing.T) {
	bothWays(t, tcpio.ListenerOptions{}, func(t *testing.T, x *pair) {
		_ = x.q.SetReadBuffer(4 << 10)
		fill(t, x.p, 100*time.Millisecond)
		testnet.RST(t, x.p)
		x.expectEnd(t, x.c, syscall.ECONNRESET)
		expectReset(t, x.q)
	})
}

// The reset comes first, and only what is read before it makes the other side full.
func TestAResetBehindBytesThatFillTheOtherSide(t *testing.T) {
	s := serve(t, "stream", tcpio.ListenerOptions{})
	joined := 0
	for range 20 {
		p, c := s.open(t)
		q, to := s.open(t)
		_ = q.SetReadBuffer(4 << 10)
		fill(t, p, 20*time.Millisecond)
		testnet.RST(t, p)
		r, err := c.Relay(to, nil)
		if errors.Is(err, net.ErrClosed) && errors.Is(err, syscall.ECONNRESET) {
			continue // the loop came to the reset within the call
		}
		if err != nil {
			t.Fatal(err)
		}
		joined++
		testnet.AwaitClosed(t, "the end of the relay", r.Done())
		if end, _ := r.End(); end.By != c || !errors.Is(end.Err, syscall.ECONNRESET) {
			t.Errorf("the end is %+v", end)
		}
		expectReset(t, q)
	}
	if joined == 0 {
		t.Error("no Relay came before the loop")
	}
}

// Who is held back may be reset by the other one.
func TestAResetOfTheFullSideIsPassedOn(t *testing.T) {
	bothWays(t, tcpio.ListenerOptions{}, func(t *testing.T, x *pair) {
		_ = x.q.SetReadBuffer(4 << 10)
		fill(t, x.p, 100*time.Millisecond)
		testnet.RST(t, x.q)
		expectReset(t, x.p)
		testnet.AwaitClosed(t, "the end of the relay", x.relay.Done())
		want := error(syscall.ECONNRESET)
		if end, _ := x.relay.End(); testnet.Benign(end.Err) {
			want = end.Err // any error that a reset has
		}
		x.expectEnd(t, x.to, want)
	})
}

func TestWhatWasSaidBeforeAResetArrives(t *testing.T) {
	bothWays(t, tcpio.ListenerOptions{}, func(t *testing.T, x *pair) {
		written := make(chan error, 1)
		go func() { // until the reset
			block := make([]byte, 64<<10)
			for {
				if _, err := x.p.Write(block); err != nil {
					written <- err
					return
				}
			}
		}()
		if _, err := x.q.Read(make([]byte, 1)); err != nil { // there is more
			t.Fatal(err)
		}
		answer := testnet.Pattern(32 << 10)
		testnet.Send(t, x.q, answer)
		x.q.Close() // with unread input: a reset
		got := make([]byte, len(answer))
		if _, err := io.ReadFull(x.p, got); err != nil || testnet.FirstDifference(got, answer) >= 0 {
			t.Fatalf("the answer before the reset: %v", err)
		}
		// The kernel tells the reset once, to the one or the other.
		_, err := x.p.Read(got)
		if werr := testnet.Await(t, "the writer's end", written); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(werr, syscall.ECONNRESET) {
			t.Errorf("behind the answer: %v and %v, want a reset", err, werr)
		}
	})
}

func TestCloseAndAbortOfOneResetBoth(t *testing.T) {
	for name, end := range map[string]func(c *tcpio.Conn) error{"Close": (*tcpio.Conn).Close, "Abort": (*tcpio.Conn).Abort} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, tcpio.ListenerOptions{}, func(t *testing.T, x *pair) {
				testnet.FIN(t, x.q)
				testnet.ExpectEOF(t, x.p) // a stream that is whole does not make the other one so
				testnet.Send(t, x.p, "x")
				testnet.ExpectBytes(t, x.q, "x")
				if err := end(x.c); err != nil {
					t.Fatal(err)
				}
				expectReset(t, x.q)
				x.expectEnd(t, x.c, net.ErrClosed)
			})
		})
	}
}

func TestTheEndOfAListenerResetsBoth(t *testing.T) {
	front, back := serve(t, "stream", tcpio.ListenerOptions{}), serve(t, "actor", tcpio.ListenerOptions{})
	x := join(t, front, back, nil)
	if err := back.l.Close(); err != nil {
		t.Fatal(err)
	}
	expectReset(t, x.p)
	expectReset(t, x.q)
	x.expectEnd(t, x.to, net.ErrClosed)
}

func TestShutdownCutsARelayBehindDraining(t *testing.T) {
	for _, route := range []string{"stream", "actor", "claimed", "none"} {
		t.Run(route, func(t *testing.T) {
			s := serve(t, route, tcpio.ListenerOptions{})
			x := join(t, s, s, nil)
			testnet.Send(t, x.p, "x")
			testnet.ExpectBytes(t, x.q, "x")
			if err := s.l.Shutdown(testnet.Context(t)); err != nil {
				t.Fatal(err)
			}
			expectReset(t, x.p)
			expectReset(t, x.q)
		})
	}
}

func TestShutdownWhoseContextEndsResetsBoth(t *testing.T) {
	for _, route := range []string{"stream", "actor", "none"} {
		t.Run(route, func(t *testing.T) {
			s := serve(t, route, tcpio.ListenerOptions{DrainTimeout: testnet.Limit})
			x := join(t, s, s, nil)
			testnet.Send(t, x.p, "x")
			testnet.ExpectBytes(t, x.q, "x")
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := s.l.Shutdown(ctx); err != context.Canceled {
				t.Error(err)
			}
			expectReset(t, x.p)
			expectReset(t, x.q)
		})
	}
}

func TestARelayLivesOnWithinDrainTimeout(t *testing.T) {
	for _, route := range []string{"stream", "actor"} {
		t.Run(route, func(t *testing.T) {
			s := serve(t, route, tcpio.ListenerOptions{DrainTimeout: testnet.Limit})
			x := join(t, s, s, nil)
			over := make(chan error, 1)
			go func() { over <- s.l.Shutdown(testnet.Context(t)) }()
			for range 2 {
				testnet.Receive(t, "Draining", s.draining)
			}
			go send(x.p, 1<<20)
			if err := receive(x.q, 1<<20); err != nil {
				t.Fatal(err)
			}
			testnet.FIN(t, x.q)
			testnet.ExpectEOF(t, x.p)
			if err := testnet.Await(t, "Shutdown", over); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestATimeLimitOfOneResetsBoth(t *testing.T) {
	front := serve(t, "stream", tcpio.ListenerOptions{})
	back := serve(t, "stream", tcpio.ListenerOptions{InputTimeout: 3 * time.Second}) // for join
	x := join(t, front, back, nil)
	expectReset(t, x.p)
	expectReset(t, x.q)
	x.expectEnd(t, x.to, os.ErrDeadlineExceeded)
}

func TestASideThatTakesNothingEndsByWriteStallTimeout(t *testing.T) {
	front := serve(t, "stream", tcpio.ListenerOptions{WriteStallTimeout: 500 * time.Millisecond})
	p, c := front.open(t)
	q, to := front.open(t)
	_ = q.SetReadBuffer(4 << 10)
	r, err := c.Relay(to, nil)
	if err != nil {
		t.Fatal(err)
	}
	block := testnet.Pattern(128 << 10)
	_ = p.SetWriteDeadline(time.Now().Add(testnet.Limit))
	for err == nil { // the limit runs while p is held back: nobody waits for a standstill
		_, err = p.Write(block)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the peer wrote until %v, want a reset", err)
	}
	testnet.AwaitClosed(t, "the end of the relay", r.Done())
	end, _ := r.End()
	var limit *tcpio.TimeoutError
	if !errors.As(end.Err, &limit) || limit.Kind != tcpio.TimeoutWriteStall || end.By != to {
		t.Fatalf("the end is %+v", end)
	}
	expectReset(t, q)
}

func TestIdleTimeoutOfThePair(t *testing.T) {
	for limit := 300 * time.Millisecond; limit < testnet.Limit; limit *= 2 {
		if idlePair(t, limit) {
			return
		}
	}
	t.Fatal("this machine stood still for longer than every limit")
}

// idlePair has bytes go one way for several times the limit, and then none. It reports false if the
// test itself was held up for as long as the limit, which proves nothing.
func idlePair(t *testing.T, limit time.Duration) (proven bool) {
	s := serve(t, "stream", tcpio.ListenerOptions{})
	begin := time.Now()
	last := begin // before the last byte
	x := join(t, s, s, &tcpio.RelayOptions{IdleTimeout: limit})
	for time.Since(begin) < 3*limit { // one way is enough
		before := last
		last = time.Now()
		_ = x.q.SetReadDeadline(last.Add(testnet.Limit))
		_, err := x.p.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(x.q, make([]byte, 1))
		}
		if time.Since(before) > limit-limit/10 {
			return false
		}
		if err != nil {
			t.Fatalf("%v after the relay began: %v", time.Since(begin), err)
		}
		time.Sleep(limit / 10)
	}
	expectReset(t, x.p)
	expectReset(t, x.q)
	if d := time.Since(last); d < limit/2 { // the clock is coarse, and late where its loop is held up
		t.Errorf("ended after %v of silence", d)
	}
	testnet.AwaitClosed(t, "the end", x.relay.Done())
	end, _ := x.relay.End()
	var why *tcpio.TimeoutError
	if !errors.As(end.Err, &why) || why.Kind != tcpio.TimeoutIdle || why.After != limit || end.By != nil {
		t.Errorf("the end is %+v", end)
	}
	for range 2 {
		if c := testnet.Receive(t, "Closed", x.gone); c.Err() != end.Err {
			t.Errorf("Err is %v", c.Err())
		}
	}
	testnet.WaitFor(t, "both idle limits to be counted", func() bool { return s.l.Stats().Timeouts.Idle == 2 })
	return true
}

func TestAnActorsErrorResetsBoth(t *testing.T) {
	cause := errors.New("enough")
	s := serve(t, "none", tcpio.ListenerOptions{})
	x := join(t, s, s, nil)
	if err := x.to.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error {
		if _, ok := ev.(tcpio.Message); ok {
			return cause
		}
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	testnet.Send(t, x.p, "x")
	testnet.ExpectBytes(t, x.q, "x") // it passes on as before
	if err := x.to.Post("end"); err != nil {
		t.Fatal(err)
	}
	expectReset(t, x.p)
	expectReset(t, x.q)
	x.expectEnd(t, x.to, cause)
}
