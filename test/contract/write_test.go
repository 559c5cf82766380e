//go:build linux

package contract

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestTryWriteTakesAllOrNothing(t *testing.T) {
	const limit = 100_000
	l, events := harness.Manual(t, tcpio.ListenerOptions{WriteBuffer: limit})
	c, peer := harness.Open(t, l, events)
	accepted := harness.Fill(t, c, 30_000)
	if n := c.Buffered(); n > limit || n <= limit-30_000 {
		t.Errorf("refused with %d bytes queued of %d", n, limit)
	}
	for range 100 { // what fits goes on being taken, what does not is refused whole
		room := limit - c.Buffered()
		if n, err := c.TryWrite(testnet.Pattern(room + 1)); n != 0 || err != tcpio.ErrWouldBlock {
			t.Fatalf("TryWrite of one byte too many = %d, %v", n, err)
		}
		if room == 0 {
			break
		}
		p := testnet.Pattern(min(room, 1000))
		if n, err := c.TryWrite(p); n != len(p) || err != nil {
			t.Fatalf("TryWrite of %d with room for %d = %d, %v", len(p), room, n, err)
		}
		accepted = append(accepted, p...)
	}
	c.Close()
	testnet.ExpectBytes(t, peer, accepted)
	testnet.ExpectEOF(t, peer)
}

func TestWritableComesWhenHalfOfTheQueueIsFree(t *testing.T) {
	const limit = 256 << 10
	l, events := harness.Manual(t, tcpio.ListenerOptions{WriteBuffer: limit})
	c, peer := harness.Open(t, l, events)
	accepted := harness.Fill(t, c, 16<<10)
	harness.ExpectSilence(t, events, 20*time.Millisecond)
	go io.Copy(io.Discard, io.LimitReader(peer, int64(len(accepted))))
	harness.Expect[tcpio.Writable](t, events)
	if n := c.Buffered(); n > limit/2 {
		t.Errorf("Writable with %d bytes of %d queued", n, limit)
	}
	if n, err := c.TryWrite(make([]byte, limit/2)); err != nil || n != limit/2 {
		t.Errorf("TryWrite of half the limit = %d, %v", n, err)
	}
}

func TestNoWritableUnlessAWriteWasRefused(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	p := testnet.Pattern(8 << 20)
	if n, err := c.TryWrite(p); n != len(p) || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	testnet.ExpectBytes(t, peer, p)
	testnet.WaitFor(t, "an empty queue", func() bool { return c.Buffered() == 0 })
	harness.ExpectSilence(t, events, 20*time.Millisecond)
}

func TestWriteLargerThanTheLimitIsTakenWhenNothingIsQueued(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{WriteBuffer: 4096})
	c, peer := harness.Open(t, l, events)
	p := testnet.Pattern(16 << 20)
	if n, err := c.TryWrite(p); n != len(p) || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	if n, err := c.TryWrite([]byte("x")); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryWrite behind it = %d, %v, want ErrWouldBlock", n, err)
	}
	if n, err := c.TryWritev(net.Buffers{[]byte("x"), []byte("y")}); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryWritev behind it = %d, %v, want ErrWouldBlock", n, err)
	}
	clear(p) // it is the caller's again
	testnet.ExpectBytes(t, peer, testnet.Pattern(16<<20))
	harness.Expect[tcpio.Writable](t, events)
	if n, err := c.TryWrite([]byte("x")); n != 1 || err != nil {
		t.Fatalf("TryWrite at Writable = %d, %v", n, err)
	}
	testnet.ExpectBytes(t, peer, "x")
}

func TestEmptyReadsAndWritesDoNothing(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	nothing := func(want error) {
		t.Helper()
		for _, p := range [][]byte{nil, {}} {
			if n, err := c.TryRead(p); n != 0 || !errors.Is(err, want) {
				t.Errorf("TryRead = %d, %v, want 0, %v", n, err, want)
			}
			if n, err := c.TryWrite(p); n != 0 || !errors.Is(err, want) {
				t.Errorf("TryWrite = %d, %v, want 0, %v", n, err, want)
			}
			if n, err := c.TryWritev(net.Buffers{p, p}); n != 0 || !errors.Is(err, want) {
				t.Errorf("TryWritev = %d, %v, want 0, %v", n, err, want)
			}
		}
		if n, err := c.TryWritev(nil); n != 0 || !errors.Is(err, want) {
			t.Errorf("TryWritev = %d, %v, want 0, %v", n, err, want)
		}
	}
	nothing(nil) // with nothing to read
	testnet.Send(t, peer, "x")
	harness.Expect[tcpio.Readable](t, events)
	nothing(nil) // with something
	buf := make([]byte, 10)
	if n, err := c.TryRead(buf); n != 1 || err != nil {
		t.Fatalf("TryRead = %d, %v", n, err)
	}
	testnet.FIN(t, peer)
	harness.Expect[tcpio.Readable](t, events)
	nothing(nil) // at the end of the stream, which is for a read that asks
	if n, err := c.TryRead(buf); n != 0 || err != io.EOF {
		t.Fatalf("TryRead = %d, %v, want io.EOF", n, err)
	}
	nothing(nil)
	c.Close()
	nothing(net.ErrClosed)
}

