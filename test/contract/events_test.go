//go:build linux

package contract

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestOpenedComesFirstAndClosedLastEachOnce(t *testing.T) {
	var opened, closed atomic.Int64
	var order harness.Order // of this consumer; startStream checks the same, but the counts are wanted here
	handle := harness.Echo(t)
	l := harness.Stream(t, tcpio.ListenerOptions{EventBuffer: 2}, func(ev tcpio.Event) {
		if err := order.Check(ev); err != nil {
			t.Error(err)
		}
		switch ev.(type) {
		case tcpio.Opened:
			opened.Add(1)
		case tcpio.Closed:
			closed.Add(1)
		}
		handle(ev)
	})
	const rounds, workers = 40, 4
	worker := func() {
		for i := range rounds {
			peer := testnet.Dial(t, l)
			switch i % 4 {
			case 0:
				testnet.Ping(t, peer, testnet.Pattern(100))
			case 1:
				testnet.Send(t, peer, testnet.Pattern(100))
				testnet.FIN(t, peer)
				testnet.ExpectBytes(t, peer, testnet.Pattern(100))
				testnet.ExpectEOF(t, peer)
			case 2:
				testnet.Send(t, peer, testnet.Pattern(10))
				testnet.RST(t, peer)
			}
			peer.Close()
		}
	}
	testnet.Together(worker, worker, worker, worker)
	testnet.WaitFor(t, "Closed of every connection", func() bool { return closed.Load() == rounds*workers })
	if n := opened.Load(); n != rounds*workers {
		t.Errorf("%d Opened for %d connections", n, rounds*workers)
	}
}

func TestAtMostOneReadableIsOutstanding(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	other, otherPeer := harness.Open(t, l, events)
	buf := make([]byte, 100)

	testnet.Send(t, peer, "a")
	if ev := harness.Expect[tcpio.Readable](t, events); ev.Conn != c {
		t.Fatal("Readable of the wrong connection")
	}
	// A second packet is an edge of its own for epoll, yet no second event: the loop sees it before
	// the byte that the other connection gets afterwards.
	for range 3 {
		testnet.Send(t, peer, "b")
		testnet.Send(t, otherPeer, "x")
		if ev := harness.Expect[tcpio.Readable](t, events); ev.Conn != other {
			t.Fatal("a second Readable while one is outstanding")
		}
		if n, err := other.TryRead(buf); n != 1 || err != nil {
			t.Fatalf("TryRead = %d, %v", n, err)
		}
	}
	waitUnread(t, c, 4)
	if n, err := c.TryRead(buf); n != 4 || err != nil {
		t.Fatalf("TryRead = %d, %v, want all 4 bytes", n, err)
	}
	harness.ExpectSilence(t, events, 20*time.Millisecond)
	if n, err := c.TryRead(buf); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryRead = %d, %v, want ErrWouldBlock", n, err)
	}
	testnet.Send(t, peer, "c")
	if ev := harness.Expect[tcpio.Readable](t, events); ev.Conn != c {
		t.Fatal("Readable of the wrong connection")
	}
}

// waitUnread waits until n bytes are in c's socket. What a peer has sent comes there soon, and on a
// busy machine not at once.
func waitUnread(t *testing.T, c *tcpio.Conn, n int) {
	t.Helper()
	testnet.WaitFor(t, "the bytes are there", func() bool {
		got := 0
		testnet.Control(t, c, func(fd int) (err error) {
			got, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
			return err
		})
		return got == n
	})
}

func TestFullReadIsFollowedByAReadable(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	want := testnet.Pattern(1000)
	testnet.Send(t, peer, want)
	got, err := harness.ReadStream(t, events, c, len(want), 7)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes, %v; they differ at %d", len(got), err, testnet.FirstDifference(got, want))
	}
}

func TestTryReadAtOpenedArmsTheConnection(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	if n, err := c.TryRead(make([]byte, 10)); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryRead = %d, %v, want ErrWouldBlock", n, err)
	}
	testnet.Send(t, peer, "x")
	harness.Expect[tcpio.Readable](t, events)
}

func TestNotReadingHoldsThePeerBack(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	chunk := testnet.Pattern(64 << 10)
	sent := 0
	for { // until the peer gets nothing off for a while: TCP holds it back
		peer.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := peer.Write(chunk)
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if sent > 64<<20 {
			t.Fatalf("the peer sent %d bytes to a connection that nobody reads", sent)
		}
	}
	harness.Expect[tcpio.Readable](t, events)
	harness.ExpectSilence(t, events, 20*time.Millisecond)
	got := 0
	buf := make([]byte, 64<<10)
	for first := true; got < sent; first = false {
		if !first {
			harness.Expect[tcpio.Readable](t, events)
		}
		n, err := c.TryRead(buf)
		if err != nil && err != tcpio.ErrWouldBlock {
			t.Fatalf("after %d of %d bytes: %v", got, sent, err)
		}
		for i, b := range buf[:n] {
			if b != chunk[(got+i)%len(chunk)] {
				t.Fatalf("byte %d of %d differs", got+i, sent)
			}
		}
		got += n
	}
}

func TestPostedValuesArriveInOrderBetweenOpenedAndClosed(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{EventBuffer: 3})
	testnet.Dial(t, l)
	c := testnet.Await(t, "Opened", events).(tcpio.Opened).Conn
	const n = 100
	for i := range n {
		if err := c.Post(i); err != nil {
			t.Fatal(err)
		}
	}
	c.Abort()
	if err := c.Post(n); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Post after Abort: %v", err)
	}
	for i := range n {
		if ev := harness.Expect[tcpio.Message](t, events); ev.Conn != c || ev.Value != i {
			t.Fatalf("Message %v, want %d", ev.Value, i)
		}
	}
	harness.Expect[tcpio.Closed](t, events)
}

func TestFullMailboxIsThePostersError(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{EventBuffer: 1, MailboxSize: 5})
	c, _ := harness.Open(t, l, events)
	accepted := 0
	for ; ; accepted++ {
		if err := c.Post(accepted); err == tcpio.ErrMailboxFull {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if accepted > 100 {
			t.Fatal("no bound")
		}
	}
	for i := range accepted {
		if ev := harness.Expect[tcpio.Message](t, events); ev.Value != i {
			t.Fatalf("Message %v, want %d", ev.Value, i)
		}
	}
	if err := c.Post("again"); err != nil {
		t.Error(err)
	}
	harness.Expect[tcpio.Message](t, events)
}
