//go:build linux

package contract

import (
	"errors"
	"io"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// The promises of MaxBuffered.

const budget = 1 << 20 // more than twice what the kernel takes for a peer that does not read

// hog makes one connection use up the budget, in pieces of 64 KiB: its peer does not read.
func hog(t *testing.T, l *tcpio.Listener, events <-chan tcpio.Event) (queued []byte, peer io.ReadCloser) {
	t.Helper()
	c, p := harness.Open(t, l, events)
	testnet.ShrinkSendBuffer(t, c)
	queued = harness.Fill(t, c, 64<<10)
	if n := l.Stats().Buffered; n <= budget/2 {
		t.Fatalf("only %d bytes are queued", n)
	}
	return queued, p
}

func TestMaxBufferedRefusesAndTellsWhenThereIsRoom(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{MaxBuffered: budget, WriteBuffer: budget})
	queued, hogPeer := hog(t, l, events)
	c, peer := harness.Open(t, l, events)
	big := testnet.Pattern(budget)
	if n, err := c.TryWrite(big); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryWrite past MaxBuffered = %d, %v, want 0, ErrWouldBlock", n, err)
	}
	// A peer that reads is served nevertheless.
	if _, err := c.TryWrite([]byte("small")); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, peer, "small")
	harness.ExpectSilence(t, events, 50*time.Millisecond)

	testnet.ExpectBytes(t, hogPeer, queued)
	for told := false; !told; { // the hog is told too, it was refused as well
		told = harness.Expect[tcpio.Writable](t, events).Conn == c
	}
	if n, err := c.TryWrite(big); n != len(big) || err != nil {
		t.Fatalf("TryWrite after Writable = %d, %v", n, err)
	}
	testnet.ExpectBytes(t, peer, big)
}

func TestMaxBufferedHoldsOverManyConnections(t *testing.T) {
	t.Parallel()
	const conns, chunk = 40, 16 << 10
	l, events := harness.Manual(t, tcpio.ListenerOptions{MaxBuffered: budget})
	want := make(map[*tcpio.Conn][]byte)
	peers := make(map[*tcpio.Conn]io.Reader)
	for range conns {
		c, peer := harness.Open(t, l, events)
		testnet.ShrinkSendBuffer(t, c)
		peers[c] = peer
	}
	for c := range peers {
		for {
			p := testnet.Pattern(chunk)
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
	if n := l.Stats().Buffered; n > budget+conns*4<<10 { // 4 KiB for each that had nothing queued
		t.Errorf("%d bytes are queued, MaxBuffered is %d", n, budget)
	}
	for c, p := range want {
		testnet.ExpectBytes(t, peers[c], p)
	}
	for range conns { // each was refused once, and is told
		harness.Expect[tcpio.Writable](t, events)
	}
	testnet.WaitFor(t, "an empty queue", func() bool { return l.Stats().Buffered == 0 })
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
		opts.TLSConfig = testnet.ServerTLS()
	}
	got := make(chan *tcpio.Conn, 2)
	opts.NewActor = func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if ev, ok := ev.(tcpio.Opened); ok {
				got <- ev.Conn
			}
			return nil
		})
	}
	l := harness.Serve(t, opts)
	connect := func() (*tcpio.Conn, io.Reader) {
		if secure {
			peer := testnet.DialTLS(t, l, testnet.ClientTLS())
			return testnet.Await(t, "Opened", got), peer
		}
		peer := testnet.Dial(t, l)
		return testnet.Await(t, "Opened", got), peer
	}
	// Together they would queue many times the budget.
	p := testnet.Pattern(2 * budget)
	var peers [2]io.Reader
	done := make(chan error, 2)
	for i := range peers {
		c, peer := connect()
		testnet.ShrinkSendBuffer(t, c)
		peers[i] = peer
		go func() {
			_, err := c.Write(p)
			done <- err
		}()
	}
	testnet.WaitFor(t, "output that waits", func() bool { return l.Stats().Buffered > budget/2 })
	if n := l.Stats().Buffered; n > budget+budget/4 {
		t.Errorf("%d bytes are queued, MaxBuffered is %d", n, budget)
	}
	for _, peer := range peers {
		testnet.ExpectBytes(t, peer, p)
	}
	for range peers {
		if err := testnet.Await(t, "the end of Write", done); err != nil {
			t.Error(err)
		}
	}
}

// A group's member that has no room because of others is not one that does not keep up.
func TestMaxBufferedSkipsGroupMembers(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{MaxBuffered: budget})
	queued, hogPeer := hog(t, l, events)
	c, peer := harness.Open(t, l, events)
	g := tcpio.Group{Slow: tcpio.CloseSlow}
	g.Join(c)
	if _, err := g.Write(make([]byte, budget)); err != nil {
		t.Fatal(err)
	}
	if n := g.Len(); n != 1 {
		t.Fatalf("%d members, want the one that was skipped", n)
	}
	testnet.ExpectBytes(t, hogPeer, queued)
	testnet.WaitFor(t, "room", func() bool { return l.Stats().Buffered == 0 })
	if _, err := g.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, peer, "hello")
}

func TestMaxBufferedForgetsWhoCloses(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{MaxBuffered: budget})
	hog(t, l, events)
	var gone []weak.Pointer[tcpio.Conn]
	for range 10 {
		c, peer := harness.Open(t, l, events)
		if _, err := c.TryWrite(make([]byte, budget)); !errors.Is(err, tcpio.ErrWouldBlock) {
			t.Fatal(err)
		}
		c.Close()
		peer.Close()
		harness.Expect[tcpio.Closed](t, events)
		gone = append(gone, weak.Make(c))
	}
	testnet.WaitFor(t, "nothing holds those that waited for room", func() bool {
		runtime.GC()
		held := 0
		for _, c := range gone {
			if c.Value() != nil {
				held++
			}
		}
		return held <= 1 // this function's own c
	})
}
