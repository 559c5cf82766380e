package main

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/proxyproto"
)

// A session is the actor of a client's connection. It finds an upstream, joins the two by a Relay,
// and counts how that ended. One event of it is handled at a time, so its fields need no lock.
//
//	Opened ─► choosing ─► waiting ─► dialing ─► securing ─► relaying ─► over
//	                      for a      for the     its TLS, if
//	                      place      upstream    a PROXY header
//	                         ▲          │        comes first
//	                         │          │           │
//	                         └──────────┴───────────┘ failed: another attempt, elsewhere
//
// From each of them it is over when the client has gone, or nothing is usable.
type session struct {
	front  *front
	client *tcpio.Conn
	stage  stage
	ticket ticket
	cfg    *poolConfig

	back    *tcpio.Conn // while securing or relaying
	stop    func() bool // ends waiting, the dial, or the timer of securing
	counted bool        // among the front's ends
}

type stage int

const (
	choosing stage = iota
	waiting
	dialing
	securing
	relaying
	over
)

// What a session posts to itself.
type (
	seated  struct{} // the ticket has a place
	late    struct{} // the queue's time is over
	secured struct { // the handshake with the upstream has ended
		back *tcpio.Conn
		err  error
	}
)

// Receive returns nil always: behind an error the connection would be closed in order, and a client
// that gets no answer has to see a reset.
func (s *session) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Opened:
		s.front.clients.Add(1)
		s.front.accepted.Add(1)
		s.choose()
	case tcpio.Message:
		switch v := ev.Value.(type) {
		case seated:
			s.seat()
		case late:
			if s.stage == waiting && s.ticket.giveUp() {
				s.refuse(errQueueLate)
			}
		case secured:
			s.secured(v)
		}
	case tcpio.Dialed:
		s.dialed(ev)
	case tcpio.RelayEnded:
		s.ended()
	case tcpio.Closed:
		s.close()
	}
	return nil
}

// choose finds the pool, and asks it for a place.
func (s *session) choose() {
	pool := s.front.routing.Load().pick(s.hello())
	if pool == nil {
		s.refuse(errNoRoute)
		return
	}
	s.cfg = pool.settings()
	s.ticket = ticket{pool: pool, holder: s, client: clientOf(s.client)}
	s.ask()
}

// hello is what the client has said of itself: to TLS that ends here, or, read in passing, to the
// upstream's. It is nil without TLS.
func (s *session) hello() *hello {
	if state := s.client.TLS(); state != nil {
		return &hello{name: state.ServerName, alpn: []string{state.NegotiatedProtocol}}
	}
	h, _ := s.client.Data().(*hello)
	return h
}

// ask asks for a place, the first or one elsewhere.
func (s *session) ask() {
	s.stage = waiting
	if err := s.ticket.take(); err != nil {
		s.refuse(err)
		return
	}
	if s.ticket.at() == nil && s.stop == nil {
		s.stop = s.queue()
	}
	s.seat()
}

// queue limits the time in the queue, and has a client that resets its connection leave at once:
// nobody reads from it, so that nothing else would say that it has gone.
func (s *session) queue() (stop func() bool) {
	timer := s.client.After(s.cfg.QueueTimeout.Duration, late{})
	gone := context.AfterFunc(s.client.Context(), func() { _ = s.client.Abort() })
	return func() bool {
		gone()
		return timer()
	}
}

// seat dials if the ticket has a place.
func (s *session) seat() {
	u := s.ticket.at()
	if s.stage != waiting || u == nil {
		return
	}
	s.halt()
	s.stage = dialing
	req := tcpio.DialRequest{Address: u.addr, Dialer: &net.Dialer{Timeout: s.cfg.ConnectTimeout.Duration}, To: s.client}
	if s.cfg.TLS != nil && !s.cfg.SendProxy {
		req.TLS = s.cfg.TLS.config(u.addr)
	}
	var err error
	if s.stop, err = s.front.dial(req); err != nil {
		s.failed(err)
	}
}

// halt ends the timer or the dial of the stage.
func (s *session) halt() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

