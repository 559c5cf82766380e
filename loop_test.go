//go:build linux

package tcpio

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sched"
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
	r, f := fakeOne(t, ListenerOptions{NewActor: echoActor})
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
	r, f := fakeOne(t, ListenerOptions{NewActor: echoActor})
	r.serve()
	peer := r.dial()
	for i := range 20 {
		f.set(func() { f.interrupts = 500 })
		echo(t, peer, []byte(strconv.Itoa(i)))
	}
}

// Go's own preemption signal, sent to every thread, interrupts epoll_wait for real.
func TestSignalsLoseNothing(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{NewActor: echoActor})
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
			o.NewActor = func(*Conn) Actor {
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
		testnet.WaitFor(t, "all are served", func() bool { return r.Stats().Accepted == 4 })
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
	r := listen(t, ListenerOptions{Loops: 3, NewActor: echoActor})
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

func TestManyKicksAreOneWakeUp(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{}) // a handler that was held up would kick too
	r.serve()
	r.open()
	f.asleep(t, r.Listener)
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
	r, _ := fakeOne(t, ListenerOptions{NewActor: func(*Conn) Actor {
		return ActorFunc(func(ev Event) error {
			if m, ok := ev.(Message); ok {
				m.Value.(chan struct{}) <- struct{}{}
			}
			return nil
		})
	}})
	r.serve()
	r.dial()
	var c *Conn
	testnet.WaitFor(t, "the connection", func() bool {
		for c = range r.Conns() {
			return true
		}
		return false
	})
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
	f.asleep(t, r.Listener)
	before := f.waits.Load()
	<-time.After(300 * time.Millisecond) // the window that is measured
	if n := f.waits.Load() - before; n != 0 {
		t.Errorf("%d polls in 300 ms without anything to do, want 0", n)
	}
	if r.loops[0].watching.Load() {
		t.Error("the watchdog of an idle loop is running")
	}
}

// wakes is a poller that only counts its wake-ups.
type wakes struct {
	poller
	n int
}

func (w *wakes) wake() { w.n++ }

func newShard() (*shard, *wakes) {
	w := new(wakes)
	return &shard{shared: new(shared), p: w, wakeup: make(chan struct{}, 1)}, w
}

// To see it fail: leave out the Swap in kick.
func TestKicksWakeAccordingToTheRole(t *testing.T) {
	sh, w := newShard()
	sh.state.Store(uint64(sleeping))
	for range 3 {
		sh.kick()
	}
	if w.n != 1 || len(sh.wakeup) != 0 {
		t.Errorf("asleep: %d wake-ups of the poller, %d of the goroutine", w.n, len(sh.wakeup))
	}
	sh.kicked.Store(false)
	sh.state.Store(uint64(parked))
	for range 3 {
		sh.kick()
	}
	if w.n != 1 || len(sh.wakeup) != 1 || role(sh.state.Load()) != running {
		t.Errorf("parked: %d wake-ups of the poller, %d of the goroutine", w.n, len(sh.wakeup))
	}
	<-sh.wakeup
	sh.kicked.Store(false)
	sh.kick()
	if w.n != 1 || len(sh.wakeup) != 0 || !sh.kicked.Load() {
		t.Errorf("running: %d wake-ups of the poller, %d of the goroutine", w.n, len(sh.wakeup))
	}
}

// To see it fail: leave out the comparison with reportedAt.
func TestOneReportASecond(t *testing.T) {
	sh, _ := newShard()
	first, second, third := errors.New("first"), errors.New("second"), errors.New("third")
	sh.report(ofPeer, first)
	sh.reportedAt[ofPeer].Add(int64(time.Hour)) // so that no second passes here
	sh.report(ofPeer, second)
	if err := sh.trouble[ofPeer].Swap(nil); err == nil || *err != first {
		t.Errorf("reported %v, want the first", err)
	}
	sh.reportedAt[ofPeer].Add(-int64(time.Hour + time.Second))
	sh.report(ofPeer, third)
	if err := sh.trouble[ofPeer].Swap(nil); err == nil || *err != third {
		t.Errorf("a second later: reported %v, want the third", err)
	}
}

// To see it fail: let both troubles share an element of reportedAt.
func TestRefusedPeersDoNotHideAFailureOfTheListener(t *testing.T) {
	sh, _ := newShard()
	own := errors.New("accept: too many open files")
	sh.report(ofPeer, errors.New("no ClientHello"))
	sh.report(ofListener, own)
	if err := sh.trouble[ofListener].Swap(nil); err == nil || *err != own {
		t.Errorf("reported %v, want %v", err, own)
	}
	if sh.trouble[ofPeer].Load() == nil {
		t.Error("the peer's failure is gone")
	}
}

// To see it fail: make closedGivenUp -1.
func TestLoopThatHasEndedOwesNoClosed(t *testing.T) {
	sh, _ := newShard()
	if !sh.oweClosed() || sh.closedOwed.Load() != 1 {
		t.Fatalf("%d are owed, want 1", sh.closedOwed.Load())
	}
	sh.closedOwed.Store(closedGivenUp)
	for range 3 {
		sh.closedOwed.Add(1) // by connections that end late
		if sh.oweClosed() {
			t.Fatal("a loop that has ended took on one more")
		}
	}
}
