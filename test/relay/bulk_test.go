//go:build linux

package relay

import (
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// pipes returns the pipes that the process has made, and how many bytes they hold.
func pipes(t *testing.T) (n, held int) {
	t.Helper()
	fds, err := testnet.Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for fd, what := range fds {
		if fd <= 2 || !strings.HasPrefix(what, "pipe:") || seen[what] {
			continue // what the tests have printed may not have been read yet
		}
		seen[what] = true
		if size, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil {
			n, held = n+1, held+size
		}
	}
	return n, held
}

// Two peers that send and do not read hold each other back at a bounded size; nothing of it is left
// when they read.
func TestAStalledPairHoldsLittle(t *testing.T) {
	const pairs, limit = 30, 256 << 10
	s := serve(t, "stream", tcpio.ListenerOptions{})
	before, heldBefore := pipes(t)
	var all []*pair
	for range pairs {
		all = append(all, join(t, s, s, nil))
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	heap := m.HeapAlloc
	const size = 24 << 20
	errs := make(chan error, 2*pairs)
	for _, x := range all {
		go func() { errs <- send(x.p, size) }()
		go func() { errs <- send(x.q, size) }()
	}
	// It stands when nothing is passed on any more.
	last := uint64(0)
	for looks := 0; looks < 20; time.Sleep(10 * time.Millisecond) {
		sum := uint64(0)
		for _, x := range all {
			out, in := x.relay.Passed()
			sum += out + in
		}
		if looks++; sum != last || sum == 0 {
			last, looks = sum, 0
		}
	}
	n, held := pipes(t)
	runtime.GC()
	runtime.ReadMemStats(&m)
	queued := int(s.l.Stats().Buffered)
	t.Logf("%d pairs stand: %d bytes in %d pipes, %d queued, the heap has grown by %d", pairs, held-heldBefore, n-before, queued, int64(m.HeapAlloc)-int64(heap))
	if sum := held - heldBefore + queued; sum > pairs*limit {
		t.Errorf("a pair holds %d bytes", sum/pairs)
	}
	if grown := int64(m.HeapAlloc) - int64(heap); grown > pairs*limit {
		t.Errorf("the heap has grown by %d bytes for a pair", grown/pairs)
	}
	if !testnet.Race && n == before {
		t.Error("no pipe was used: this does not test splice")
	}
	for _, x := range all {
		go func() { errs <- receive(x.p, size) }()
		go func() { errs <- receive(x.q, size) }()
	}
	for range 4 * pairs {
		if err := testnet.Await(t, "the bytes", errs); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range all {
		testnet.AwaitClosed(t, "the end", x.relay.Done())
	}
	const kept = 8 // for the next ones
	testnet.WaitFor(t, "pipes to go, of which Done does not wait", func() bool {
		n, held := pipes(t)
		return n <= before+kept && held <= heldBefore
	})
}

// A pair whose connections are cut while a pipe is full leaves no pipe.
func TestAPipeGoesWithItsRelay(t *testing.T) {
	s := serve(t, "stream", tcpio.ListenerOptions{})
	before, _ := pipes(t)
	for i := range 40 {
		x := join(t, s, s, nil)
		fill(t, x.p, 20*time.Millisecond)
		switch i % 4 {
		case 0:
			testnet.RST(t, x.p)
		case 1:
			testnet.RST(t, x.q)
		case 2:
			x.c.Abort()
		case 3:
			x.to.Close()
		}
		testnet.AwaitClosed(t, "the end", x.relay.Done())
		x.p.Close()
		x.q.Close()
	}
	testnet.WaitFor(t, "pipes to go", func() bool {
		n, held := pipes(t)
		return n <= before+8 && held == 0
	})
}

func TestWithoutFreeDescriptorsBulkIsCopied(t *testing.T) {
	s := serve(t, "stream", tcpio.ListenerOptions{})
	x := join(t, s, s, nil)
	fds, err := testnet.Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := before
	few.Cur = 0
	for fd := range fds { // all free numbers below are taken
		few.Cur = max(few.Cur, uint64(fd)+1)
	}
	var taken []int
	for {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if taken = append(taken, fd); uint64(fd) >= few.Cur {
			break
		}
	}
	defer func() {
		for _, fd := range taken {
			unix.Close(fd)
		}
	}()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)
	const size = 30 << 20
	errs := make(chan error, 2)
	go func() { errs <- send(x.p, size) }()
	go func() { errs <- receive(x.q, size) }()
	for range 2 {
		if err := testnet.Await(t, "the bytes", errs); err != nil {
			t.Error(err)
		}
	}
}

func TestSmallMessagesAllocateNothing(t *testing.T) {
	if testnet.Race {
		t.Skip("the race detector allocates")
	}
	s := serve(t, "stream", tcpio.ListenerOptions{})
	x := join(t, s, s, nil)
	p := make([]byte, 64)
	if avg := testing.AllocsPerRun(2000, func() {
		if _, err := x.p.Write(p); err != nil {
			t.Fatal(err)
		}
		if _, err := x.q.Read(p); err != nil {
			t.Fatal(err)
		}
	}); avg >= 0.5 {
		t.Errorf("%v allocations for each message", avg)
	}
}
