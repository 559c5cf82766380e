package tcpio

import (
	"sync"
	"sync/atomic"
)

// A stream is a bounded channel of events that never blocks who fills it. An event goes straight into the channel while
// there is room. When there is none, the connection waits in the stream's queue with its events noted in the Conn
// itself (one bit each, and the mailbox), and a feeder, the only goroutine that may block on the channel, lives until
// the queue is empty. So a consumer that stops costs one goroutine and nothing that grows.
//
// Order of one connection's events: they are emitted under its mu, and while the stream is blocked only the feeder
// sends, so that nothing overtakes what waits.
type stream struct {
	// Immutable.
	ch      chan Event
	l       *Listener
	private bool // one connection's claimed channel: closed behind its Closed

	// Atomic. True from the first connection in the queue until the feeder has sent the last one's events.
	blocked atomic.Bool

	mu sync.Mutex
	// Guarded by mu.
	queue  []*Conn // connections with undelivered events, each once
	failed error   // a Failed that found no room
	left   bool    // the connection moved to another route: ch is closed once the feeder is done
}

func newStream(l *Listener, size int, private bool) *stream {
	return &stream{ch: make(chan Event, size), l: l, private: private}
}

// trySend reports whether ev went into the channel. The caller holds the connection's mu.
func (s *stream) trySend(ev Event) bool {
	if s.blocked.Load() {
		return false
	}
	select {
	case s.ch <- ev:
		return true
	default:
		return false
	}
}

// enqueue puts c, whose pending events found no room, into the queue. The caller holds c.mu.
func (s *stream) enqueue(c *Conn) {
	s.mu.Lock()
	s.queue = append(s.queue, c)
	s.startFeederLocked()
	s.mu.Unlock()
}

func (s *stream) startFeederLocked() {
	if s.blocked.Load() {
		return
	}
	s.blocked.Store(true)
	s.l.feeders.Add(1) // a WaitGroup forbids that beside a Wait, and a connection may be claimed when all is over
	go s.feed()
}

// fail delivers a Failed; while one waits for room, a later one takes its place.
func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trySend(Failed{err}) {
		return
	}
	s.failed = err
	s.startFeederLocked()
}

// leave ends a private stream whose connection moved on: its channel is closed behind what it still holds.
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
	defer s.l.feederEnded()
	var buf [feedChunk + 4]Event
	for {
		c, failed, done := s.next()
		if done {
			s.l.roomAgain()
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
			select {
			case s.ch <- ev: // also when all is over: a channel that was claimed late holds what it has room for
				continue
			default:
			}
			select {
			case s.ch <- ev:
			case <-s.l.giveUp:
				// Nobody will receive any more; what is left is dropped by contract, the rest of the queue too.
			}
		}
	}
}

func (l *Listener) feederEnded() {
	if l.feeders.Add(-1) == 0 {
		select {
		case l.fed <- struct{}{}:
		default:
		}
	}
}

// next takes the first of the queue. With nothing left it ends the feeder's reign and, for a stream that has seen its
// last event, closes the channel: nobody sends any more then.
func (s *stream) next() (c *Conn, failed error, done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		failed, s.failed = s.failed, nil
		return nil, failed, false
	}
	if len(s.queue) == 0 {
		s.queue = nil
		s.blocked.Store(false)
		if s.left {
			close(s.ch)
		}
		return nil, nil, true
	}
	c = s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	return c, nil, false
}
