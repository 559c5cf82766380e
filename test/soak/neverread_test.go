//go:build linux

package soak

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

const (
	neverReadEnv = "TCPIO_TEST_NEVER_READ"

	neverReadBuffer = 16 << 10 // WriteBuffer
	neverReadReply  = 6 << 10
	neverReadOwed   = 32 // requests that a client sends: more replies than the kernel and WriteBuffer take
)

// neverReaders is how many clients there are. Each has a descriptor in this process and one in the
// server's.
func neverReaders() int {
	if testnet.Long && !testnet.Race {
		return 10000
	}
	return 1000
}

// neverReadLimit is what the server may use in all, in bytes: for each connection what WriteBuffer
// says, and 2 KiB for itself and the last block's rest; and 64 MiB for the program.
func neverReadLimit() int { return neverReaders()*(neverReadBuffer+2<<10) + 64<<20 }

// TestNeverReadChild is the server of TestPeersThatNeverReadStayWithinWriteBuffer, in a process of
// its own. It answers each line on its standard input with what it has used.
func TestNeverReadChild(t *testing.T) {
	if os.Getenv(neverReadEnv) == "" {
		t.Skip("runs in a process of its own only")
	}
	var stalled atomic.Int64
	l := harness.Listen(t, tcpio.ListenerOptions{
		WriteBuffer: neverReadBuffer,
		MaxBuffered: 4 * neverReaders() * neverReadBuffer, // its default would hold back the honest peer too
		NewActor:    func(*tcpio.Conn) tcpio.Actor { return &neverReadActor{stalled: &stalled} },
	})
	rc, err := l.GetListener().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Little room in the kernel: this is about the process's own memory.
	rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<10) })
	if err != nil {
		t.Fatal(err)
	}
	served := harness.Go(t.Context(), l)
	fmt.Printf("listening on %s\n", l.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		// What GOMEMLIMIT counts; a page that was never touched is not resident, but may be any
		// time.
		memory := m.Sys - m.HeapReleased
		fmt.Printf("state %d %d %d %d %d %d\n", testnet.CPU(t), testnet.Status(t, "VmHWM"), memory, stalled.Load(), l.Len(), l.Stats().Buffered)
	}
	l.Close()
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
}

// neverReadActor answers requests of one byte. While there is no room for an answer it does not
// read.
type neverReadActor struct {
	stalled *atomic.Int64
	owed    bool
}

var neverReadAnswer = make([]byte, neverReadReply)

func (a *neverReadActor) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Readable:
		return a.serve(ev.Conn)
	case tcpio.Writable:
		return a.serve(ev.Conn)
	case tcpio.Closed:
		if a.owed {
			a.stalled.Add(-1)
		}
	}
	return nil
}

func (a *neverReadActor) serve(c *tcpio.Conn) error {
	for {
		if a.owed {
			if _, err := c.TryWrite(neverReadAnswer); err != nil {
				if err == tcpio.ErrWouldBlock {
					return nil
				}
				return err
			}
			a.owed = false
			a.stalled.Add(-1)
		}
		var request [1]byte
		if _, err := c.TryRead(request[:]); err != nil {
			if err == tcpio.ErrWouldBlock || err == io.EOF {
				return nil
			}
			return err
		}
		a.owed = true
		a.stalled.Add(1)
	}
}

// Ten thousand clients ask and do not read the answers. What they cost the server is bounded by
// WriteBuffer, in memory that GOMEMLIMIT caps and without processor time; a client that reads is
// served meanwhile.
//
// To see it fail: take a large block in buf.Queue.Append whatever the size; answer in the actor
// without looking at ErrWouldBlock.
func TestPeersThatNeverReadStayWithinWriteBuffer(t *testing.T) {
	t.Parallel()
	limit := neverReadLimit()
	child := testnet.StartChild(t, "TestNeverReadChild", neverReadEnv+"=1", fmt.Sprintf("GOMEMLIMIT=%d", limit))
	addr := child.Line("listening on ")
	type usage struct {
		cpu                                  time.Duration
		peak, memory, stalled, conns, queued int
	}
	state := func() (u usage) {
		t.Helper()
		child.Say("")
		if _, err := fmt.Sscan(child.Line("state "), &u.cpu, &u.peak, &u.memory, &u.stalled, &u.conns, &u.queued); err != nil {
			t.Fatal(err)
		}
		return u
	}

	honest, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer honest.Close()
	const asks = 50
	ask := func() {
		t.Helper()
		start := time.Now()
		_ = honest.SetDeadline(start.Add(testnet.Limit))
		for range asks {
			testnet.Send(t, honest, []byte{1})
			testnet.ExpectBytes(t, honest, neverReadAnswer)
		}
		if d := time.Since(start); d > testnet.Limit/2 {
			t.Errorf("%d answers took %v", asks, d)
		}
	}
	ask()
	total := neverReaders()
	clients := dialNeverReaders(t, addr, total)
	closeAll := func() {
		for _, fd := range clients {
			unix.Close(fd) // with unread input: a reset, and no port in TIME_WAIT
		}
		clients = nil
	}
	defer closeAll()
	var u usage
	testnet.WaitFor(t, "every client is held back", func() bool { u = state(); return u.stalled == total })
	ask()
	const window = time.Second
	used := window
	for try := 0; used > window/10 && try < 10; try++ { // a collection may fall into a window
		before := state()
		time.Sleep(window)
		u = state()
		used = u.cpu - before.cpu
	}
	if used > window/10 {
		t.Errorf("%v of processor time in %v while all are held back", used, window)
	}
	if u.queued > total*neverReadBuffer {
		t.Errorf("%d bytes queued for %d connections, WriteBuffer is %d", u.queued, total, neverReadBuffer)
	}
	if u.queued < total*neverReadReply {
		t.Errorf("%d bytes queued for %d connections: the kernel took the rest, this tests nothing", u.queued, total)
	}
	t.Logf("%d clients: %d MiB queued, %d MiB in Go's hands, at most %d MiB resident, limit %d MiB, %v of processor time in %v",
		total, u.queued>>20, u.memory>>20, u.peak>>20, limit>>20, used, window)
	if u.memory > limit {
		t.Errorf("%d MiB in Go's hands, want %d", u.memory>>20, limit>>20)
	}
	if !testnet.Race && u.peak > limit { // the race detector has memory of its own
		t.Errorf("%d MiB resident at most, want %d", u.peak>>20, limit>>20)
	}
	closeAll()
	testnet.WaitFor(t, "they are all gone", func() bool { u = state(); return u.conns == 1 && u.queued == 0 })
	ask()
}

// dialNeverReaders opens connections of little room and sends requests on each. They are bare
// descriptors: a goroutine or a net.Conn for each would be this process's memory and time.
func dialNeverReaders(t *testing.T, addr string, n int) (fds []int) {
	t.Helper()
	ap := netip.MustParseAddrPort(addr)
	sa := &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	requests := make([]byte, neverReadOwed)
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10) // before connect: it decides the window
		if err == nil {
			err = connectRetry(fd, sa)
		}
		if err == nil {
			_, err = unix.Write(fd, requests)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return fds
}

// connectRetry is connect(2), which a signal may interrupt: it then goes on by itself, and asking
// again waits for it.
func connectRetry(fd int, sa unix.Sockaddr) error {
	for {
		switch err := unix.Connect(fd, sa); err {
		case unix.EINTR, unix.EALREADY:
		case unix.EISCONN:
			return nil
		default:
			return err
		}
	}
}
