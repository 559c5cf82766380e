//go:build linux

package tcpio

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sched"
	"github.com/rabbit-backend/tcpio/internal/sys"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"golang.org/x/sys/unix"
)

// echoActor answers everything that it reads.
func echoActor(*Conn) Actor {
	buf := make([]byte, 4096)
	return ActorFunc(func(ev Event) error {
		r, ok := ev.(Readable)
		if !ok {
			return nil
		}
		n, err := r.Conn.TryRead(buf)
		if err == ErrWouldBlock || err == io.EOF {
			return nil
		}
		if err == nil {
			_, err = r.Conn.TryWrite(buf[:n])
		}
		return err
	})
}

// echo makes one round trip.
func echo(t testnet.T, c net.Conn, p []byte) {
	t.Helper()
	testnet.Send(t, c, p)
	got := make([]byte, len(p))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("client's read: %v", err)
	}
	if !bytes.Equal(got, p) {
		t.Fatalf("echo of %q is %q", p, got)
	}
}

const everything = pollIn | pollOut | pollRdHup | pollHup | pollErr | pollPri

func TestSpuriousEventsDoNoHarm(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{Actor: echoActor})
	r.serve()
	peer := r.dial()
	echo(t, peer, []byte("before"))
	c := slices.Collect(r.Conns())[0]
	f.say(t,
		makeReady(everything, wakeKey),
		makeReady(everything, listenKey),
		makeReady(everything, sched.Key{Slot: 7}),
		makeReady(everything, sched.Key{Slot: 1 << 31, Gen: 1}),
		makeReady(everything, sched.Key{Slot: c.key.Slot, Gen: c.key.Gen + 1}),
		makeReady(everything, c.key),
		makeReady(everything, c.key),
		makeReady(0, c.key),
	)
	echo(t, peer, []byte("after"))
	if n := r.Len(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestStaleTokenReachesNobody(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	_, a := r.open()
	a.Abort()
	receiveAs[Closed](t, events)
	peer, b := r.open()
	if a.key.Slot != b.key.Slot || a.key.Gen == b.key.Gen {
		t.Fatalf("slot %d gen %d after slot %d gen %d: want the slot reused with a new generation", b.key.Slot, b.key.Gen, a.key.Slot, a.key.Gen)
	}
	f.say(t, makeReady(everything, a.key))
	if readable, unsure := locked(b, b.announced), markedSock(b, sockUnsure); readable || unsure || len(events) != 0 {
		t.Errorf("the newcomer got readable %v, unsure %v and %d events from the old generation", readable, unsure, len(events))
	}
	// The same event with the right generation does arrive: the check above can fail.
	f.say(t, makeReady(everything, b.key))
	receiveAs[Readable](t, events)
	if _, err := b.TryRead(make([]byte, 1)); err != ErrWouldBlock {
		t.Errorf("a spurious Readable: TryRead says %v, want ErrWouldBlock", err)
	}
	testnet.Send(t, peer, "x")
	receiveAs[Readable](t, events)
}

func TestInterruptedWaitsLoseNothing(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{Actor: echoActor})
	r.serve()
	peer := r.dial()
	for i := range 20 {
		f.set(func() { f.interrupts = 500 })
		echo(t, peer, []byte(strconv.Itoa(i)))
	}
}

// Go's own preemption signal, sent to every thread, interrupts epoll_wait for real.
func TestSignalsLoseNothing(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{Actor: echoActor})
	r.serve()
	peer := r.dial()
	echo(t, peer, []byte("warm"))
	asleep(t, r.Listener)
	before := f.waits.Load()
	testnet.WaitFor(t, "signals interrupt the wait a hundred times", func() bool {
		signalThreads(t)
		return f.waits.Load() >= before+100
	})
	for i := range 100 {
		signalThreads(t)
		echo(t, peer, []byte(strconv.Itoa(i)))
	}
}

func signalThreads(t *testing.T) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if tid, err := strconv.Atoi(task.Name()); err == nil {
			_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
		}
	}
}

func TestFailingWaitEndsServeAndClosesEverything(t *testing.T) {
	broken := os.NewSyscallError("epoll_wait", syscall.EBADF)
	for _, actors := range []bool{false, true} {
		o := ListenerOptions{Loops: 2}
		var closed = make(chan error, 16)
		if actors {
			o.Actor = func(*Conn) Actor {
				return ActorFunc(func(ev Event) error {
					if ev, ok := ev.(Closed); ok {
						closed <- ev.Conn.Err()
					}
					return nil
				})
			}
		}
		r := listen(t, o)
		fakes := fakePollers(r, 2)
		var events <-chan Event
		if !actors {
			events = r.Events()
		}
		r.serve()
		var peers []*net.TCPConn
		for range 4 {
			peers = append(peers, r.dial())
		}
		testnet.WaitFor(t, "all are accepted", func() bool { return r.Len() == 4 })
		fakes[1].set(func() { fakes[1].broken = broken })
		for range 4 {
			if actors {
				if err := testnet.Receive(t, "Closed", closed); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Err is %v, want net.ErrClosed", err)
				}
			}
		}
		if !actors {
			n := 0
			for ev := range events {
				if _, ok := ev.(Closed); ok {
					n++
				}
			}
			if n != 4 {
				t.Errorf("%d Closed, want 4", n)
			}
		}
		err := testnet.Receive(t, "the end of Serve", r.served)
		r.served = nil
		if !errors.Is(err, broken) {
			t.Errorf("Serve returned %v, want %v", err, broken)
		}
		for _, p := range peers {
			if _, err := p.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the peer's read: %v, want an end", err)
			}
		}
		if _, err := net.Dial("tcp", r.Addr().String()); err == nil {
			t.Error("the listening socket is still open")
		}
	}
}

