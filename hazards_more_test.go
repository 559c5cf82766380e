//go:build linux

package tcpio_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
)

// The rest of what users of other libraries ran into; see hazards_test.go.

// To see it fail: leave out the removal in Conn.finish.
func TestAHeldDuplicateKeepsNothingAliveInEpoll(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	other, otherPeer := open(t, l, events)
	dup, number := -1, -1
	control(t, c, func(fd int) (err error) {
		number = fd
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	defer unix.Close(dup)
	watched := func() bool {
		for _, fd := range epollTargets(t) {
			if fd == number {
				return true
			}
		}
		return false
	}
	if !watched() {
		t.Fatalf("no epoll instance watches %d", number)
	}
	c.Close()
	sendFIN(t, peer) // the orderly end of both sides: the descriptor goes, the open file stays
	expect[tcpio.Closed](t, events)
	if watched() {
		t.Errorf("epoll still watches the file of %d", number)
	}
	// A third connection takes the slot; then the dead one's file is made ready for anything.
	newcomer, _ := open(t, l, events)
	if err := unix.Shutdown(dup, unix.SHUT_RDWR); err != nil && err != unix.ENOTCONN {
		t.Fatal(err)
	}
	peer.Close()
	send(t, otherPeer, []byte("x"))
	if ev := expect[tcpio.Readable](t, events); ev.Conn != other {
		t.Fatalf("Readable of connection %d, want %d", ev.Conn.ID(), other.ID())
	}
	if _, err := newcomer.TryRead(make([]byte, 1)); err != tcpio.ErrWouldBlock {
		t.Errorf("the newcomer: %v", err)
	}
	before := cpuTime(t)
	const window = 300 * time.Millisecond
	expectSilence(t, events, window)
	if used := cpuTime(t) - before; used > window/2 {
		t.Errorf("%v of processor time in %v of silence", used, window)
	}
}

// epollTargets lists the descriptor numbers under which files are registered in this process's epoll instances (tfd in
// proc(5)'s fdinfo).
func epollTargets(t *testing.T) (targets []int) {
	t.Helper()
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil || len(infos) == 0 {
		t.Fatal("no /proc/self/fdinfo", err)
	}
	for _, name := range infos {
		info, err := os.ReadFile(name)
		if err != nil {
			continue // the one that Glob had open
		}
		for line := range strings.Lines(string(info)) {
			fd := 0
			if _, err := fmt.Sscanf(line, "tfd: %d ", &fd); err == nil {
				targets = append(targets, fd)
			}
		}
	}
	return targets
}

// To see it fail: leave out F_DUPFD_CLOEXEC in sysGiveAway, sysTake or sysListenerCopy.
func TestAnExecutedChildInheritsNoDuplicate(t *testing.T) {
	before := inherited(t) // what this process has got itself
	l, events := startManual(t, tcpio.ListenerOptions{Loops: 2})
	for i := range 3 {
		c, _ := open(t, l, events)
		tc, err := c.Hijack()
		if err != nil {
			t.Fatal(err)
		}
		expect[tcpio.Closed](t, events)
		if _, err := l.Adopt(tc); err != nil {
			t.Fatal(err)
		}
		c = expect[tcpio.Opened](t, events).Conn
		if i == 2 {
			break // which stays adopted
		}
		if tc, err = c.Hijack(); err != nil {
			t.Fatal(err)
		}
		defer tc.Close()
		expect[tcpio.Closed](t, events)
	}
	// A copy between two connections holds a pipe for as long as it lasts.
	from, _ := open(t, l, events)
	to, _ := open(t, l, events)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		io.Copy(to, from)
	}()
	defer func() {
		from.Abort()
		receive(t, "the end of the copy", copied)
	}()
	if l.GetListener() == nil {
		t.Fatal("no listener")
	}
	for range 3 { // the copy may not have begun
		for held := range inherited(t) {
			if !before[held] {
				t.Errorf("the child holds %s", held)
			}
		}
	}
}

// inherited is what a child has above standard error, less the directory that ls has opened by itself.
func inherited(t *testing.T) map[string]bool {
	t.Helper()
	out, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	held := make(map[string]bool)
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if n := len(f); n > 3 && f[n-2] == "->" && !strings.Contains("0 1 2", f[n-3]) && !strings.HasPrefix(f[n-1], "/proc/") {
			held[f[n-3]+" "+f[n-1]] = true
		}
	}
	return held
}

