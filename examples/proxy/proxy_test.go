//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.MainOfProgram(m) }

const patience = 30 * time.Second

// A rig is a proxy and its upstream.
type rig struct {
	t        *testing.T
	addr     string
	upstream net.Listener
	end      context.CancelFunc // what SIGTERM does
	ended    chan struct{}      // closed when run has returned
	err      error              // what run returned; read after ended is closed
}

func start(t *testing.T, drain time.Duration) *rig {
	t.Helper()
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { upstream.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	out, w := io.Pipe()
	r := &rig{t: t, upstream: upstream, end: cancel, ended: make(chan struct{})}
	cfg := config{listen: "127.0.0.1:0", to: upstream.Addr().String(), dialTimeout: patience, drain: drain}
	go func() {
		defer close(r.ended)
		r.err = run(ctx, w, t.Output(), cfg)
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	r.addr = strings.TrimSpace(strings.TrimPrefix(line, "listening on "))
	t.Cleanup(func() {
		cancel()
		r.wait()
	})
	return r
}

// wait waits for the end of run.
func (r *rig) wait() {
	r.t.Helper()
	select {
	case <-r.ended:
		if r.err != nil {
			r.t.Errorf("run: %v", r.err)
		}
	case <-time.After(patience):
		r.t.Error("the proxy does not end")
	}
}

func (r *rig) dial() *net.TCPConn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.bound(c)
}

// bound makes every wait on c end, and c itself with the test.
func (r *rig) bound(c net.Conn) *net.TCPConn {
	_ = c.SetDeadline(time.Now().Add(patience))
	r.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// pair is a client and what the upstream sees of it. A byte has gone through: the proxy has both.
func (r *rig) pair() (client, server *net.TCPConn) {
	r.t.Helper()
	client = r.dial()
	c, err := r.upstream.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	server = r.bound(c)
	var got [1]byte
	if _, err := client.Write([]byte("+")); err != nil {
		r.t.Fatal(err)
	}
	if _, err := server.Read(got[:]); err != nil || got[0] != '+' {
		r.t.Fatalf("read %q, %v", got, err)
	}
	return client, server
}

// bothWays runs f with each end of a pair as the first.
func bothWays(t *testing.T, f func(t *testing.T, r *rig, a, b *net.TCPConn)) {
	for _, name := range []string{"client first", "upstream first"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // the two of them
			r := start(t, patience)
			a, b := r.pair()
			if name == "upstream first" {
				a, b = b, a
			}
			f(t, r, a, b)
		})
	}
}

func noise(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(p)
	return p
}

func sendAll(t *testing.T, c *net.TCPConn, p []byte) {
	if _, err := c.Write(p); err != nil {
		t.Errorf("write: %v", err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
}

func expectAll(t *testing.T, c *net.TCPConn, want []byte) {
	t.Helper()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived, %v, want the %d that were sent", len(got), err, len(want))
	}
}

func TestEveryByteArrivesBothWaysAtOnce(t *testing.T) {
	r := start(t, patience)
	up, down := noise(4<<20), noise(3<<20-7)
	var wg sync.WaitGroup
	for range 4 {
		client, server := r.pair()
		wg.Go(func() { sendAll(t, client, up) })
		wg.Go(func() { sendAll(t, server, down) })
		wg.Go(func() { expectAll(t, client, down) })
		wg.Go(func() { expectAll(t, server, up) })
	}
	wg.Wait()
}

func TestAHalfCloseIsPassedOnAndTheOtherWayGoesOn(t *testing.T) {
	bothWays(t, func(t *testing.T, r *rig, a, b *net.TCPConn) {
		sendAll(t, a, []byte("question"))
		expectAll(t, b, []byte("question")) // up to the end
		for range 3 {
			time.Sleep(150 * time.Millisecond) // long after it
			if _, err := b.Write([]byte("answer")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 6)
			if _, err := io.ReadFull(a, got); err != nil || string(got) != "answer" {
				t.Fatalf("%q, %v", got, err)
			}
		}
		sendAll(t, b, []byte("bye"))
		expectAll(t, a, []byte("bye"))
	})
}

func TestASlowReaderHoldsTheSenderBackAndGetsEveryByte(t *testing.T) {
	bothWays(t, func(t *testing.T, r *rig, a, b *net.TCPConn) {
		const most = 512 << 20 // far more than the kernel's buffers and the proxy's take
		block := noise(1<<20 - 1)
		var sent atomic.Int64
		var stood atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			for !stood.Load() && sent.Load() < most {
				n, err := a.Write(block)
				if sent.Add(int64(n)); err != nil {
					t.Errorf("write: %v", err)
					return
				}
			}
			a.CloseWrite()
		})
		// The sender stands when all buffers in between are full.
		last, looks := int64(0), 0
		for end := time.Now().Add(patience); looks < 30; time.Sleep(10 * time.Millisecond) {
			if now := sent.Load(); now == last && now > 0 {
				looks++
			} else {
				last, looks = now, 0
			}
			if time.Now().After(end) {
				t.Fatal("the sender goes on and on")
			}
		}
		if stood.Store(true); last >= most {
			t.Errorf("%d bytes were taken, though nobody reads", last)
		}
		// The other way is open meanwhile.
		sendAll(t, b, []byte("other way"))
		expectAll(t, a, []byte("other way"))
		got := make([]byte, len(block))
		arrived := int64(0)
		for {
			n, err := io.ReadFull(b, got)
			if !bytes.Equal(got[:n], block[:n]) {
				t.Fatalf("other bytes than were sent, behind %d", arrived)
			}
			if arrived += int64(n); err != nil {
				break
			}
		}
		wg.Wait()
		if arrived != sent.Load() {
			t.Errorf("%d bytes arrived of %d", arrived, sent.Load())
		}
	})
}

