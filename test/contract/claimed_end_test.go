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

// feeders counts the goroutines that feed a channel.
func feeders() int { return testnet.Goroutines("(*stream).feed(") }

// To see it fail: leave out the wait for feeders in finish, or what ends one that nobody receives from.
func TestAClaimedChannelThatNobodyReceivesFromEndsWithServe(t *testing.T) {
	posts := func(c *tcpio.Conn, n int) {
		for i := range n {
			if err := c.Post(i); err != nil {
				panic(err)
			}
		}
	}
	ignore := tcpio.ActorFunc(func(tcpio.Event) error { return nil })
	claims := map[string]struct {
		claim func(c *tcpio.Conn) []<-chan tcpio.Event // while it is open
		late  bool                                     // it is claimed when Serve has returned
	}{
		"all fits": {claim: func(c *tcpio.Conn) []<-chan tcpio.Event {
			ch := c.Events()
			posts(c, 3)
			return []<-chan tcpio.Event{ch}
		}},
		"more": {claim: func(c *tcpio.Conn) []<-chan tcpio.Event {
			ch := c.Events()
			posts(c, 100)
			return []<-chan tcpio.Event{ch}
		}},
		"posts first": {claim: func(c *tcpio.Conn) []<-chan tcpio.Event {
			posts(c, 100)
			return []<-chan tcpio.Event{c.Events()}
		}},
		"ended before": {claim: func(c *tcpio.Conn) []<-chan tcpio.Event {
			ch := c.Events()
			posts(c, 100)
			c.Abort()
			return []<-chan tcpio.Event{ch}
		}},
		"moved on": {claim: func(c *tcpio.Conn) []<-chan tcpio.Event {
			first := c.Events()
			posts(c, 100)
			if err := c.Attach(ignore); err != nil {
				panic(err)
			}
			second := c.Events()
			posts(c, 20)
			return []<-chan tcpio.Event{first, second}
		}},
		"moved on to an actor": {claim: func(c *tcpio.Conn) []<-chan tcpio.Event {
			first := c.Events()
			posts(c, 100)
			if err := c.Attach(ignore); err != nil {
				panic(err)
			}
			return []<-chan tcpio.Event{first}
		}},
		"claimed after the end": {late: true},
	}
	ends := map[string]func(l *tcpio.Listener, cancel func()){
		"Close": func(l *tcpio.Listener, _ func()) { l.Close() },
		"Shutdown": func(l *tcpio.Listener, _ func()) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = l.Shutdown(ctx)
		},
		"ctx": func(_ *tcpio.Listener, cancel func()) { cancel() },
	}
	for how, k := range claims {
		for by, end := range ends {
			t.Run(how+", "+by, func(t *testing.T) {
				before := feeders()
				l := harness.Listen(t, tcpio.ListenerOptions{CloseTimeout: 50 * time.Millisecond})
				events := l.Events()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				served := harness.Go(ctx, l)
				c, _ := harness.Open(t, l, events)
				var chans []<-chan tcpio.Event
				if k.claim != nil {
					chans = k.claim(c)
				}
				end(l, cancel)
				if err := testnet.Receive(t, "the end of Serve", served); err != nil {
					t.Error(err)
				}
				if k.late {
					// Closed is in the stream: nothing is left for a channel.
					var closed bool
					for ev := range events {
						_, closed = ev.(tcpio.Closed)
					}
					if !closed {
						t.Error("the stream ended without Closed")
					}
					chans = append(chans, c.Events())
				}
				testnet.WaitFor(t, "no goroutine is left", func() bool { return feeders() <= before })
				for i, ch := range chans {
					n := 0
					for range ch { // closed, with what there was room for
						n++
					}
					if n > cap(ch) {
						t.Errorf("channel %d: %d events", i, n)
					}
				}
			})
		}
	}
}

// A channel may be claimed when there is nothing left that could give up on it. What it has room for is in it.
func TestAChannelThatIsClaimedAfterTheEndHoldsClosed(t *testing.T) {
	for range 50 {
		block, blocked := make(chan struct{}), make(chan struct{}, 1)
		l := harness.Listen(t, tcpio.ListenerOptions{Loops: 1, CloseTimeout: time.Millisecond, Actor: func(*tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				if _, ok := ev.(tcpio.Opened); ok {
					blocked <- struct{}{}
					<-block
				}
				return nil
			})
		}})
		served := harness.Go(t.Context(), l)
		testnet.DialTCP(t, l)
		testnet.Receive(t, "Opened", blocked)
		var c *tcpio.Conn
		for c = range l.Conns() {
		}
		l.Close()
		if err := testnet.Receive(t, "the end of Serve", served); err != nil {
			t.Error(err)
		}
		ch := c.Events()
		harness.Expect[tcpio.Closed](t, ch)
		testnet.AwaitClosed(t, "the channel", ch)
		close(block)
	}
}

// Handlers that block and channels that nobody receives from share the time that there is at the end.
// To see it fail: give finish a CloseTimeout of its own.
func TestServeGivesUpOnHandlersAndChannelsAtTheSameTime(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second
	block, blocked := make(chan struct{}), make(chan struct{}, 1)
	defer close(block)
	l := harness.Listen(t, tcpio.ListenerOptions{Loops: 1, CloseTimeout: limit})
	events := l.Events()
	served := harness.Go(t.Context(), l)
	busy, _ := harness.Open(t, l, events)
	claimed, _ := harness.Open(t, l, events)
	claimed.Events()
	for i := range 100 {
		if err := claimed.Post(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := busy.Attach(tcpio.ActorFunc(func(tcpio.Event) error { blocked <- struct{}{}; <-block; return nil })); err != nil {
		t.Fatal(err)
	}
	if err := busy.Post(nil); err != nil {
		t.Fatal(err)
	}
	testnet.Receive(t, "the handler", blocked)
	start := time.Now()
	l.Close()
	if err := testnet.Receive(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d >= 2*limit {
		t.Errorf("Serve took %v with a CloseTimeout of %v", d, limit)
	}
}

// A connection may be claimed while its listener waits for the last events to be received; its channel is still closed.
// To see it fail: let next not close a stream that was left.
func TestAChannelClaimedWhileServeEndsIsClosed(t *testing.T) {
	release, blocked, opened := make(chan struct{}), make(chan struct{}), make(chan *tcpio.Conn, 1)
	defer close(release)
	l := harness.Listen(t, tcpio.ListenerOptions{Loops: 1, CloseTimeout: 100 * time.Millisecond, Actor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Opened:
				opened <- ev.Conn
			case tcpio.Message:
				close(blocked)
				<-release
			}
			return nil
		})
	}})
	served := harness.Go(t.Context(), l)
	testnet.DialTCP(t, l)
	c := testnet.Receive(t, "Opened", opened)
	c.Post("block")
	<-blocked
	const posts = 16 // twice what a claimed channel holds
	for i := range posts {
		if err := c.Post(i); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	ch := c.Events() // more than fits is on its way
	if cap(ch) != posts/2 {
		t.Fatalf("a claimed channel holds %d events: change the test", cap(ch))
	}
	if err := testnet.Receive(t, "the end of Serve", served); err != nil {
		t.Errorf("Serve: %v", err)
	}
	n := 0
	for ev := range ch {
		if m, ok := ev.(tcpio.Message); ok && m.Value != n {
			t.Fatalf("got %v in place %d", m.Value, n)
		}
		n++
	}
	if n < cap(ch) {
		t.Errorf("%d events in a channel for %d", n, cap(ch))
	}
}
