package quota

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// turnMax ends a turn: a handshake that has computed for so long waits for something, say for a
	// certificate from elsewhere.
	turnMax = 5 * time.Millisecond
	// stallMax is how long a handshake may wait for its client while others wait for a place, so
	// that silent clients cannot hold all places.
	stallMax = time.Second
)

// Handshakes bounds the TLS handshakes of a listener twice: those that have a goroutine, which is a
// place, and among these those that compute, which is a turn. A handshake begins when there are
// both, and gives its turn back while it waits for its client.
//
// Turns leave processors to established connections. With one turn on two processors and an RSA
// key of 2,048 bits, the round trip of such a connection takes 3 to 8 ms at the 99th percentile
// beside 3,200 ClientHellos a second and beside 50 clients that wait for the answer; without turns
// 230 to 710 and 120 to 170 ms.
//
// The newest handshake begins first. That flood is three times what one turn can serve, so some
// clients wait in vain: of the honest ones about a third are served, in 4 ms at the median. In the
// order of arrival all of them would wait as long as the flood's clients do before they give up:
// 2 s in that flood, and HandshakeTimeout at worst. A handshake that goes on comes before those
// that begin; to let both alternate changes none of these figures.
type Handshakes struct {
	places int           // immutable
	turns  chan struct{} // a semaphore: one element for each turn that is taken
	yield  chan struct{} // of one: asks the handshake that waits longest for its client to hurry

	mu sync.Mutex
	// Guarded by mu.
	running int       // goroutines
	waiting list.List // of func(*Turn), without a goroutine yet, the newest in front
}

// NewHandshakes returns a Handshakes with that many places and turns.
func NewHandshakes(places, turns int) *Handshakes {
	return &Handshakes{places: places, turns: make(chan struct{}, turns), yield: make(chan struct{}, 1)}
}

// Enqueue begins a handshake when there are a place and a turn for it: run is called on a goroutine
// of its own. The result is for Leave.
func (h *Handshakes) Enqueue(run func(*Turn)) (place *list.Element) {
	h.mu.Lock()
	defer h.mu.Unlock()
	place = h.waiting.PushFront(run)
	h.allotLocked()
	if h.fullLocked() {
		select {
		case h.yield <- struct{}{}:
		default: // the next handshake that waits for its client finds the one in the channel
		}
	}
	return place
}

// Leave takes a handshake out of the queue. It does nothing if the handshake has begun, or if place
// is nil.
func (h *Handshakes) Leave(place *list.Element) {
	if place != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.waiting.Remove(place)
	}
}

// Waiting returns how many handshakes have not begun.
func (h *Handshakes) Waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting.Len()
}

// fullLocked reports whether a handshake waits for a place.
func (h *Handshakes) fullLocked() bool { return h.running >= h.places && h.waiting.Len() > 0 }

// allotLocked begins handshakes while there are turns and places.
func (h *Handshakes) allotLocked() {
	for h.running < h.places && h.waiting.Len() > 0 {
		select {
		case h.turns <- struct{}{}:
			h.running++
			go h.run(h.waiting.Remove(h.waiting.Front()).(func(*Turn))) // it ends with run
		default:
			return
		}
	}
}

// run is the goroutine of a handshake, which has a turn.
func (h *Handshakes) run(run func(*Turn)) {
	t := &Turn{h: h}
	t.start()
	defer func() { // also behind a runtime.Goexit in run
		t.end()
		h.mu.Lock()
		defer h.mu.Unlock()
		h.running--
		h.allotLocked()
	}()
	run(t)
}

// A Turn is a handshake's time on a processor.
type Turn struct {
	h     *Handshakes
	held  atomic.Bool
	timer *time.Timer
}

// Wait gives the turn back until ready is closed, which says that the client has sent something. It
// returns false if the client has taken more than stallMax for that while others wait for a place:
// the handshake is to fail.
func (t *Turn) Wait(ready <-chan struct{}) (ok bool) {
	t.end()
	ok = t.h.stall(ready)
	t.h.turns <- struct{}{}
	t.start()
	return ok
}

func (h *Handshakes) stall(ready <-chan struct{}) bool {
	since := time.Now()
	for !h.full() {
		select {
		case <-ready:
			return true
		case <-h.yield: // unless it was meant for a handshake that has its place by now
		}
	}
	timer := time.NewTimer(stallMax - time.Since(since))
	defer timer.Stop()
	select {
	case <-ready:
		return true
	case <-timer.C:
		return false
	}
}

func (h *Handshakes) full() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fullLocked()
}

// start begins a turn that has been taken.
func (t *Turn) start() {
	t.held.Store(true)
	if t.timer == nil {
		t.timer = time.AfterFunc(turnMax, t.giveBack)
	} else {
		t.timer.Reset(turnMax)
	}
}

func (t *Turn) end() {
	t.timer.Stop()
	t.giveBack()
}

func (t *Turn) giveBack() {
	if t.held.CompareAndSwap(true, false) {
		h := t.h
		<-h.turns // it goes to the handshake that has waited longest to go on, if there is one
		h.mu.Lock()
		defer h.mu.Unlock()
		h.allotLocked()
	}
}
