//go:build linux

package tcpio

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// User code that runs on a goroutine of the user's. Its panics are the user's too, and leave
// nothing behind.

// nothingLeft fails the test if c remembers a call that is over.
func nothingLeft(t *testing.T, c *Conn) {
	t.Helper()
	c.mu.Lock()
	defer c.unlock()
	if c.fdUsedLocked() || c.writing != writeFree {
		t.Errorf("the descriptor is in use: %v, writing: %v", c.fdUsedLocked(), c.writing != writeFree)
	}
	if x := c.ext; x != nil && (x.waiting().canRead.Waiting() != 0 || x.waits.canSend.Waiting() != 0 || x.frames.busy || x.frames.split) {
		t.Errorf("%d readers and %d writers at the gates, frames busy: %v, split: %v", x.waits.canRead.Waiting(), x.waits.canSend.Waiting(), x.frames.busy, x.frames.split)
	}
}

// expectInput waits until the events announce what p says, and reads it.
func expectInput(t *testing.T, r *rig, c *Conn, p string) {
	t.Helper()
	got := ""
	for got != p {
		receiveAs[Readable](t, r.Events())
		b := make([]byte, len(p)-len(got))
		n, err := c.TryRead(b)
		if err != nil && err != ErrWouldBlock {
			t.Fatal(err)
		}
		got += string(b[:n])
	}
}

// To see it fail: call leave in tryFD behind f, and not in a deferred function.
func TestRawConnFunctionThatPanicsOrExitsLeavesNothingBehind(t *testing.T) {
	for name, call := range map[string]func(raw syscall.RawConn, f func()){
		"Control": func(raw syscall.RawConn, f func()) { _ = raw.Control(func(uintptr) { f() }) },
		"Read":    func(raw syscall.RawConn, f func()) { _ = raw.Read(func(uintptr) bool { f(); return true }) },
		"Write":   func(raw syscall.RawConn, f func()) { _ = raw.Write(func(uintptr) bool { f(); return true }) },
	} {
		t.Run(name, func(t *testing.T) {
			r := listen(t, ListenerOptions{Loops: 1})
			r.Events()
			r.serve()
			peer, c := r.open()
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			testnet.Misbehave(t, func(misdeed func()) { call(raw, misdeed) })
			nothingLeft(t, c)
			testnet.Send(t, peer, "hello")
			expectInput(t, r, c, "hello")
			_ = c.Abort()
			// One that ends the connection first is the last to hold its descriptor.
			testnet.Misbehave(t, func(misdeed func()) {
				peer := r.dial()
				defer peer.Close()
				for {
					if o, ok := testnet.Receive(t, "Opened", r.Events()).(Opened); ok {
						raw, err := o.Conn.SyscallConn()
						if err != nil {
							t.Error(err)
						}
						call(raw, func() { _ = o.Conn.Abort(); misdeed() })
					}
				}
			})
			testnet.WaitFor(t, "the connections are gone", func() bool { return r.Len() == 0 })
		})
	}
}

// The same for one that has waited at the gate, and was woken for bytes that it did not take.
func TestRawConnReaderThatWasWokenAndPanicsDoesNotTakeTheAnnouncement(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1})
	r.Events()
	r.serve()
	peer, c := r.open()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	testnet.Misbehave(t, func(misdeed func()) {
		_ = raw.Read(func(fd uintptr) bool {
			var b [1]byte
			n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if err == nil && n == 1 {
				misdeed()
			}
			testnet.Send(t, peer, "x")
			return false
		})
	})
	nothingLeft(t, c)
	c.mu.Lock()
	c.withdrawReadableLocked() // whatever was announced: the next byte must be as well
	c.unlock()
	for len(r.Events()) > 0 {
		<-r.Events()
	}
	testnet.Send(t, peer, "y")
	receiveAs[Readable](t, r.Events())
}

func TestFramesThatPanicOrExitLeaveNothingBehind(t *testing.T) {
	errBad := errors.New("bad frame")
	for name, loop := range map[string]func(c *Conn, misdeed func()){
		"split": func(c *Conn, misdeed func()) {
			for range c.Frames(func([]byte, bool) (int, []byte, error) { misdeed(); return 0, nil, nil }) {
			}
		},
		"body": func(c *Conn, misdeed func()) {
			for range c.Frames(bufio.ScanLines) {
				misdeed()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := listen(t, ListenerOptions{Loops: 1})
			r.Events()
			r.serve()
			peer, c := r.open()
			testnet.Send(t, peer, "one\ntwo\nthree\n")
			receiveAs[Readable](t, r.Events())
			testnet.Misbehave(t, func(misdeed func()) {
				loop(c, misdeed)
			})
			nothingLeft(t, c)
			receiveAs[Readable](t, r.Events()) // what is left is announced
			var got string
			for frame, err := range c.Frames(bufio.ScanLines) {
				if err != nil {
					t.Fatal(err)
				}
				got += string(frame) + " "
			}
			want := "one two three "
			if name == "body" {
				want = "three " // two bodies have had a frame each
			}
			if got != want {
				t.Errorf("the frames are %q, want %q", got, want)
			}
			nothingLeft(t, c)
			testnet.Send(t, peer, "x")
			expectInput(t, r, c, "x")
		})
	}
	t.Run("body of the error", func(t *testing.T) {
		r := listen(t, ListenerOptions{Loops: 1})
		r.Events()
		r.serve()
		testnet.Misbehave(t, func(misdeed func()) {
			peer, c := r.open()
			defer func() {
				nothingLeft(t, c)
				if !locked(c, c.ended) {
					t.Error("a connection whose frames are bad is still open")
				}
				peer.Close()
				for {
					if ev, ok := testnet.Receive(t, "Closed", r.Events()).(Closed); ok {
						if err := ev.Conn.Err(); err != errBad {
							t.Errorf("Err: %v", err)
						}
						break
					}
				}
			}()
			testnet.Send(t, peer, "x")
			receiveAs[Readable](t, r.Events())
			for _, err := range c.Frames(func([]byte, bool) (int, []byte, error) { return 0, nil, errBad }) {
				if err != nil {
					misdeed()
				}
			}
		})
	})
}