// No call keeps a connection's lock for work of the caller's size: others get it in between, as its
// loop must.
func TestLargeWriteLeavesTheConnectionToOthers(t *testing.T) {
	const size = 64 << 20
	p := make([]byte, size)
	many := make(net.Buffers, 1<<20)
	for i := range many {
		many[i] = p[i*64 : (i+1)*64]
	}
	group := func(c *tcpio.Conn) (int64, error) {
		var g tcpio.Group
		g.Join(c)
		n, err := g.Write(p)
		return int64(n), err
	}
	writes := map[string]func(c *tcpio.Conn) (int64, error){
		"TryWrite":  func(c *tcpio.Conn) (int64, error) { n, err := c.TryWrite(p); return int64(n), err },
		"TryWritev": func(c *tcpio.Conn) (int64, error) { return c.TryWritev(net.Buffers{p[:size/2], nil, p[size/2:]}) },
		"pieces":    func(c *tcpio.Conn) (int64, error) { return c.TryWritev(many) },
		"Write":     func(c *tcpio.Conn) (int64, error) { n, err := c.Write(p); return int64(n), err },
		"ReadFrom":  func(c *tcpio.Conn) (int64, error) { return c.ReadFrom(bytes.NewReader(p)) },
	}
	for _, layer := range []string{"plain", "TLS"} {
		conns := make(chan *tcpio.Conn, 1)
		o := tcpio.ListenerOptions{NewActor: func(*tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				if o, ok := ev.(tcpio.Opened); ok {
					conns <- o.Conn
				}
				return nil
			})
		}}
		if layer == "TLS" {
			o.TLSConfig = testnet.ServerTLS()
			writes["a group"] = group // without TLS it shares one copy, and keeps no lock
		}
		l := harness.Serve(t, o)
		for name, write := range writes {
			t.Run(layer+" "+name, func(t *testing.T) {
				peer := testnet.Dial(t, l)
				if layer == "TLS" {
					secure := tls.Client(peer, testnet.ClientTLS())
					if err := secure.Handshake(); err != nil {
						t.Fatal(err)
					}
					peer = secure
				}
				c := testnet.Await(t, "Opened", conns)
				go func() { _, _ = io.Copy(io.Discard, peer) }()
				// Whoever waits for the lock in the middle of a write has it before the end, unless
				// the machine did not run it for so long; then another time.
				for range 20 {
					before := l.Stats().BytesOut
					var over atomic.Bool
					amidst := make(chan bool, 1)
					go func() {
						for l.Stats().BytesOut < before+1<<20 && !over.Load() {
						}
						c.Data()
						amidst <- !over.Load()
					}()
					n, err := write(c)
					over.Store(true)
					if n != size || err != nil {
						t.Fatalf("%d bytes, %v", n, err)
					}
					testnet.WaitFor(t, "the queue to be empty", func() bool { return c.Buffered() == 0 })
					if testnet.Await(t, "the lock", amidst) {
						c.Abort()
						return
					}
				}
				t.Error("nobody else ever had the lock before the end of the write")
			})
		}
	}
}

// A large TryWrite is all or nothing also where others have the lock in between.
func TestLargeWriteIsWholeWhateverOthersDoMeanwhile(t *testing.T) {
	want := testnet.Pattern(32 << 20)
	ends := map[string]func(c *tcpio.Conn){
		"Close":      func(c *tcpio.Conn) { c.Close() },
		"CloseWrite": func(c *tcpio.Conn) { _ = c.CloseWrite() },
		"TryWrite":   func(c *tcpio.Conn) { _, _ = c.TryWrite([]byte("!")) },
	}
	for _, layer := range []string{"plain", "TLS"} {
		for name, end := range ends {
			t.Run(layer+" "+name, func(t *testing.T) {
				conns := make(chan *tcpio.Conn, 1)
				o := tcpio.ListenerOptions{CloseTimeout: testnet.Limit, NewActor: func(*tcpio.Conn) tcpio.Actor {
					return tcpio.ActorFunc(func(ev tcpio.Event) error {
						if o, ok := ev.(tcpio.Opened); ok {
							conns <- o.Conn
						}
						return nil
					})
				}}
				if layer == "TLS" {
					o.TLSConfig = testnet.ServerTLS()
				}
				l := harness.Serve(t, o)
				peer := testnet.Dial(t, l)
				if layer == "TLS" {
					peer = tls.Client(peer, testnet.ClientTLS())
					if err := peer.(*tls.Conn).Handshake(); err != nil {
						t.Fatal(err)
					}
				}
				c := testnet.Await(t, "Opened", conns)
				got := make(chan []byte, 1)
				go func() {
					p := make([]byte, len(want))
					n, _ := io.ReadFull(peer, p)
					got <- p[:n]
				}()
				before, over := l.Stats().BytesOut, make(chan struct{})
				defer close(over)
				go func() { // in the middle of the write, if the machine lets it
					for l.Stats().BytesOut < before+1<<20 {
						select {
						case <-over:
							return
						default:
						}
					}
					end(c)
				}()
				n, err := c.TryWrite(want)
				switch {
				case errors.Is(err, net.ErrClosed) && n == 0 && name == "Close": // it came first
					return
				case n != len(want) || err != nil:
					t.Fatalf("TryWrite = %d, %v", n, err)
				}
				if got := testnet.Await(t, "the peer", got); !bytes.Equal(got, want) {
					t.Errorf("the peer got %d bytes, the first wrong one is %d", len(got), testnet.FirstDifference(got, want))
				}
				c.Close()
			})
		}
	}
}

