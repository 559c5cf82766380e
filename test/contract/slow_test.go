//go:build linux

package contract

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// Peers and consumers that do not keep up.

func TestPeerThatNeverReadsIsHeldBackWithoutLimitlessBuffering(t *testing.T) {
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
	const window = 500 * time.Millisecond
	testnet.WaitIdle(t, "a stall", window, window/2)
	for got := 0; got < sent; { // it was held back, not lost
		n := min(len(chunk), sent-got)
		testnet.ExpectBytes(t, peer, chunk[:n])
		got += n
	}
}

func TestConsumerThatStopsHoldsUpNobodysOutput(t *testing.T) {
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
	const window = 500 * time.Millisecond
	testnet.WaitIdle(t, "no consumer", window, window/2)
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

func TestHandlerThatBlocksInWriteGoesOnAtMaxBlocked(t *testing.T) {
	const size = 8 << 20
	o := tcpio.ListenerOptions{Loops: 1, MaxBlocked: 1, WriteBuffer: 1000}
	l := harness.Actor(t, o, tcpio.ActorFunc(func(ev tcpio.Event) error {
		rd, ok := ev.(tcpio.Readable)
		if !ok {
			return nil
		}
		var p [1]byte
		if _, err := rd.Conn.Read(p[:]); err != nil {
			return nil
		}
		var err error
		if p[0] == 'w' {
			_, err = rd.Conn.Write(make([]byte, size)) // needs the loop to flush
		} else {
			_, err = rd.Conn.TryWrite(p[:])
		}
		return err
	}))
	var slow []*net.TCPConn
	for range 5 {
		c := testnet.DialTCP(t, l)
		testnet.Send(t, c, "w")
		slow = append(slow, c)
	}
	testnet.WaitFor(t, "five handlers are blocked", func() bool { return l.Stats().Blocked == 5 })
	good := testnet.DialTCP(t, l)
	for range 20 {
		testnet.Ping(t, good, "e")
	}
	for _, c := range slow {
		if n, err := io.CopyN(io.Discard, c, size); err != nil {
			t.Errorf("%d bytes, then %v", n, err)
		}
	}
}

// Every buffer has room for one byte or event only, at both ends.
func TestAtTheSmallestLimitsEveryByteComesBack(t *testing.T) {
	const size = 3000
	one := func(data []byte, _ bool) (int, []byte, error) {
		if len(data) == 0 {
			return 0, nil, nil
		}
		return 1, data[:1], nil
	}
	type state struct {
		owed []byte
		end  bool
	}
	pump := func(c *tcpio.Conn) {
		s := c.Data().(*state)
		for len(s.owed) > 0 {
			if _, err := c.TryWrite(s.owed); err == tcpio.ErrWouldBlock {
				return // Writable follows
			} else if err != nil {
				t.Errorf("TryWrite: %v", err)
				return
			}
			s.owed = nil
			for f, err := range c.Frames(one) {
				switch {
				case err == io.EOF:
					s.end = true
				case err != nil:
					t.Errorf("Frames: %v", err)
				default:
					s.owed = append(s.owed, f...)
				}
				break // one at a time; a Readable follows
			}
		}
		if s.end {
			c.Close()
		}
	}
	l := harness.Stream(t, tcpio.ListenerOptions{EventBuffer: 1, WriteBuffer: 1, MaxFrame: 1}, func(ev tcpio.Event) {
		switch ev := ev.(type) {
		case tcpio.Opened:
			ev.Conn.SetData(new(state))
			testnet.ShrinkSendBuffer(t, ev.Conn)
		case tcpio.Writable:
			pump(ev.Conn)
		case tcpio.Readable:
			s := ev.Conn.Data().(*state)
			if len(s.owed) > 0 {
				return // a full queue pauses reading
			}
			for f, err := range ev.Conn.Frames(one) {
				s.end = s.end || err == io.EOF
				s.owed = append(s.owed, f...)
				break
			}
			pump(ev.Conn)
		}
	})
	want := testnet.Pattern(size)
	var peers sync.WaitGroup
	for range 4 {
		p := testnet.Dial(t, l).(*net.TCPConn)
		p.SetReadBuffer(1)
		p.SetWriteBuffer(1)
		peers.Go(func() {
			p.Write(want)
			p.CloseWrite()
		})
		peers.Go(func() {
			if got, err := io.ReadAll(p); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes of %d came back: %v", len(got), size, err)
			}
		})
	}
	peers.Wait()
}

// With every route full, and peers that neither read nor stop sending, nothing runs until somebody
// receives.
func TestStalledServerUsesNoProcessor(t *testing.T) {
	const n, window = 8, 500 * time.Millisecond
	flood := tcpio.ActorFunc(func(ev tcpio.Event) error {
		if r, ok := ev.(tcpio.Readable); ok { // never reads, and writes until there is no room
			for {
				if _, err := r.Conn.TryWrite(make([]byte, 64<<10)); err != nil {
					return nil
				}
			}
		}
		return nil
	})
	for name, opts := range map[string]tcpio.ListenerOptions{
		"stream": {EventBuffer: 2}, "streams": {EventBuffer: 2}, "claimed": {},
		"actor": {NewActor: func(*tcpio.Conn) tcpio.Actor { return flood }},
	} {
		opts.Loops, opts.IdleTimeout = 2, time.Hour
		l := harness.Listen(t, opts)
		var chans []<-chan tcpio.Event
		if name == "streams" {
			chans = l.EventsPerLoop()
		} else {
			chans = append(chans, l.Events())
		}
		served := harness.Go(t.Context(), l)
		t.Cleanup(func() {
			go l.Close()
			for _, ch := range chans {
				go func() {
					for range ch {
					}
				}()
			}
			if err := testnet.Await(t, "the end of Serve", served); err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
		for range n {
			p := testnet.Dial(t, l).(*net.TCPConn)
			p.SetReadBuffer(4 << 10)
			p.SetWriteBuffer(4 << 10)
			go p.Write(make([]byte, 8<<20)) // it ends with its connection
			for claimed := name != "claimed"; !claimed; {
				var o tcpio.Opened
				if o, claimed = testnet.Await(t, "Opened", chans[0]).(tcpio.Opened); claimed {
					o.Conn.Events()
				}
			}
		}
	}
	testnet.WaitIdle(t, "once the peers have filled the sockets", window, window/20)
}