func TestAResetIsPassedOnAsAReset(t *testing.T) {
	bothWays(t, func(t *testing.T, r *rig, a, b *net.TCPConn) {
		if err := a.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		a.Close()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v, want a reset", err)
		}
	})
}

// A client that resets is gone, and so is its upstream, though the upstream takes nothing and the
// client is not read.
func TestAResetIsSeenThoughTheOtherSideIsFull(t *testing.T) {
	r := start(t, patience)
	const pairs = 200
	r.pair() // the proxy has its poller from here on
	before := sockets(t)
	clients := make([]*net.TCPConn, pairs)
	for i := range clients {
		var upstream *net.TCPConn
		clients[i], upstream = r.pair()
		_ = upstream.SetReadBuffer(4 << 10)
	}
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() { fill(t, c, 100*time.Millisecond) })
	}
	wg.Wait()
	if n := sockets(t); n < before+4*pairs {
		t.Fatalf("%d sockets, and %d before the pairs", n, before)
	}
	for _, c := range clients {
		_ = c.SetLinger(0)
		c.Close()
	}
	// What is left is the upstream's side of the pairs.
	for end := time.Now().Add(patience); sockets(t) > before+pairs; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d sockets are left of the pairs", sockets(t)-before-pairs)
		}
	}
}

// Behind an end in order there may still be a reset, which is passed on.
func TestAResetBehindAnEndIsPassedOn(t *testing.T) {
	bothWays(t, func(t *testing.T, r *rig, a, b *net.TCPConn) {
		sendAll(t, a, []byte("question"))
		expectAll(t, b, []byte("question"))
		_ = a.SetLinger(0)
		a.Close()
		for end := time.Now().Add(patience); ; { // nothing more can be read, so a write has to find out
			if _, err := b.Write([]byte("late")); errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
				break
			} else if err != nil || time.Now().After(end) {
				t.Fatalf("write: %v, want a reset", err)
			}
		}
	})
}

// An upstream that answers without reading everything ends with a reset. Its answer comes first,
// and the end is no orderly one.
func TestWhatWasSaidBeforeAResetArrives(t *testing.T) {
	bothWays(t, func(t *testing.T, r *rig, a, b *net.TCPConn) {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			block := make([]byte, 64<<10)
			for {
				if _, err := a.Write(block); err != nil {
					return
				}
			}
		})
		if _, err := b.Read(make([]byte, 1)); err != nil { // there is more
			t.Fatal(err)
		}
		answer := noise(32 << 10)
		if _, err := b.Write(answer); err != nil {
			t.Fatal(err)
		}
		b.Close()
		got := make([]byte, len(answer))
		if _, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, answer) {
			t.Errorf("%v, the answer came whole: %v", err, bytes.Equal(got, answer))
		}
		// The reset is told once, to the one or the other.
		if _, err := a.Read(got); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("behind the answer: %v", err)
		}
	})
}

