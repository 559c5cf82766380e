//go:build linux

// Package harness serves connections for tests, on each route, and checks what their events do.
package harness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// Listen opens a listener, on a free loopback port unless opts say otherwise, and closes it at the
// end of the test.
func Listen(t testing.TB, opts tcpio.ListenerOptions) *tcpio.Listener {
	t.Helper()
	if opts.Addr == "" && opts.Listener == nil && opts.Network != "none" {
		opts.Addr = "127.0.0.1:0"
	}
	l, err := tcpio.Listen(&opts)
	if host, port, _ := net.SplitHostPort(opts.Addr); port == "0" {
		// A wildcard address needs a port that is free on every address. The clients of a minute
		// of tests, in TIME_WAIT, may have taken all that the kernel gives out; below these there
		// are more.
		for range 100 {
			if !errors.Is(err, syscall.EADDRINUSE) {
				break
			}
			opts.Addr = net.JoinHostPort(host, strconv.Itoa(20000+rand.IntN(12000)))
			l, err = tcpio.Listen(&opts)
		}
	}
	if err != nil {
		t.Fatalf("Listen: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Go runs Serve and delivers what it returned; nil if the test closed the listener before Serve had
// begun, as one does that ends early.
func Go(ctx context.Context, l *tcpio.Listener) <-chan error {
	served := make(chan error, 1)
	go func() {
		err := l.Serve(ctx)
		if errors.Is(err, net.ErrClosed) {
			err = nil
		}
		served <- err
	}()
	return served
}

// Serve serves on the routes that opts give, until the test ends.
func Serve(t testing.TB, opts tcpio.ListenerOptions) *tcpio.Listener {
	t.Helper()
	l := Listen(t, opts)
	Start(t, l)
	return l
}

// Start serves l until the test ends. The function that it returns ends that earlier: it closes l,
// and waits for Serve, which must return nil.
func Start(t testing.TB, l *tcpio.Listener) (stop func()) {
	served := Go(context.Background(), l)
	stopped := false
	stop = func() {
		t.Helper()
		l.Close()
		if stopped {
			return
		}
		stopped = true
		if err := testnet.Receive(t, "the end of Serve", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// Actor serves with one actor for all connections.
func Actor(t testing.TB, opts tcpio.ListenerOptions, a tcpio.Actor) *tcpio.Listener {
	t.Helper()
	opts.NewActor = func(*tcpio.Conn) tcpio.Actor { return a }
	return Serve(t, opts)
}

// Manual serves with the stream route. The test receives the events by itself; what it leaves is
// drained at the end.
func Manual(t testing.TB, opts tcpio.ListenerOptions) (*tcpio.Listener, <-chan tcpio.Event) {
	t.Helper()
	l := Listen(t, opts)
	events := l.Events()
	stop := Start(t, l)
	t.Cleanup(func() {
		go l.Close()
		for range events {
		}
		stop()
	})
	return l, events
}

// Stream serves with the stream route and hands every event to handle, on one goroutine, after
// checking that the events of each connection are in the order that the contract gives. It ends
// with the test.
func Stream(t testing.TB, opts tcpio.ListenerOptions, handle func(tcpio.Event)) *tcpio.Listener {
	t.Helper()
	l := Listen(t, opts)
	events := l.Events()
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		var order Order
		for ev := range events {
			if err := order.Check(ev); err != nil {
				t.Error(err)
			}
			handle(ev)
		}
		if n := len(order.Open); n != 0 {
			t.Errorf("the stream ended without Closed of %d connections", n)
		}
	}()
	stop := Start(t, l)
	t.Cleanup(func() {
		stop()
		testnet.AwaitClosed(t, "the end of the consumer", consumed)
	})
	return l
}

// Routes are the names of the routes that Route knows.
var Routes = []string{"stream", "claimed", "actor"}

// Route serves with handle on a route, and hands over each connection behind Opened and behind
// Closed. What handle returns counts on an actor alone.
func Route(t testing.TB, route string, opts tcpio.ListenerOptions, handle func(tcpio.Event) error) (
	l *tcpio.Listener, opened, closed <-chan *tcpio.Conn) {
	t.Helper()
	o, e := make(chan *tcpio.Conn, 10), make(chan *tcpio.Conn, 10)
	all := func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			o <- ev.Conn
		case tcpio.Closed:
			e <- ev.Conn
		}
		return handle(ev)
	}
	consume := func(events <-chan tcpio.Event) {
		for ev := range events {
			_ = all(ev)
		}
	}
	switch route {
	case "claimed":
		opts.NewActor = func(c *tcpio.Conn) tcpio.Actor {
			go consume(c.Events())
			return nil
		}
	case "actor":
		opts.NewActor = func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(all) }
	case "stream":
	default:
		t.Fatalf("there is no route %q", route)
	}
	l = Listen(t, opts)
	if route == "stream" {
		go consume(l.Events())
	}
	Start(t, l)
	return l, o, e
}

// Open dials l and receives the Opened, which must be the next event.
func Open(t testing.TB, l *tcpio.Listener, events <-chan tcpio.Event) (*tcpio.Conn, net.Conn) {
	t.Helper()
	peer := testnet.Dial(t, l)
	return Expect[tcpio.Opened](t, events).Conn, peer
}

// Goroutines waits until the loops of l run, which a first connection does not say of all of them,
// and returns how many goroutines the process has. It is for tests that are not parallel, and serve
// with no other listener that is just beginning.
func Goroutines(t testing.TB, l *tcpio.Listener) int {
	t.Helper()
	testnet.WaitFor(t, "the loops", func() bool { return testnet.Goroutines("tcpio.(*loop).drive(") >= len(l.Stats().Loops) })
	return runtime.NumGoroutine()
}

// Conns waits for n connections and returns them, those of the first loop first.
func Conns(t testing.TB, l *tcpio.Listener, n int) (conns []*tcpio.Conn) {
	t.Helper()
	testnet.WaitFor(t, fmt.Sprintf("%d connections", n), func() bool {
		conns = slices.Collect(l.Conns())
		return len(conns) == n
	})
	return conns
}
