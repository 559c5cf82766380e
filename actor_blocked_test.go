//go:build linux

package tcpio_test

import (
	"context"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// blocker blocks in Receive, in the way that its client chose, until released; any other input is echoed.
type blocker struct {
	t       testing.TB
	entered chan *tcpio.Conn
	release chan struct{}
}

func newBlocker(t testing.TB) *blocker {
	return &blocker{t: t, entered: make(chan *tcpio.Conn, 100), release: make(chan struct{})}
}

func (b *blocker) block(c *tcpio.Conn) {
	b.entered <- c
	<-b.release
}

func (b *blocker) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Readable:
		var p [64]byte
		n, err := ev.Conn.TryRead(p[:])
		if err != nil {
			return nil
		}
		switch string(p[:n]) {
		case "readable":
			b.block(ev.Conn)
		case "after":
			ev.Conn.After(20*time.Millisecond, "block")
		case "post":
			go func() {
				if err := ev.Conn.Post("block"); err != nil {
					b.t.Error(err)
				}
			}()
			return nil
		case "close":
			ev.Conn.Close()
			return nil
		}
		_, err = ev.Conn.TryWrite(p[:n])
		return err
	case tcpio.Message:
		b.block(ev.Conn)
		ev.Conn.TryWrite([]byte("done"))
	case tcpio.Closed:
		if ev.Conn.Data() == "block at Closed" {
			b.block(ev.Conn)
		}
	}
	return nil
}

func TestOthersGoOnWhileAHandlerBlocksHoweverItWasWoken(t *testing.T) {
	for _, how := range []string{"readable", "after", "post"} {
		t.Run(how, func(t *testing.T) {
			b := newBlocker(t)
			r := actServeAll(t, tcpio.ListenerOptions{Loops: 1}, b)
			other, c := r.dial(), r.dial()
			actPing(t, other, "before")
			base := runtime.NumGoroutine()
			var once sync.Once
			release := func() { once.Do(func() { close(b.release) }) }
			defer release()
			actWriteString(t, c, how)
			if how == "after" {
				actReadString(t, c, len(how))
			}
			actRecv(t, "a blocked handler", b.entered)
			for range 50 {
				actPing(t, other, "meanwhile")
			}
			if got := r.l.Blocked(); got != 1 {
				t.Errorf("Blocked: %d while one handler blocks", got)
			}
			release()
			want := "done"
			if how == "readable" {
				want = how
			}
			if got := actReadString(t, c, len(want)); got != want {
				t.Errorf("after it was released: %q, want %q", got, want)
			}
			actPing(t, c, "again")
			actUntil(t, "nobody is blocked", func() bool { return r.l.Blocked() == 0 })
			actUntil(t, "goroutines are as many as before", func() bool { return runtime.NumGoroutine() <= base })
		})
	}
}

// Each round lets the loop fall asleep, or nearly, so that a post comes in every state of it.
func TestAHandlerThatBlocksBehindAPostFreesTheLoopInEveryStateOfIt(t *testing.T) {
	rounds := 60
	if longTests && !actRace {
		rounds = 300
	}
	entered := make(chan struct{})
	release := make(chan struct{})
	r := actServeAll(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Readable:
			return actEcho(ev.Conn)
		case tcpio.Message:
			entered <- struct{}{}
			<-release
		}
		return nil
	}))
	c, other := r.dial(), r.dial()
	actPing(t, c, "a")
	actPing(t, other, "b")
	var conn *tcpio.Conn
	for x := range r.l.Conns() {
		if x.RemoteAddr().String() == c.LocalAddr().String() {
			conn = x
		}
	}
	for i := range rounds {
		actPing(t, other, "before")
		for spin := time.Now(); time.Since(spin) < time.Duration(i%40)*50*time.Microsecond; {
			runtime.Gosched()
		}
		if err := conn.Post(i); err != nil {
			t.Fatal(err)
		}
		actRecv(t, "a blocked handler", entered)
		actPing(t, other, "meanwhile")
		release <- struct{}{}
	}
}

