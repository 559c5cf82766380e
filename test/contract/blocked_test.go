//go:build linux

package contract

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
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// blocker blocks in Receive, in the way that its client chose, until released; any other input is
// echoed.
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
			l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1}, b)
			other, c := testnet.DialTCP(t, l), testnet.DialTCP(t, l)
			testnet.Ping(t, other, "before")
			base := runtime.NumGoroutine()
			var once sync.Once
			release := func() { once.Do(func() { close(b.release) }) }
			defer release()
			testnet.Send(t, c, how)
			if how == "after" {
				testnet.ReadString(t, c, len(how))
			}
			testnet.Await(t, "a blocked handler", b.entered)
			for range 50 {
				testnet.Ping(t, other, "meanwhile")
			}
			// The other's handler may have lost the loop for a moment, on a busy machine.
			testnet.WaitFor(t, "Blocked of the one handler", func() bool { return l.Stats().Blocked == 1 })
			release()
			want := "done"
			if how == "readable" {
				want = how
			}
			if got := testnet.ReadString(t, c, len(want)); got != want {
				t.Errorf("after it was released: %q, want %q", got, want)
			}
			testnet.Ping(t, c, "again")
			testnet.WaitFor(t, "nobody is blocked", func() bool { return l.Stats().Blocked == 0 })
			testnet.WaitFor(t, "goroutines are as many as before", func() bool { return runtime.NumGoroutine() <= base })
		})
	}
}

// Each round lets the loop fall asleep, or nearly, so that a post comes in every state of it.
func TestHandlerThatBlocksBehindAPostFreesTheLoopInEveryStateOfIt(t *testing.T) {
	rounds := 60
	if testnet.Long && !testnet.Race {
		rounds = 300
	}
	entered := make(chan struct{})
	release := make(chan struct{})
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Readable:
			return harness.EchoConn(ev.Conn)
		case tcpio.Message:
			entered <- struct{}{}
			<-release
		}
		return nil
	}))
	c, other := testnet.DialTCP(t, l), testnet.DialTCP(t, l)
	testnet.Ping(t, c, "a")
	testnet.Ping(t, other, "b")
	var conn *tcpio.Conn
	for x := range l.Conns() {
		if x.RemoteAddr().String() == c.LocalAddr().String() {
			conn = x
		}
	}
	for i := range rounds {
		testnet.Ping(t, other, "before")
		for spin := time.Now(); time.Since(spin) < time.Duration(i%40)*50*time.Microsecond; {
			runtime.Gosched()
		}
		if err := conn.Post(i); err != nil {
			t.Fatal(err)
		}
		testnet.Await(t, "a blocked handler", entered)
		testnet.Ping(t, other, "meanwhile")
		release <- struct{}{}
	}
}

func TestBlockedHandlersAreBoundedByMaxBlocked(t *testing.T) {
	const limit, blocking = 3, 8
	b := newBlocker(t)
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1, MaxBlocked: limit}, b)
	clients := make([]*net.TCPConn, blocking)
	for i := range clients {
		clients[i] = testnet.DialTCP(t, l)
	}
	testnet.WaitFor(t, "all are open", func() bool { return l.Len() == blocking })
	base := runtime.NumGoroutine()
	for _, c := range clients {
		testnet.Send(t, c, "readable")
	}
	// The loop waits for the handler behind the bound: limit of them, and that one, are entered and
	// no more.
	for range limit + 1 {
		testnet.Await(t, "a blocked handler", b.entered)
	}
	for start := time.Now(); time.Since(start) < 50*time.Millisecond; { // in which the watchdog looks again and again
		if got := l.Stats().Blocked; got > limit {
			t.Fatalf("Blocked: %d, over MaxBlocked %d", got, limit)
		}
	}
	if n := len(b.entered); n != 0 {
		t.Errorf("%d more handlers were entered", n)
	}
	if got, want := runtime.NumGoroutine(), base+limit+1; got > want { // one for the watchdog
		t.Errorf("%d goroutines, want %d at most", got, want)
	}
	close(b.release)
	for _, c := range clients {
		if got := testnet.ReadString(t, c, 8); got != "readable" {
			t.Errorf("answer %q", got)
		}
	}
	testnet.WaitFor(t, "nobody is blocked", func() bool { return l.Stats().Blocked == 0 })
	testnet.WaitFor(t, "goroutines are as many as before", func() bool { return runtime.NumGoroutine() <= base })
}