func TestBufferedIsWhatTheSocketDidNotTake(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	if _, err := c.TryWrite([]byte("small")); err != nil {
		t.Fatal(err)
	}
	if n := c.Buffered(); n != 0 {
		t.Errorf("Buffered = %d with a socket that takes everything", n)
	}
	p := testnet.Pattern(12 << 20)
	if _, err := c.TryWrite(p); err != nil {
		t.Fatal(err)
	}
	before := c.Buffered()
	if before <= 0 || before >= len(p) {
		t.Errorf("Buffered = %d of %d", before, len(p))
	}
	if _, err := c.TryWrite([]byte("x")); err != tcpio.ErrWouldBlock {
		t.Errorf("TryWrite: %v", err)
	}
	testnet.ExpectBytes(t, peer, append([]byte("small"), p...))
	testnet.WaitFor(t, "an empty queue", func() bool { return c.Buffered() == 0 })
	if _, err := c.TryWrite(p); err != nil {
		t.Fatal(err)
	}
	c.Abort()
	if n := c.Buffered(); n != 0 {
		t.Errorf("Buffered = %d after Abort", n)
	}
}

func TestTryWritevNeitherChangesNorKeepsItsBuffers(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	var bufs net.Buffers
	var want []byte
	for i := range 3000 { // far more than one sendmsg takes, empty ones among them, and more than the socket takes
		p := testnet.Pattern(i)
		if i%7 == 0 {
			p = nil
		}
		bufs = append(bufs, p)
		want = append(want, p...)
	}
	shape := slices.Clone(bufs)
	n, err := c.TryWritev(bufs)
	if err != nil || n != int64(len(want)) {
		t.Fatalf("TryWritev = %d, %v, want %d", n, err, len(want))
	}
	for i := range bufs {
		if len(bufs[i]) != len(shape[i]) {
			t.Fatalf("buffer %d was changed", i)
		}
		clear(bufs[i]) // ours again
	}
	testnet.ExpectBytes(t, peer, want)
}

func TestWritesOfConcurrentCallersDoNotInterleave(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{WriteBuffer: 64 << 10})
	c, peer := harness.Open(t, l, events)
	testnet.ShrinkSendBuffer(t, c)
	const writers, records, size = 8, 400, 1000
	room := make(chan struct{}) // closed and replaced at each Writable
	var mu sync.Mutex
	go func() {
		for ev := range events {
			switch ev.(type) {
			case tcpio.Writable:
				mu.Lock()
				close(room)
				room = make(chan struct{})
				mu.Unlock()
			}
		}
	}()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			p := make([]byte, size)
			for seq := range records {
				for i := range p {
					p[i] = byte(w)
				}
				p[0], p[1] = byte(seq>>8), byte(seq)
				for {
					mu.Lock()
					wait := room
					mu.Unlock()
					var n int
					var err error
					if seq%2 == 0 {
						n, err = c.TryWrite(p)
					} else {
						var m int64
						m, err = c.TryWritev(net.Buffers{p[:1], p[1:500], p[500:]})
						n = int(m)
					}
					if err == nil && n == size {
						break
					}
					if err != tcpio.ErrWouldBlock || n != 0 {
						t.Errorf("TryWrite = %d, %v", n, err)
						return
					}
					select {
					case <-wait:
					case <-time.After(testnet.Limit):
						t.Error("no Writable")
						return
					}
				}
			}
		})
	}
	next := make([]int, writers)
	p := make([]byte, size)
	for range writers * records {
		if _, err := io.ReadFull(peer, p); err != nil {
			t.Fatal(err)
		}
		w := int(p[2])
		if w >= writers {
			t.Fatalf("no such writer: %d", w)
		}
		for i, b := range p[2:] {
			if int(b) != w {
				t.Fatalf("byte %d of a record of writer %d is %d", i+2, w, b)
			}
		}
		if seq := int(p[0])<<8 | int(p[1]); seq != next[w] {
			t.Fatalf("writer %d: record %d, want %d", w, seq, next[w])
		}
		next[w]++
	}
	wg.Wait()
}
