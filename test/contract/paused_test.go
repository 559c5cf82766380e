//go:build linux

package contract

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// Who does not read a connection is told of its failure by Context at once, and keeps it for
// EOFTimeout at most. Until then what arrived before can be read.

// paused serves a route on which nobody reads. told gets a connection when its Readable is
// received.
func paused(t *testing.T, route string, opts tcpio.ListenerOptions) (c *tcpio.Conn, peer *net.TCPConn, closed <-chan *tcpio.Conn) {
	t.Helper()
	told := make(chan struct{}, 10)
	l, opened, closed := harness.Route(t, route, opts, func(ev tcpio.Event) error {
		if _, ok := ev.(tcpio.Readable); ok {
			told <- struct{}{}
		}
		return nil
	})
	peer = testnet.DialTCP(t, l)
	c = testnet.Receive(t, "Opened", opened)
	testnet.Send(t, peer, "before the reset")
	testnet.Receive(t, "Readable", told)
	return c, peer, closed
}

// To see it fail: leave awaitReaderLocked out of readyLocked.
func TestResetEndsAConnectionThatNobodyReads(t *testing.T) {
	t.Parallel()
	for _, route := range harness.Routes {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			c, peer, closed := paused(t, route, tcpio.ListenerOptions{EOFTimeout: 200 * time.Millisecond})
			testnet.RST(t, peer)
			testnet.Await(t, "the end of Context", c.Context().Done())
			testnet.Receive(t, "Closed", closed)
			wantReset(t, "Err", c.Err())
			if s := c.Listener().Stats(); s.Timeouts.EOF != 1 {
				t.Errorf("EOFTimeout counts %d connections", s.Timeouts.EOF)
			}
		})
	}
}

func TestResetWithOutputQueuedEndsAConnectionThatNobodyReads(t *testing.T) {
	t.Parallel()
	for _, route := range harness.Routes {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			c, peer, closed := paused(t, route, tcpio.ListenerOptions{EOFTimeout: 200 * time.Millisecond})
			harness.Fill(t, c, 64<<10)
			testnet.RST(t, peer)
			testnet.Receive(t, "Closed", closed)
			if err := c.Err(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("Err = %v", err)
			}
		})
	}
}

// A write that meets the reset before the loop does takes the error along: the edge shows none. To
// see it fail: leave awaitReaderLocked out of sendFailedLocked.
func TestResetThatAWriteMetEndsAConnectionThatNobodyReads(t *testing.T) {
	t.Parallel()
	blocked, release := make(chan struct{}), make(chan struct{})
	peers := make(chan *net.TCPConn, 1)
	closed := make(chan *tcpio.Conn, 2)
	// While another handler blocks, at MaxBlocked, the second one keeps its loop.
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1, MaxBlocked: 1, EOFTimeout: 200 * time.Millisecond},
		tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Readable:
				if len(peers) == 0 {
					close(blocked)
					<-release
					return io.EOF
				}
				testnet.RST(t, <-peers)
				waitState(t, ev.Conn, unix.BPF_TCP_CLOSE)
				if _, err := ev.Conn.TryWrite([]byte("x")); err == nil {
					t.Error("a write to a connection that was reset succeeded")
				}
			case tcpio.Closed:
				closed <- ev.Conn
			}
			return nil
		}))
	first, second := testnet.DialTCP(t, l), testnet.DialTCP(t, l)
	testnet.Send(t, first, "block")
	testnet.Await(t, "the handler that blocks", blocked)
	peers <- second
	testnet.Send(t, second, "not read")
	wantReset(t, "Err", testnet.Receive(t, "Closed", closed).Err())
	close(release)
	first.Close()
	testnet.Receive(t, "Closed of the other", closed)
}

func TestWhatCameBeforeAResetCanBeReadBehindIt(t *testing.T) {
	t.Parallel()
	for _, route := range harness.Routes {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			limit := time.Second
			for !readSlowly(t, route, limit) {
				if limit *= 2; limit > testnet.Limit {
					t.Fatal("this machine stood still for longer than every limit")
				}
			}
		})
	}
}

// readSlowly reads a byte every third of the limit behind a reset: whoever reads, however slowly,
// gets everything. It returns false if the test itself was held up for as long as the limit, which
// proves nothing.
func readSlowly(t *testing.T, route string, limit time.Duration) (proven bool) {
	c, peer, closed := paused(t, route, tcpio.ListenerOptions{EOFTimeout: limit})
	last := time.Now()
	testnet.RST(t, peer)
	waitState(t, c, unix.BPF_TCP_CLOSE)
	testnet.Await(t, "the end of Context", c.Context().Done())
	var got []byte
	for range 5 {
		time.Sleep(limit / 3)
		var b [1]byte
		now := time.Now() // before the limit begins again
		n, err := c.TryRead(b[:])
		if time.Since(last) > limit*9/10 {
			return false
		}
		if n != 1 {
			t.Fatalf("behind %q: TryRead = %d, %v", got, n, err)
		}
		last = now
		got = append(got, b[0])
	}
	var rest [100]byte
	n, err := c.TryRead(rest[:])
	_, behind := c.TryRead(rest[n:])
	if time.Since(last) > limit*9/10 {
		return false
	}
	if got = append(got, rest[:n]...); err != nil || string(got) != "before the reset" {
		t.Errorf("read %q, %v", got, err)
	}
	if !errors.Is(behind, syscall.ECONNRESET) {
		t.Errorf("behind the last byte: %v, want the reset", behind)
	}
	testnet.Receive(t, "Closed", closed)
	wantReset(t, "Err", c.Err())
	return true
}

