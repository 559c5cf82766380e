//go:build linux

package contract

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestSeveralConsumersOfOneChannelLoseAndDoubleNothing(t *testing.T) {
	const conns, size = 20, 100_000
	l := harness.Listen(t, tcpio.ListenerOptions{EventBuffer: 3})
	events := l.Events()
	served := harness.Go(t.Context(), l)
	var got, opened, closed atomic.Int64
	var consumers sync.WaitGroup
	for range 4 {
		consumers.Go(func() {
			buf := make([]byte, 777)
			for ev := range events {
				switch ev := ev.(type) {
				case tcpio.Opened:
					opened.Add(1)
				case tcpio.Readable:
					n, err := ev.Conn.TryRead(buf)
					got.Add(int64(n))
					if err == io.EOF {
						ev.Conn.Close()
					}
				case tcpio.Closed:
					closed.Add(1)
					if err := ev.Conn.Err(); err != nil {
						t.Errorf("Err = %v", err)
					}
				}
			}
		})
	}
	var peers []net.Conn
	for range conns {
		peers = append(peers, testnet.Dial(t, l))
	}
	var sending sync.WaitGroup
	for _, p := range peers {
		sending.Go(func() {
			if _, err := p.Write(testnet.Pattern(size)); err != nil {
				t.Error(err)
			}
			if err := p.(*net.TCPConn).CloseWrite(); err != nil {
				t.Error(err)
			}
			if n, err := p.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("the peer read %d, %v, want the end of stream", n, err)
			}
		})
	}
	sending.Wait()
	testnet.WaitFor(t, "every Closed", func() bool { return closed.Load() == conns })
	l.Close()
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
	consumers.Wait()
	if o, n := opened.Load(), got.Load(); o != conns || n != conns*size {
		t.Errorf("%d connections opened and %d bytes read, want %d and %d", o, n, conns, conns*size)
	}
}

// A read that the kernel fills to the last byte proves nothing, also when the end is all that follows.
func TestReadsOfExactlyTheBuffersSizeMissNothing(t *testing.T) {
	for _, size := range []int{1, 4 << 10, 64 << 10} {
		l, events := harness.Manual(t, tcpio.ListenerOptions{})
		c, peer := harness.Open(t, l, events)
		want := testnet.Pattern(size)
		for range 10 {
			testnet.Send(t, peer, want)
			if got, err := harness.ReadStream(t, events, c, size, size); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes of %d, %v", len(got), size, err)
			}
		}
		testnet.Send(t, peer, want)
		testnet.FIN(t, peer)
		if got, err := harness.ReadStream(t, events, c, -1, size); err != io.EOF || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes of %d, then %v, want io.EOF", len(got), size, err)
		}
	}
}

// A peer that goes on sending does not prolong the end, whether it takes the output or not.
func TestCloseTimeoutIsATotalOfFlushAndDrain(t *testing.T) {
	t.Parallel()
	const limit = 200 * time.Millisecond
	for name, queued := range map[string]bool{"drain": false, "flush": true} {
		t.Run(name, func(t *testing.T) {
			l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: limit})
			c, peer := harness.Open(t, l, events)
			if queued {
				harness.Fill(t, c, 64<<10)
			}
			sender := make(chan struct{})
			go func() {
				defer close(sender)
				for pause := time.NewTicker(5 * time.Millisecond); ; <-pause.C {
					if _, err := peer.Write([]byte("x")); err != nil {
						return // it was cut off
					}
				}
			}()
			began := time.Now()
			c.Close()
			for closed := false; !closed; {
				_, closed = testnet.Await(t, "Closed", events).(tcpio.Closed)
			}
			if d := time.Since(began); d < limit-5*time.Millisecond {
				t.Errorf("cut off after %v, before the limit", d)
			}
			if err := c.Err(); queued != (err == tcpio.ErrCloseTimeout) || !queued && err != nil {
				t.Errorf("Err = %v", err)
			}
			testnet.Await(t, "the peer is cut off", sender)
		})
	}
}

