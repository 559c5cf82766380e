//go:build linux

package relay

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestBytesFlowBothWaysOnAnyRoute(t *testing.T) {
	routes := []string{"stream", "claimed", "actor", "none"}
	for _, front := range routes {
		for _, back := range routes {
			t.Run(front+" and "+back, func(t *testing.T) {
				t.Parallel()
				x := join(t, serve(t, front, tcpio.ListenerOptions{Loops: 2}), serve(t, back, tcpio.ListenerOptions{}), nil)
				const up, down = 3<<20 + 1, 2<<20 - 7
				errs := make(chan error, 4)
				go func() { errs <- send(x.p, up) }()
				go func() { errs <- send(x.q, down) }()
				go func() { errs <- receive(x.p, down) }()
				go func() { errs <- receive(x.q, up) }()
				for range 4 {
					if err := testnet.Await(t, "the bytes", errs); err != nil {
						t.Error(err)
					}
				}
				testnet.AwaitClosed(t, "the end", x.relay.Done())
				if out, in := x.relay.Passed(); out != up || in != down {
					t.Errorf("%d and %d bytes were passed on, want %d and %d", out, in, up, down)
				}
				end, _ := x.relay.End()
				if end.Err != nil || end.By == nil {
					t.Errorf("the end is %+v, want one in order", end)
				}
				if x.ended != nil {
					testnet.Receive(t, "RelayEnded", x.ended)
					if c := testnet.Receive(t, "Closed", x.gone); c != x.c && c != x.to || c.Err() != nil {
						t.Errorf("closed with %v", c.Err())
					}
				}
			})
		}
	}
}

func TestSmallMessagesGoBothWays(t *testing.T) {
	for loops := 1; loops <= 2; loops++ {
		t.Run(fmt.Sprint(loops, " loops"), func(t *testing.T) {
			s := serve(t, "stream", tcpio.ListenerOptions{Loops: loops})
			x := join(t, s, s, nil)
			for range 1000 {
				testnet.Send(t, x.p, "question")
				testnet.ExpectBytes(t, x.q, "question")
				testnet.Send(t, x.q, "answer")
				testnet.ExpectBytes(t, x.p, "answer")
			}
		})
	}
}

func TestOfTwoRelaysOfTheSameConnectionsOneSucceeds(t *testing.T) {
	s := serve(t, "none", tcpio.ListenerOptions{})
	for range 50 {
		_, a := s.open(t)
		_, b := s.open(t)
		other := make(chan error, 1)
		go func() {
			_, err := b.Relay(a, nil)
			other <- err
		}()
		_, err := a.Relay(b, nil)
		errs := []error{err, testnet.Receive(t, "Relay", other)}
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("of two calls: %v", errs)
		}
		if err := cmp.Or(errs...); !errors.Is(err, tcpio.ErrRelayed) {
			t.Fatal(err)
		}
		a.Abort()
	}
}

// An upstream may say something, and end, before its dial is answered, between that and Relay, or
// later. The edge of that is over then, or is still to come.
func TestWhatAnUpstreamSaysFirstIsPassedOn(t *testing.T) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const greeting = "220 ready\r\n"
	moment := func(i int) time.Duration { return time.Duration(i%8) * 50 * time.Microsecond }
	go func() {
		for i := 0; ; i++ {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			time.Sleep(moment(i))
			_, _ = c.Write([]byte(greeting))
			if i%3 == 0 {
				_ = c.CloseWrite()
			}
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	var dialed atomic.Int64
	l := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			_, err := ev.Conn.Listener().DialAsync(tcpio.DialRequest{Address: ln.Addr().String(), To: ev.Conn})
			return err
		case tcpio.Dialed:
			if ev.Err != nil {
				return ev.Err
			}
			if i := int(dialed.Add(1)); i%2 == 0 {
				time.Sleep(moment(i / 3))
			}
			_, err := ev.To.Relay(ev.Conn, nil)
			return err
		}
		return nil
	}))
	for i := range 300 {
		peer := testnet.DialTCP(t, l)
		testnet.ExpectBytes(t, peer, greeting)
		if i%3 == 0 {
			testnet.FIN(t, peer)
			testnet.ExpectEOF(t, peer)
		} else {
			testnet.Ping(t, peer, "still there")
		}
		peer.Close()
	}
}

// A Hijack that waits for queued output finds a relay when that has gone out, and leaves it alone.
func TestABlockedHijackLearnsOfTheRelay(t *testing.T) {
	s := serve(t, "none", tcpio.ListenerOptions{})
	p, c := s.open(t)
	q, to := s.open(t)
	const size = 16 << 20 // more than sockets take
	if _, err := c.TryWrite(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	hijacked := make(chan error, 1)
	go func() {
		tc, err := c.Hijack()
		if err == nil {
			tc.Close()
		}
		hijacked <- err
	}()
	testnet.WaitFor(t, "Hijack", func() bool { return testnet.Goroutines("tcpio.(*Conn).waitRoomLocked") > 0 })
	if _, err := c.Relay(to, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, p, size); err != nil {
		t.Fatal(err)
	}
	if err := testnet.Await(t, "Hijack", hijacked); !errors.Is(err, tcpio.ErrRelayed) {
		t.Errorf("Hijack: %v", err)
	}
	testnet.Send(t, p, "x")
	testnet.ExpectBytes(t, q, "x")
	testnet.Send(t, q, "y")
	testnet.ExpectBytes(t, p, "y")
}
