package cluster

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
)

// What the other nodes say of sessions, and what follows for those here: a newer claim of a key
// elsewhere, or the word to give one up.

// run hears of records, and answers those who claim.
func (s *sessions) run() {
	dropped := 0
	for {
		select {
		case m := <-s.ch:
			s.receive(m)
			// A channel that was full has lost something.
			if len(s.ch) >= cap(s.ch)-1 {
				dropped = 1
			} else if dropped > 0 && len(s.ch) <= cap(s.ch)/2 {
				dropped = 0
				s.check()
			}
		case <-s.n.done:
			return
		}
	}
}

func (s *sessions) receive(m *nats.Msg) {
	k, r := kindOf(m.Data)
	var err error
	switch k {
	case kindRecord:
		var rec record
		var seq uint64
		if rec, err = readRecord(m.Data); err == nil {
			if seq, err = strconv.ParseUint(m.Header.Get(hdrSequence), 10, 64); err == nil {
				s.hear(m.Subject[len(s.n.subj.prefix)+len("sr."):], seq, rec)
			}
		}
	case kindEvict:
		fence, flags, token := r.uint(), r.byte(), string(r.p)
		if r.bad || m.Reply == "" {
			err = &malformed{"eviction"}
			break
		}
		s.evict(m.Reply, token, fence, flags&flagClosed != 0)
	default:
		err = &malformed{"kind"}
	}
	if err != nil {
		s.n.malformed(m, err)
	}
}

// hear takes a record that the stream has.
func (s *sessions) hear(token string, seq uint64, rec record) {
	s.mu.Lock()
	se := s.byToken[token]
	if rec.node == s.n.id {
		p := s.pending[rec.claim]
		switch {
		case p != nil:
			select {
			case p.own <- seq:
			default:
			}
		case se != nil && se.claim == rec.claim:
			se.rev = max(se.rev, seq)
		default:
			if !s.opts.Strict {
				defer s.free(token, seq) // of a claim that has failed, or whose session is over
			}
		}
		s.mu.Unlock()
		return
	}
	for _, p := range s.pending {
		if p.token == token && rec != freeRecord {
			p.newest = max(p.newest, seq)
		}
	}
	lost := se != nil && seq > se.rev && s.endLocked(se)
	s.mu.Unlock()
	if lost {
		s.n.count.evicted.Add(1)
		s.replaced(se, seq, nil)
	}
}

// evict takes a key away from a connection here: another has it with that fence. The reply says
// whether there was one, when it was told, or with wait when it is closed.
func (s *sessions) evict(reply, token string, fence uint64, wait bool) {
	s.mu.Lock()
	se := s.byToken[token]
	for _, p := range s.pending {
		if p.token == token {
			p.newest = max(p.newest, fence)
		}
	}
	lost := se != nil && se.fence < fence && s.endLocked(se)
	s.mu.Unlock()
	answer := func(outcome byte) {
		_ = s.n.publish(reply, appendAnswer(nil, outcome, nil)) // who waits asks again, or waits for the lease
	}
	if !lost {
		answer(outcomeNobody)
		return
	}
	s.n.count.evicted.Add(1)
	closed := func() { answer(outcomeTaken) }
	if !wait {
		closed = nil
	}
	s.replaced(se, fence, closed)
	if !wait {
		answer(outcomeTaken)
	}
}

// replaced tells a connection that it has lost its key, and closes it behind that. It calls closed,
// unless that is nil, when it has.
func (s *sessions) replaced(se *Session, fence uint64, closed func()) {
	s.n.Unregister(se.key, se.conn)
	s.tell(se.conn, Replaced{Key: se.key, Fence: fence}, closed)
}

// tell posts a word and closes the connection a little later, so that the handler can pass it on.
func (s *sessions) tell(c *tcpio.Conn, word any, closed func()) {
	wait := s.goodbye()
	if c.Post(word) != nil {
		wait = 0 // its mailbox is full, or it is closing
	}
	stop := func() bool { return true }
	var once sync.Once
	over := func() {
		once.Do(func() {
			c.Close()
			if closed != nil {
				closed()
			}
		})
	}
	if closed != nil {
		stop = context.AfterFunc(c.Context(), over)
	}
	if wait == 0 {
		stop()
		over()
		return
	}
	time.AfterFunc(wait, func() { stop(); over() })
}
