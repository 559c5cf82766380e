//go:build linux

package tcpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/testnet"
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

// TryWritev over a socket with the smallest send buffer there is: what arrives is bytes.Join of all
// that was accepted.
func TestTryWritevIsBytesJoin(t *testing.T) {
	t.Parallel()
	r := listen(t, ListenerOptions{WriteBuffer: 100000})
	events := r.Events()
	r.serve()
	piece := rapid.SampledFrom([]int{0, 0, 1, 1, 2, 7, 64, 1000, 5000, buf.Large + 3})
	rapid.Check(t, func(t *rapid.T) {
		peer := testnet.Connect(t, r.Listener)
		defer peer.Close()
		c := receiveAs[Opened](t, events).Conn
		defer func() {
			c.Abort()
			for {
				if _, ok := testnet.Receive(t, "Closed", events).(Closed); ok {
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
		if all := testnet.Receive(t, "the peer has read everything", got); !bytes.Equal(all, want) {
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

func setSendBuffer(t testnet.T, c *Conn, size int) {
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
func TestFastReaderOfALongQueueLeavesOthersTheirTurn(t *testing.T) {
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
	testnet.WaitFor(t, "the peer has what the socket held", func() bool { return got.Load() == int64(size-queued) })
	c.wants.drop(wantFlush)
	c.flushLocked()
	sent, waits := queued-c.out.Len(), c.wants.has(wantFlush)
	c.unlock()
	if sent >= flushBudget+sendChunk || waits != (sent >= flushBudget) {
		t.Errorf("one turn sent %d bytes of %d, and the rest waits for another: %v", sent, queued, waits)
	}
	if err := testnet.Receive(t, "all of it", read); err != nil {
		t.Fatal(err)
	}
}

// The copy that the members of a group share is made while no member is locked. Here it is seen to
// be made, by memory that cannot be read.
func TestLargeWriteToAGroupIsCopiedUnderNoLock(t *testing.T) {
	r := listen(t, ListenerOptions{})
	r.Events()
	r.serve()
	_, c := r.open()
	var g Group
	g.Join(c)
	p, err := unix.Mmap(-1, 0, 4*holdMax, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(p) }()
	if err := unix.Mprotect(p[2*holdMax:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	func() {
		defer func() {
			if recover() == nil {
				t.Error("nothing was copied")
			}
		}()
		_, _ = g.Write(p)
	}()
	testnet.WaitFor(t, "no member is locked", c.mu.TryLock) // its loop holds the lock for a moment
	c.unlock()
	c.Abort()
}

// What a group queues for its slow members holds about as much memory as WriteBuffer counts,
// however short the writes. To see it fail: share blocks of any size.
func TestShortWritesToAGroupHoldLittleMoreThanTheirBytes(t *testing.T) {
	for _, size := range []int{1, 100, shareMin, shareMin + 1, buf.Small + 1, buf.Large/2 + 1, buf.Large + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			r := listen(t, ListenerOptions{Loops: 1}).serve()
			var g Group
			var conns [2]*Conn
			for i := range conns {
				peer, c := r.open()
				peer.SetReadBuffer(4 << 10)
				for c.Buffered() == 0 {
					if _, err := c.TryWrite(make([]byte, 256<<10)); err != nil {
						t.Fatal(err)
					}
				}
				conns[i] = c
				g.Join(c)
			}
			writes := max(10, 1000/size)
			for range writes {
				g.Write(make([]byte, size))
			}
			if n := g.Skipped(); n != 0 {
				t.Fatalf("%d writes had no room", n)
			}
			held := make(map[*buf.Block]bool)
			bytes := 0
			for _, c := range conns {
				c.mu.Lock()
				for b := range c.out.Blocks {
					if !held[b] {
						held[b] = true
						bytes += len(b.Buf)
					}
				}
				bytes -= c.out.Len() - writes*size + buf.Large // what was queued before, as far as it is left
				c.unlock()
			}
			if queued := 2 * writes * size; bytes > 4*queued+2*buf.Large {
				t.Errorf("%d bytes held for %d queued", bytes, queued)
			}
		})
	}
}

// Bytes that the kernel copies count as activity like any other. To see it fail: let account do
// nothing.
func TestCopiesInTheKernelCount(t *testing.T) {
	const size = 300 << 10
	r := listen(t, ListenerOptions{Loops: 1, ReadStallTimeout: time.Hour}).serve()
	left, a := r.open()
	right, b := r.open()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	copied := make(chan error, 2)
	go func() {
		_, err := io.Copy(b, a)
		copied <- err
		_, err = io.Copy(b, file)
		copied <- err
	}()
	go func() {
		left.Write(make([]byte, size))
		left.CloseWrite()
	}()
	if _, err := io.ReadFull(right, make([]byte, 2*size)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := testnet.Receive(t, "the end of a copy", copied); err != nil {
			t.Fatal(err)
		}
	}
	if s := r.Stats(); s.BytesIn != size || s.BytesOut != 2*size {
		t.Errorf("counted %d in, %d out", s.BytesIn, s.BytesOut)
	}
	if !markedSock(a, sockHeard) {
		t.Error("the first byte was not noticed: ReadStallTimeout would close the connection")
	}
}

// A reader that was woken for bytes and then finds its deadline passed leaves them announced for
// whoever reads next. To see it fail: let Read only look at the deadline.
func TestBytesThatWokeAReaderAreAnnouncedWhenItsDeadlineHasPassed(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1}).serve()
	for range 50 {
		_, c := r.open()
		asleep(t, r.Listener)
		read := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			read <- err
		}()
		testnet.WaitFor(t, "the reader to block", func() bool {
			return locked(c, func() bool { return c.ext != nil && c.ext.waiting().canRead.Waiting() > 0 })
		})
		// Both at once, as far as the reader can tell: it cannot look before mu is released.
		c.mu.Lock()
		c.announceReadableLocked()
		c.ext.waiting().readLimit.Set(&c.mu.bare, time.Unix(1, 0))
		c.unlock()
		if err := testnet.Receive(t, "the end of Read", read); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		receiveAs[Readable](t, r.Events())
		c.Abort()
		for {
			if _, ok := testnet.Receive(t, "Closed", r.Events()).(Closed); ok {
				break
			}
		}
	}
}

// A released connection keeps its descriptor, and is not Closed, while somebody uses it.
func TestDescriptorGoesWithItsLastUser(t *testing.T) {
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Control(func(fd uintptr) {
		c.Abort()
		if got := state(c); got != "released" {
			t.Errorf("state %q with a user of the descriptor, want released", got)
		}
		if err := syscall.SetNonblock(int(fd), true); err != nil {
			t.Errorf("the descriptor is gone already: %v", err)
		}
		if len(events) != 0 || c.Err() != nil {
			t.Errorf("%d events, Err %v, before the descriptor is gone", len(events), c.Err())
		}
	}); err != nil {
		t.Fatal(err)
	}
	receiveAs[Closed](t, events)
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer's read: %v, want a reset", err)
	}
}

// What is queued at Close reaches a peer that takes its time, and FIN is behind it.
func TestCloseFlushesThenSendsFin(t *testing.T) {
	t.Parallel()
	r := listen(t, ListenerOptions{CloseTimeout: time.Hour}) // a slow machine is not the subject
	r.Events()
	r.serve()
	peer, c := inState(t, r, "open")
	setSendBuffer(t, c, 1)
	want := numbered(0, 1<<20)
	if _, err := c.TryWrite(want); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if got := state(c); got != "closing" {
		t.Fatalf("state %q with output queued, want closing", got)
	}
	got, err := io.ReadAll(peer)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if got := state(c); got != "FIN sent" {
		t.Errorf("state %q after the peer has everything, want FIN sent", got)
	}
	peer.Close()
	receiveEnd(t, r.Events())
	if err := c.Err(); err != nil {
		t.Errorf("Err: %v", err)
	}
}

// TLS may begin while Hijack waits for a write to end. To see it fail: let Hijack look at TLS only
// before it waits.
func TestHijackThatWaitsGivesNoTLSAway(t *testing.T) {
	r := listen(t, ListenerOptions{})
	r.Events()
	r.serve()
	_, c := r.open()
	c.mu.Lock()
	c.writing = writeHeld // as within a Write
	c.unlock()
	hijacked := make(chan error, 1)
	go func() {
		tc, err := c.Hijack()
		if err == nil {
			tc.Close()
		}
		hijacked <- err
	}()
	testnet.WaitFor(t, "Hijack waits", func() bool {
		return locked(c, func() bool { return c.extLocked().waiting().canSend.Waiting() == 1 })
	})
	c.mu.Lock()
	c.endWriteLocked()
	err := c.mayStartTLSLocked(testnet.ServerTLS())
	c.beginTLSLocked(testnet.ServerTLS(), false)
	c.ext.tls.done = true // as behind its handshake
	c.ext.waits.openSend()
	c.unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := testnet.Receive(t, "the end of Hijack", hijacked); err == nil {
		t.Error("Hijack gave away a connection that speaks TLS")
	}
	c.mu.Lock()
	c.ext.tls.done = false
	c.abortLocked(net.ErrClosed)
	c.unlock()
}
