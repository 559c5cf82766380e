//go:build linux

package contract

import (
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// Programs of the first tcpio share state between callbacks without a lock; -race watches.
func TestCallbacksOfOneListenerRunOneAtATime(t *testing.T) {
	seen := make(map[string]int)
	errored := 0
	inside := 0
	const peers, rounds = 16, 50
	ends := make(chan error, peers)
	l := startLegacy(t, tcpio.ListenerOptions{
		Loops: 4,
		OnConnEvent: func(conn net.Conn) error {
			if inside++; inside != 1 {
				t.Error("two callbacks at once")
			}
			defer func() { inside-- }()
			buf := make([]byte, 8)
			if _, err := conn.Read(buf); err != nil {
				return err
			}
			seen[conn.RemoteAddr().String()]++
			runtime.Gosched()
			_, err := conn.Write([]byte("OK\n"))
			return err
		},
		OnErrorEvent: func(err error) {
			errored++
			seen["errors"]++
			ends <- err
		},
	})
	var wg sync.WaitGroup
	for range peers {
		peer := testnet.Dial(t, l)
		wg.Go(func() {
			got := make([]byte, 3)
			for range rounds {
				if _, err := peer.Write([]byte("x")); err != nil {
					t.Errorf("the peer's write: %v", err)
					return
				}
				if _, err := io.ReadFull(peer, got); err != nil {
					t.Errorf("the peer's read: %v", err)
					return
				}
			}
			peer.Close()
		})
	}
	wg.Wait()
	for range peers {
		if err := testnet.Await(t, "the end", ends); err != io.EOF {
			t.Errorf("OnErrorEvent got %v", err)
		}
	}
	if errored != peers || seen["errors"] != peers || len(seen) != peers+1 {
		t.Errorf("%d errors of %d connections, %d addresses", errored, peers, len(seen)-1)
	}
}

func TestConcurrentCallbacksRunAtOnce(t *testing.T) {
	const peers = 4
	var together sync.WaitGroup
	together.Add(peers)
	l := startLegacy(t, tcpio.ListenerOptions{ConcurrentCallbacks: true, OnConnEvent: func(conn net.Conn) error {
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return err
		}
		together.Done()
		together.Wait() // ends only with all of them inside
		_, err := conn.Write([]byte("x"))
		return err
	}})
	conns := make([]net.Conn, peers)
	for i := range conns {
		conns[i] = testnet.Dial(t, l)
		testnet.Send(t, conns[i], "x")
	}
	for _, c := range conns {
		testnet.ExpectBytes(t, c, "x")
	}
}

// With one loop and one callback at a time, a peer that sends half of what the callback wants to
// read holds up the callbacks, and nothing else.
func TestBlockedCallbackDoesNotHoldUpTheLoop(t *testing.T) {
	t.Run("serial", func(t *testing.T) {
		l := startLegacy(t, tcpio.ListenerOptions{Loops: 1, WriteBuffer: 64 << 20, OnConnEvent: func(conn net.Conn) error {
			head := make([]byte, 1)
			if _, err := io.ReadFull(conn, head); err != nil {
				return err
			}
			if head[0] == 'b' { // a large answer that takes its peer long to read
				_, err := conn.Write(testnet.Pattern(32 << 20))
				return err
			}
			if _, err := io.ReadFull(conn, make([]byte, 9)); err != nil {
				return err
			}
			_, err := conn.Write([]byte("OK\n"))
			return err
		}})
		slow := testnet.Dial(t, l)
		testnet.Send(t, slow, "b")
		testnet.ExpectBytes(t, slow, testnet.Pattern(1000)) // the answer is queued
		half := testnet.Dial(t, l)
		testnet.Send(t, half, "half ")
		testnet.WaitFor(t, "the blocked callback", func() bool { return l.Stats().Blocked == 1 })
		// Flushed,
		testnet.ExpectBytes(t, slow, testnet.Pattern(32 << 20)[1000:])
		// accepted,
		testnet.Dial(t, l)
		testnet.WaitFor(t, "the next connection", func() bool { return l.Len() == 3 })
		// and served once the callback returns.
		other := testnet.Dial(t, l)
		testnet.Send(t, other, "0123456789")
		testnet.Send(t, half, "other")
		testnet.ExpectBytes(t, half, "OK\n")
		testnet.ExpectBytes(t, other, "OK\n")
	})
	t.Run("concurrent", func(t *testing.T) {
		l := startLegacy(t, tcpio.ListenerOptions{Loops: 1, ConcurrentCallbacks: true, OnConnEvent: wholeMessages})
		half := testnet.Dial(t, l)
		testnet.Send(t, half, "half ")
		testnet.WaitFor(t, "the blocked callback", func() bool { return l.Stats().Blocked == 1 })
		other := testnet.Dial(t, l)
		for range 10 {
			testnet.Send(t, other, "0123456789")
			testnet.ExpectBytes(t, other, "OK\n")
		}
		testnet.Send(t, half, "other")
		testnet.ExpectBytes(t, half, "OK\n")
	})
}

// wholeMessages answers messages of ten bytes, each of which it blocks for.
func wholeMessages(conn net.Conn) error {
	var message [10]byte
	if _, err := io.ReadFull(conn, message[:]); err != nil {
		return err
	}
	_, err := conn.Write([]byte("OK\n"))
	return err
}

// slowLoris connects n peers that send half a message, and waits until their callbacks are blocked.
func slowLoris(tb testing.TB, n int) *tcpio.Listener {
	l := startLegacy(tb, tcpio.ListenerOptions{ConcurrentCallbacks: true, OnConnEvent: wholeMessages})
	for range n {
		testnet.Send(tb, testnet.Dial(tb, l), "half ")
	}
	testnet.WaitFor(tb, "the half-senders' callbacks", func() bool { return l.Stats().Blocked == n })
	return l
}

func TestGoodClientIsServedBesideAThousandHalfSenders(t *testing.T) {
	l := slowLoris(t, 1000)
	good := testnet.Dial(t, l)
	for range 2000 {
		testnet.Send(t, good, "0123456789")
		testnet.ExpectBytes(t, good, "OK\n")
	}
	if n := l.Stats().Blocked; n < 1000 {
		t.Fatalf("only %d half-senders were still stuck", n)
	}
}

// BenchmarkSlowLoris reports what a good client sees meanwhile.
func BenchmarkSlowLoris(b *testing.B) {
	l := slowLoris(b, 1000)
	good := testnet.Dial(b, l)
	if err := good.SetDeadline(time.Time{}); err != nil {
		b.Fatal(err)
	}
	took := make([]time.Duration, 0, b.N)
	for b.Loop() {
		start := time.Now()
		testnet.Send(b, good, "0123456789")
		testnet.ExpectBytes(b, good, "OK\n")
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