// The connection is in the loop's work queue, because of the post, when its turn begins because of
// its input; while that turn blocks, the queue comes to it.
func TestValuePostedBeforeAHandlerBlocksIsReceivedAfterIt(t *testing.T) {
	const rounds = 20
	type role struct{ first, second *tcpio.Conn }
	var roles atomic.Pointer[role]
	entered := make(chan struct{}, 10)
	release := make(chan struct{})
	got := map[any]chan struct{}{"mail": make(chan struct{}, 1), "moved on": make(chan struct{}, 1)}
	hold := make(chan struct{})
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Message:
			if ev.Value == "hold" {
				// Holds the loop until both clients have sent, for less than the watchdog grants:
				// they are in one batch.
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
	c := [3]*net.TCPConn{testnet.DialTCP(t, l), testnet.DialTCP(t, l), testnet.DialTCP(t, l)}
	conn := map[string]*tcpio.Conn{}
	for _, x := range harness.Conns(t, l, 3) {
		conn[x.RemoteAddr().String()] = x
	}
	of := func(i int) *tcpio.Conn { return conn[c[i].LocalAddr().String()] }
	roles.Store(&role{of(0), of(1)})
	for range rounds {
		if err := of(2).Post("hold"); err != nil {
			t.Fatal(err)
		}
		testnet.Send(t, c[0], "x")
		testnet.Send(t, c[1], "x")
		hold <- struct{}{}
		testnet.Await(t, "the second's Readable", entered)
		// The loop has moved on from the blocked handler when the third connection is answered.
		if err := of(2).Post("moved on"); err != nil {
			t.Fatal(err)
		}
		testnet.Await(t, "the third's message", got["moved on"])
		release <- struct{}{}
		testnet.Await(t, "the mail", got["mail"])
	}
}

func TestShutdownInsideReceiveReturns(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"readable", "post", "after"} {
		t.Run(how, func(t *testing.T) {
			result := make(chan error, 1)
			ready := make(chan struct{})
			var l *tcpio.Listener
			shutdown := func() {
				<-ready
				ctx, cancel := context.WithTimeout(context.Background(), testnet.Limit)
				defer cancel()
				result <- l.Shutdown(ctx)
			}
			// The handler waits CloseTimeout for itself.
			opts := tcpio.ListenerOptions{Loops: 1, CloseTimeout: 500 * time.Millisecond}
			a := tcpio.ActorFunc(func(ev tcpio.Event) error {
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
			})
			opts.NewActor = func(*tcpio.Conn) tcpio.Actor { return a }
			l = harness.Listen(t, opts)
			served := harness.Go(t.Context(), l)
			c, other := testnet.DialTCP(t, l), testnet.DialTCP(t, l)
			testnet.WaitFor(t, "both are open", func() bool { return l.Len() == 2 })
			close(ready)
			testnet.Send(t, c, "x")
			for _, c := range []*net.TCPConn{c, other} {
				var p [1]byte
				if n, err := c.Read(p[:]); n != 0 || err == nil {
					t.Errorf("client read %d, %v; want the end", n, err)
				}
				c.Close()
			}
			if err := testnet.Await(t, "the end of Shutdown", result); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			if err := testnet.Receive(t, "the end of Serve", served); err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

func TestServeEndsThoughAHandlerBlocks(t *testing.T) { // not parallel: it counts goroutines
	for _, how := range []string{"readable", "closed"} {
		t.Run(how, func(t *testing.T) {
			const limit = 300 * time.Millisecond
			b := newBlocker(t)
			base := runtime.NumGoroutine()
			l := harness.Listen(t, tcpio.ListenerOptions{Loops: 2, CloseTimeout: limit,
				NewActor: func(*tcpio.Conn) tcpio.Actor { return b }})
			ctx, cancel := context.WithCancel(t.Context())
			served := harness.Go(ctx, l)
			c := testnet.DialTCP(t, l)
			testnet.Ping(t, c, "open")
			if how == "closed" {
				for x := range l.Conns() {
					x.SetData("block at Closed")
				}
				testnet.Send(t, c, "close")
				c.CloseWrite()
			} else {
				testnet.Send(t, c, how)
			}
			testnet.Await(t, "a blocked handler", b.entered)
			begin := time.Now()
			cancel()
			if err := testnet.Receive(t, "the end of Serve", served); err != nil {
				t.Errorf("Serve: %v", err)
			}
			// Two limits, one for the descriptors and one for the handler, and time for a slow
			// machine.
			if took := time.Since(begin); took < limit || took > testnet.Limit {
				t.Errorf("Serve ended after %v, with a CloseTimeout of %v", took, limit)
			}
			close(b.release)
			testnet.WaitFor(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= base })
			testnet.WaitFor(t, "nobody is blocked", func() bool { return l.Stats().Blocked == 0 })
		})
	}
}

func TestHandlerThatBlocksLongGetsItsOwnMailAfterwardsInOrder(t *testing.T) {
	const n = 100
	var order []string
	done := make(chan string, 1)
	release := make(chan struct{})
	entered := make(chan *tcpio.Conn, 1)
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			ev.Conn.SetData(new(harness.Alone))
		case tcpio.Readable:
			defer ev.Conn.Data().(*harness.Alone).Enter(t)()
			var p [16]byte
			if _, err := ev.Conn.TryRead(p[:]); err == nil {
				entered <- ev.Conn
				<-release
			}
		case tcpio.Message:
			defer ev.Conn.Data().(*harness.Alone).Enter(t)()
			if order = append(order, ev.Value.(string)); len(order) == n {
				done <- strings.Join(order, "")
			}
		}
		return nil
	}))
	c, other := testnet.DialTCP(t, l), testnet.DialTCP(t, l)
	testnet.Send(t, c, "x")
	conn := testnet.Await(t, "a blocked handler", entered)
	want := ""
	for i := range n {
		v := string(rune('a' + i%26))
		want += v
		if err := conn.Post(v); err != nil {
			t.Fatal(err)
		}
	}
	testnet.Send(t, other, "y") // shows that the loop has moved on: the second handler blocks too
	testnet.Await(t, "the second handler", entered)
	close(release)
	if got := testnet.Await(t, "all messages", done); got != want {
		t.Errorf("received %q, want %q", got, want)
	}
}

