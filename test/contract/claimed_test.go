//go:build linux

package contract

import (
	"context"
	"testing"

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
