//go:build linux

package contract

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// Peers and consumers that do not keep up.

func TestQueuedOutputReachesASlowReaderAfterClose(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: testnet.Limit})
	c, peer := harness.Open(t, l, events)
	p := testnet.Pattern(8 << 20)
	if n, err := c.TryWrite(p); n != len(p) || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	c.Close()
	for rest := p; len(rest) > 0; { // 64 KiB every other millisecond
		n := min(len(rest), 64<<10)
		testnet.ExpectBytes(t, peer, rest[:n])
		rest = rest[n:]
		<-time.After(2 * time.Millisecond)
	}
	testnet.ExpectEOF(t, peer)
	peer.Close()
	if ev := harness.Expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
		t.Errorf("Err = %v, want nil", ev.Conn.Err())
	}
}

func TestUnreadInputDoesNotTurnTheReplyIntoAReset(t *testing.T) {
	l := harness.Stream(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) {
		if r, ok := ev.(tcpio.Readable); ok { // the rest of the request is never read
			if _, err := r.Conn.TryWrite(testnet.Pattern(100_000)); err != nil && !testnet.Benign(err) {
				t.Errorf("TryWrite: %v", err)
			}
			r.Conn.Close()
		}
	})
	for range 10 {
		peer := testnet.Dial(t, l)
		wrote := make(chan error, 1)
		go func() { // still sending while the server replies and closes
			_, err := peer.Write(make([]byte, 4<<20))
			wrote <- err
		}()
		testnet.ExpectBytes(t, peer, testnet.Pattern(100_000))
		testnet.ExpectEOF(t, peer)
		if err := testnet.Await(t, "the end of the peer's write", wrote); err != nil {
			t.Errorf("the peer's write: %v", err)
		}
		peer.Close()
	}
}

func TestAPeerThatNeverReadsIsHeldBackWithoutLimitlessBuffering(t *testing.T) {
	const limit = 256 << 10
	pending := make(map[*tcpio.Conn][]byte) // read and not yet accepted by TryWrite
	buf := make([]byte, 64<<10)
	conns := make(chan *tcpio.Conn, 1)
	pump := func(c *tcpio.Conn) {
		if p := pending[c]; len(p) > 0 {
			if _, err := c.TryWrite(p); err != nil {
				return // paused: no read until Writable
			}
			pending[c] = nil
		}
		n, err := c.TryRead(buf)
		if err != nil {
			return
		}
		if _, err := c.TryWrite(buf[:n]); err == tcpio.ErrWouldBlock {
			pending[c] = append([]byte(nil), buf[:n]...)
		}
	}
	l := harness.Stream(t, tcpio.ListenerOptions{WriteBuffer: limit}, func(ev tcpio.Event) {
		switch ev := ev.(type) {
		case tcpio.Opened:
			conns <- ev.Conn
		case tcpio.Readable:
			if len(pending[ev.Conn]) == 0 {
				pump(ev.Conn)
			}
		case tcpio.Writable:
			pump(ev.Conn)
		}
	})
	peer := testnet.Dial(t, l)
	c := testnet.Await(t, "Opened", conns)
	chunk := testnet.Pattern(64 << 10)
	sent := 0
	for {
		peer.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := peer.Write(chunk)
		sent += n
		if err != nil {
			break
		}
		if sent > 64<<20 {
			t.Fatalf("%d bytes taken from a peer that reads nothing", sent)
		}
	}
	if n := c.Buffered(); n > limit {
		t.Errorf("%d bytes queued, the limit is %d", n, limit)
	}
	before := testnet.CPU(t)
	const window = 500 * time.Millisecond
	<-time.After(window)
	if used := testnet.CPU(t) - before; used > window/2 {
		t.Errorf("%v of processor time in %v of stall", used, window)
	}
	for got := 0; got < sent; { // it was held back, not lost
		n := min(len(chunk), sent-got)
		testnet.ExpectBytes(t, peer, chunk[:n])
		got += n
	}
}

func TestAConsumerThatStopsHoldsUpNobodysOutput(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{EventBuffer: 4})
	c, peer := harness.Open(t, l, events)
	p := testnet.Pattern(8 << 20)
	if _, err := c.TryWrite(p); err != nil {
		t.Fatal(err)
	}
	closing, closingPeer := harness.Open(t, l, events)
	if _, err := closing.TryWrite(p); err != nil {
		t.Fatal(err)
	}
	closing.Close()
	// From here on nobody receives. Others come and talk until the stream is full.
	var others []net.Conn
	for range 20 {
		other := testnet.Dial(t, l)
		testnet.Send(t, other, testnet.Pattern(1000))
		others = append(others, other)
	}
	testnet.WaitFor(t, "a full stream", func() bool { return len(events) == cap(events) })
	got := make(chan struct{})
	go func() {
		defer close(got)
		testnet.ExpectBytes(t, closingPeer, p)
		testnet.ExpectEOF(t, closingPeer)
		closingPeer.Close()
	}()
	testnet.ExpectBytes(t, peer, p) // queued writes still go out
	testnet.Await(t, "the closing connection's output", got)
	testnet.WaitFor(t, "the closing connection's descriptor gone", func() bool {
		_, err := closing.SyscallConn()
		n := 0
		for conn := range l.Conns() {
			if conn == closing {
				n++
			}
		}
		return err != nil && n == 0
	})

	// Whatever else comes in: memory stays flat, and the loops sleep.
	runtime.GC()
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	for _, other := range others {
		other.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		io.CopyN(other, zeroes{}, 8<<20) // until flow control stops it
	}
	before, start := testnet.CPU(t), time.Now()
	<-time.After(500 * time.Millisecond)
	if used, d := testnet.CPU(t)-before, time.Since(start); used > d/2 {
		t.Errorf("%v of processor time in %v without a consumer", used, d)
	}
	runtime.GC()
	runtime.ReadMemStats(&m1)
	if grown := int64(m1.HeapAlloc) - int64(m0.HeapAlloc); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes without a consumer", grown)
	}
	// And when it comes back everything is there.
	opened := 0
	for opened < len(others) {
		switch ev := testnet.Await(t, "the rest of the events", events).(type) {
		case tcpio.Opened:
			opened++
		case tcpio.Readable:
			ev.Conn.Abort()
		}
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }
