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
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
		for range 3 {                       // long after it
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
		c.Close()
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