func TestBlockedHandlersAreBoundedByMaxBlocked(t *testing.T) {
	const limit, blocking = 3, 8
	b := newBlocker(t)
	r := actServeAll(t, tcpio.ListenerOptions{Loops: 1, MaxBlocked: limit}, b)
	clients := make([]*net.TCPConn, blocking)
	for i := range clients {
		clients[i] = r.dial()
	}
	actUntil(t, "all are open", func() bool { return r.l.Len() == blocking })
	base := runtime.NumGoroutine()
	for _, c := range clients {
		actWriteString(t, c, "readable")
	}
	// The loop waits for the handler behind the bound: limit of them, and that one, are entered and no more.
	for range limit + 1 {
		actRecv(t, "a blocked handler", b.entered)
	}
	for range 100 {
		if got := r.l.Blocked(); got > limit {
			t.Fatalf("Blocked: %d, over MaxBlocked %d", got, limit)
		}
		time.Sleep(time.Millisecond / 2) // the watchdog's time, in which it could go wrong
	}
	if n := len(b.entered); n != 0 {
		t.Errorf("%d more handlers were entered", n)
	}
	if got, want := runtime.NumGoroutine(), base+limit+1; got > want { // one for the watchdog
		t.Errorf("%d goroutines, want %d at most", got, want)
	}
	close(b.release)
	for _, c := range clients {
		if got := actReadString(t, c, 8); got != "readable" {
			t.Errorf("answer %q", got)
		}
	}
	actUntil(t, "nobody is blocked", func() bool { return r.l.Blocked() == 0 })
	actUntil(t, "goroutines are as many as before", func() bool { return runtime.NumGoroutine() <= base })
}

// The connection is in the loop's work queue, because of the post, when its turn begins because of its input; while that
// turn blocks, the queue comes to it.
func TestAValuePostedBeforeAHandlerBlocksIsReceivedAfterIt(t *testing.T) {
	const rounds = 20
	type role struct{ first, second *tcpio.Conn }
	var roles atomic.Pointer[role]
	entered := make(chan struct{}, 10)
	release := make(chan struct{})
	got := map[any]chan struct{}{"mail": make(chan struct{}, 1), "moved on": make(chan struct{}, 1)}
	hold := make(chan struct{})
	r := actServeAll(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Message:
			if ev.Value == "hold" {
				// Holds the loop until both clients have sent, for less than the watchdog grants: they are in one batch.
				<-hold
				return nil
			}
			got[ev.Value] <- struct{}{}
		case tcpio.Readable:
			var p [16]byte
			if _, err := ev.Conn.TryRead(p[:]); err != nil {
				return nil
			}
			both := roles.Load()
			if both == nil {
				return nil
			}
			if ev.Conn == both.first {
				return both.second.Post("mail")
			}
			entered <- struct{}{}
			<-release
		}
		return nil
	}))
	c := [3]*net.TCPConn{r.dial(), r.dial(), r.dial()}
	conn := map[string]*tcpio.Conn{}
	for _, x := range r.conns(3) {
		conn[x.RemoteAddr().String()] = x
	}
	of := func(i int) *tcpio.Conn { return conn[c[i].LocalAddr().String()] }
	roles.Store(&role{of(0), of(1)})
	for range rounds {
		if err := of(2).Post("hold"); err != nil {
			t.Fatal(err)
		}
		actWriteString(t, c[0], "x")
		actWriteString(t, c[1], "x")
		hold <- struct{}{}
		actRecv(t, "the second's Readable", entered)
		// The loop has moved on from the blocked handler when the third connection is answered.
		if err := of(2).Post("moved on"); err != nil {
			t.Fatal(err)
		}
		actRecv(t, "the third's message", got["moved on"])
		release <- struct{}{}
		actRecv(t, "the mail", got["mail"])
	}
}

