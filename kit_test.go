//go:build linux

package tcpio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sched"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

// receiveAs takes the next event from ch, which must be an E.
func receiveAs[E Event](t testnet.T, ch <-chan Event) E {
	t.Helper()
	var want E
	ev := testnet.Receive(t, fmt.Sprintf("%T", want), ch)
	e, ok := ev.(E)
	if !ok {
		t.Fatalf("got %T, want %T", ev, want)
	}
	return e
}

// receiveUntil takes events until an E comes, and returns that. Others may be in the way: a Readable
// that its read came before, or a Failed, of which there is one a second.
func receiveUntil[E Event](t testnet.T, ch <-chan Event) E {
	t.Helper()
	var want E
	for {
		if e, ok := testnet.Receive(t, fmt.Sprintf("%T", want), ch).(E); ok {
			return e
		}
	}
}

// A rig is a listener under test.
type rig struct {
	*Listener
	t      testing.TB
	served chan error
	once   sync.Once
}

// listen opens a listener on loopback that is closed, and Serve waited for, when the test ends.
func listen(t testing.TB, o ListenerOptions) *rig {
	t.Helper()
	if o.Addr == "" && o.Listener == nil && o.Network != "none" {
		o.Addr = "127.0.0.1:0"
	}
	if o.CloseTimeout == 0 {
		o.CloseTimeout = testnet.Limit
	}
	l, err := Listen(&o)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Listener: l, t: t}
	t.Cleanup(r.end)
	return r
}

// serve starts Serve.
func (r *rig) serve() *rig {
	r.served = make(chan error, 1)
	go func() { r.served <- r.Serve(context.Background()) }()
	return r
}

// end closes the listener, receives what is left of its stream, and waits for Serve.
func (r *rig) end() {
	r.once.Do(func() {
		r.Close()
		r.mu.Lock()
		s := r.events
		r.mu.Unlock()
		if s != nil {
			for range s.ch {
			}
		}
		if r.served != nil {
			err := testnet.Receive(r.t, "the end of Serve", r.served)
			if err != nil && !errors.Is(err, net.ErrClosed) { // it is that if the test ended before Serve had begun
				r.t.Errorf("Serve: %v", err)
			}
		}
	})
}

// dial opens a client connection that is closed when the test ends.
func (r *rig) dial() *net.TCPConn {
	r.t.Helper()
	return testnet.DialTCP(r.t, r.Listener)
}

// open dials and returns both ends; nothing else may be happening on the stream.
func (r *rig) open() (*net.TCPConn, *Conn) {
	r.t.Helper()
	peer := r.dial()
	return peer, receiveAs[Opened](r.t, r.Events()).Conn
}

// locked calls f under c's mu.
func locked[T any](c *Conn, f func() T) T {
	c.mu.Lock()
	defer c.unlock()
	return f()
}

func markedSock(c *Conn, m sockMark) bool { return locked(c, func() bool { return c.sock.has(m) }) }

// announced reports whether a Readable is outstanding.
func announced(c *Conn) bool { return locked(c, c.announced) }

func markedRoute(c *Conn, m routeMark) bool {
	return locked(c, func() bool { return c.route.has(m) })
}

func phaseOf(c *Conn) phase { return locked(c, func() phase { return c.phase }) }

// A fakePoller is a real poller with a hand on it: it counts, and adds failures and events that the
// kernel is free to produce but does not on demand.
type fakePoller struct {
	poller

	waits atomic.Int64 // calls of wait
	wakes atomic.Int64 // calls of wake

	mu sync.Mutex
	// Guarded by mu.
	inject     []readyEvent
	interrupts int   // waits that end at once with nothing, as an interrupted one does
	broken     error // what wait fails with
	refuse     error // what add fails with
	keys       map[int]sched.Key
	hold       chan struct{} // a wait that has blocked returns only when it is closed
	said       int64         // the number of the wait that took the last of inject

	ended atomic.Int64 // waits that have returned
}

// fakePollers makes l run on fake pollers, which are returned as they are made.
func fakePollers(r *rig, n int) []*fakePoller {
	fakes := make([]*fakePoller, n)
	for i := range fakes {
		fakes[i] = &fakePoller{keys: make(map[int]sched.Key)}
	}
	next := 0
	r.newPoller = func() (poller, error) {
		p, err := newEpoll()
		if err != nil {
			return nil, err
		}
		f := fakes[next]
		next++
		f.mu.Lock()
		f.poller = p
		f.mu.Unlock()
		return f, nil
	}
	return fakes
}

