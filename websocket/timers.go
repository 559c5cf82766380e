package websocket

import (
	"sync"
	"time"
)

// A deadline is what a connection waits for, within the time that its server gives for that.
type deadline uint8

const (
	forNothing   deadline = iota
	forHandshake          // the request, from accepting on
	forPing               // the peer to be silent for PingInterval
	forPong               // a sign of life, since a ping was sent
	forClose              // the peer's Close frame, since ours was sent
	forDrain              // the handler to end the connection, since Draining
	deadlines
)

// timers is the deadlines of a server's connections. All that wait for the same have the same time
// for it, so a list of them in the order of their arrival is in the order of their deadlines too,
// and one timer of the runtime serves all lists.
type timers struct {
	// Immutable.
	waits [deadlines]time.Duration

	mu sync.Mutex // a leaf
	// Guarded by mu, and so are due, armed, next and prev of each Conn.
	lists   [deadlines]struct{ first, last *Conn }
	timer   *time.Timer // nil until the first deadline
	wakeAt  int64       // when timer fires; 0: it is not running
	stopped bool
}

// claimDrain is how long the receiver of a claim has for Draining without a DrainTimeout, as in
// tcpio.
const claimDrain = 250 * time.Millisecond

var epoch = time.Now().Add(-time.Second)

// now is the monotonic clock in nanoseconds, never 0.
func now() int64 { return int64(time.Since(epoch)) }

func (ts *timers) init(s *Server) {
	o := &s.opts
	ts.waits = [deadlines]time.Duration{
		forHandshake: o.HandshakeTimeout,
		forPing:      o.PingInterval,
		forPong:      o.PongTimeout,
		forClose:     o.CloseTimeout,
		forDrain:     max(s.drain, claimDrain),
	}
}

// arm gives c the deadline kind in place of the one it had. With forNothing, or for what has no
// time limit, it has none.
func (ts *timers) arm(c *Conn, kind deadline) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.unlinkLocked(c)
	if kind == forNothing || ts.waits[kind] == 0 || ts.stopped {
		return
	}
	c.armed, c.due = kind, now()+int64(ts.waits[kind])
	l := &ts.lists[kind]
	if c.prev = l.last; c.prev != nil {
		c.prev.next = c
	} else {
		l.first = c
	}
	l.last = c
	if ts.wakeAt == 0 || c.due < ts.wakeAt {
		ts.wakeLocked(c.due)
	}
}

func (ts *timers) unlinkLocked(c *Conn) {
	if c.armed == forNothing {
		return
	}
	l := &ts.lists[c.armed]
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.last = c.prev
	}
	c.prev, c.next, c.armed = nil, nil, forNothing
}

func (ts *timers) wakeLocked(at int64) {
	ts.wakeAt = at
	d := time.Duration(at - now())
	if ts.timer == nil {
		ts.timer = time.AfterFunc(d, ts.fire)
	} else {
		ts.timer.Reset(d)
	}
}

// fire tells the connections whose deadline has passed.
func (ts *timers) fire() {
	for {
		c, kind := ts.overdue()
		if c == nil {
			return
		}
		c.expired(kind)
	}
}

// overdue takes a connection whose deadline has passed. Without one it sets the timer anew.
func (ts *timers) overdue() (*Conn, deadline) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.stopped {
		return nil, forNothing
	}
	first := int64(0)
	t := now()
	for kind := range ts.lists {
		c := ts.lists[kind].first
		switch {
		case c == nil:
		case c.due <= t:
			ts.unlinkLocked(c)
			return c, deadline(kind)
		case first == 0 || c.due < first:
			first = c.due
		}
	}
	if ts.wakeAt = 0; first != 0 {
		ts.wakeLocked(first)
	}
	return nil, forNothing
}

// stop ends all deadlines for good.
func (ts *timers) stop() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.stopped = true
	if ts.timer != nil {
		ts.timer.Stop()
	}
}