func TestShutdownInsideReceiveReturns(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"readable", "post", "after"} {
		t.Run(how, func(t *testing.T) {
			result := make(chan error, 1)
			var r *actRig
			ready := make(chan struct{})
			shutdown := func() {
				<-ready
				ctx, cancel := context.WithTimeout(context.Background(), actWait)
				defer cancel()
				result <- r.l.Shutdown(ctx)
			}
			// The handler waits CloseTimeout for itself.
			opts := tcpio.ListenerOptions{Loops: 1, CloseTimeout: 500 * time.Millisecond}
			r = actServeAll(t, opts, tcpio.ActorFunc(func(ev tcpio.Event) error {
				switch ev := ev.(type) {
				case tcpio.Readable:
					var p [16]byte
					if n, err := ev.Conn.TryRead(p[:]); err != nil || n == 0 {
						return nil
					}
					switch how {
					case "readable":
						shutdown()
					case "post":
						return ev.Conn.Post("shutdown")
					case "after":
						ev.Conn.After(20*time.Millisecond, "shutdown")
					}
				case tcpio.Message:
					shutdown()
				}
				return nil
			}))
			c, other := r.dial(), r.dial()
			actUntil(t, "both are open", func() bool { return r.l.Len() == 2 })
			close(ready)
			actWriteString(t, c, "x")
			for _, c := range []*net.TCPConn{c, other} {
				var p [1]byte
				if n, err := c.Read(p[:]); n != 0 || err == nil {
					t.Errorf("client read %d, %v; want the end", n, err)
				}
				c.Close()
			}
			if err := actRecv(t, "the end of Shutdown", result); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			actRecv(t, "the end of Serve", r.served)
		})
	}
}

func TestServeEndsThoughAHandlerBlocks(t *testing.T) {
	for _, how := range []string{"readable", "closed"} {
		t.Run(how, func(t *testing.T) {
			const limit = 300 * time.Millisecond
			b := newBlocker(t)
			base := runtime.NumGoroutine()
			r := actServeAll(t, tcpio.ListenerOptions{Loops: 2, CloseTimeout: limit}, b)
			c := r.dial()
			actPing(t, c, "open")
			if how == "closed" {
				for x := range r.l.Conns() {
					x.SetData("block at Closed")
				}
				actWriteString(t, c, "close")
				c.CloseWrite()
			} else {
				actWriteString(t, c, how)
			}
			actRecv(t, "a blocked handler", b.entered)
			begin := time.Now()
			r.cancel()
			actRecv(t, "the end of Serve", r.served)
			// Two limits, one for the descriptors and one for the handler, and time for a slow machine.
			if took := time.Since(begin); took < limit || took > 20*limit {
				t.Errorf("Serve ended after %v, with a CloseTimeout of %v", took, limit)
			}
			close(b.release)
			actUntil(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= base })
			actUntil(t, "nobody is blocked", func() bool { return r.l.Blocked() == 0 })
		})
	}
}

func TestAHandlerThatBlocksLongGetsItsOwnMailAfterwardsInOrder(t *testing.T) {
	const n = 100
	var order []string
	done := make(chan string, 1)
	release := make(chan struct{})
	entered := make(chan *tcpio.Conn, 1)
	r := actServeAll(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			ev.Conn.SetData(new(actAlone))
		case tcpio.Readable:
			defer ev.Conn.Data().(*actAlone).enter(t)()
			var p [16]byte
			if _, err := ev.Conn.TryRead(p[:]); err == nil {
				entered <- ev.Conn
				<-release
			}
		case tcpio.Message:
			defer ev.Conn.Data().(*actAlone).enter(t)()
			if order = append(order, ev.Value.(string)); len(order) == n {
				done <- strings.Join(order, "")
			}
		}
		return nil
	}))
	c, other := r.dial(), r.dial()
	actWriteString(t, c, "x")
	conn := actRecv(t, "a blocked handler", entered)
	want := ""
	for i := range n {
		v := string(rune('a' + i%26))
		want += v
		if err := conn.Post(v); err != nil {
			t.Fatal(err)
		}
	}
	actWriteString(t, other, "y") // shows that the loop has moved on: the second handler blocks too
	actRecv(t, "the second handler", entered)
	close(release)
	if got := actRecv(t, "all messages", done); got != want {
		t.Errorf("received %q, want %q", got, want)
	}
}
