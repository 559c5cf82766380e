//go:build linux

package tcpio

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// testLimit is how long a test waits for something that must happen.
const testLimit = 30 * time.Second

// TestMain checks that the tests together leave no goroutine and no descriptor. To see it fail: start a goroutine that
// blocks, or open a socket, in any test and leave it.
func TestMain(m *testing.M) {
	// What runs together merely waits, for limits of time and for slow peers: more of it than there are processors. What
	// measures the whole process is not parallel, and runs before.
	_ = flag.Set("test.parallel", "8") // and -parallel on the command line says otherwise
	startRuntimePoller()
	before, err := descriptors()
	if err != nil {
		fmt.Fprintln(os.Stderr, "descriptors before the tests:", err)
		os.Exit(1)
	}
	code := m.Run()
	if code == 0 {
		if err := leaks(before); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func leaks(before map[int]string) error {
	if err := goleak.Find(); err != nil {
		return fmt.Errorf("goroutines left by the tests: %w", err)
	}
	// The package net keeps the pipes that it splices through until the garbage collector finds nobody who holds one: they
	// are not left by a test, and go when it has run. Nothing else may take its time.
	for end := time.Now().Add(testLimit); ; {
		after, err := descriptors()
		if err != nil {
			return err
		}
		var left []string
		pipes := true
		for _, fd := range slices.Sorted(maps.Keys(after)) {
			if before[fd] != after[fd] {
				left = append(left, fmt.Sprintf("%d -> %s", fd, after[fd]))
				pipes = pipes && strings.HasPrefix(after[fd], "pipe:")
			}
		}
		if left == nil {
			return nil
		}
		if !pipes || time.Now().After(end) {
			return fmt.Errorf("descriptors left by the tests: %s", strings.Join(left, ", "))
		}
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
}

// startRuntimePoller makes the Go runtime open the descriptors that it keeps for good.
func startRuntimePoller() {
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close()
	}
}

// descriptors lists the open descriptors and what they are.
func descriptors() (map[int]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // a system without: nothing to compare
	}
	if err != nil {
		return nil, err
	}
	fds := make(map[int]string)
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue // the one that ReadDir itself had open
		}
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			fds[fd] = target
		}
	}
	return fds, nil
}

// tester is what *testing.T and *rapid.T have in common.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// waitFor fails the test unless cond becomes true.
func waitFor(t tester, what string, cond func() bool) {
	t.Helper()
	limit := time.NewTimer(testLimit)
	defer limit.Stop()
	look := time.NewTicker(500 * time.Microsecond)
	defer look.Stop()
	for !cond() {
		select {
		case <-look.C:
		case <-limit.C:
			t.Fatalf("after %v still not: %s", testLimit, what)
		}
	}
}

// receive takes the next value from ch.
func receive[T any](t tester, what string, ch <-chan T) (v T) {
	t.Helper()
	limit := time.NewTimer(testLimit)
	defer limit.Stop()
	select {
	case v, ok := <-ch:
		if !ok {
			t.Fatalf("channel closed instead of: %s", what)
		}
		return v
	case <-limit.C:
		t.Fatalf("after %v still not: %s", testLimit, what)
	}
	return v
}

// receiveAs takes the next event from ch, which must be an E.
func receiveAs[E Event](t tester, ch <-chan Event) E {
	t.Helper()
	var want E
	ev := receive(t, fmt.Sprintf("%T", want), ch)
	e, ok := ev.(E)
	if !ok {
		t.Fatalf("got %T, want %T", ev, want)
	}
	return e
}

// receiveClosed fails the test unless ch is closed with nothing in it.
func receiveClosed(t tester, ch <-chan Event) {
	t.Helper()
	limit := time.NewTimer(testLimit)
	defer limit.Stop()
	select {
	case ev, ok := <-ch:
		if ok {
			t.Fatalf("got %T, want the end of the channel", ev)
		}
	case <-limit.C:
		t.Fatalf("after %v the channel is still open", testLimit)
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
	if o.Addr == "" && o.Listener == nil {
		o.Addr = "127.0.0.1:0"
	}
	if o.CloseTimeout == 0 {
		o.CloseTimeout = testLimit
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
			err := receive(r.t, "the end of Serve", r.served)
			if err != nil && !errors.Is(err, net.ErrClosed) { // it is that if the test ended before Serve had begun
				r.t.Errorf("Serve: %v", err)
			}
		}
	})
}

// dial opens a client connection that is closed when the test ends.
func (r *rig) dial() *net.TCPConn {
	r.t.Helper()
	c := dialTo(r.t, r.Listener)
	r.t.Cleanup(func() { c.Close() })
	return c
}

// dialTo opens a client connection with a deadline on everything it does.
func dialTo(t tester, l *Listener) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", l.Addr().String(), testLimit)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	if err := c.SetDeadline(time.Now().Add(testLimit)); err != nil {
		t.Fatalf("deadline: %v", err)
	}
	return c.(*net.TCPConn)
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
	defer c.mu.Unlock()
	return f()
}

func flagsOf(c *Conn) flags { return locked(c, func() flags { return c.flags }) }

// write sends all of p from a client.
func write(t tester, c net.Conn, p []byte) {
	t.Helper()
	if _, err := c.Write(p); err != nil {
		t.Fatalf("client's write: %v", err)
	}
}
