//go:build linux

package contract

import (
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"weak"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// messageBox serves one connection whose actor hands its messages over.
func messageBox(t testing.TB, o tcpio.ListenerOptions) (*tcpio.Listener, *tcpio.Conn, <-chan any) {
	t.Helper()
	got := make(chan any, 1000)
	l := harness.Actor(t, o, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if m, ok := ev.(tcpio.Message); ok {
			got <- m.Value
		}
		return nil
	}))
	testnet.DialTCP(t, l)
	return l, harness.Conns(t, l, 1)[0], got
}

func TestAfterDeliversInTheOrderOfTime(t *testing.T) {
	for unit := time.Millisecond; unit < testnet.Limit/110; unit *= 2 {
		if deliversInTheOrderOfTime(t, unit) {
			return
		}
	}
	t.Fatal("this machine stood still whenever timers were set")
}

// deliversInTheOrderOfTime returns false if setting the timers took so long that the order of time
// is another one.
func deliversInTheOrderOfTime(t *testing.T, unit time.Duration) (proven bool) {
	_, c, got := messageBox(t, tcpio.ListenerOptions{})
	begin := time.Now()
	due := []int{50, 10, 90, 30, 70, 0, 110, 20}
	for _, n := range due {
		c.After(time.Duration(n)*unit, n)
	}
	c.After(-time.Hour, -1)
	if time.Since(begin) > 9*unit { // the shortest time between two is ten
		return false
	}
	slices.Sort(due)
	want := append([]int{0, -1}, due[1:]...) // both are due at once: in the order in which they were set
	if v := testnet.Await(t, "a timer", got); v != 0 && v != -1 {
		t.Errorf("first %v", v)
	}
	if v := testnet.Await(t, "a timer", got); v != 0 && v != -1 {
		t.Errorf("second %v", v)
	}
	for _, n := range want[2:] {
		if v := testnet.Await(t, "a timer", got); v != n {
			t.Fatalf("received %v, want %d", v, n)
		}
		if early := time.Duration(n)*unit - time.Since(begin); early > 0 {
			t.Errorf("the timer of %v came %v early", time.Duration(n)*unit, early)
		}
	}
	return true
}

func TestStoppedTimerIsNotDeliveredAndStopTellsTheTruth(t *testing.T) {
	t.Parallel()
	const n = 400
	_, c, got := messageBox(t, tcpio.ListenerOptions{})
	kept := 0
	for i := range n {
		stop := c.After(time.Duration(i%4)*500*time.Microsecond, i)
		for begin := time.Now(); time.Since(begin) < time.Duration(i%9)*250*time.Microsecond; {
			runtime.Gosched()
		}
		if stop() {
			kept++
			if stop() {
				t.Error("a second stop says that it kept the value back")
			}
		}
	}
	for range n - kept {
		testnet.Await(t, "a timer that was not stopped", got)
	}
	c.After(10*time.Millisecond, "last")
	if v := testnet.Await(t, "the last timer", got); v != "last" {
		t.Errorf("%v was delivered although stop had said no", v)
	}
	if kept == 0 || kept == n {
		t.Errorf("%d of %d stopped: the test shows nothing", kept, n)
	}
}

func TestTimersDoNotCountAgainstMailboxSize(t *testing.T) {
	const n = 50
	_, c, got := messageBox(t, tcpio.ListenerOptions{MailboxSize: 1})
	for i := range n {
		c.After(time.Millisecond, i)
	}
	seen := map[any]bool{}
	for range n {
		seen[testnet.Await(t, "a timer", got)] = true
	}
	if len(seen) != n {
		t.Errorf("%d different values of %d", len(seen), n)
	}
}

func TestTimersEndWithTheirConnection(t *testing.T) {
	var late atomic.Int64
	closed := make(chan struct{})
	l := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev.(type) {
		case tcpio.Message:
			late.Add(1)
		case tcpio.Closed:
			close(closed)
		}
		return nil
	}))
	testnet.DialTCP(t, l)
	c := harness.Conns(t, l, 1)[0]
	stops := make([]func() bool, 100)
	for i := range stops {
		stops[i] = c.After(time.Hour, i)
	}
	c.Abort()
	for _, stop := range stops {
		if stop() {
			t.Fatal("stop says that it kept a value back which the end of the connection had dropped")
		}
	}
	if c.After(0, "on a closed connection")() {
		t.Error("a timer was set on a closed connection")
	}
	testnet.Await(t, "Closed", closed)
	if n := late.Load(); n != 0 {
		t.Errorf("%d timers were delivered", n)
	}
}

