package cluster

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
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
		fence, claim, token := r.uint(), r.uint(), string(r.p)
		if r.bad || m.Reply == "" {
			err = &malformed{"eviction"}
			break
		}
		s.giveUp(token, fence, claim, func(had bool) {
			outcome := byte(outcomeNobody)
			if had {
				outcome = outcomeTaken
			}
			_ = s.n.publish(m.Reply, appendAnswer(nil, outcome, nil)) // who waits asks again, or waits for the lease
		})
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
	lost := se != nil && seq > se.rev && s.loseLocked(se)
	s.mu.Unlock()
	if lost {
		s.n.count.evicted.Add(1)
		s.dismiss(se, Replaced{Key: se.key, Fence: seq})
	}
}

// giveUp takes a key away from whoever has it here: another has it with that fence. It calls then
// with whether the session of that claim had it: at once, or with Strict when all connections here
// that had the key are closed, and with whether that session had it alone.
func (s *sessions) giveUp(token string, fence, claim uint64, then func(had bool)) {
	s.mu.Lock()
	se := s.byToken[token]
	for _, p := range s.pending {
		if p.token == token {
			p.newest = max(p.newest, fence)
		}
	}
	lost := se != nil && se.fence < fence && s.loseLocked(se)
	had := lost
	var left atomic.Int32
	if s.opts.Strict {
		had = false
		for _, x := range s.leaving[token] {
			had = had || x.claim == claim && x.alone
			x.waiting = append(x.waiting, func() {
				if left.Add(-1) == 0 {
					then(had)
				}
			})
		}
		left.Store(int32(len(s.leaving[token])))
	}
	none := left.Load() == 0
	s.mu.Unlock()
	if lost {
		s.n.count.evicted.Add(1)
		s.dismiss(se, Replaced{Key: se.key, Fence: fence})
	}
	if none {
		then(had)
	}
}

// dismiss tells the connection of a session that was lost, and closes it behind that.
func (s *sessions) dismiss(se *Session, word any) {
	s.n.Unregister(se.key, se.conn)
	var closed func()
	if s.opts.Strict {
		closed = func() { s.gone(se) }
	}
	s.tell(se.conn, word, closed)
}

// gone tells whoever waits that the connection of a session is closed.
func (s *sessions) gone(se *Session) {
	s.mu.Lock()
	list := slices.DeleteFunc(s.leaving[se.token], func(x *Session) bool { return x == se })
	if s.leaving[se.token] = list; len(list) == 0 {
		delete(s.leaving, se.token)
	}
	waiting := se.waiting
	se.waiting = nil
	s.mu.Unlock()
	for _, f := range waiting {
		f()
	}
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
