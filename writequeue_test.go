//go:build linux

package tcpio

import (
	"bytes"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/sys"
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

func vecBytes(v *sys.Vec) []byte {
	var all []byte
	for _, s := range v.Segs[:v.N] {
		if s.Len == 0 {
			panic("an empty segment")
		}
		all = append(all, unsafe.Slice(s.Base, int(s.Len))...)
	}
	return all
}

var queueSizes = rapid.SampledFrom([]int{1, 2, 3, 100, buf.Small - 1, buf.Small, buf.Small + 1, 20000,
	buf.Large - 1, buf.Large, buf.Large + 1, 3*buf.Large + 7})

// The queue against one byte slice.
func TestOutQueueIsBytesJoin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		sh := new(shared)
		var q outQueue
		var want []byte
		var shared []*buf.Block
		off := 0
		next := func(n int) []byte {
			off += n
			return numbered(off-n, n)
		}
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				p := next(queueSizes.Draw(t, "size"))
				q.append(sh, p)
				want = append(want, p...)
				clear(p) // it is the caller's again
			},
			"appendNothing": func(*rapid.T) { q.append(sh, nil) },
			"share": func(t *rapid.T) {
				p := next(queueSizes.Draw(t, "size"))
				from := rapid.IntRange(0, len(p)-1).Draw(t, "from")
				b := sh.pool.Get(len(p))
				copy(b.Buf, p)
				b.Retain()
				shared = append(shared, b)
				q.share(sh, b, from, len(p))
				want = append(want, p[from:]...)
			},
			"consume": func(t *rapid.T) {
				n := min(queueSizes.Draw(t, "size"), len(want))
				if rapid.Bool().Draw(t, "all of a vector") {
					var v sys.Vec
					q.fill(&v)
					n = len(vecBytes(&v))
				}
				q.consume(sh, n)
				want = want[n:]
			},
			"drop": func(*rapid.T) {
				q.drop(sh)
				want = nil
			},
			"": func(t *rapid.T) {
				if q.len() != len(want) {
					t.Fatalf("%d bytes, want %d", q.len(), len(want))
				}
				var v sys.Vec
				q.fill(&v)
				got := vecBytes(&v)
				if v.N < min(sys.VecMax, len(q.segs)) {
					t.Fatalf("%d of %d segments filled in", v.N, len(q.segs))
				}
				if !bytes.Equal(got, want[:min(len(got), len(want))]) {
					t.Fatalf("the front of the queue is not what was put in")
				}
			},
		})
		q.drop(sh)
		for _, b := range shared {
			if b.Shared() {
				t.Fatalf("a block has other references than the test's own")
			}
		}
	})
}

// A block that other connections queue too is never appended to.
func TestSharedBlockIsNeverWrittenTo(t *testing.T) {
	sh := new(shared)
	b := sh.pool.Get(10)
	copy(b.Buf, "sharedshared")
	b.Retain()
	b.Retain()
	var q1, q2 outQueue
	q1.share(sh, b, 0, 6)
	q2.share(sh, b, 0, 6)
	q1.append(sh, []byte("one"))
	q2.append(sh, []byte("two"))
	if got := string(b.Buf[:12]); got != "sharedshared" {
		t.Errorf("the shared block is now %q", got)
	}
	for q, want := range map[*outQueue]string{&q1: "sharedone", &q2: "sharedtwo"} {
		var v sys.Vec
		q.fill(&v)
		if got := string(vecBytes(&v)); got != want {
			t.Errorf("queue holds %q, want %q", got, want)
		}
	}
	q1.drop(sh)
	q2.drop(sh)
	if b.Shared() {
		t.Error("there are other references than the test's own")
	}
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
	queued := c.out.len()
	waitFor(t, "the peer has what the socket held", func() bool { return got.Load() == int64(size-queued) })
	c.flags &^= fFlush
	c.flushLocked()
	sent, waits := queued-c.out.len(), c.flags&fFlush != 0
	c.mu.Unlock()
	if sent >= flushBudget+sendChunk || waits != (sent >= flushBudget) {
		t.Errorf("one turn sent %d bytes of %d, and the rest waits for another: %v", sent, queued, waits)
	}
	if err := receive(t, "all of it", read); err != nil {
		t.Fatal(err)
	}
}
