//go:build linux

package tcpio

import (
	"bytes"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// numbered returns n bytes that differ from those at other offsets of the same flow.
func numbered(off, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		k := off + i
		p[i] = byte(k) ^ byte(k>>8)*31 ^ byte(k>>16)*17
	}
	return p
}

// TryWritev over a socket with the smallest send buffer there is: what arrives is bytes.Join of all that was accepted.
func TestTryWritevIsBytesJoin(t *testing.T) {
	t.Parallel()
	r := listen(t, ListenerOptions{WriteBuffer: 100000})
	events := r.Events()
	r.serve()
	piece := rapid.SampledFrom([]int{0, 0, 1, 1, 2, 7, 64, 1000, 5000, buf.Large + 3})
	rapid.Check(t, func(t *rapid.T) {
		peer := dialTo(t, r.Listener)
		defer peer.Close()
		c := receiveAs[Opened](t, events).Conn
		defer func() {
			c.Abort()
			for {
				if _, ok := receive(t, "Closed", events).(Closed); ok {
					return
				}
			}
		}()
		setSendBuffer(t, c, 1)
		var want []byte
		got := make(chan []byte, 1)
		go func() {
			all, _ := io.ReadAll(peer)
			got <- all
		}()
		for range rapid.IntRange(1, 6).Draw(t, "calls") {
			var bufs net.Buffers
			total := 0
			if rapid.IntRange(0, 3).Draw(t, "shape") == 0 { // more pieces than one system call takes
				n := rapid.IntRange(1000, 2500).Draw(t, "pieces")
				for i := range n {
					p := numbered(len(want)+total, i%5)
					bufs, total = append(bufs, p), total+len(p)
				}
			} else {
				for _, n := range rapid.SliceOfN(piece, 0, 90).Draw(t, "sizes") {
					p := numbered(len(want)+total, n)
					bufs, total = append(bufs, p), total+len(p)
				}
			}
			join := bytes.Join(bufs, nil)
			headers := slices.Clone(bufs)
			n, err := c.TryWritev(bufs)
			for err == ErrWouldBlock {
				if n != 0 {
					t.Fatalf("%d bytes taken together with ErrWouldBlock", n)
				}
				receiveAs[Writable](t, events)
				n, err = c.TryWritev(bufs)
			}
			if err != nil || n != int64(len(join)) {
				t.Fatalf("TryWritev: %d, %v, want %d", n, err, len(join))
			}
			if len(headers) != len(bufs) {
				t.Fatalf("the slice of slices has changed")
			}
			for i := range bufs {
				if len(bufs[i]) != len(headers[i]) || len(bufs[i]) > 0 && &bufs[i][0] != &headers[i][0] {
					t.Fatalf("piece %d has changed", i)
				}
			}
			if !bytes.Equal(bytes.Join(bufs, nil), join) {
				t.Fatalf("the bytes of the caller have changed")
			}
			for _, p := range bufs {
				clear(p) // nothing of it is kept
			}
			want = append(want, join...)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatalf("CloseWrite: %v", err)
		}
		if all := receive(t, "the peer has read everything", got); !bytes.Equal(all, want) {
			t.Fatalf("the peer got %d bytes, want %d, equal up to %d", len(all), len(want), commonPrefix(all, want))
		}
	})
}

func commonPrefix(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

func setSendBuffer(t tester, c *Conn, size int) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	if err := rc.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, size)
	}); err != nil {
		t.Fatalf("Control: %v", err)
	}
	if err != nil {
		t.Fatalf("SO_SNDBUF: %v", err)
	}
}

// A peer that reads as fast as we write leaves the loop's other connections their turn.
func TestAFastReaderOfALongQueueLeavesOthersTheirTurn(t *testing.T) {
	r := listen(t, ListenerOptions{}).serve()
	r.Events()
	peer, c := r.open()
	const size = 32 << 20
	if n, err := c.TryWrite(make([]byte, size)); n != size || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	c.mu.Lock() // so that the loop waits while the peer makes room
	var got atomic.Int64
	read := make(chan error, 1)
	go func() {
		buf := make([]byte, 1<<20)
		for got.Load() < size {
			n, err := peer.Read(buf)
			if got.Add(int64(n)); err != nil {
				read <- err
				return
			}
		}
		read <- nil
	}()
	queued := c.out.Len()
	waitFor(t, "the peer has what the socket held", func() bool { return got.Load() == int64(size-queued) })
	c.wants.drop(wantFlush)
	c.flushLocked()
	sent, waits := queued-c.out.Len(), c.wants.has(wantFlush)
	c.mu.Unlock()
	if sent >= flushBudget+sendChunk || waits != (sent >= flushBudget) {
		t.Errorf("one turn sent %d bytes of %d, and the rest waits for another: %v", sent, queued, waits)
	}
	if err := receive(t, "all of it", read); err != nil {
		t.Fatal(err)
	}
}
