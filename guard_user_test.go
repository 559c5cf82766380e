//go:build linux

package tcpio

import (
	"bufio"
	"errors"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/rabbit-backend/tcpio/internal/sys"
	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// User code that runs on a goroutine of the user's. Its panics are the user's too, and leave nothing behind.

// nothingLeft fails the test if c remembers a call that is over.
func nothingLeft(t *testing.T, c *Conn) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fdUsedLocked() || c.writing != writeFree {
		t.Errorf("the descriptor is in use: %v, writing: %v", c.fdUsedLocked(), c.writing != writeFree)
	}
	if x := c.ext; x != nil && (x.canRead.Waiting() != 0 || x.canSend.Waiting() != 0 || x.frames.busy || x.frames.split) {
		t.Errorf("%d readers and %d writers at the gates, frames busy: %v, split: %v", x.canRead.Waiting(), x.canSend.Waiting(), x.frames.busy, x.frames.split)
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
func TestARawConnFunctionThatPanicsOrExitsLeavesNothingBehind(t *testing.T) {
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
			write(t, peer, []byte("hello"))
			expectInput(t, r, c, "hello")
			_ = c.Abort()
			// One that ends the connection first is the last to hold its descriptor.
			testnet.Misbehave(t, func(misdeed func()) {
				peer := r.dial()
				defer peer.Close()
				for {
					if o, ok := receive(t, "Opened", r.Events()).(Opened); ok {
						raw, err := o.Conn.SyscallConn()
						if err != nil {
							t.Error(err)
						}
						call(raw, func() { _ = o.Conn.Abort(); misdeed() })
					}
				}
			})
			waitFor(t, "the connections are gone", func() bool { return r.Len() == 0 })
		})
	}
}

// The same for one that has waited at the gate, and was woken for bytes that it did not take.
func TestARawConnReaderThatWasWokenAndPanicsDoesNotTakeTheAnnouncement(t *testing.T) {
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
			write(t, peer, []byte("x"))
			return false
		})
	})
	nothingLeft(t, c)
	c.mu.Lock()
	c.unreadableLocked() // whatever was announced: the next byte must be as well
	c.mu.Unlock()
	for len(r.Events()) > 0 {
		<-r.Events()
	}
	write(t, peer, []byte("y"))
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
			write(t, peer, []byte("one\ntwo\nthree\n"))
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
			write(t, peer, []byte("x"))
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
					if ev, ok := receive(t, "Closed", r.Events()).(Closed); ok {
						if err := ev.Conn.Err(); err != errBad {
							t.Errorf("Err: %v", err)
						}
						break
					}
				}
			}()
			write(t, peer, []byte("x"))
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

func TestAReaderOrWriterThatPanicsOrExitsInACopyLeavesNothingBehind(t *testing.T) {
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
				write(t, peer, []byte("input"))
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
			"actors":    {Actor: echoActor},
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
				r.socket.call = func(fd int32) (int32, sys.Addr, syscall.Errno) {
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
					r.reportedAt.Store(0)
					peer := r.dial()
					receive(t, "OnErrorEvent", told)
					exhausted.Store(false)
					echo(t, peer, []byte("x"))
					echo(t, old, []byte("y"))
				}
			})
		}
	}
}

// One that blocks is told the last failure when it comes back, and costs one goroutine however many there are.
func TestFailuresWaitForOnErrorEventAsOne(t *testing.T) {
	inside, release := make(chan error, 10), make(chan struct{})
	r := listen(t, ListenerOptions{Loops: 1, Actor: echoActor, OnErrorEvent: func(err error) {
		inside <- err
		<-release
	}})
	r.serve()
	fail := func(err error) {
		r.deliverFailed(err)
	}
	fail(errors.New("first"))
	receive(t, "the first", inside)
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
	if err := receive(t, "the last", inside); err != last {
		t.Errorf("told %v", err)
	}
}
