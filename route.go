package tcpio

import (
	"sync"
	"sync/atomic"

	"github.com/rabbit-backend/tcpio/internal/sched"
)

// A stream is a bounded channel of events. Sending to it never blocks: an event goes straight into
// the channel while there is room. When there is none, the connection waits in the stream's queue
// with its events noted in the Conn itself (one bit each, and the mailbox), and a feeder, the only
// goroutine that may block on the channel, lives until the queue is empty. So a consumer that stops
// costs one goroutine and nothing that grows.
//
// Order of one connection's events: they are emitted under its mu, and while the stream is blocked
// only the feeder sends, so that nothing overtakes what waits.
//
// Events in the channel are numbered, so that it is known which have been received: all but the
// last len(ch).
type stream struct {
	// Immutable.
	ch      chan Event
	sh      *shared
	private bool // one connection's claimed channel: closed behind its Closed

	// Atomic, and set under mu. True from the first connection in the queue until the feeder has
	// sent the last one's events.
	blocked atomic.Bool

	mu sync.Mutex
	// Guarded by mu, which is taken under a Conn's mu.
	queue   sched.Queue[*Conn] // connections with undelivered events, each once
	failed  error              // a Failed that found no room
	left    bool               // the connection has another route: the feeder closes ch at its end
	sent    uint32             // the last event's number; the feeder counts one before it waits
	waiting bool               // the feeder waits for room with that one, or has just found it
}

func newStream(sh *shared, size int, private bool) *stream {
	return &stream{ch: make(chan Event, size), sh: sh, private: private}
}

// trySend reports whether ev went into the channel, and its number there. The caller holds the
// connection's mu.
func (s *stream) trySend(ev Event) (at uint32, ok bool) {
	if s.blocked.Load() {
		return 0, false
	}
	s.mu.Lock()
	at, ok = s.trySendLocked(ev)
	s.mu.Unlock()
	return at, ok
}

func (s *stream) trySendLocked(ev Event) (at uint32, ok bool) {
	if s.blocked.Load() {
		return 0, false
	}
	select {
	case s.ch <- ev:
		s.sent++
		return s.sent, true
	default:
		return 0, false
	}
}

// trySendReadable is trySend for a Readable of a connection whose last one has the number last. If
// that one has yet to be received it says as much, and nothing is sent.
func (s *stream) trySendReadable(c *Conn, last uint32) (at uint32, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.blocked.Load() && s.whereLocked(last) == inside {
		return last, true
	}
	return s.trySendLocked(Readable{c})
}

// A place is where an event is that was sent.
type place uint8

const (
	received place = iota
	inside         // it has yet to be received: it is in the channel, or in the feeder's hands
	unclear        // received or inside: the feeder waits with an event, or has just sent it
)

// where returns the place of the event that has the number at. Numbers wrap after 2³² events.
func (s *stream) where(at uint32) place {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whereLocked(at)
}

// The event that the feeder waits with is counted, and may be in the channel or not. So of one
// event it is not known whether it was received: of the oldest, or, if the channel is empty, of
// that one. What is in the feeder's hands besides is numbered ahead.
func (s *stream) whereLocked(at uint32) place {
	n := uint32(len(s.ch))
	switch behind := s.sent - at; {
	case behind < n, s.blocked.Load() && at-s.sent-1 < feedChunk+4:
		return inside
	case s.waiting && behind == n:
		return unclear
	}
	return received
}

// number is the number of the event that the feeder sends behind n others.
func (s *stream) number(n int) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent + uint32(n) + 1
}

// withdraw takes the event with the number at out of the channel, if the channel holds no other: to
// move others would change their order for a goroutine that receives meanwhile. It returns the
// event's place afterwards; a withdrawn one counts as received.
func (s *stream) withdraw(at uint32) place {
	s.mu.Lock()
	defer s.mu.Unlock()
	where := s.whereLocked(at)
	if where != inside || s.blocked.Load() || len(s.ch) > 1 {
		return where
	}
	select {
	case <-s.ch:
	default: // it has just been received
	}
	return received
}

