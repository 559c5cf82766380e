//go:build linux

package tcpio

import (
	"net"
	"runtime"
	"testing"
)

// helping is a rig with one loop and its stream, warmed up and asleep.
func helping(t *testing.T) (*rig, *fakePoller, <-chan Event) {
	t.Helper()
	r, f := fakeOne(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	return r, f, events
}

// The loop does not poll beside a consumer that works; the consumer's own read does.
func TestConsumersReadPollsForAParkedLoop(t *testing.T) {
	r, _, events := helping(t)
	peerA, a := r.open()
	peerB, b := r.open()
	lp := r.loops[0]
	buf := make([]byte, 16)
	waitFor(t, "a read finds the loop parked and polls", func() bool {
		write(t, peerA, []byte("x"))
		receiveAs[Readable](t, events)
		// The loop is on its way to the park; a read before that helps nobody.
		for range 1000 {
			if role(lp.state.Load()&roleMask) == parked {
				break
			}
			runtime.Gosched()
		}
		write(t, peerB, []byte("y"))
		before := lp.helped.Load()
		if n, err := a.TryRead(buf); n != 1 || err != nil {
			t.Fatalf("TryRead: %d, %v", n, err)
		}
		helped := lp.helped.Load() > before
		if helped && len(events) != 1 {
			t.Errorf("A's read has polled, and %d events are delivered, want B's", len(events))
		}
		if got := receiveAs[Readable](t, events).Conn; got != b {
			t.Fatal("not B's Readable")
		}
		if n, err := b.TryRead(buf); n != 1 || err != nil {
			t.Fatalf("TryRead: %d, %v", n, err)
		}
		return helped
	})
	if lp.demand.Outstanding() {
		t.Error("everything was read, and some is outstanding")
	}
}

// A consumer may sit on a Readable as long as it likes.
func TestHeldReadableDoesNotStopOtherConnections(t *testing.T) {
	r, _, events := helping(t)
	peerA, a := r.open()
	peerB, b := r.open()
	write(t, peerA, []byte("held"))
	if got := receiveAs[Readable](t, events).Conn; got != a {
		t.Fatal("not A's Readable")
	}
	buf := make([]byte, 16)
	for range 20 {
		write(t, peerB, []byte("more"))
		if got := receiveAs[Readable](t, events).Conn; got != b {
			t.Fatal("not B's Readable")
		}
		if n, err := b.TryRead(buf); n != 4 || err != nil {
			t.Fatalf("TryRead: %d, %v", n, err)
		}
	}
	if n, err := a.TryRead(buf); n != 4 || err != nil {
		t.Fatalf("TryRead of what was held: %d, %v", n, err)
	}
	asleep(t, r.Listener)
	if r.loops[0].demand.Outstanding() {
		t.Error("everything was read, and some is outstanding")
	}
	// And A's next byte is announced as ever.
	write(t, peerA, []byte("next"))
	if got := receiveAs[Readable](t, events).Conn; got != a {
		t.Fatal("not A's Readable")
	}
}

// Nobody even receives: the loop gives up waiting for the consumer, and goes to sleep.
func TestUnansweredReadablesAreWrittenOff(t *testing.T) {
	r, f, events := helping(t)
	var peers []net.Conn
	var conns []*Conn
	for range 10 {
		peer, c := r.open()
		peers, conns = append(peers, peer), append(conns, c)
	}
	for _, peer := range peers {
		write(t, peer, []byte("x"))
		receiveAs[Readable](t, events)
	}
	asleep(t, r.Listener)
	if r.loops[0].demand.Outstanding() {
		t.Error("the loop sleeps and still counts on the consumer")
	}
	before := f.waits.Load()
	for _, c := range conns {
		if n, err := c.TryRead(make([]byte, 16)); n != 1 || err != nil {
			t.Fatalf("TryRead: %d, %v", n, err)
		}
	}
	if n := f.waits.Load() - before; n > 0 {
		t.Errorf("%d polls by reads while the loop itself was in the poller", n)
	}
}