func TestAbortEndsTheFlushingOfAClose(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: time.Hour})
	c, peer := harness.Open(t, l, events)
	harness.Fill(t, c, 64<<10)
	c.Close()
	c.Abort()
	c.Abort()
	harness.Expect[tcpio.Closed](t, events)
	if err := c.Err(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Err = %v, want net.ErrClosed", err)
	}
	if n := c.Buffered(); n != 0 {
		t.Errorf("%d bytes are still buffered", n)
	}
	if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer sees %v, want a reset", err)
	}
}

func TestStopsFromSeveralSidesAtOnceAllReturn(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 2, CloseTimeout: time.Hour})
	c, _ := harness.Open(t, l, events)
	harness.Fill(t, c, 64<<10) // Shutdown alone would wait for its peer
	for range 5 {
		harness.Open(t, l, events)
	}
	stopped := make(chan error)
	for range 3 {
		go func() { stopped <- l.Shutdown(testnet.Context(t)) }()
		go func() { stopped <- l.Close() }()
	}
	for range 6 {
		if err := testnet.Await(t, "the end of a stop", stopped); err != nil {
			t.Error(err)
		}
	}
	if n := l.Len(); n != 0 {
		t.Errorf("%d descriptors left", n)
	}
	if err := l.Shutdown(testnet.Context(t)); err != nil {
		t.Errorf("Shutdown after the end: %v", err)
	}
}

// What the kernel has accepted is opened and closed in order, not reset.
func TestShutdownOpensWhatWaitsInTheBacklog(t *testing.T) {
	t.Parallel()
	const n = 12
	l := harness.Listen(t, tcpio.ListenerOptions{EventBuffer: 1, CloseTimeout: testnet.Limit})
	events := l.Events()
	served := harness.Go(t.Context(), l)
	var peers []net.Conn
	for i := range n {
		if i == 1 { // the first one's Opened fills the stream, so the others stay in the backlog
			testnet.WaitFor(t, "its Readable waits for room", func() bool { return l.Stats().Events == 2 })
		}
		p := testnet.Dial(t, l)
		testnet.Send(t, p, "hello")
		peers = append(peers, p)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- l.Shutdown(testnet.Context(t)) }()
	var order harness.Order
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		for ev := range events {
			if err := order.Check(ev); err != nil {
				t.Error(err)
			}
		}
	}()
	for _, p := range peers {
		testnet.ExpectEOF(t, p)
		p.Close()
	}
	if err := testnet.Await(t, "the end of Shutdown", stopped); err != nil {
		t.Error(err)
	}
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
	testnet.Await(t, "the end of the stream", counted)
	if order.Seen != n || len(order.Open) != 0 {
		t.Errorf("%d connections opened, %d of them not closed, want %d and 0", order.Seen, len(order.Open), n)
	}
}

func TestAStaleReadableCostsOneErrWouldBlock(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "abc")
	testnet.WaitFor(t, "Readable", func() bool { return len(events) == 1 })
	buf := make([]byte, 10)
	if n, err := c.TryRead(buf); n != 3 || err != nil {
		t.Fatalf("TryRead = %d, %v", n, err)
	}
	harness.Expect[tcpio.Readable](t, events)
	if n, err := c.TryRead(buf); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryRead = %d, %v, want ErrWouldBlock", n, err)
	}
	harness.ExpectSilence(t, events, 20*time.Millisecond)
	testnet.Send(t, peer, "d")
	harness.Expect[tcpio.Readable](t, events)
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

// With every route full, and peers that neither read nor stop sending, nothing runs until somebody receives.
func TestAStalledServerUsesNoProcessor(t *testing.T) {
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
		"actor": {Actor: func(*tcpio.Conn) tcpio.Actor { return flood }},
	} {
		opts.Loops, opts.IdleTimeout = 2, time.Hour
		l := harness.Listen(t, opts)
		var chans []<-chan tcpio.Event
		if name == "streams" {
			chans = l.Streams()
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
	var used time.Duration
	for range 20 { // the peers have to fill the sockets first
		before := testnet.CPU(t)
		time.Sleep(window)
		if used = testnet.CPU(t) - before; used < window/20 {
			return
		}
	}
	t.Errorf("%v of processor time in %v", used, window)
}