func fakeOne(t testing.TB, o ListenerOptions) (*rig, *fakePoller) {
	t.Helper()
	o.Loops = 1
	r := listen(t, o)
	return r, fakePollers(r, 1)[0]
}

func (f *fakePoller) add(fd int, k sched.Key, mask uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil && k.Gen != 0 {
		return f.refuse
	}
	f.keys[fd] = k
	return f.poller.add(fd, k, mask)
}

func (f *fakePoller) wait(events []readyEvent, timeout time.Duration) (int, error) {
	f.waits.Add(1)
	defer f.ended.Add(1)
	if n, err, ok := f.made(events); ok {
		return n, err
	}
	n, err := f.poller.wait(events, timeout)
	f.mu.Lock()
	hold := f.hold
	f.mu.Unlock()
	if hold != nil && timeout != 0 {
		<-hold
	}
	if m, err, ok := f.made(events[n:]); ok && err == nil {
		n += m
	}
	return n, err
}

// made is what the test wants wait to say.
func (f *fakePoller) made(events []readyEvent) (n int, err error, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.broken != nil:
		return 0, f.broken, true
	case f.interrupts > 0:
		f.interrupts--
		return 0, nil, true
	case len(f.inject) > 0:
		n = copy(events, f.inject)
		f.inject = f.inject[n:]
		f.said = f.waits.Load()
		return n, nil, true
	}
	return 0, nil, false
}

func (f *fakePoller) wake() {
	f.wakes.Add(1)
	f.poller.wake()
}

// set changes f and makes it look.
func (f *fakePoller) set(change func()) {
	f.mu.Lock()
	change()
	p := f.poller
	f.mu.Unlock()
	if p != nil { // Serve has got that far
		p.wake()
	}
}

// say makes f report events as if the kernel had, and waits until they were dispatched.
func (f *fakePoller) say(t testnet.T, events ...readyEvent) {
	t.Helper()
	f.set(func() { f.inject = append(f.inject, events...) })
	testnet.WaitFor(t, "the events said are dispatched", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.inject) == 0 && f.waits.Load() > f.said
	})
}

// asleep waits until the only loop of r has nothing to do and its watchdog has stopped.
func asleep(t testnet.T, l *Listener) {
	t.Helper()
	for _, lp := range l.loops {
		testnet.WaitFor(t, "the loop sleeps", func() bool {
			return role(lp.state.Load()&roleMask) == sleeping && !lp.watching.Load()
		})
	}
}

// asleep waits until the only loop of l sleeps in the poller, and the wait for that is counted.
func (f *fakePoller) asleep(t testnet.T, l *Listener) {
	t.Helper()
	asleep(t, l)
	testnet.WaitFor(t, "the loop is in the poller", func() bool { return f.ended.Load() == f.waits.Load()-1 })
}

// state names the phase, and in it whether our FIN is out.
func state(c *Conn) string {
	return locked(c, func() string {
		if c.phase == phaseClosing && c.sendEnd == sendFin {
			return "FIN sent"
		}
		return c.phase.String()
	})
}

// inState brings a fresh connection into one of the states that an event can end.
func inState(t *testing.T, r *rig, want string) (*net.TCPConn, *Conn) {
	t.Helper()
	peer := r.dial()
	c := receiveUntil[Opened](t, r.Events()).Conn
	begun := time.Now()
	switch want {
	case "closing": // output is left: the peer does not read
		setSendBuffer(t, c, 1)
		if _, err := c.TryWrite(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		c.Close()
	case "FIN sent":
		c.Close()
	}
	switch got := state(c); {
	case got == "gone" && time.Since(begun) >= r.opts.CloseTimeout:
		return inState(t, r, want) // this was too slow
	case got != want:
		t.Fatalf("state %q, want %q", got, want)
	}
	return peer, c
}

// receive0 waits until ch is closed.
func receive0(t testnet.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(testnet.Limit):
		t.Fatalf("after %v still not: %s", testnet.Limit, what)
	}
}