type (
	badReader func()
	badWriter func()
)

func (f badReader) Read(p []byte) (int, error)  { f(); return len(p), nil }
func (f badWriter) Write(p []byte) (int, error) { f(); return len(p), nil }

// badSource and badSink are readers and writers that do the copy themselves.
type badSource struct{ badReader }

func (f badSource) WriteTo(w io.Writer) (int64, error) {
	_, _ = w.Write([]byte("w"))
	f.badReader()
	return 0, nil
}

type badSink struct{ badWriter }

func (f badSink) ReadFrom(r io.Reader) (int64, error) {
	_, _ = r.Read(make([]byte, 1))
	f.badWriter()
	return 0, nil
}

func TestReaderOrWriterThatPanicsOrExitsInACopyLeavesNothingBehind(t *testing.T) {
	for name, copies := range map[string]func(c *Conn, misdeed func()){
		"ReadFrom":             func(c *Conn, f func()) { _, _ = c.ReadFrom(badReader(f)) },
		"ReadFrom a limited":   func(c *Conn, f func()) { _, _ = c.ReadFrom(io.LimitReader(badReader(f), 10)) },
		"ReadFrom a WriterTo":  func(c *Conn, f func()) { _, _ = c.ReadFrom(badSource{badReader(f)}) },
		"WriteTo":              func(c *Conn, f func()) { _, _ = c.WriteTo(badWriter(f)) },
		"WriteTo a ReaderFrom": func(c *Conn, f func()) { _, _ = c.WriteTo(badSink{badWriter(f)}) },
	} {
		t.Run(name, func(t *testing.T) {
			r := listen(t, ListenerOptions{Loops: 1})
			r.Events()
			r.serve()
			peer, c := r.open()
			testnet.Misbehave(t, func(misdeed func()) {
				testnet.Send(t, peer, "input")
				copies(c, misdeed)
			})
			nothingLeft(t, c)
			if _, err := c.Write([]byte("output")); err != nil {
				t.Errorf("the next write: %v", err)
			}
			_ = c.Close()
		})
	}
}

// Listener failures are told under the guard, by whichever route there is.
func TestOnErrorEventThatPanicsOrExitsForTheListenerIsOnlyLogged(t *testing.T) {
	for how, misdeed := range map[string]func(){"panic": func() { panic("misdeed") }, "Goexit": runtime.Goexit} {
		for route, o := range map[string]ListenerOptions{
			"callbacks": {OnConnEvent: func(c net.Conn) error { _, err := io.CopyN(c, c, 1); return err }},
			"actors":    {NewActor: echoActor},
		} {
			t.Run(route+"/"+how, func(t *testing.T) {
				told := make(chan error, 10)
				o.Loops = 1
				o.OnErrorEvent = func(err error) {
					if errors.Is(err, unix.EMFILE) {
						told <- err
						misdeed()
					}
				}
				r := listen(t, o)
				var exhausted atomic.Bool
				r.entries[0].call = func(fd int32) (int32, sys.Addr, syscall.Errno) {
					if exhausted.Load() {
						return -1, sys.Addr{}, unix.EMFILE
					}
					return sys.Accept(fd)
				}
				r.serve()
				old := r.dial()
				echo(t, old, []byte("x"))
				for range 2 {
					exhausted.Store(true)
					r.reportedAt[ofListener].Store(0)
					peer := r.dial()
					testnet.Receive(t, "OnErrorEvent", told)
					exhausted.Store(false)
					echo(t, peer, []byte("x"))
					echo(t, old, []byte("y"))
				}
			})
		}
	}
}

