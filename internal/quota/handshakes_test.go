package quota

import (
	"container/list"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A client plays one handshake: it runs until the test lets it go on.
type client struct {
	name  string
	turn  chan *Turn    // of one: it has begun
	ready chan struct{} // closed when the client has sent something
	end   chan struct{} // closed when the handshake is over
	place *list.Element
}

func enqueue(h *Handshakes, name string) *client {
	c := &client{name, make(chan *Turn, 1), make(chan struct{}), make(chan struct{}), nil}
	c.place = h.Enqueue(func(t *Turn) {
		c.turn <- t
		<-c.end
	})
	return c
}

// begun returns the names of those that have begun since it was last called.
func begun(cs ...*client) (names []string) {
	synctest.Wait()
	for _, c := range cs {
		select {
		case <-c.turn:
			names = append(names, c.name)
		default:
		}
	}
	return names
}

func expectBegun(t *testing.T, want []string, cs ...*client) {
	t.Helper()
	if got := begun(cs...); !slices.Equal(got, want) {
		t.Errorf("%q have begun, want %q", got, want)
	}
}

func TestHandshakesBeginTheNewestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHandshakes(1, 1)
		a, b, c, d := enqueue(h, "a"), enqueue(h, "b"), enqueue(h, "c"), enqueue(h, "d")
		expectBegun(t, []string{"a"}, a, b, c, d)
		if n := h.Waiting(); n != 3 {
			t.Errorf("%d wait, want 3", n)
		}
		h.Leave(c.place)
		h.Leave(c.place) // does nothing, as for one that has begun
		h.Leave(a.place)
		h.Leave(nil)
		close(a.end)
		expectBegun(t, []string{"d"}, a, b, c, d)
		close(d.end)
		expectBegun(t, []string{"b"}, a, b, c, d)
		close(b.end)
		synctest.Wait()
		if h.Waiting() != 0 || h.running != 0 || len(h.turns) != 0 {
			t.Errorf("%d wait, %d run, %d turns are taken", h.Waiting(), h.running, len(h.turns))
		}
	})
}

// A turn that takes longer than turnMax is over: what computes for so long waits for something.
func TestHandshakeThatWaitsKeepsNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHandshakes(10, 1)
		a, b := enqueue(h, "a"), enqueue(h, "b")
		expectBegun(t, []string{"a"}, a, b)
		time.Sleep(turnMax - 1)
		expectBegun(t, nil, a, b)
		time.Sleep(time.Nanosecond)
		expectBegun(t, []string{"b"}, a, b)
		close(a.end)
		close(b.end)
		synctest.Wait()
		if len(h.turns) != 0 {
			t.Errorf("%d turns are taken", len(h.turns))
		}
	})
}

// A handshake that ends its goroutine gives its place and its turn back.
func TestHandshakeThatExitsGivesEverythingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHandshakes(1, 1)
		for range 3 {
			h.Enqueue(func(*Turn) { runtime.Goexit() })
		}
		synctest.Wait()
		if h.Waiting() != 0 || h.running != 0 || len(h.turns) != 0 {
			t.Errorf("%d wait, %d run, %d turns are taken", h.Waiting(), h.running, len(h.turns))
		}
	})
}

func TestHandshakesThatGoOnComeBeforeThoseThatBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHandshakes(100, 1)
		var order []string
		ready := make(chan struct{})
		for range 3 {
			h.Enqueue(func(turn *Turn) {
				turn.Wait(ready)
				order = append(order, "on")
			})
			synctest.Wait()
		}
		block := enqueue(h, "block")
		expectBegun(t, []string{"block"}, block)
		for range 3 {
			h.Enqueue(func(*Turn) { order = append(order, "begin") })
		}
		close(ready)
		synctest.Wait()
		close(block.end)
		synctest.Wait()
		if want := []string{"on", "on", "on", "begin", "begin", "begin"}; !slices.Equal(order, want) {
			t.Errorf("the order is %q", order)
		}
	})
}

// While others wait for a place, the handshake that has waited longest for its client has stallMax
// for that, from when it began to wait: one handshake for each that waits.
func TestStalledHandshakesMakeRoom(t *testing.T) {
	for _, before := range []bool{true, false} { // the stall comes before the others, or behind them
		synctest.Test(t, func(t *testing.T) {
			h := NewHandshakes(2, 2)
			start := time.Now()
			type end struct {
				name string
				at   time.Duration
				ok   bool
			}
			var mu sync.Mutex
			var ended []end // guarded by mu: both have a turn at the same moment
			stall, ready := make(chan struct{}), make(chan struct{})
			for _, name := range []string{"a", "b"} {
				h.Enqueue(func(turn *Turn) {
					<-stall
					ok := turn.Wait(ready)
					mu.Lock()
					defer mu.Unlock()
					ended = append(ended, end{name, time.Since(start), ok})
				})
				synctest.Wait()
			}
			last := stallMax
			if before {
				close(stall)
				synctest.Wait()
				time.Sleep(10 * time.Second)
				if len(ended) != 0 {
					t.Fatalf("%v have ended, and no other waited", ended)
				}
				last = 10 * time.Second
			}
			c := enqueue(h, "c")
			if !before {
				expectBegun(t, nil, c)
				close(stall)
			}
			time.Sleep(stallMax)
			expectBegun(t, []string{"c"}, c)
			if len(ended) == 0 || ended[0].ok || ended[0].at != last {
				t.Errorf("before %v: %v ended, want one at %v", before, ended, last)
			}
			if n := len(ended); before && n != 1 {
				t.Errorf("%d handshakes were ended for one that waited", n)
			}
			close(ready)
			close(c.end)
			synctest.Wait()
			if h.running != 0 || len(h.turns) != 0 {
				t.Errorf("%d run, %d turns are taken", h.running, len(h.turns))
			}
		})
	}
}

// A request to hurry that has lost its reason by the time a handshake finds it ends none.
func TestStalledHandshakeIgnoresAnOldRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHandshakes(1, 1)
		a, b := enqueue(h, "a"), enqueue(h, "b")
		turn := <-a.turn
		h.Leave(b.place)
		over := make(chan bool)
		go func() { over <- turn.Wait(a.ready) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		close(a.ready)
		if !<-over {
			t.Error("the handshake was ended, and no other waited")
		}
		close(a.end)
	})
}