// enqueue puts c, whose pending events found no room, into the queue. The caller holds c.mu.
func (s *stream) enqueue(c *Conn) {
	s.mu.Lock()
	s.queue.Push(c)
	s.startFeederLocked()
	s.mu.Unlock()
}

func (s *stream) startFeederLocked() {
	if s.blocked.Load() {
		return
	}
	s.blocked.Store(true)
	s.sh.fedAt.Store(now())
	// A WaitGroup forbids that beside a Wait, and a connection may be claimed when all is over.
	s.sh.feeders.Add(1)
	go s.feed()
}

// fail delivers a Failed; while one waits for room, a later one takes its place.
func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.trySendLocked(Failed{err}); ok {
		return
	}
	s.failed = err
	s.startFeederLocked()
}

// leave ends a private stream whose connection moved on: its channel is closed behind what it still
// holds.
func (s *stream) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.private || s.left {
		return
	}
	s.left = true
	if !s.blocked.Load() {
		close(s.ch)
	}
}

// feed ends when the queue is empty or the listener has given up on undelivered events.
func (s *stream) feed() {
	defer s.sh.feederEnded()
	var buf [feedChunk + 4]Event
	for {
		c, failed, done := s.next()
		if done {
			s.sh.roomAgain()
			return
		}
		evs := buf[:0]
		if failed != nil {
			evs = append(evs, Failed{failed})
		}
		if c != nil {
			evs = c.takePending(s, evs)
		}
		for i, ev := range evs {
			evs[i] = nil
			if s.sendFed(ev) {
				continue // also when all is over: a channel that was claimed late holds what it has room for
			}
			select {
			case s.ch <- ev:
				s.sh.fedAt.Store(now())
			case <-s.sh.dropEvents:
				// Nobody will receive any more; what is left is dropped by contract, the rest of the
				// queue too.
			}
			s.mu.Lock()
			s.waiting = false
			s.mu.Unlock()
		}
	}
}

// sendFed sends ev for the feeder if there is room. If not, it counts it, and the feeder sends it.
func (s *stream) sendFed(ev Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent++
	select {
	case s.ch <- ev:
		s.sh.fedAt.Store(now())
		return true
	default:
		s.waiting = true
		return false
	}
}

func (sh *shared) feederEnded() {
	if sh.feeders.Add(-1) == 0 {
		select {
		case sh.feedersDone <- struct{}{}:
		default:
		}
	}
}

// next takes the first of the queue. If the queue is empty, it marks the stream unblocked and the
// feeder must return; if the stream has been left, it closes the channel first, since no sender
// remains.
func (s *stream) next() (c *Conn, failed error, done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		failed, s.failed = s.failed, nil
		return nil, failed, false
	}
	c, ok := s.queue.Pop()
	if !ok {
		s.blocked.Store(false)
		if s.left {
			close(s.ch)
		}
		return nil, nil, true
	}
	return c, nil, false
}

// emitLocked delivers an event of this connection to its route, or notes it where the route finds
// it when there is room. Opened always comes first.
func (c *Conn) emitLocked(kind event) {
	if !c.isClaimed() && kind != pendOpened || c.isEarly() {
		if kind == pendClosed && c.stream != nil {
			c.stream.leave() // who has claimed it gets no Closed, but does not wait for ever either
		}
		return
	}
	if !c.opened() && kind != pendDialed {
		c.route.add(routeOpened)
		if kind != pendOpened {
			c.emitLocked(pendOpened)
		}
	}
	c.sh.count.events.Add(1)
	if s := c.stream; s != nil && !c.route.has(routeQueued) {
		ok := false
		if kind == pendReadable {
			if at, sent := s.trySendReadable(c, c.sentAt); sent {
				c.sentAt, ok = at, true
			}
		} else if _, ok = s.trySend(c.event(kind)); ok && kind == pendClosed {
			s.leave()
		}
		if ok {
			return
		}
	}
	c.pending.add(kind)
	if kind == pendClosed && c.stream == nil {
		c.sh.closedOwed.Add(1)
	}
	c.queueLocked()
}