// A connection that has ended is garbage, with timers, groups, an Ask and posts in its past.
func TestClosedConnectionIsNotRetained(t *testing.T) {
	const n = 20
	var g tcpio.Group
	closed := make(chan struct{}, n+1)
	l := harness.Serve(t, tcpio.ListenerOptions{Loops: 1, NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Readable:
				return harness.EchoConn(ev.Conn)
			case tcpio.Message:
				ev.Reply(1)
			case tcpio.Closed:
				closed <- struct{}{}
			}
			return nil
		})
	}})
	for range n {
		testnet.DialTCP(t, l)
	}
	pointers := make([]weak.Pointer[tcpio.Conn], 0, n)
	func() {
		for _, c := range harness.Conns(t, l, n) {
			pointers = append(pointers, weak.Make(c))
			g.Join(c)
			for range 10 {
				c.After(time.Hour, make([]byte, 1000))
			}
			if _, err := c.Ask(askCtx(t), 1); err != nil {
				t.Error(err)
			}
			if err := c.Post(0); err != nil {
				t.Error(err)
			}
			c.Abort()
		}
	}()
	for range n {
		testnet.Await(t, "Closed", closed)
	}
	// Another connection takes the place of the last one in what the loop has at hand.
	testnet.Ping(t, testnet.DialTCP(t, l), "x")
	testnet.WaitFor(t, "all closed connections are collected", func() bool {
		runtime.GC()
		for _, p := range pointers {
			if p.Value() != nil {
				return false
			}
		}
		return true
	})
	if g.Len() != 0 {
		t.Errorf("%d members left in the group", g.Len())
	}
}

func TestHundredThousandTimersCostNoGoroutinesAndLittleMemory(t *testing.T) {
	const n = 100_000
	_, c, _ := messageBox(t, tcpio.ListenerOptions{Loops: 1})
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	stops := make([]func() bool, n)
	goroutines, before := runtime.NumGoroutine(), heap()
	for i := range stops {
		stops[i] = c.After(time.Hour+time.Duration(i*7919%n), nil)
	}
	each := float64(heap()-before) / n
	t.Logf("%.0f bytes a timer", each)
	if each > 200 && !testnet.Race {
		t.Errorf("%.0f bytes a timer, want about a hundred", each)
	}
	testnet.WaitFor(t, "no goroutine but the watchdog's", func() bool { return runtime.NumGoroutine() <= goroutines+1 })
	for i := range stops {
		if !stops[(i*7919)%n]() {
			t.Fatalf("timer %d was not pending", i)
		}
	}
	clear(stops)
	if left := int64(heap()) - int64(before); left > n*20 {
		t.Errorf("%d bytes are left when all timers are stopped", left)
	}
	runtime.KeepAlive(stops)
}

func TestTimerWakesASleepingLoopInTime(t *testing.T) {
	_, c, got := messageBox(t, tcpio.ListenerOptions{Loops: 1})
	for i := range 30 {
		begin := time.Now()
		c.After(5*time.Millisecond, i)
		if v := testnet.Await(t, "a timer", got); v != i {
			t.Fatalf("received %v, want %d", v, i)
		}
		if took := time.Since(begin); took < 5*time.Millisecond || took > testnet.Limit/2 {
			t.Errorf("a timer of 5 ms took %v", took)
		}
	}
}

func TestAfterTakesAnyDuration(t *testing.T) {
	_, c, got := messageBox(t, tcpio.ListenerOptions{})
	far := []func() bool{c.After(math.MaxInt64, "far"), c.After(200*365*24*time.Hour, "far")}
	stop := c.After(math.MinInt64, "at once")
	if v := testnet.Await(t, "timer", got); v != "at once" {
		t.Errorf("received %v", v)
	}
	if stop() {
		t.Error("a timer was stopped that had been delivered")
	}
	for _, stop := range far {
		if !stop() || stop() {
			t.Error("a pending timer is stopped once")
		}
	}
}

// Nor does the end of a connection that has very many timers and groups.
func TestEndOfAConnectionWithManyTimersLeavesItToOthers(t *testing.T) {
	const timers, groups = 100_000, 10_000
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	for range timers {
		c.After(time.Hour, nil)
	}
	all := make([]tcpio.Group, groups)
	for i := range all {
		all[i].Join(c)
	}
	c.Abort()
	harness.Expect[tcpio.Closed](t, events)
	testnet.WaitFor(t, "the groups to be left", func() bool {
		for i := range all {
			if all[i].Len() != 0 {
				return false
			}
		}
		return true
	})
}