// The one that is held back may be the upstream too; and the other learns that it was a reset.
func TestAResetOfWhoIsHeldBackIsPassedOn(t *testing.T) {
	bothWays(t, func(t *testing.T, r *rig, a, b *net.TCPConn) {
		fill(t, a, 100*time.Millisecond)
		_ = a.SetLinger(0)
		a.Close()
		if _, err := io.Copy(io.Discard, b); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v, want a reset", err)
		}
	})
}

// A direction that has ended in order is complete, and who is held back in the other one is not
// taken for reset.
func TestAnEndInOrderIsNoResetThoughTheSenderIsHeldBack(t *testing.T) {
	bothWays(t, func(t *testing.T, r *rig, a, b *net.TCPConn) {
		if err := b.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		expectAll(t, a, nil) // our FIN is out to a, and b has had nothing yet
		sent := fill(t, a, 100*time.Millisecond)
		// b reads until the proxy's kernel has all, and so has the end, while the proxy still reads
		// nothing.
		var arrived int64
		for buf := make([]byte, 32<<10); unacknowledged(t, a) > 0; time.Sleep(time.Millisecond) {
			n, err := b.Read(buf)
			if arrived += int64(n); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond) // long enough for the proxy to be wrong about it
		if n, err := io.Copy(io.Discard, b); arrived+n != sent || err != nil {
			t.Errorf("%d bytes arrived of %d, %v", arrived+n, sent, err)
		}
	})
}

// fill writes until nothing is taken for as long as stand, and returns how much was. A machine that
// is slow may look like that too, for which the test gets weaker, not wrong.
func fill(t *testing.T, c *net.TCPConn, stand time.Duration) (sent int64) {
	t.Helper()
	defer c.SetWriteDeadline(time.Now().Add(patience))
	block := make([]byte, 256<<10)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(stand))
		n, err := c.Write(block)
		sent += int64(n)
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			return sent
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
			return sent
		}
	}
}

// unacknowledged is how many bytes c's kernel still has to deliver.
func unacknowledged(t *testing.T, c *net.TCPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return n
}

// sockets is how many this process has. The proxy may keep a few empty pipes besides.
func sockets(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range names {
		to, _ := os.Readlink("/proc/self/fd/" + name.Name())
		if strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

func TestAnAddressWithoutAPortIsAnErrorAtOnce(t *testing.T) {
	err := run(t.Context(), io.Discard, io.Discard, config{listen: "127.0.0.1:0", to: "db1"})
	if err == nil || !strings.Contains(err.Error(), "-to: address db1: missing port") {
		t.Error(err)
	}
}

func TestWithoutAnUpstreamAClientIsResetAndTheProxyGoesOn(t *testing.T) {
	r := start(t, patience)
	client, server := r.pair()
	r.upstream.Close()
	for range 3 {
		c, err := net.Dial("tcp", r.addr)
		if err == nil { // the reset may come while the client still connects
			_, err = r.bound(c).Read(make([]byte, 1))
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client's error is %v, want a reset", err)
		}
	}
	sendAll(t, client, []byte("still here"))
	expectAll(t, server, []byte("still here"))
}

func TestTheEndWaitsForPairsAndTakesNoMore(t *testing.T) {
	r := start(t, patience)
	client, server := r.pair()
	r.end()
	for { // the listening socket is closed soon
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			break
		}
		testnet.RST(t, c) // it may have been accepted, and its upstream here would never end the pair
	}
	sendAll(t, client, []byte("question"))
	expectAll(t, server, []byte("question"))
	select {
	case <-r.ended:
		t.Fatal("the proxy has not waited")
	default:
	}
	sendAll(t, server, []byte("answer"))
	expectAll(t, client, []byte("answer"))
	r.wait()
}

func TestTheEndCutsOffWhatTakesTooLong(t *testing.T) {
	r := start(t, 50*time.Millisecond)
	client, server := r.pair()
	r.end()
	r.wait()
	for _, c := range []*net.TCPConn{client, server} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v, want a reset", err)
		}
	}
}
