//go:build linux

package tcpio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// unserved is a listener with one loop, for connections without a socket.
func unserved(t *testing.T, buffer int) (*rig, *stream) {
	t.Helper()
	r := listen(t, ListenerOptions{EventBuffer: buffer})
	r.Events()
	return r, r.events
}

// socketless is a connection that only has events.
func socketless(r *rig, s *stream) *Conn {
	return &Conn{sh: &r.loops[0].shard, id: lastID.Add(1), fd: -1, stream: s}
}

func emit(c *Conn, kind event) {
	c.mu.Lock()
	c.emitLocked(kind)
	c.unlock()
}

// A full channel: what does not fit waits in the connections, in order, with one goroutine for all
// of them.
func TestFullStreamKeepsOrderWithOneGoroutine(t *testing.T) {
	r, s := unserved(t, 2)
	const conns, posts = 50, 20
	before := runtime.NumGoroutine()
	var all []*Conn
	for range conns {
		c := socketless(r, s)
		all = append(all, c)
		emit(c, pendOpened)
		emit(c, pendReadable)
	}
	for i := range posts {
		for _, c := range all {
			if err := c.Post(i); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range all {
		emit(c, pendWritable)
		emit(c, pendClosed)
	}
	if n := runtime.NumGoroutine() - before; n > 1 {
		t.Errorf("%d goroutines for a full channel, want the feeder", n)
	}
	s.mu.Lock()
	queued := s.queue.Len()
	s.mu.Unlock()
	if queued > conns {
		t.Errorf("%d entries queued for %d connections", queued, conns)
	}
	got := map[*Conn][]string{}
	for range conns * (4 + posts) {
		var c *Conn
		text := ""
		switch ev := testnet.Receive(t, "the next event", s.ch).(type) {
		case Opened:
			c, text = ev.Conn, "opened"
		case Readable:
			c, text = ev.Conn, "readable"
		case Writable:
			c, text = ev.Conn, "writable"
		case Message:
			c, text = ev.Conn, fmt.Sprint(ev.Value)
		case Closed:
			c, text = ev.Conn, "closed"
		}
		got[c] = append(got[c], text)
	}
	for i, c := range all {
		evs := got[c]
		if len(evs) != 4+posts || evs[0] != "opened" || evs[len(evs)-1] != "closed" {
			t.Fatalf("connection %d: %v", i, evs)
		}
		next := 0
		for _, e := range evs {
			if e == fmt.Sprint(next) {
				next++
			}
		}
		if next != posts {
			t.Fatalf("connection %d: messages out of order: %v", i, evs)
		}
	}
	testnet.WaitFor(t, "the feeder is gone", func() bool { return !s.blocked.Load() })
	testnet.WaitFor(t, "the feeder has ended", func() bool { return r.feeders.Load() == 0 })
	if s.queue.Len() != 0 || len(s.ch) != 0 {
		t.Errorf("%d queued and %d events are left", s.queue.Len(), len(s.ch))
	}
}

// What the feeder has in its hands is not overtaken when the consumer makes room.
func TestNothingOvertakesTheFeeder(t *testing.T) {
	t.Parallel()
	r, s := unserved(t, 1)
	c := socketless(r, s)
	emit(c, pendOpened)
	receiveAs[Opened](t, s.ch)
	for round := range 300 {
		take := func(i int) {
			if m := receiveAs[Message](t, s.ch); m.Value != 5*round+i {
				t.Fatalf("message %v, want %d", m.Value, 5*round+i)
			}
		}
		c.mu.Lock() // the feeder takes what it finds under it: all of them at once
		for i := range 4 {
			c.deliverLocked(mail{value: 5*round + i})
		}
		c.unlock()
		testnet.WaitFor(t, "the feeder has the messages in its hands", func() bool { return locked(c, c.mailReady) == 0 })
		take(0)
		take(1)
		if err := c.Post(5*round + 4); err != nil { // there may be room now, but 2 and 3 come first
			t.Fatal(err)
		}
		for i := 2; i < 5; i++ {
			take(i)
		}
		testnet.WaitFor(t, "the feeder has ended", func() bool { return r.feeders.Load() == 0 })
	}
}

// While the channel is full nothing grows with what the peers do.
func TestStoppedConsumerCostsNoMemory(t *testing.T) {
	r := listen(t, ListenerOptions{EventBuffer: 1})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	other, d := r.open()
	testnet.Send(t, other, "x")
	testnet.Send(t, peer, "x")
	testnet.WaitFor(t, "the stream is full", func() bool { return r.events.blocked.Load() })
	outstanding := announced(c) || announced(d)
	for range 100 {
		testnet.Send(t, peer, "more")
		testnet.Send(t, other, "more")
	}
	asleep(t, r.Listener)
	r.events.mu.Lock()
	queued := r.events.queue.Len()
	r.events.mu.Unlock()
	if queued > 2 {
		t.Errorf("%d entries queued for two connections", queued)
	}
	if !outstanding {
		t.Error("no Readable is outstanding")
	}
	r.dial() // and accepting pauses
	r.dial()
	<-time.After(20 * time.Millisecond) // time in which it must not happen
	if n := r.Len(); n > 3 {
		t.Errorf("%d connections were accepted into a full stream", n)
	}
	opened := 0
	buf := make([]byte, 1000)
	for opened < 2 {
		switch ev := testnet.Receive(t, "the next event", events).(type) {
		case Opened:
			opened++
		case Readable:
			if _, err := ev.Conn.TryRead(buf); err != nil && err != ErrWouldBlock {
				t.Fatal(err)
			}
		}
	}
}

func TestServeGivesUpOnEventsThatNobodyReceives(t *testing.T) {
	t.Parallel()
	const limit = 100 * time.Millisecond
	r := listen(t, ListenerOptions{EventBuffer: 2, CloseTimeout: limit})
	events := r.Events()
	r.serve()
	for range 10 {
		r.dial()
	}
	testnet.WaitFor(t, "the stream is full", func() bool { return r.events.blocked.Load() })
	start := time.Now()
	r.Close()
	if d := time.Since(start); d > testnet.Limit/2 {
		t.Errorf("Close took %v: it must not wait for events", d)
	}
	if err := testnet.Receive(t, "the end of Serve", r.served); err != nil {
		t.Errorf("Serve: %v", err)
	}
	r.served = nil
	if d := time.Since(start); d < limit {
		t.Errorf("gave up after %v, want CloseTimeout, %v", d, limit)
	}
	n := 0
	for range events {
		n++
	}
	if n > 2+1 {
		t.Errorf("%d events in a channel of two", n)
	}
	for c := range r.Conns() {
		t.Errorf("connection %d is left", c.ID())
	}
}

// Trouble that nobody hears of is not collected: the latest is kept.
func TestFailedCoalescesWhileTheStreamIsFull(t *testing.T) {
	r, s := unserved(t, 1)
	c := socketless(r, s)
	emit(c, pendOpened)
	emit(c, pendReadable) // waits, with a feeder
	testnet.WaitFor(t, "the feeder holds the Readable", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.blocked.Load() && s.queue.Len() == 0
	})
	errs := make([]error, 100)
	for i := range errs {
		errs[i] = fmt.Errorf("trouble %d", i)
		s.fail(errs[i])
	}
	receiveAs[Opened](t, s.ch)
	receiveAs[Readable](t, s.ch)
	if got := receiveAs[Failed](t, s.ch); !errors.Is(got.Err, errs[99]) {
		t.Errorf("Failed says %v, want the latest", got.Err)
	}
	testnet.WaitFor(t, "the feeder has ended", func() bool { return r.feeders.Load() == 0 })
	if len(s.ch) != 0 {
		t.Errorf("%d more events", len(s.ch))
	}
}

// Many connections whose events do not fit: served in turn, no one before its time is over.
func TestFeederServesConnectionsInTurn(t *testing.T) {
	r, s := unserved(t, 1)
	a, b := socketless(r, s), socketless(r, s)
	emit(a, pendOpened)
	const posts = 3 * feedChunk
	for i := range posts {
		for _, c := range []*Conn{a, b} {
			if err := c.Post(i); err != nil {
				t.Fatal(err)
			}
		}
	}
	var order []*Conn
	for len(order) < 2*posts {
		if m, ok := testnet.Receive(t, "a message", s.ch).(Message); ok {
			order = append(order, m.Conn)
		}
	}
	if first := slices.Index(order, b); first > 2*feedChunk {
		t.Errorf("B waited for %d messages of A, want %d at most", first, 2*feedChunk)
	}
}

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
	testnet.WaitFor(t, "a read finds the loop parked and polls", func() bool {
		testnet.Send(t, peerA, "x")
		receiveAs[Readable](t, events)
		// The loop is on its way to the park; a read before that helps nobody.
		for range 1000 {
			if role(lp.state.Load()&roleMask) == parked {
				break
			}
			runtime.Gosched()
		}
		testnet.Send(t, peerB, "y")
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

// A consumer that one peer keeps busy goes on polling for the others, also when a poll finds
// nothing: the loop's own goroutine could wait for a processor for as long as the consumer is busy.
// To see it fail: hand the role over behind every poll that finds nothing.
func TestConsumerOfABusyPeerPollsOn(t *testing.T) {
	r, _, events := helping(t)
	peer, c := r.open()
	lp := r.loops[0]
	buf := make([]byte, 4)
	read := func() {
		if n, err := c.TryRead(buf); n != len(buf) || err != nil {
			t.Fatalf("TryRead: %d, %v", n, err)
		}
	}
	const reads = 16
	testnet.WaitFor(t, "every read polls", func() bool {
		testnet.Send(t, peer, strings.Repeat("busy", reads+1))
		receiveAs[Readable](t, events)
		for range 1000 {
			if role(lp.state.Load()&roleMask) == parked {
				break
			}
			runtime.Gosched()
		}
		before := lp.helped.Load()
		for range reads {
			read()
			receiveAs[Readable](t, events)
		}
		helped := lp.helped.Load() - before
		for read(); len(events) > 0; { // the last of it: a full read has announced once more
			<-events
			if n, err := c.TryRead(buf); err != ErrWouldBlock {
				t.Fatalf("TryRead of nothing: %d, %v", n, err)
			}
		}
		return helped == reads
	})
}

// A consumer may sit on a Readable as long as it likes.
func TestHeldReadableDoesNotStopOtherConnections(t *testing.T) {
	r, _, events := helping(t)
	peerA, a := r.open()
	peerB, b := r.open()
	testnet.Send(t, peerA, "held")
	if got := receiveAs[Readable](t, events).Conn; got != a {
		t.Fatal("not A's Readable")
	}
	buf := make([]byte, 16)
	for range 20 {
		testnet.Send(t, peerB, "more")
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
	testnet.Send(t, peerA, "next")
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
		testnet.Send(t, peer, "x")
		receiveAs[Readable](t, events)
	}
	f.asleep(t, r.Listener)
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

// net.Listen's sockets speak multipath TCP since Go 1.24, and so may adopted and dialed ones.
// To see it fail: take every IP socket for one of plain TCP.
func TestShortReadOfMultipathTCPProvesNothing(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skip("no multipath TCP here:", err)
	}
	unix.Close(fd)
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	mp := func() net.Listener {
		ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	r := listen(t, ListenerOptions{Listener: mp()})
	events := r.Events()
	r.serve()
	var multi net.Dialer
	multi.SetMultipathTCP(true)
	for _, on := range []bool{false, true} {
		var d net.Dialer
		if on {
			d = multi
		}
		peer, err := d.Dial("tcp", r.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		if c := receiveAs[Opened](t, events).Conn; markedSock(c, sockUnsure) != on {
			t.Errorf("accepted, multipath %v: distrusted %v", on, !on)
		}
	}
	up := mp()
	defer up.Close()
	c, err := r.DialWith(context.Background(), &multi, "tcp", up.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	receiveAs[Opened](t, events)
	if !markedSock(c, sockUnsure) {
		t.Error("a dialed one is trusted")
	}
	nc, err := up.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if c, err = r.Adopt(nc); err != nil {
		t.Fatal(err)
	}
	receiveAs[Opened](t, events)
	if !markedSock(c, sockUnsure) {
		t.Error("an adopted one is trusted")
	}
}
