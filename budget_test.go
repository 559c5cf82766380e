//go:build linux

package tcpio_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// The promises of MaxBuffered.

const budget = 1 << 20 // more than twice what the kernel takes for a peer that does not read

// hog makes one connection use up the budget, in pieces of 64 KiB: its peer does not read.
func hog(t *testing.T, l *tcpio.Listener, events <-chan tcpio.Event) (queued []byte, peer io.ReadCloser) {
	t.Helper()
	c, p := open(t, l, events)
	shrinkSendBuffer(t, c)
	queued = fill(t, c, 64<<10)
	if n := l.Stats().Queued; n <= budget/2 {
		t.Fatalf("only %d bytes are queued", n)
	}
	return queued, p
}

func TestMaxBufferedRefusesAndTellsWhenThereIsRoom(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{MaxBuffered: budget, WriteBuffer: budget})
	queued, hogPeer := hog(t, l, events)
	c, peer := open(t, l, events)
	big := pattern(budget)
	if n, err := c.TryWrite(big); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryWrite past MaxBuffered = %d, %v, want 0, ErrWouldBlock", n, err)
	}
	// A peer that reads is served nevertheless.
	if _, err := c.TryWrite([]byte("small")); err != nil {
		t.Fatal(err)
	}
	expectBytes(t, peer, []byte("small"))
	expectSilence(t, events, 50*time.Millisecond)

	expectBytes(t, hogPeer, queued)
	for told := false; !told; { // the hog is told too, it was refused as well
		told = expect[tcpio.Writable](t, events).Conn == c
	}
	if n, err := c.TryWrite(big); n != len(big) || err != nil {
		t.Fatalf("TryWrite after Writable = %d, %v", n, err)
	}
	expectBytes(t, peer, big)
}

func TestMaxBufferedHoldsOverManyConnections(t *testing.T) {
	t.Parallel()
	const conns, chunk = 40, 16 << 10
	l, events := startManual(t, tcpio.ListenerOptions{MaxBuffered: budget})
	want := make(map[*tcpio.Conn][]byte)
	peers := make(map[*tcpio.Conn]io.Reader)
	for range conns {
		c, peer := open(t, l, events)
		shrinkSendBuffer(t, c)
		peers[c] = peer
	}
	for c := range peers {
		for {
			p := pattern(chunk)
			_, err := c.TryWrite(p)
			if err == tcpio.ErrWouldBlock {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			want[c] = append(want[c], p...)
		}
	}
	if n := l.Stats().Queued; n > budget+conns*4<<10 { // 4 KiB for each that had nothing queued
		t.Errorf("%d bytes are queued, MaxBuffered is %d", n, budget)
	}
	for c, p := range want {
		expectBytes(t, peers[c], p)
	}
	for range conns { // each was refused once, and is told
		expect[tcpio.Writable](t, events)
	}
	waitFor(t, "an empty queue", func() bool { return l.Stats().Queued == 0 })
}

func TestMaxBufferedBlocksWrite(t *testing.T) {
	t.Parallel()
	t.Run("plain", func(t *testing.T) { testBudgetWrite(t, false) })
	t.Run("TLS", func(t *testing.T) { testBudgetWrite(t, true) })
}

func testBudgetWrite(t *testing.T, secure bool) {
	t.Helper()
	opts := tcpio.ListenerOptions{MaxBuffered: budget, WriteBuffer: 8 * budget}
	if secure {
		opts.TLSConfig = serverTLS()
	}
	got := make(chan *tcpio.Conn, 2)
	opts.Actor = func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if ev, ok := ev.(tcpio.Opened); ok {
				got <- ev.Conn
			}
			return nil
		})
	}
	l := hookServe(t, opts)
	connect := func() (*tcpio.Conn, io.Reader) {
		if secure {
			peer := tlsDial(t, l, clientTLS())
			return receive(t, "Opened", got), peer
		}
		peer := dial(t, l)
		return receive(t, "Opened", got), peer
	}
	// Together they would queue many times the budget.
	p := pattern(2 * budget)
	var peers [2]io.Reader
	done := make(chan error, 2)
	for i := range peers {
		c, peer := connect()
		shrinkSendBuffer(t, c)
		peers[i] = peer
		go func() {
			_, err := c.Write(p)
			done <- err
		}()
	}
	waitFor(t, "output that waits", func() bool { return l.Stats().Queued > budget/2 })
	if n := l.Stats().Queued; n > budget+budget/4 {
		t.Errorf("%d bytes are queued, MaxBuffered is %d", n, budget)
	}
	for _, peer := range peers {
		expectBytes(t, peer, p)
	}
	for range peers {
		if err := receive(t, "the end of Write", done); err != nil {
			t.Error(err)
		}
	}
}

// A group's member that has no room because of others is not one that does not keep up.
func TestMaxBufferedSkipsGroupMembers(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{MaxBuffered: budget})
	queued, hogPeer := hog(t, l, events)
	c, peer := open(t, l, events)
	g := tcpio.Group{Slow: tcpio.CloseSlow}
	g.Join(c)
	if _, err := g.Write(make([]byte, budget)); err != nil {
		t.Fatal(err)
	}
	if n := g.Len(); n != 1 {
		t.Fatalf("%d members, want the one that was skipped", n)
	}
	expectBytes(t, hogPeer, queued)
	waitFor(t, "room", func() bool { return l.Stats().Queued == 0 })
	if _, err := g.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	expectBytes(t, peer, []byte("hello"))
}

func TestMaxBufferedForgetsWhoCloses(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{MaxBuffered: budget})
	hog(t, l, events)
	for range 10 {
		c, peer := open(t, l, events)
		if _, err := c.TryWrite(make([]byte, budget)); !errors.Is(err, tcpio.ErrWouldBlock) {
			t.Fatal(err)
		}
		c.Close()
		peer.Close()
		expect[tcpio.Closed](t, events)
	}
	if n := tcpio.StarvedOf(l); n > 1 { // the hog may
		t.Errorf("%d connections wait for room, and one is open", n)
	}
}