func TestFailingPollerIsServesError(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 3, Actor: echoActor})
	broken := os.NewSyscallError("epoll_create1", syscall.EMFILE)
	made := 0
	r.newPoller = func() (poller, error) {
		if made++; made == 3 {
			return nil, broken
		}
		return newEpoll()
	}
	if err := r.Serve(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Serve returned %v, want %v", err, broken)
	}
}

func TestRefusedRegistrationIsToldAndLeaksNothing(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{})
	events := r.Events()
	f.refuse = os.NewSyscallError("epoll_ctl", syscall.ENOSPC)
	r.serve()
	peer := r.dial()
	failed := receiveAs[Failed](t, events)
	if !errors.Is(failed.Err, syscall.ENOSPC) {
		t.Errorf("Failed says %v, want ENOSPC", failed.Err)
	}
	if _, err := peer.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the refused peer's read: %v, want an end", err)
	}
	testnet.WaitFor(t, "the refused connection is forgotten", func() bool { return r.Len() == 0 })
	if got := slices.Collect(r.loops[0].conns.All()); len(got) != 0 {
		t.Errorf("%d connections are left in the table", len(got))
	}
	f.set(func() { f.refuse = nil })
	r.open() // after the back-off
}

// The errors that accept(2) says to treat like EAGAIN.
func TestAcceptErrorsOfOneConnectionAreSkipped(t *testing.T) {
	r, _ := fakeOne(t, ListenerOptions{})
	events := r.Events()
	errnos := []syscall.Errno{
		unix.ENETDOWN, unix.EPROTO, unix.ENOPROTOOPT, unix.EHOSTDOWN, unix.ENONET, unix.EHOSTUNREACH,
		unix.EOPNOTSUPP, unix.ENETUNREACH, unix.ECONNABORTED, unix.EPERM,
	}
	left := slices.Clone(errnos)
	r.socket.call = func(fd int32) (int32, sys.Addr, syscall.Errno) {
		if len(left) > 0 {
			errno := left[0]
			left = left[1:]
			return -1, sys.Addr{}, errno
		}
		return sys.Accept(fd)
	}
	r.serve()
	r.dial()
	receiveAs[Opened](t, events) // and no Failed before it
	for _, errno := range errnos {
		if sys.Exhausted(errno) {
			t.Errorf("%v is taken for exhaustion", errno)
		}
	}
}

// A storm of such errors must not keep the loop from its connections.
func TestEndlessAcceptErrorsStarveNobody(t *testing.T) {
	r, _ := fakeOne(t, ListenerOptions{Actor: echoActor})
	r.socket.call = sys.Accept
	r.serve()
	peer := r.dial()
	echo(t, peer, []byte("before"))
	r.socket.mu.Lock()
	r.socket.call = func(int32) (int32, sys.Addr, syscall.Errno) { return -1, sys.Addr{}, unix.ECONNABORTED }
	r.socket.mu.Unlock()
	r.dial()
	for range 50 {
		echo(t, peer, []byte("during"))
	}
	r.socket.mu.Lock()
	r.socket.call = sys.Accept
	r.socket.mu.Unlock()
	testnet.WaitFor(t, "the second connection is accepted", func() bool { return r.Len() == 2 })
}

