//go:build linux

package contract

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// readyForEnd opens a connection whose peer has sent n bytes and its end of stream, and receives
// the Readable.
func readyForEnd(t *testing.T, l *tcpio.Listener, events <-chan tcpio.Event, n int) *tcpio.Conn {
	t.Helper()
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, testnet.Pattern(n))
	testnet.FIN(t, peer)
	if r := harness.Expect[tcpio.Readable](t, events); r.Conn != c {
		t.Fatalf("Readable of another connection")
	}
	testnet.WaitFor(t, "the peer's bytes and FIN", func() bool { return hasFIN(t, c, n) })
	return c
}

// A fair consumer reads one buffer of each connection in turn, and receives when it has nothing
// more to read.
func TestNoReadableComesBehindTheEndWhicheverConnectionEndsFirst(t *testing.T) {
	const conns = 5
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	var cs []*tcpio.Conn
	for range conns {
		cs = append(cs, readyForEnd(t, l, events, 8))
	}
	for _, c := range cs {
		for range 8 {
			if _, err := c.TryRead(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	ended := make(map[*tcpio.Conn]bool)
	end := func(c *tcpio.Conn) {
		switch _, err := c.TryRead(make([]byte, 1)); {
		case err == io.EOF:
			ended[c] = true
		case err != tcpio.ErrWouldBlock:
			t.Fatal(err)
		}
	}
	for _, c := range slices.Backward(cs) {
		end(c)
	}
	for len(ended) < conns {
		c := harness.Expect[tcpio.Readable](t, events).Conn
		if ended[c] {
			t.Fatal("a Readable behind the end of stream that was returned")
		}
		end(c)
	}
	harness.ExpectSilence(t, events, 100*time.Millisecond)
}

// Who reads need not be who receives.
func TestReadingToTheEndLeavesTheOrderOfOtherEvents(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{EventBuffer: 1024})
	a, _ := harness.Open(t, l, events)
	stop := make(chan struct{})
	next := 0
	var taken atomic.Int64
	var g sync.WaitGroup
	defer g.Wait()
	defer close(stop)
	rounds := make(chan *tcpio.Conn)
	done := make(chan struct{}, 1)
	g.Add(2)
	go func() { // reads to the end
		defer g.Done()
		for {
			select {
			case c := <-rounds:
				for {
					if _, err := c.TryRead(make([]byte, 1)); err != nil && err != tcpio.ErrWouldBlock {
						break
					}
				}
				c.Close()
				done <- struct{}{}
			case <-stop:
				return
			}
		}
	}()
	go func() { // posts numbers
		defer g.Done()
		for i := 0; ; {
			select {
			case <-stop:
				return
			default:
			}
			if int64(i)-taken.Load() < 900 && a.Post(i) == nil { // the channel is never full
				i++
			}
		}
	}()
	take := func(ev tcpio.Event) {
		if m, ok := ev.(tcpio.Message); ok {
			if m.Value != next {
				t.Fatalf("message %v where %d was due", m.Value, next)
			}
			next++
			taken.Add(1)
		}
	}
	for range 300 {
		peer := testnet.Dial(t, l)
		testnet.Send(t, peer, testnet.Pattern(40))
		testnet.FIN(t, peer)
		for sent, ended := false, false; !ended; {
			for sent && len(events) < 500 && len(done) == 0 { // the reader finds others' events in the channel
				runtime.Gosched()
			}
			select {
			case ev := <-events:
				take(ev)
				if r, ok := ev.(tcpio.Readable); ok && !sent {
					sent = true
					select {
					case rounds <- r.Conn:
					case <-time.After(testnet.Limit):
						t.Fatal("the reader does not take the connection")
					}
				}
			case <-done:
				ended = true
			case <-time.After(testnet.Limit):
				t.Fatal("nothing comes")
			}
		}
		peer.Close()
	}
}

// hasFIN reports whether n bytes and the peer's FIN have arrived.
func hasFIN(t *testing.T, c *tcpio.Conn, n int) bool {
	closed := false
	testnet.Control(t, c, func(fd int) error {
		have, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		info, ierr := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && ierr == nil && have >= n && info.State == unix.BPF_TCP_CLOSE_WAIT
		return nil
	})
	return closed
}

// However a consumer reads, and however small the channel is, everything is announced and nothing
// behind the end.
func TestEveryByteAndEndIsAnnouncedInChannelsOfAnySize(t *testing.T) {
	for _, buffer := range []int{1, 2, 7, 1024} {
		const conns, size = 8, 200_000
		l, events := harness.Manual(t, tcpio.ListenerOptions{EventBuffer: buffer})
		for range conns {
			peer := testnet.Dial(t, l)
			go func() {
				p := make([]byte, 5000)
				for range size / len(p) {
					_, _ = peer.Write(p)
				}
				_ = peer.(*net.TCPConn).CloseWrite()
			}()
		}
		rnd := rand.New(rand.NewPCG(1, uint64(buffer)))
		got, ended := map[*tcpio.Conn]int{}, map[*tcpio.Conn]bool{}
		buf := make([]byte, 8000)
		for len(ended) < conns {
			r, ok := testnet.Await(t, "an event", events).(tcpio.Readable)
			if !ok {
				continue
			}
			if ended[r.Conn] {
				t.Fatalf("buffer %d: a Readable behind io.EOF", buffer)
			}
			for range 1 + rnd.IntN(40) {
				n, err := r.Conn.TryRead(buf[:1+rnd.IntN(len(buf))])
				got[r.Conn] += n
				if err == io.EOF {
					ended[r.Conn] = true
				}
				if err != nil {
					break
				}
			}
		}
		for c, n := range got {
			if n != size {
				t.Errorf("buffer %d: %d bytes", buffer, n)
			}
			c.Abort()
		}
	}
}

// A read that the kernel fills to the last byte proves nothing, also when the end is all that
// follows.
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

func TestStaleReadableCostsOneErrWouldBlock(t *testing.T) {
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

// A consumer that reads until ErrWouldBlock gets no Readable for each of its reads, and none behind
// the end.
func TestConsumerThatReadsInALoopGetsOneReadableAtATime(t *testing.T) {
	for _, layer := range []string{"plain", "TLS", "claimed"} {
		t.Run(layer, func(t *testing.T) {
			o := tcpio.ListenerOptions{}
			if layer == "TLS" {
				o.TLSConfig = testnet.ServerTLS()
			}
			l, events := harness.Manual(t, o)
			peer := testnet.Dial(t, l)
			if layer == "TLS" {
				secure := tls.Client(peer, testnet.ClientTLS())
				if err := secure.Handshake(); err != nil {
					t.Fatal(err)
				}
				peer = secure
			}
			c := harness.Expect[tcpio.Opened](t, events).Conn
			if layer == "claimed" {
				events = c.Events()
			}
			const size = 50_000
			testnet.Send(t, peer, testnet.Pattern(size))
			testnet.FIN(t, peer)
			readables, read, ends := 0, 0, 0
			buf := make([]byte, 1000)
			for ends == 0 {
				harness.Expect[tcpio.Readable](t, events)
				readables++
				for {
					n, err := c.TryRead(buf)
					read += n
					if err == io.EOF {
						ends++
					}
					if err != nil {
						break
					}
				}
			}
			harness.ExpectSilence(t, events, 20*time.Millisecond)
			// The bytes may have come in several segments; each wakes the consumer at most once,
			// and once more.
			if read != size || ends != 1 || readables > 8 {
				t.Errorf("%d bytes, %d ends, %d Readables", read, ends, readables)
			}
			c.Abort()
		})
	}
}

// One that reads once for each Readable misses nothing, beside others on the same channel.
func TestTakingBackAReadableKeepsTheOrderOfAllOthers(t *testing.T) {
	const conns, values = 8, 200
	l := harness.Listen(t, tcpio.ListenerOptions{EventBuffer: 64})
	events := l.Events()
	served := harness.Go(t.Context(), l)
	var peers []net.Conn
	for range conns {
		peers = append(peers, testnet.Dial(t, l))
	}
	next := map[*tcpio.Conn]int{}
	var order harness.Order
	ended, closed := 0, 0
	buf := make([]byte, 100)
	for closed < conns {
		ev := testnet.Await(t, "an event", events)
		if err := order.Check(ev); err != nil {
			t.Error(err)
		}
		switch ev := ev.(type) {
		case tcpio.Opened:
			go func() {
				for i := range values {
					for ev.Conn.Post(i) == tcpio.ErrMailboxFull {
						time.Sleep(time.Millisecond)
					}
				}
			}()
			if order.Seen == conns {
				for _, p := range peers {
					go func() {
						_, _ = p.Write(make([]byte, 1000))
						_ = p.(*net.TCPConn).CloseWrite()
					}()
				}
			}
		case tcpio.Message:
			if ev.Value != next[ev.Conn] {
				t.Fatalf("message %v, want %d", ev.Value, next[ev.Conn])
			}
			if next[ev.Conn]++; next[ev.Conn] == values && ev.Conn.Data() != nil {
				ev.Conn.Close()
			}
		case tcpio.Readable:
			if ev.Conn.Data() != nil {
				t.Fatal("Readable behind io.EOF")
			}
			for {
				_, err := ev.Conn.TryRead(buf)
				if err == io.EOF {
					ev.Conn.SetData("ended")
					if ended++; next[ev.Conn] == values {
						ev.Conn.Close()
					}
				}
				if err != nil {
					break
				}
			}
		case tcpio.Closed:
			closed++
		}
	}
	if ended != conns {
		t.Errorf("%d ends", ended)
	}
	l.Close()
	testnet.Await(t, "the end of Serve", served)
}