func TestAdoptionLeavesTheSocketNonBlocking(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Somebody holds the same open file as a socket-activated program's parent does; its mode is everybody's.
	rc, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	dup := -1
	rc.Control(func(fd uintptr) { dup, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	l, events := startManual(t, tcpio.ListenerOptions{Listener: ln})
	ln = nil
	for range 5 {
		c, peer := open(t, l, events)
		runtime.GC() // a finalizer must not close, or change, what is ours
		send(t, peer, []byte("x"))
		if _, err := readStream(t, events, c, 1, 10); err != nil {
			t.Fatal(err)
		}
		control(t, c, func(fd int) error {
			if status, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || status&unix.O_NONBLOCK == 0 {
				t.Errorf("flags %#x, %v: blocking", status, err)
			}
			return nil
		})
		if status, err := unix.FcntlInt(uintptr(dup), unix.F_GETFL, 0); err != nil || status&unix.O_NONBLOCK == 0 {
			t.Errorf("the listening socket's flags %#x, %v: blocking", status, err)
		}
	}
}

// Whoever holds the same open file may clear O_NONBLOCK; a call that must not block still does not. To see it fail: leave
// out MSG_DONTWAIT in sysRecv or sysSend.
func TestCallsDoNotBlockOnADescriptorThatSomebodyMadeBlocking(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{WriteBuffer: 100 << 10})
	c, peer := open(t, l, events)
	shrinkSendBuffer(t, c)
	control(t, c, func(fd int) error { return unix.SetNonblock(fd, false) })
	done := make(chan []byte, 1)
	go func() {
		if _, err := c.TryRead(make([]byte, 1)); err != tcpio.ErrWouldBlock {
			t.Errorf("TryRead with nothing to read: %v", err)
		}
		var accepted []byte
		for p := pattern(10 << 10); ; {
			n, err := c.TryWrite(p)
			accepted = append(accepted, p[:n]...)
			if err != nil {
				if err != tcpio.ErrWouldBlock {
					t.Errorf("TryWrite: %v", err)
				}
				break
			}
		}
		done <- accepted
	}()
	accepted := receive(t, "the calls return", done)
	expectBytes(t, peer, accepted) // flushed by the loop, which has not blocked either
	send(t, peer, []byte("x"))
	for {
		if _, ok := receive(t, "Readable", events).(tcpio.Readable); ok {
			break
		}
	}
}

// Go stops goroutines that run for long by signals, which interrupt the calls of others.
func TestBusyGoroutinesBesideTheLoopLoseNothing(t *testing.T) {
	rounds := 4
	if longTests {
		rounds = 20
	}
	var stop atomic.Bool
	var busy sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		busy.Go(func() {
			for x := 1; !stop.Load(); {
				for range 1 << 20 {
					x = x*1103515245 + 12345
				}
				sink.Store(int64(x))
			}
		})
	}
	defer busy.Wait()
	defer stop.Store(true)
	l := startStream(t, tcpio.ListenerOptions{}, echo(t))
	var peers sync.WaitGroup
	for i := range 4 {
		peer := dial(t, l)
		peers.Go(func() {
			p := pattern(32 << 10)[i:]
			got := make([]byte, len(p))
			for range rounds {
				if _, err := peer.Write(p); err != nil {
					t.Error(err)
					return
				}
				if _, err := io.ReadFull(peer, got); err != nil || firstDifference(got, p) >= 0 {
					t.Errorf("the echo: %v, different at %d", err, firstDifference(got, p))
					return
				}
			}
		})
	}
	peers.Wait()
}

var sink atomic.Int64

// Epoll's data holds no pointer, so nothing of a connection may hang on it alone: collections all the time take nothing
// away from connections that nobody but the library holds, whatever comes and goes beside them. To see it fail: keep
// table.conns as uintptrs.
func TestGarbageCollectionsAllTheTimeTakeNothingAway(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			runtime.GC()
			runtime.Gosched()
		}
	})
	defer wg.Wait()
	defer stop.Store(true)

	l := startStream(t, tcpio.ListenerOptions{}, echo(t))
	var idle []net.Conn
	for i := range 50 {
		peer := dial(t, l)
		ping(t, peer, []byte{byte(i)})
		idle = append(idle, peer)
	}
	s := &soak{t: t, seed: rand.Uint64(), done: make(map[string]int)}
	s.listen()
	d := 200 * time.Millisecond
	if longTests {
		d = time.Second
	}
	s.run(d, 0)
	s.quiet()
	s.stop()
	for i, peer := range idle {
		ping(t, peer, []byte{byte(i), 1})
	}
	if n := l.Len(); n != len(idle) {
		t.Errorf("%d connections of %d", n, len(idle))
	}
}

// A limit that is reached while the connection is closed by either side, or used, is one end among others: Closed comes
// once, which startStream checks, and the books balance.
func TestALimitReachedAtTheMomentOfACloseIsOneEnd(t *testing.T) {
	t.Parallel()
	const limit = 20 * time.Millisecond
	var opened, closed, byLimit atomic.Int64
	conns := make(chan *tcpio.Conn, 100)
	l := startStream(t, tcpio.ListenerOptions{IdleTimeout: limit, ReadTimeout: limit, CloseTimeout: limit}, func(ev tcpio.Event) {
		switch ev := ev.(type) {
		case tcpio.Opened:
			opened.Add(1)
			conns <- ev.Conn
		case tcpio.Readable:
			if _, err := ev.Conn.TryRead(make([]byte, 1)); err == io.EOF {
				ev.Conn.Close()
			}
		case tcpio.Closed:
			closed.Add(1)
			if le, ok := ev.Conn.Err().(*tcpio.LimitError); ok && (le.Limit == "idle" || le.Limit == "read") {
				byLimit.Add(1)
			}
		}
	})
	var wg sync.WaitGroup
	const workers, rounds = 20, 10
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(9, uint64(w)))
			for range rounds {
				peer, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				c := <-conns // one of those that have just been opened, not this one always
				at := time.After(limit + time.Duration(rng.IntN(4000)-2000)*time.Microsecond)
				what := rng.IntN(5)
				<-at
				switch what {
				case 0:
					c.Close()
				case 1:
					c.Abort()
				case 2:
					c.SetIdleTimeout(time.Duration(rng.IntN(3)) * time.Millisecond)
				case 3:
					peer.Write([]byte("x"))
				case 4:
					peer.(*net.TCPConn).SetLinger(0)
				}
				peer.Close()
			}
		})
	}
	wg.Wait()
	waitFor(t, "all are closed", func() bool { return l.Len() == 0 && closed.Load() == opened.Load() })
	st := l.Stats()
	if st.Accepted != st.Closed || int64(st.Accepted) != opened.Load() {
		t.Errorf("%d accepted, %d closed, %d opened", st.Accepted, st.Closed, opened.Load())
	}
	if got := int64(st.Timeouts.Idle + st.Timeouts.Read); got != byLimit.Load() || got == 0 {
		t.Errorf("%d time limits counted, %d connections ended by one", got, byLimit.Load())
	}
}