// dialed takes over the connection to the upstream.
func (s *session) dialed(ev tcpio.Dialed) {
	s.stop = nil
	switch {
	case errors.Is(ev.Err, net.ErrClosed):
		s.stage = waiting
		s.seat() // the front has stopped accepting meanwhile, and dials elsewhere
		return
	case ev.Err != nil:
		s.failed(ev.Err)
		return
	}
	s.back = ev.Conn
	if !s.cfg.SendProxy {
		s.join()
		return
	}
	if err := proxyproto.Send(s.back, s.client); err != nil {
		s.failed(err)
		return
	}
	if s.cfg.TLS == nil {
		s.join()
		return
	}
	s.secure()
}

// secure begins TLS with the upstream behind the PROXY header.
func (s *session) secure() {
	s.stage = securing
	client, back, config := s.client, s.back, s.cfg.TLS.config(s.ticket.at().addr)
	s.stop = client.After(s.cfg.ConnectTimeout.Duration, secured{back, os.ErrDeadlineExceeded})
	tell := func(err error) error {
		_ = client.Post(secured{back, err}) // one that has closed needs no answer
		return nil
	}
	err := back.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			return ev.Conn.StartTLSClient(config)
		case tcpio.Readable:
			if ev.Conn.TLS() != nil { // the handshake is done; otherwise Closed says more
				return tell(nil)
			}
		case tcpio.Closed:
			return tell(ev.Conn.Err())
		}
		return nil
	}))
	if err != nil {
		s.failed(err)
	}
}

func (s *session) secured(v secured) {
	switch {
	case s.stage != securing || v.back != s.back: // of an attempt before this one
	case v.err != nil:
		s.failed(v.err)
	default:
		s.join()
	}
}

// failed tries elsewhere, unless the client has gone.
func (s *session) failed(err error) {
	s.halt()
	if s.back != nil {
		s.back.Abort()
		s.back = nil
	}
	if _, gone := s.client.TryWrite(nil); gone != nil {
		s.stage = over // Closed comes
		return
	}
	s.ticket.failed(err)
	s.ask()
}

// join has the two connections relayed.
func (s *session) join() {
	s.halt()
	if !s.ticket.connected() {
		s.failed(errDown)
		return
	}
	if _, err := s.client.Relay(s.back, &tcpio.RelayOptions{IdleTimeout: s.front.shape.idle}); err != nil {
		s.failed(err) // the upstream has closed meanwhile, and has had nothing of the client's
		return
	}
	s.stage = relaying
}

// refuse ends a session without an upstream.
func (s *session) refuse(err error) {
	s.stage = over
	s.count(endRefused)
	s.front.log.Debug("refused", "client", s.client, "err", err)
	s.client.Abort()
}

// ended counts how the relay has ended.
func (s *session) ended() {
	s.stage = over
	how, _ := s.client.Relayed().End()
	switch {
	case how.Err == nil:
		s.count(endDone)
	case how.By == nil:
		s.count(endIdle)
	case errors.Is(how.Err, net.ErrClosed), errors.Is(how.Err, tcpio.ErrCloseTimeout), errors.Is(how.Err, tcpio.ErrDrainTimeout):
		s.count(endCut) // only cut and the end of the program close one
	case how.By == s.client:
		s.count(endClient)
	default:
		s.count(endUpstream)
	}
}

// close is the last that happens.
func (s *session) close() {
	s.halt()
	if s.stage == securing {
		s.back.Abort()
	}
	s.stage = over
	s.count(endClient) // unless something else was the end
	if s.ticket.pool != nil {
		s.ticket.giveBack()
	}
	s.front.clients.Add(-1)
}

func (s *session) count(e end) {
	if !s.counted {
		s.counted = true
		s.front.ends[e].Add(1)
	}
}

// granted, cut and moved make the session a claimant. Others call them.

func (s *session) granted() bool { return s.client.Post(seated{}) == nil }

func (s *session) cut() { s.client.Abort() }

func (s *session) moved() (up, down uint64) {
	if r := s.client.Relayed(); r != nil {
		return r.Passed()
	}
	return 0, 0
}