// A consumer that is late has not paused anybody. To see it fail: let toldLocked return true.
func TestResetDoesNotEndAConnectionWhoseReadableNobodyHasReceived(t *testing.T) {
	t.Parallel()
	for _, buffer := range []int{1, 100} { // it waits in the feeder's hands, or in the channel
		limit := 200 * time.Millisecond
		for !readLate(t, buffer, limit) {
			if limit *= 2; limit > testnet.Limit {
				t.Fatal("this machine stood still for longer than every limit")
			}
		}
	}
}

// readLate receives the Readable of a connection that was reset when the limit has been over many
// times, and takes another half of it to read. It returns false if the test itself was held up for
// as long as the limit, which proves nothing.
// To see it fail: let unreadForLocked begin at lastIn.
func readLate(t *testing.T, buffer int, limit time.Duration) (proven bool) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{EOFTimeout: limit, EventBuffer: buffer})
	c, peer := harness.Open(t, l, events)
	_ = c.Post("the first in the channel")
	want := testnet.Pattern(10 << 10)
	testnet.Send(t, peer, want)
	testnet.RST(t, peer.(*net.TCPConn))
	waitState(t, c, unix.BPF_TCP_CLOSE)
	time.Sleep(5*limit - limit/4) // nothing must happen; the loop looks each limit, and soon
	var got bytes.Buffer
	for got.Len() < len(want) {
		before := time.Now()
		ev := testnet.Receive(t, "an event", events)
		if _, ok := ev.(tcpio.Readable); !ok {
			continue
		}
		time.Sleep(limit / 2)
		b := make([]byte, len(want))
		n, err := c.TryRead(b)
		if time.Since(before) > limit*9/10 {
			return false
		}
		if err != nil {
			t.Fatalf("behind %d bytes: %v", got.Len(), err)
		}
		got.Write(b[:n])
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Error("other bytes")
	}
	return true
}

// A handler that blocks is not one that has paused.
func TestResetDoesNotEndAConnectionWhoseHandlerRuns(t *testing.T) {
	t.Parallel()
	const limit = 100 * time.Millisecond
	read := make(chan error, 1)
	began := make(chan *tcpio.Conn, 1)
	l := harness.Actor(t, tcpio.ListenerOptions{EOFTimeout: limit}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if r, ok := ev.(tcpio.Readable); ok && len(began) == 0 {
			began <- r.Conn
			<-r.Conn.Context().Done()
			time.Sleep(5 * limit)
			b := make([]byte, 100)
			n, err := r.Conn.TryRead(b)
			if err == nil && string(b[:n]) != "request" {
				err = io.ErrUnexpectedEOF
			}
			read <- err
		}
		return nil
	}))
	peer := testnet.DialTCP(t, l)
	testnet.Send(t, peer, "request")
	testnet.WaitFor(t, "the handler", func() bool { return len(began) == 1 })
	testnet.RST(t, peer)
	if err := testnet.Receive(t, "the read", read); err != nil {
		t.Error(err)
	}
	testnet.WaitFor(t, "the end", func() bool { return l.Stats().Closed == 1 })
}

// A connection without a route has no EOFTimeout; with one that it gets behind the reset it has.
func TestResetBeforeTheRouteEndsAConnectionThatNobodyReads(t *testing.T) {
	t.Parallel()
	const limit = 100 * time.Millisecond
	l := harness.Listen(t, tcpio.ListenerOptions{EOFTimeout: limit})
	ln := l.NetListener()
	harness.Start(t, l)
	peer := testnet.DialTCP(t, l)
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := nc.(*tcpio.Conn)
	testnet.Send(t, peer, "unread")
	testnet.RST(t, peer)
	waitState(t, c, unix.BPF_TCP_CLOSE)
	time.Sleep(3 * limit) // nothing must happen
	if err := c.Err(); err != nil || l.Len() != 1 {
		t.Fatalf("it ended without a route: %v", err)
	}
	events := c.Events()
	for {
		ev := testnet.Receive(t, "Closed", events)
		if _, last := ev.(tcpio.Closed); last {
			break
		}
	}
	wantReset(t, "Err", c.Err())
}