// queueLocked puts the connection, which has something pending, into its route's queue.
func (c *Conn) queueLocked() {
	switch {
	case c.stream == nil:
		if !c.inActor() { // a running turn looks again before it ends
			c.wantLocked(wantTurn)
		}
	case !c.route.has(routeQueued):
		c.route.add(routeQueued)
		c.stream.enqueue(c)
	}
}

func (c *Conn) event(kind event) Event {
	switch kind {
	case pendOpened:
		if c.ext != nil {
			c.ext.dialed = nil // it was sent, or taken, before this
		}
		return Opened{c}
	case pendReadable:
		return Readable{c}
	case pendWritable:
		return Writable{c}
	case pendDraining:
		return Draining{c}
	case pendRelayEnded:
		return RelayEnded{c}
	case pendClosed:
		return Closed{c}
	case pendDialed:
		return *c.ext.dialed
	}
	panic("tcpio: an event of no kind")
}

// takePending hands the connection's undelivered events to the feeder of s. A connection that has
// moved to another route took them along.
func (c *Conn) takePending(s *stream, evs []Event) []Event {
	c.mu.Lock()
	defer c.unlock()
	if c.stream != s {
		return evs
	}
	c.route.drop(routeQueued)
	for range feedChunk {
		ev := c.nextLocked()
		switch ev.(type) {
		case nil:
			return evs
		case Readable:
			if s.where(c.sentAt) == inside {
				continue // an earlier one is still in the channel, and says as much
			}
			c.sentAt = s.number(len(evs))
		case Closed:
			s.leave()
		}
		evs = append(evs, ev)
	}
	if !c.pending.empty() || c.mailReady() > 0 {
		c.queueLocked()
	}
	return evs
}

// feedChunk is how many events of one connection are delivered before it is another one's turn.
const feedChunk = 16

// nextLocked takes the next undelivered event, in the order that the contract gives; nil when there
// is none.
func (c *Conn) nextLocked() Event {
	for _, kind := range [...]event{pendDialed, pendOpened, pendReadable, pendWritable, pendDraining} {
		if c.pending.has(kind) {
			c.pending.drop(kind)
			return c.event(kind)
		}
	}
	if c.mailReady() > 0 {
		return c.takeMailLocked()
	}
	for _, kind := range [...]event{pendRelayEnded, pendClosed} {
		if c.pending.has(kind) {
			c.pending.drop(kind)
			return c.event(kind)
		}
	}
	return nil
}

// mailReady is how many posted values can be delivered. Before Opened, which a TLS handshake
// delays, there are none.
func (c *Conn) mailReady() int {
	if c.ext == nil || c.isEarly() {
		return 0
	}
	return c.ext.mailbox.Len()
}

// takeMailLocked takes the oldest value.
func (c *Conn) takeMailLocked() Event {
	x := c.ext
	m, _ := x.mailbox.Pop()
	if x.mailbox.Len() == 0 {
		x.mailbox = sched.Queue[mail]{} // an idle connection holds no memory
	}
	if !m.timed {
		x.posted--
	}
	return m.event(c)
}

// mail is a value in a mailbox.
type mail struct {
	value any
	ask   *ask
	timed bool // from a timer: not counted against MailboxSize
}

// event is m as an event of c. The answer to a dial that c has asked for is one by itself.
func (m mail) event(c *Conn) Event {
	if answer, ok := m.value.(*answerTo); ok {
		return Dialed(*answer)
	}
	return Message{c, m.value, m.ask}
}

// An answerTo is a Dialed in a mailbox. A user's value cannot be one.
type answerTo Dialed
