//go:build linux

package tcpio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// testLimit is how long a test waits for something that must happen.
const testLimit = 30 * time.Second

func TestMain(m *testing.M) { testnet.Main(m) }

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

func markedSock(c *Conn, m sockMark) bool { return locked(c, func() bool { return c.sock.has(m) }) }

// announced reports whether a Readable is outstanding.
func announced(c *Conn) bool { return locked(c, c.announced) }

func markedRoute(c *Conn, m routeMark) bool {
	return locked(c, func() bool { return c.route.has(m) })
}

// write sends all of p from a client.
func write(t tester, c net.Conn, p []byte) {
	t.Helper()
	if _, err := c.Write(p); err != nil {
		t.Fatalf("client's write: %v", err)
	}
}

func phaseOf(c *Conn) phase { return locked(c, func() phase { return c.phase }) }
