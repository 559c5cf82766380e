//go:build linux

package contract

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// double replies with twice what it is asked, except where the question says otherwise.
func double(ev tcpio.Event) error {
	m, ok := ev.(tcpio.Message)
	if !ok {
		return nil
	}
	switch v := m.Value.(type) {
	case int:
		m.Reply(2 * v)
	case chan tcpio.Message: // no reply here
		v <- m
	}
	return nil
}

func askCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testnet.Limit)
	t.Cleanup(cancel)
	return ctx
}

func TestAskReturnsTheReplyToItsOwnQuestionOnEveryRoute(t *testing.T) {
	for _, route := range []string{"actor", "stream", "claimed"} {
		t.Run(route, func(t *testing.T) {
			o := tcpio.ListenerOptions{MailboxSize: 1000}
			if route == "actor" {
				o.NewActor = func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(double) }
			}
			l := harness.Serve(t, o)
			if route != "actor" {
				events := l.Events()
				go func() {
					for ev := range events {
						if _, ok := ev.(tcpio.Opened); ok && route == "claimed" {
							ch := tcpio.ConnOf(ev).Events()
							go func() {
								for ev := range ch {
									_ = double(ev)
								}
							}()
						}
						_ = double(ev)
					}
				}()
			}
			testnet.DialTCP(t, l)
			c := harness.Conns(t, l, 1)[0]
			var wg sync.WaitGroup
			for g := range 8 {
				wg.Go(func() {
					for i := range 200 {
						if v, err := c.Ask(askCtx(t), g*1000+i); err != nil || v != 2*(g*1000+i) {
							t.Errorf("Ask(%d): %v, %v", g*1000+i, v, err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestReplyCountsOnceAndOnlyForAnAsk(t *testing.T) {
	l := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(double))
	testnet.DialTCP(t, l)
	c := harness.Conns(t, l, 1)[0]
	box := make(chan tcpio.Message, 3)
	if err := c.Post(box); err != nil {
		t.Fatal(err)
	}
	if testnet.Await(t, "a posted Message", box).Reply(1) {
		t.Error("Reply to a Post was taken")
	}
	c.After(0, box)
	if testnet.Await(t, "a Message of a timer", box).Reply(1) {
		t.Error("Reply to a timer was taken")
	}
	answer := make(chan any, 1)
	go func() {
		v, err := c.Ask(askCtx(t), box)
		if err != nil {
			t.Error(err)
		}
		answer <- v
	}()
	m := testnet.Await(t, "a question", box)
	if !m.Reply("first") { // on a goroutine of its own: the handler has returned
		t.Error("the first Reply was not taken")
	}
	if m.Reply("second") {
		t.Error("a second Reply was taken")
	}
	if v := testnet.Await(t, "the answer", answer); v != "first" {
		t.Errorf("answer %v", v)
	}
}

func TestAskFailsWithTheContextsError(t *testing.T) {
	l := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(double))
	testnet.DialTCP(t, l)
	c := harness.Conns(t, l, 1)[0]
	box := make(chan tcpio.Message, 1)
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := c.Ask(ctx, box)
		failed <- err
	}()
	m := testnet.Await(t, "a question", box)
	cancel()
	if err := testnet.Await(t, "the end of Ask", failed); err != context.Canceled {
		t.Errorf("Ask: %v", err)
	}
	if m.Reply("too late") {
		t.Error("a Reply was taken that nobody waited for")
	}
	if v, err := c.Ask(askCtx(t), 21); v != 42 || err != nil {
		t.Errorf("the next Ask: %v, %v", v, err)
	}
}

func TestAskNeverHangsWhenTheConnectionEnds(t *testing.T) {
	ends := map[string]func(c *tcpio.Conn, cl *net.TCPConn, l *tcpio.Listener){
		"Close":          func(c *tcpio.Conn, cl *net.TCPConn, _ *tcpio.Listener) { c.Close(); cl.Close() },
		"Abort":          func(c *tcpio.Conn, _ *net.TCPConn, _ *tcpio.Listener) { c.Abort() },
		"Listener.Close": func(_ *tcpio.Conn, _ *net.TCPConn, l *tcpio.Listener) { l.Close() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			for i := range 30 {
				l := harness.Listen(t, tcpio.ListenerOptions{Loops: 1,
					NewActor: func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(double) }})
				stop := harness.Start(t, l)
				cl := testnet.DialTCP(t, l)
				c := harness.Conns(t, l, 1)[0]
				box := make(chan tcpio.Message, 100) // nobody replies
				ctx := askCtx(t)
				const asking = 3
				failed := make(chan error, asking)
				for range asking {
					go func() {
						_, err := c.Ask(ctx, box)
						failed <- err
					}()
				}
				if i%2 == 0 {
					testnet.Await(t, "a question", box)
				}
				end(c, cl, l)
				for range asking {
					if err := testnet.Await(t, "the end of Ask", failed); !errors.Is(err, net.ErrClosed) {
						t.Errorf("Ask: %v, want net.ErrClosed", err)
					}
				}
				if _, err := c.Ask(ctx, 1); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Ask of a closed connection: %v", err)
				}
				stop()
			}
		})
	}
}

func TestAskFailsAtOnceWhenTheMailboxIsFull(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	l := harness.Actor(t, tcpio.ListenerOptions{MailboxSize: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if m, ok := ev.(tcpio.Message); ok && m.Value == "block" {
			close(entered)
			<-release
		}
		return nil
	}))
	defer close(release)
	testnet.DialTCP(t, l)
	c := harness.Conns(t, l, 1)[0]
	for _, v := range []any{"block", "fill"} {
		if err := c.Post(v); err != nil {
			t.Fatal(err)
		}
		if v == "block" {
			testnet.Await(t, "a blocked handler", entered)
		}
	}
	begin := time.Now()
	if _, err := c.Ask(askCtx(t), 1); err != tcpio.ErrMailboxFull {
		t.Errorf("Ask: %v, want ErrMailboxFull", err)
	}
	if took := time.Since(begin); took > testnet.Limit/2 {
		t.Errorf("after %v", took)
	}
}

func TestActorsInARingWithFullMailboxesAllGoOn(t *testing.T) {
	const n, turns = 16, 300
	var handled [n]atomic.Int64
	var full atomic.Int64
	var ring atomic.Pointer[[]*tcpio.Conn]
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 3, MailboxSize: 4}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		m, ok := ev.(tcpio.Message)
		if !ok {
			return nil
		}
		me := m.Value.(int)
		handled[me].Add(1)
		next := (me + 1) % n
		for range 2 { // more than the next one can take
			switch err := (*ring.Load())[next].Post(next); {
			case err == tcpio.ErrMailboxFull:
				full.Add(1)
			case err != nil && !errors.Is(err, net.ErrClosed):
				return err
			}
		}
		return nil
	}))
	for range n {
		testnet.DialTCP(t, l)
	}
	conns := harness.Conns(t, l, n)
	ring.Store(&conns)
	for i, c := range conns {
		if err := c.Post(i); err != nil && err != tcpio.ErrMailboxFull { // those before it are at it already
			t.Fatal(err)
		}
	}
	for i := range handled {
		testnet.WaitFor(t, "everybody has had many turns", func() bool { return handled[i].Load() >= turns })
	}
	if full.Load() == 0 {
		t.Error("no mailbox was ever full")
	}
}

// All of them are on one loop, which each question takes away from its asker for a while.
func TestHandlerMayAskAnotherOnItsOwnLoop(t *testing.T) {
	t.Parallel()
	const askers = 50
	var answerer atomic.Pointer[tcpio.Conn]
	answers := make(chan any, askers)
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		m, ok := ev.(tcpio.Message)
		if !ok {
			return nil
		}
		if m.Conn == answerer.Load() {
			m.Reply(-m.Value.(int))
			return nil
		}
		v, err := answerer.Load().Ask(t.Context(), m.Value)
		if err != nil || v != -m.Value.(int) {
			t.Errorf("Ask(%v) = %v, %v", m.Value, v, err)
		}
		answers <- v
		return err
	}))
	for range askers + 1 {
		testnet.DialTCP(t, l)
	}
	conns := harness.Conns(t, l, askers+1)
	answerer.Store(conns[0])
	for i, c := range conns[1:] {
		if err := c.Post(i); err != nil {
			t.Fatal(err)
		}
	}
	for range askers {
		testnet.Await(t, "answer", answers)
	}
}
