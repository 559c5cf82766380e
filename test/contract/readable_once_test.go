//go:build linux

package contract

import (
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

// readyForEnd opens a connection whose peer has sent n bytes and its end of stream, and receives the Readable.
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

// A fair consumer reads one buffer of each connection in turn, and receives when it has nothing more to read.
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

// However a consumer reads, and however small the channel is, everything is announced and nothing behind the end.
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