// One that blocks is told the last failure when it comes back, and costs one goroutine however many
// there are.
func TestFailuresWaitForOnErrorEventAsOne(t *testing.T) {
	inside, release := make(chan error, 10), make(chan struct{})
	r := listen(t, ListenerOptions{Loops: 1, NewActor: echoActor, OnErrorEvent: func(err error) {
		inside <- err
		<-release
	}})
	r.serve()
	fail := func(err error) {
		r.deliverFailed(ofListener, err)
	}
	fail(errors.New("first"))
	testnet.Receive(t, "the first", inside)
	before := runtime.NumGoroutine()
	last := errors.New("last")
	for range 100 {
		fail(errors.New("in between"))
	}
	fail(last)
	if n := runtime.NumGoroutine(); n > before+5 {
		t.Errorf("%d goroutines more", n-before)
	}
	close(release)
	if err := testnet.Receive(t, "the last", inside); err != last {
		t.Errorf("told %v", err)
	}
}

// queuedCallback serves two connections: the callback of one blocks until release is closed, and
// that of the other, which has sent a byte, waits for its turn.
func queuedCallback(t *testing.T) (l *Listener, release chan struct{}, c *Conn, peer net.Conn) {
	release = make(chan struct{})
	entered := make(chan *Conn, 2)
	r := listen(t, ListenerOptions{CloseTimeout: 5 * time.Second, OnConnEvent: func(conn net.Conn) error {
		var b [1]byte
		if _, err := conn.Read(b[:]); err != nil {
			return err
		}
		if b[0] == 'b' {
			entered <- conn.(*Conn)
			<-release
		}
		_, err := conn.Write([]byte("answer"))
		return err
	}}).serve()
	testnet.Send(t, r.dial(), "b")
	first := testnet.Receive(t, "the call that blocks", entered)
	tcp := r.dial()
	peer = tcp
	testnet.Send(t, tcp, "x")
	testnet.WaitFor(t, "the call that waits", func() bool {
		for other := range r.Conns() {
			other.mu.Lock()
			waits := other != first && other.callWaitsLocked()
			other.unlock()
			if waits {
				c = other
			}
		}
		return c != nil
	})
	return r.Listener, release, c, peer
}

// What was sent before the Shutdown is answered, whoever's callback had to come first.
func TestShutdownWaitsForACallbackThatWaitsForItsTurn(t *testing.T) {
	l, release, c, peer := queuedCallback(t)
	down := make(chan error, 1)
	go func() { down <- l.Shutdown(context.Background()) }()
	testnet.WaitFor(t, "the end of Draining", func() bool {
		c.mu.Lock()
		defer c.unlock()
		return c.phase == phaseDrained && !c.route.has(routeRunning)
	})
	close(release)
	answer, err := io.ReadAll(peer)
	if string(answer) != "answer" || err != nil {
		t.Errorf("the peer got %q, %v", answer, err)
	}
	peer.Close()
	// The other peer keeps its side open, which takes Shutdown up to CloseTimeout.
	if err := testnet.Receive(t, "the end of Shutdown", down); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// It takes along what it has not yet read.
func TestConnectionMayLeaveACallbackThatWaitsForItsTurn(t *testing.T) {
	l, release, c, peer := queuedCallback(t)
	events := c.Events()
	if _, ok := testnet.Receive(t, "Readable", events).(Readable); !ok {
		t.Fatal("no Readable")
	}
	// The queue goes on, over the call: the calls behind it are made.
	over := make(chan struct{}, 1)
	l.callbacks.calls.Post(func() { over <- struct{}{} })
	close(release)
	testnet.Receive(t, "the turn behind the call", over)
	var b [2]byte
	if n, err := c.TryRead(b[:]); n != 1 || b[0] != 'x' || err != nil {
		t.Errorf("TryRead on the new route: %q, %v", b[:n], err)
	}
	c.Close()
	if answer, err := io.ReadAll(peer); len(answer) > 0 || err != nil {
		t.Errorf("the old route answered %q, %v", answer, err)
	}
}

// More that arrives while such a call runs is for another call, which is not lost when the first
// one ends.
func TestCallThatWaitsIsNotLostToOneThatRuns(t *testing.T) {
	entered, release := make(chan *Conn, 2), make(chan struct{})
	r := listen(t, ListenerOptions{OnConnEvent: func(conn net.Conn) error {
		var b [1]byte
		if _, err := conn.Read(b[:]); err != nil {
			return err
		}
		if b[0] == 'b' {
			entered <- conn.(*Conn)
			<-release
		}
		_, err := conn.Write(b[:])
		return err
	}}).serve()
	late := func(n int32) func() bool {
		return func() bool {
			for c := range r.Conns() {
				c.mu.Lock()
				calls := int32(0)
				if c.ext != nil {
					calls = c.ext.late
				}
				c.unlock()
				if calls == n {
					return true
				}
			}
			return false
		}
	}
	testnet.Send(t, r.dial(), "b")
	testnet.Receive(t, "the call that blocks", entered)
	peer := r.dial()
	testnet.Send(t, peer, "b")
	testnet.WaitFor(t, "a call that waits", late(1))
	release <- struct{}{}
	testnet.Receive(t, "the late call", entered)
	testnet.Send(t, peer, "x")
	testnet.WaitFor(t, "another call that waits", late(2))
	release <- struct{}{}
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(peer); string(answer) != "bx" || err != nil {
		t.Errorf("the peer got %q, %v", answer, err)
	}
}