// actors serves n connections with one loop and handle as their actor, which Opened does not reach.
func actors(t *testing.T, n int, handle func(tcpio.Event) error) []*tcpio.Conn {
	t.Helper()
	opened := make(chan *tcpio.Conn, n)
	l := harness.Serve(t, tcpio.ListenerOptions{Loops: 1, NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if o, ok := ev.(tcpio.Opened); ok {
				opened <- o.Conn
				return nil
			}
			return handle(ev)
		})
	}})
	conns := make([]*tcpio.Conn, n)
	for i := range conns {
		testnet.DialTCP(t, l)
		conns[i] = testnet.Receive(t, "Opened", opened)
	}
	return conns
}

// Two connections wait for a turn, and the handler of the first blocks. The second must not wait
// for it.
// To see it fail: let takeOver not set kicked.
func TestBlockedHandlerDoesNotHoldTheQueuedTurnsOfOthers(t *testing.T) {
	release, got := make(chan struct{}), make(chan any, 1)
	defer close(release)
	var conns []*tcpio.Conn
	conns = actors(t, 3, func(ev tcpio.Event) error {
		m, ok := ev.(tcpio.Message)
		if !ok {
			return nil
		}
		switch m.Conn {
		case conns[0]: // inside this turn both of the others are queued behind it
			conns[1].Post("block")
			conns[2].Post("hello")
		case conns[1]:
			<-release
		case conns[2]:
			got <- m.Value
		}
		return nil
	})
	conns[0].Post("go")
	testnet.Receive(t, "the message of the third connection", got)
}

// Handlers blocked in Read wait for their loop, so the loop must not wait for them, at MaxBlocked
// neither.
// To see it fail: let takeOver keep to the bound for willBlock too.
func TestHandlersThatBlockInReadGoOnAtMaxBlocked(t *testing.T) {
	opened, reading, got := make(chan *tcpio.Conn, 3), make(chan struct{}, 3), make(chan byte, 3)
	l := harness.Serve(t, tcpio.ListenerOptions{Loops: 1, MaxBlocked: 1, NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Opened:
				opened <- ev.Conn
			case tcpio.Message:
				reading <- struct{}{}
				var b [1]byte
				if _, err := ev.Conn.Read(b[:]); err == nil {
					got <- b[0]
				}
			}
			return nil
		})
	}})
	var peers [3]*net.TCPConn
	for i := range peers {
		peers[i] = testnet.DialTCP(t, l)
		testnet.Receive(t, "Opened", opened).Post("read")
		testnet.Receive(t, "the handler", reading)
	}
	for i, peer := range peers {
		testnet.Send(t, peer, []byte{byte(i)})
		if b := testnet.Receive(t, "the byte", got); int(b) != i {
			t.Errorf("got %d, want %d", b, i)
		}
	}
}
