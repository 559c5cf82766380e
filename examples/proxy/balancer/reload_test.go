//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestAReloadDropsNoConnection(t *testing.T) {
	bs := named(t, "a", "b", "c")
	s := start(t, onePool(bs[:2], ""))
	one, two := s.dial("main"), s.dial("main") // which comes first to its turn is the balancer's loops' business
	names := first(one.ask("hello")) + first(two.ask("hello"))
	if names != "ab" && names != "ba" {
		t.Fatal(names)
	}
	port := s.addrs["main"]
	check := func() {
		t.Helper()
		if got := first(one.ask("hello")) + first(two.ask("hello")); got != names {
			t.Errorf("the answers are of %s, want %s", got, names)
		}
	}
	// Other upstreams.
	s.reload(onePool(bs[2:], ""))
	if got := s.once("main"); got != "c" {
		t.Errorf("a new connection goes to %s", got)
	}
	check()
	// The listener has other settings: its socket goes on.
	s.reload(strings.Replace(onePool(bs[2:], ""), "to: main}", "to: main, max_conns: 100}", 1))
	if s.addrs["main"] != port {
		t.Errorf("it listens on %s, and before on %s", s.addrs["main"], port)
	}
	for range 20 {
		if got := s.once("main"); got != "c" {
			t.Errorf("a new connection goes to %s", got)
		}
	}
	check()
	s.when("the old socket's listener leaves", func(st *status) bool {
		return len(st.Listeners) == 2 && st.Listeners[0].Leaving != st.Listeners[1].Leaving
	})
	// The listener and the pool are gone altogether.
	s.reload(strings.NewReplacer("main: {listen", "other: {listen", "to: main", "to: more", "  main:\n", "  more:\n").Replace(onePool(bs[2:], "")))
	check()
	awaitRefusal(t, port) // those whose listener is gone stop accepting soon
	if got := s.once("other"); got != "c" {
		t.Errorf("a new connection goes to %s", got)
	}
	if m := s.metrics(); !strings.Contains(m, `tcpio_connections_open{listener="other",loop="0"}`) || strings.Contains(m, `listener="main"`) {
		t.Errorf("the metrics are not those of the listeners:\n%s", m)
	}
	one.Close()
	two.Close()
	s.when("nothing of the old is left", func(st *status) bool { return len(st.Listeners) == 1 })
}

// A client that waits for an upstream is a connection, too.
func TestAReloadDropsNoneThatWaits(t *testing.T) {
	a := named(t, "a")[0]
	file := func(listener string) string {
		return fmt.Sprintf("listeners: {main: {listen: '127.0.0.1:0', to: main%s}}\npools: {main: {queue_timeout: 1h, upstreams: [{addr: '%s', max_conns: 1}]}}\n",
			listener, a.addr())
	}
	s := start(t, file(""))
	c := s.dial("main")
	c.ask("hello")
	next := s.dial("main")
	s.when("waiting", func(st *status) bool { return st.Pools[0].Waiting == 1 })
	s.reload(file(", max_conns: 7"))
	c.Close()
	if got := next.ask("hello"); got != "a hello" {
		t.Error(got)
	}
}

// While clients come and go, the listener changes its settings, so that its socket moves, and the
// upstreams change.
func TestManyReloadsUnderLoadFailNoConnection(t *testing.T) {
	bs := named(t, "a", "b", "c")
	file := func(i int) string {
		return strings.Replace(onePool(bs[i%2:i%2+2], "    balance: least_conns\n"), "to: main}", fmt.Sprintf("to: main, max_conns: %d}", 10000+i), 1)
	}
	s := start(t, file(0))
	long := s.dial("main")
	name := first(long.ask("hello"))
	at := s.addrs["main"]
	var load sync.WaitGroup
	var stop atomic.Bool
	var asked atomic.Int64
	for range 4 {
		load.Go(func() {
			for i := int64(1); !stop.Load(); i++ {
				asked.Add(1)
				if err := short(new(net.Dialer), at, i); err != nil {
					t.Errorf("a connection fails: %v", err)
					return
				}
			}
		})
	}
	for i := range 20 {
		was := asked.Load()
		if s.reload(file(i + 1)); s.addrs["main"] != at {
			t.Errorf("it listens at %s, and before at %s", s.addrs["main"], at)
		}
		for end := time.Now().Add(patience); asked.Load() < was+50 && !t.Failed(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the clients do not get on")
			}
		}
	}
	stop.Store(true)
	load.Wait()
	if got := first(long.ask("still here")); got != name {
		t.Errorf("the first connection is at %s, and was at %s", got, name)
	}
	if e := s.status().ends(); e["refused"]+e["cut"]+e["upstream_failed"] != 0 {
		t.Errorf("%v", e)
	}
}

func TestABadFileChangesNothing(t *testing.T) {
	bs := named(t, "a", "b")
	s := start(t, onePool(bs[:1], ""))
	c := s.dial("main")
	c.ask("hello")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct{ file, want string }{
		{strings.Replace(onePool(bs[1:], ""), "to: main}", fmt.Sprintf("to: main, max_conns: 5}\n  other: {listen: '%s', to: main}", taken.Addr()), 1),
			"address already in use"}, // main's socket may be with two for a moment
		{"listeners: {}\npols: {}\n", `balancer.yaml:2:1: unknown field "pols"`},
		{onePool(bs[1:], "    queue: -1\n"), "balancer.yaml:7:12: pools.main.queue: has to be from 0"},
		{strings.Replace(onePool(bs[1:], ""), "pools:", fmt.Sprintf("  other: {listen: '%s', to: main}\npools:", taken.Addr()), 1),
			"address already in use"},
	} {
		s.reload(c.file)
		if p := s.status().Problem; !strings.Contains(p, c.want) {
			t.Errorf("the problem is %q, want %q", p, c.want)
		}
		if got := s.once("main"); got != "a" {
			t.Errorf("a connection goes to %s", got)
		}
	}
	c.ask("still here")
	s.reload(onePool(bs[1:], ""))
	if p := s.status().Problem; p != "" {
		t.Errorf("the problem is still %q", p)
	}
}

// awaitRefusal waits until nobody listens on addr any more.
func awaitRefusal(t *testing.T, addr string) {
	t.Helper()
	testnet.WaitFor(t, "nobody listens on "+addr, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

func TestTheEndWaitsForConnectionsAndTakesNoMore(t *testing.T) {
	bs := named(t, "a")
	s := start(t, onePool(bs, ""))
	c := s.dial("main")
	c.ask("hello")
	s.end()
	awaitRefusal(t, s.addrs["main"])
	for range 3 {
		c.ask("still here")
	}
	s.when("the page shows the connection that is left", func(st *status) bool {
		return st.find(t, bs[0].addr()).Conns == 1 && len(st.Listeners) == 1 && st.Listeners[0].Open == 1
	})
	select {
	case <-s.ended:
		t.Error("it has not waited")
	default:
	}
	c.Close()
	s.stop()
}

func TestTheEndCutsOffWhatTakesTooLong(t *testing.T) {
	bs := named(t, "a")
	s := start(t, "drain: 50ms\n"+onePool(bs, ""))
	c := s.dial("main")
	c.ask("hello")
	s.end()
	c.expectReset()
	s.stop()
}
