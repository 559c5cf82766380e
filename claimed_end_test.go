//go:build linux

package tcpio

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"
)

// feeders counts the goroutines that feed a channel.
func feederGoroutines() int {
	buf := make([]byte, 4<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), "(*stream).feed(")
}

// To see it fail: leave out the wait for feeders in finish, or what ends one that nobody receives from.
func TestAClaimedChannelThatNobodyReceivesFromEndsWithServe(t *testing.T) {
	posts := func(c *Conn, n int) {
		for i := range n {
			if err := c.Post(i); err != nil {
				panic(err)
			}
		}
	}
	ignore := ActorFunc(func(Event) error { return nil })
	claims := map[string]struct {
		claim func(c *Conn) []<-chan Event // while it is open
		late  bool                         // it is claimed when Serve has returned
	}{
		"all fits": {claim: func(c *Conn) []<-chan Event { ch := c.Events(); posts(c, 3); return []<-chan Event{ch} }},
		"more":     {claim: func(c *Conn) []<-chan Event { ch := c.Events(); posts(c, 100); return []<-chan Event{ch} }},
		"posts first": {claim: func(c *Conn) []<-chan Event {
			posts(c, 100)
			return []<-chan Event{c.Events()}
		}},
		"ended before": {claim: func(c *Conn) []<-chan Event {
			ch := c.Events()
			posts(c, 100)
			c.Abort()
			return []<-chan Event{ch}
		}},
		"moved on": {claim: func(c *Conn) []<-chan Event {
			first := c.Events()
			posts(c, 100)
			if err := c.Attach(ignore); err != nil {
				panic(err)
			}
			second := c.Events()
			posts(c, 20)
			return []<-chan Event{first, second}
		}},
		"moved on to an actor": {claim: func(c *Conn) []<-chan Event {
			first := c.Events()
			posts(c, 100)
			if err := c.Attach(ignore); err != nil {
				panic(err)
			}
			return []<-chan Event{first}
		}},
		"claimed after the end": {late: true},
	}
	ends := map[string]func(l *Listener, cancel func()){
		"Close": func(l *Listener, _ func()) { l.Close() },
		"Shutdown": func(l *Listener, _ func()) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = l.Shutdown(ctx)
		},
		"ctx": func(_ *Listener, cancel func()) { cancel() },
	}
	for how, k := range claims {
		for by, end := range ends {
			t.Run(how+", "+by, func(t *testing.T) {
				before := feederGoroutines()
				r := listen(t, ListenerOptions{CloseTimeout: 50 * time.Millisecond})
				events := r.Events()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				served := make(chan error, 1)
				go func() { served <- r.Serve(ctx) }()
				peer, c := r.open()
				_ = peer
				var chans []<-chan Event
				if k.claim != nil {
					chans = k.claim(c)
				}
				end(r.Listener, cancel)
				if err := receive(t, "the end of Serve", served); err != nil {
					t.Error(err)
				}
				if k.late {
					// Closed is in the stream: nothing is left for a channel.
					var closed bool
					for ev := range events {
						_, closed = ev.(Closed)
					}
					if !closed {
						t.Error("the stream ended without Closed")
					}
					chans = append(chans, c.Events())
				}
				waitFor(t, "no goroutine is left", func() bool { return feederGoroutines() <= before })
				for i, ch := range chans {
					n := 0
					for range ch { // closed, with what there was room for
						n++
					}
					if n > claimBuffer {
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
		r := listen(t, ListenerOptions{Loops: 1, CloseTimeout: time.Millisecond, Actor: func(*Conn) Actor {
			return ActorFunc(func(ev Event) error {
				if _, ok := ev.(Opened); ok {
					blocked <- struct{}{}
					<-block
				}
				return nil
			})
		}}).serve()
		r.dial()
		receive(t, "Opened", blocked)
		var c *Conn
		for c = range r.Conns() {
		}
		r.Close()
		if err := receive(t, "the end of Serve", r.served); err != nil {
			t.Error(err)
		}
		r.served = nil
		ch := c.Events()
		receiveAs[Closed](t, ch)
		receiveClosed(t, ch)
		close(block)
	}
}

// Handlers that block and channels that nobody receives from share the time that there is at the end.
// To see it fail: give finish a CloseTimeout of its own.
func TestServeGivesUpOnHandlersAndChannelsAtTheSameTime(t *testing.T) {
	const limit = 2 * time.Second
	block, blocked := make(chan struct{}), make(chan struct{}, 1)
	defer close(block)
	r := listen(t, ListenerOptions{Loops: 1, CloseTimeout: limit})
	r.Events()
	r.serve()
	_, busy := r.open()
	_, claimed := r.open()
	claimed.Events()
	for i := range 100 {
		if err := claimed.Post(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := busy.Attach(ActorFunc(func(Event) error { blocked <- struct{}{}; <-block; return nil })); err != nil {
		t.Fatal(err)
	}
	if err := busy.Post(nil); err != nil {
		t.Fatal(err)
	}
	receive(t, "the handler", blocked)
	start := time.Now()
	r.Close()
	if err := receive(t, "the end of Serve", r.served); err != nil {
		t.Error(err)
	}
	r.served = nil
	if d := time.Since(start); d >= 2*limit {
		t.Errorf("Serve took %v with a CloseTimeout of %v", d, limit)
	}
}
