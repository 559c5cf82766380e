//go:build linux

package contract

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestEventsReceivedInTimeAreAllDeliveredAfterServesEnd(t *testing.T) {
	t.Parallel()
	l := harness.Listen(t, tcpio.ListenerOptions{EventBuffer: 1})
	events := l.Events()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := harness.Go(ctx, l)
	const conns = 20
	for range conns {
		peer := testnet.DialTCP(t, l)
		go func() { _, _ = peer.Read(make([]byte, 1)); peer.Close() }()
	}
	opened := map[*tcpio.Conn]bool{}
	for len(opened) < conns {
		if ev, ok := testnet.Receive(t, "Opened", events).(tcpio.Opened); ok {
			opened[ev.Conn] = true
		}
	}
	cancel()
	for ev := range events {
		if ev, ok := ev.(tcpio.Closed); ok {
			if !opened[ev.Conn] {
				t.Error("Closed twice, or without Opened")
			}
			delete(opened, ev.Conn)
		}
	}
	if len(opened) != 0 {
		t.Errorf("%d connections without Closed", len(opened))
	}
	if err := testnet.Receive(t, "the end of Serve", served); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A claimed channel is closed behind Closed, be it full or empty at that moment.
func TestClaimedChannelIsClosedBehindClosed(t *testing.T) {
	const room = 8 // of a claimed channel
	for _, posts := range []int{0, 1, room - 1, room, room + 1, 5 * room} {
		l, events := harness.Manual(t, tcpio.ListenerOptions{})
		c, _ := harness.Open(t, l, events)
		own := c.Events()
		if cap(own) != room {
			t.Fatalf("a claimed channel holds %d events: change the test", cap(own))
		}
		for i := range posts {
			if err := c.Post(i); err != nil {
				t.Fatal(err)
			}
		}
		c.Abort()
		var got []tcpio.Event
		for ev := range own {
			got = append(got, ev)
		}
		if len(got) != posts+1 {
			t.Fatalf("%d posts: %d events, want those and Closed", posts, len(got))
		}
		for i, ev := range got[:posts] {
			if m, ok := ev.(tcpio.Message); !ok || m.Value != i {
				t.Errorf("%d posts: event %d is %T", posts, i, ev)
			}
		}
		if _, ok := got[posts].(tcpio.Closed); !ok {
			t.Errorf("%d posts: the last event is %T, want Closed", posts, got[posts])
		}
		testnet.AwaitClosed(t, "the channel", c.Events())
	}
}

// While nobody receives from a claimed channel only that connection pauses.
func TestFullClaimedChannelPausesNobodyElse(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	own := c.Events()
	for i := range 3 * cap(own) {
		if err := c.Post(i); err != nil {
			t.Fatal(err)
		}
	}
	_, peer := harness.Open(t, l, events)
	for range 10 {
		testnet.Send(t, peer, "x")
		if _, err := harness.Expect[tcpio.Readable](t, events).Conn.TryRead(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 * cap(own) {
		if m := harness.Expect[tcpio.Message](t, own); m.Value != i {
			t.Fatalf("message %v, want %d", m.Value, i)
		}
	}
}

// feeders counts the goroutines that feed a channel.
func feeders() int { return testnet.Goroutines("(*stream).feed(") }

// To see it fail: leave out the wait for feeders in finish, or what ends one that nobody receives
// from.
func TestClaimedChannelThatNobodyReceivesFromEndsWithServe(t *testing.T) {
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

// A channel may be claimed when there is nothing left that could give up on it. What it has room
// for is in it.
func TestChannelThatIsClaimedAfterTheEndHoldsClosed(t *testing.T) {
	for range 50 {
		block, blocked := make(chan struct{}), make(chan struct{}, 1)
		l := harness.Listen(t, tcpio.ListenerOptions{Loops: 1, CloseTimeout: time.Millisecond, NewActor: func(*tcpio.Conn) tcpio.Actor {
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

// Handlers that block and channels that nobody receives from share the time that there is at the
// end.
// To see it fail: give finish a CloseTimeout of its own.
func TestServeGivesUpOnHandlersAndChannelsAtTheSameTime(t *testing.T) {
	t.Parallel()
	takesOneLimit(t, giveUpOnHandlersAndChannels)
}

func giveUpOnHandlersAndChannels(t *testing.T, limit time.Duration) (took time.Duration) {
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
	return time.Since(start)
}

// takesOneLimit has end take the time of a CloseTimeout of limit, and not of two. A busy machine
// adds to it, so it is tried with longer and longer ones; a second one doubles each of them.
func takesOneLimit(t *testing.T, end func(t *testing.T, limit time.Duration) (took time.Duration)) {
	t.Helper()
	var took, limit time.Duration
	for limit = time.Second; limit <= 8*time.Second; limit *= 2 {
		if took = end(t, limit); took < limit*7/4 {
			return
		}
		t.Logf("it took %v with a CloseTimeout of %v", took, limit)
	}
	t.Error("it takes more than one CloseTimeout")
}

// A connection may be claimed while its listener waits for the last events to be received; its
// channel is still closed.
// To see it fail: let next not close a stream that was left.
func TestChannelClaimedWhileServeEndsIsClosed(t *testing.T) {
	release, blocked, opened := make(chan struct{}), make(chan struct{}), make(chan *tcpio.Conn, 1)
	defer close(release)
	l := harness.Listen(t, tcpio.ListenerOptions{Loops: 1, CloseTimeout: 100 * time.Millisecond, NewActor: func(*tcpio.Conn) tcpio.Actor {
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

// The goroutine that claimed a connection reads until EOF, closes it and is done: nothing waits for
// it to receive the rest, however often what it read filled its buffer. A goroutine for each such
// connection would stay until Serve's end, and hold that up by CloseTimeout.
//
// To see it fail: announce a Readable while the last one is still in the channel.
func TestWhoClaimedAConnectionMayLeaveBehindItsOwnClose(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{CloseTimeout: 2 * testnet.Limit})
	events := l.Events()
	served := harness.Go(t.Context(), l)
	serve := func(ch <-chan tcpio.Event) {
		buf := make([]byte, 1000)
		for ev := range ch {
			r, ok := ev.(tcpio.Readable)
			for ok {
				switch _, err := r.Conn.TryRead(buf); err {
				case nil:
				case tcpio.ErrWouldBlock:
					ok = false
				default:
					r.Conn.Close()
					return
				}
			}
		}
	}
	go func() {
		for ev := range events {
			if o, ok := ev.(tcpio.Opened); ok {
				go serve(o.Conn.Events())
			}
		}
	}()
	for range 5 {
		peer := testnet.Dial(t, l)
		testnet.Send(t, peer, make([]byte, 50_000))
		testnet.FIN(t, peer)
		testnet.ExpectEOF(t, peer)
		peer.Close()
	}
	testnet.WaitFor(t, "no connection", func() bool { return l.Len() == 0 })
	l.Close()
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A posted value is delivered or refused, also while the connection changes its routes and is
// closed.
func TestNoPostIsLostWhenRoutesChangeBesideClose(t *testing.T) {
	t.Parallel()
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 2}, tcpio.ActorFunc(func(tcpio.Event) error { return nil }))
	for range 20 {
		peer := testnet.DialTCP(t, l)
		c := harness.Conns(t, l, 1)[0]
		var mu sync.Mutex
		seen := map[int]int{}
		over := make(chan struct{}) // Closed was received; closing it twice panics
		handle := func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Message:
				mu.Lock()
				seen[ev.Value.(int)]++
				mu.Unlock()
			case tcpio.Closed:
				close(over)
			}
			return nil
		}
		if err := c.Attach(tcpio.ActorFunc(handle)); err != nil {
			t.Fatal(err)
		}
		posted := 0
		var work sync.WaitGroup
		work.Go(func() {
			for {
				switch err := c.Post(posted); {
				case err == nil:
					posted++
				case err != tcpio.ErrMailboxFull:
					return
				}
			}
		})
		work.Go(func() {
			for {
				ch := c.Events()
				work.Go(func() {
					for ev := range ch {
						_ = handle(ev)
					}
				})
				if c.Attach(tcpio.ActorFunc(handle)) != nil {
					return
				}
			}
		})
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		c.Close()
		peer.Close()
		work.Wait()
		testnet.Await(t, "Closed", over)
		// An actor that was given a value before the route changed may still be at it.
		testnet.WaitFor(t, "all values that were accepted", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(seen) >= posted
		})
		mu.Lock()
		for v, n := range seen {
			if n != 1 || v >= posted {
				t.Errorf("%d of %d was received %d times", v, posted, n)
			}
		}
		mu.Unlock()
	}
}

func TestClaimedChannelNotReceivedFromPausesOnlyItsConnection(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{EventBuffer: 1, MailboxSize: 4})
	c, peer := harness.Open(t, l, events)
	own := c.Events()
	posted := 0
	for ; c.Post(posted) == nil; posted++ {
		if posted > 1000 {
			t.Fatal("the mailbox is never full")
		}
	}
	testnet.Send(t, peer, "later")
	_, other := harness.Open(t, l, events)
	testnet.Send(t, other, "now")
	harness.Expect[tcpio.Readable](t, events)
	read := false
	for got := 0; got < posted || !read; {
		switch ev := testnet.Await(t, "an event", own).(type) {
		case tcpio.Message:
			if ev.Value != got {
				t.Fatalf("received %v, want %d", ev.Value, got)
			}
			got++
		case tcpio.Readable:
			buf := make([]byte, 64)
			if n, err := c.TryRead(buf); string(buf[:n]) != "later" || err != nil {
				t.Fatalf("read %q, %v", buf[:n], err)
			}
			read = true
		}
	}
}
