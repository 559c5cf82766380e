//go:build linux

package contract

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestIDsAreUniqueInTheProcessAndNotZero(t *testing.T) {
	l1, events1 := harness.Manual(t, tcpio.ListenerOptions{})
	l2, events2 := harness.Manual(t, tcpio.ListenerOptions{})
	seen := map[uint64]bool{0: true}
	for range 50 {
		c1, _ := harness.Open(t, l1, events1)
		c2, _ := harness.Open(t, l2, events2)
		for _, c := range []*tcpio.Conn{c1, c2} {
			if seen[c.ID()] {
				t.Fatalf("ID %d again", c.ID())
			}
			seen[c.ID()] = true
		}
		c1.Abort() // its descriptor and its slot are for others now
		harness.Expect[tcpio.Closed](t, events1)
	}
}

func TestDataOutlivesTheConnection(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	if v := c.Data(); v != nil {
		t.Errorf("Data of a new connection: %v", v)
	}
	c.SetData("state")
	c.Abort()
	if v := harness.Expect[tcpio.Closed](t, events).Conn.Data(); v != "state" {
		t.Errorf("Data at Closed: %v", v)
	}
	c.SetData(nil)
	if v := c.Data(); v != nil {
		t.Errorf("Data: %v", v)
	}
}

func TestAddressesAreThePeersViewAlsoAfterClose(t *testing.T) {
	for _, tc := range []struct{ name, network, addr, dial string }{
		{"IPv4", "tcp4", "127.0.0.1:0", ""},
		{"IPv6", "tcp6", "[::1]:0", ""},
		{"wildcard IPv4", "tcp4", "0.0.0.0:0", "127.0.0.7"},
		{"dual stack, IPv4 peer", "tcp", ":0", "127.0.0.9"},
		{"dual stack, IPv6 peer", "tcp", ":0", "::1"},
		{"unix", "unix", filepath.Join(t.TempDir(), "s"), ""},
		{"unix abstract", "unix", "@tcpio-" + filepath.Base(t.TempDir()) + t.Name(), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if strings.Contains(tc.name, "IPv6") {
				if ln, err := net.Listen("tcp6", "[::1]:0"); err != nil {
					t.Skip("no IPv6 here:", err)
				} else {
					ln.Close()
				}
			}
			l, events := harness.Manual(t, tcpio.ListenerOptions{Network: tc.network, Addr: tc.addr})
			target := l.Addr().String()
			if tc.dial != "" {
				_, port, err := net.SplitHostPort(target)
				if err != nil {
					t.Fatal(err)
				}
				target = net.JoinHostPort(tc.dial, port)
			}
			peer, err := net.Dial(l.Addr().Network(), target)
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			c := harness.Expect[tcpio.Opened](t, events).Conn
			check := func(when string) {
				t.Helper()
				local, remote := c.LocalAddr(), c.RemoteAddr()
				if local == nil || remote == nil {
					t.Fatalf("%s: local %v, remote %v", when, local, remote)
				}
				if local.Network() != peer.RemoteAddr().Network() || remote.Network() != peer.LocalAddr().Network() {
					t.Errorf("%s: networks %s and %s", when, local.Network(), remote.Network())
				}
				if local.String() != peer.RemoteAddr().String() {
					t.Errorf("%s: LocalAddr %v, the peer sees %v", when, local, peer.RemoteAddr())
				}
				if tc.network != "unix" && remote.String() != peer.LocalAddr().String() {
					t.Errorf("%s: RemoteAddr %v, the peer has %v", when, remote, peer.LocalAddr())
				}
			}
			check("open")
			c.Close()
			check("closing")
			peer.Close()
			harness.Expect[tcpio.Closed](t, events)
			check("closed")
		})
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

func TestSetNoDelayChangesTheSocket(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	if v := testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY); v != 1 {
		t.Errorf("TCP_NODELAY is %d by default", v)
	}
	for want, on := range []bool{false, true} {
		if err := c.SetNoDelay(on); err != nil {
			t.Fatal(err)
		}
		if v := testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY); v != want {
			t.Errorf("TCP_NODELAY is %d after SetNoDelay(%v)", v, on)
		}
	}
	u, unixEvents := harness.Manual(t, tcpio.ListenerOptions{Network: "unix", Addr: filepath.Join(t.TempDir(), "s")})
	c, _ = harness.Open(t, u, unixEvents)
	if err := c.SetNoDelay(true); err != nil {
		t.Errorf("on a unix socket: %v", err)
	}
}