func TestExhaustedDescriptorsBackOffAndRecover(t *testing.T) {
	t.Parallel()
	r, _ := fakeOne(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	_, first := r.open()

	calls := make(chan time.Time, 1000)
	r.socket.mu.Lock()
	r.socket.call = func(fd int32) (int32, sys.Addr, syscall.Errno) {
		calls <- time.Now()
		return -1, sys.Addr{}, unix.EMFILE
	}
	r.socket.mu.Unlock()
	peer := r.dial()
	if failed := receiveAs[Failed](t, events); !errors.Is(failed.Err, syscall.EMFILE) {
		t.Errorf("Failed says %v, want EMFILE", failed.Err)
	}
	last := testnet.Receive(t, "an accept", calls)
	for want := acceptBackoff; want < acceptSlowest; want *= 2 {
		at := testnet.Receive(t, "the next attempt", calls)
		if d := at.Sub(last); d < want-time.Millisecond {
			t.Errorf("attempt after %v, want at least %v", d, want)
		}
		last = at
	}
	if n := len(events); n > 1 {
		t.Errorf("%d more events in little more than a second: Failed comes once a second", n)
	}
	r.socket.mu.Lock()
	r.socket.call = sys.Accept
	r.socket.mu.Unlock()
	// A descriptor that comes free is used at once, and not when the back-off, of a second now, is over.
	first.Abort()
	var c *Conn
	for c == nil {
		switch ev := testnet.Receive(t, "Opened", events).(type) {
		case Opened:
			c = ev.Conn
		case Closed, Failed: // more than a second has passed since the first Failed
		default:
			t.Fatalf("got %T", ev)
		}
	}
	if d := time.Since(last); d > acceptSlowest-10*time.Millisecond {
		t.Errorf("the next attempt came after %v", d)
	}
	if _, err := c.TryWrite([]byte("welcome")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(peer, make([]byte, 7)); err != nil {
		t.Errorf("the peer that waited: %v", err)
	}
}

// lineCounter is a slog.Handler that counts.
type lineCounter struct{ lines atomic.Int64 }

func (h *lineCounter) Enabled(context.Context, slog.Level) bool  { return true }
func (h *lineCounter) Handle(context.Context, slog.Record) error { h.lines.Add(1); return nil }
func (h *lineCounter) WithAttrs([]slog.Attr) slog.Handler        { return h }
func (h *lineCounter) WithGroup(string) slog.Handler             { return h }

// To see it fail: leave out the comparison with reportedAt in shard.report.
func TestLastingFailureIsOneLineOfLogASecond(t *testing.T) {
	t.Parallel()
	log := new(lineCounter)
	r, _ := fakeOne(t, ListenerOptions{Actor: echoActor, Logger: slog.New(log)})
	r.serve()
	var conns []*Conn
	for range 200 {
		r.dial()
	}
	testnet.WaitFor(t, "all are accepted", func() bool { conns = slices.Collect(r.loops[0].conns.All()); return len(conns) == 200 })
	var failures atomic.Int64
	r.socket.mu.Lock()
	r.socket.call = func(int32) (int32, sys.Addr, syscall.Errno) {
		failures.Add(1)
		return -1, sys.Addr{}, unix.EMFILE
	}
	r.socket.mu.Unlock()
	start := time.Now()
	r.dial()
	testnet.WaitFor(t, "accepting fails", func() bool { return failures.Load() > 0 })
	for _, c := range conns { // each that ends makes the listener look again
		before := failures.Load()
		c.Abort()
		testnet.WaitFor(t, "it has looked again", func() bool { return failures.Load() > before })
	}
	lines, most := log.lines.Load(), int64(time.Since(start)/time.Second)+1
	if lines < 1 || lines > most {
		t.Errorf("%d lines of log for %d failures in %v, want 1 to %d", lines, failures.Load(), time.Since(start), most)
	}
}

func TestManyKicksAreOneWakeUp(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{Actor: echoActor})
	r.serve()
	echo(t, r.dial(), []byte("warm"))
	asleep(t, r.Listener)
	hold := make(chan struct{})
	f.mu.Lock()
	f.hold = hold
	f.mu.Unlock()
	lp := r.loops[0]
	before := f.wakes.Load()
	for range 1000 {
		lp.kick()
	}
	got := f.wakes.Load() - before
	f.mu.Lock()
	f.hold = nil
	f.mu.Unlock()
	close(hold)
	if got != 1 {
		t.Errorf("%d wake-ups for a thousand kicks, want 1", got)
	}
	testnet.WaitFor(t, "the loop has looked", func() bool { return !lp.kicked.Load() })
}

func TestNoKickIsLost(t *testing.T) {
	r, _ := fakeOne(t, ListenerOptions{Actor: func(*Conn) Actor {
		return ActorFunc(func(ev Event) error {
			if m, ok := ev.(Message); ok {
				m.Value.(chan struct{}) <- struct{}{}
			}
			return nil
		})
	}})
	r.serve()
	r.dial()
	testnet.WaitFor(t, "accepted", func() bool { return r.Len() == 1 })
	c := slices.Collect(r.Conns())[0]
	got := make(chan struct{}, 1)
	for range 5000 { // each post comes while the loop is on its way to sleep
		if err := c.Post(got); err != nil {
			t.Fatal(err)
		}
		testnet.Receive(t, "the message", got)
	}
}

func TestIdleServerMakesNoPolls(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	buf := make([]byte, 16)
	for range 50 {
		peer, c := r.open()
		testnet.Send(t, peer, "x")
		receiveAs[Readable](t, events)
		if _, err := c.TryRead(buf); err != nil {
			t.Fatal(err)
		}
	}
	asleep(t, r.Listener)
	before := f.waits.Load()
	<-time.After(300 * time.Millisecond) // the window that is measured
	if n := f.waits.Load() - before; n != 0 {
		t.Errorf("%d polls in 300 ms without anything to do, want 0", n)
	}
	if r.loops[0].watching.Load() {
		t.Error("the watchdog of an idle loop is running")
	}
}