func TestConnsAndLenAreTheOpenConnections(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	if n := l.Len(); n != 0 {
		t.Errorf("Len = %d before anybody came", n)
	}
	want := make(map[*tcpio.Conn]bool)
	for range 10 {
		c, _ := harness.Open(t, l, events)
		want[c] = true
	}
	got := slices.Collect(l.Conns())
	if len(got) != len(want) || l.Len() != len(want) {
		t.Errorf("%d Conns, Len %d, want %d", len(got), l.Len(), len(want))
	}
	for _, c := range got {
		if !want[c] {
			t.Errorf("connection %d is none of ours", c.ID())
		}
	}
	n := 0
	for c := range l.Conns() { // no lock is held: the body may close, and may leave
		c.Abort()
		if n++; n == 4 {
			break
		}
	}
	for range 4 {
		harness.Expect[tcpio.Closed](t, events)
	}
	testnet.WaitFor(t, "a Len of 6", func() bool { return l.Len() == 6 })
	if n := len(slices.Collect(l.Conns())); n != 6 {
		t.Errorf("%d Conns, want 6", n)
	}
}

func TestSyscallConnReadsAndWrites(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n := 0
	read := make(chan error, 1)
	waiting := make(chan struct{}, 100)
	go func() {
		read <- rc.Read(func(fd uintptr) bool {
			var err error
			if n, err = unix.Read(int(fd), buf); err == unix.EAGAIN {
				waiting <- struct{}{}
				return false
			}
			return true
		})
	}()
	testnet.Await(t, "the attempt that finds nothing", waiting)
	testnet.Send(t, peer, "raw")
	if err := testnet.Await(t, "the raw read", read); err != nil || string(buf[:n]) != "raw" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	// What the raw read left is announced; a stale Readable costs one ErrWouldBlock.
	ev := harness.Expect[tcpio.Readable](t, events)
	if n, err := ev.Conn.TryRead(buf); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryRead = %d, %v", n, err)
	}

	// A raw write into a full socket waits until the peer has read.
	p := make([]byte, 64<<10)
	total := 0
	written := make(chan error, 1)
	full := make(chan struct{}, 1)
	go func() {
		blocked := false
		written <- rc.Write(func(fd uintptr) bool {
			for {
				n, err := unix.Write(int(fd), p)
				if err == unix.EAGAIN {
					if !blocked {
						blocked = true
						full <- struct{}{}
					}
					return false
				}
				total += n
				if blocked {
					return true
				}
			}
		})
	}()
	testnet.Await(t, "the full socket", full)
	done := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, peer)
		done <- n
	}()
	if err := testnet.Await(t, "the raw write", written); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if n := testnet.Await(t, "the end at the peer", done); n != int64(total) {
		t.Errorf("the peer got %d bytes, %d were written", n, total)
	}
}

func TestARawReadEndsWithTheConnection(t *testing.T) {
	for name, end := range map[string]func(c *tcpio.Conn){
		"Close": func(c *tcpio.Conn) { c.Close() },
		"Abort": func(c *tcpio.Conn) { c.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			l, events := harness.Manual(t, tcpio.ListenerOptions{})
			c, _ := harness.Open(t, l, events)
			rc, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			read := make(chan error, 1)
			waiting := make(chan struct{}, 100)
			go func() {
				read <- rc.Read(func(uintptr) bool { waiting <- struct{}{}; return false })
			}()
			testnet.Await(t, "an attempt", waiting)
			end(c)
			if err := testnet.Await(t, "the end of the raw read", read); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read: %v, want net.ErrClosed", err)
			}
		})
	}
}

func TestTheDescriptorLivesAsLongAsAControlCall(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	inode := func(fd uintptr) uint64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(fd), &st); err != nil {
			t.Errorf("fstat inside Control: %v", err)
		}
		return st.Ino
	}
	if err := rc.Control(func(fd uintptr) {
		before := inode(fd)
		c.Abort()
		harness.Open(t, l, events) // would take the number, were it free
		if inode(fd) != before {
			t.Error("the descriptor went while Control was using it")
		}
	}); err != nil {
		t.Fatal(err)
	}
	harness.Expect[tcpio.Closed](t, events)
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer read: %v, want a reset", err)
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
