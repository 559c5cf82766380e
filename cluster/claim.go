package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
)

// Claim is Register for one connection at most in the whole cluster: the newest wins, on whichever
// node. The older one gets a [Replaced] and is closed behind it, at once when its handler closes it
// and otherwise after a fifth of Lease, as is every connection whose node loses its lease, behind an
// [Unsure]. The session ends with the connection, or by Release. A connection may have several keys;
// claiming a key that it has gives it a new fence.
//
// Two clients that both believe to be the one throw each other out for ever, if each connects again
// as soon as it is closed. Replaced says why it was closed: have the handler pass that on, and a
// client that was replaced ask its user before it connects again.
//
// Claim waits for JetStream's majority, 2 s at most, behind at most 64 other claims of this node, and
// then for the older one: see Sessions.Strict. It fails with ErrNoQuorum where there is no majority,
// at once when that is known; ErrReplaced if a newer claim of the key was faster; ctx's error;
// ErrDisconnected, ErrName, ErrClosed; an error that matches net.ErrClosed if c is closing; and
// errors.ErrUnsupported without Options.Sessions. After an error c does not have the key. An older
// connection may have lost it all the same.
func (n *Node) Claim(ctx context.Context, key string, c *tcpio.Conn) (*Session, error) {
	se, err := n.claim(ctx, key, c)
	if err != nil {
		if errors.Is(err, ErrNoQuorum) {
			n.count.noQuorum.Add(1)
		}
		return nil, fmt.Errorf("cluster: Claim: %w", err)
	}
	n.count.claims.Add(1)
	return se, nil
}

func (n *Node) claim(ctx context.Context, key string, c *tcpio.Conn) (*Session, error) {
	s := n.sessions
	if s == nil {
		return nil, fmt.Errorf("Options.Sessions is nil: %w", errors.ErrUnsupported)
	}
	tok := encodeName(key)
	switch {
	case len(tok) > maxToken:
		return nil, ErrName
	case c == nil:
		return nil, errors.New("the connection is nil")
	case n.refuses():
		return nil, ErrClosed
	case n.link.cut():
		return nil, fmt.Errorf("%w: %w", ErrNoQuorum, ErrDisconnected)
	}
	select {
	case s.admit <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	se, older, err := s.write(ctx, key, tok, c)
	<-s.admit
	if err != nil {
		return nil, err
	}
	if err := s.takeFrom(ctx, se, older); err != nil {
		if s.end(se) {
			n.Unregister(key, c)
		}
		s.giveBack(se)
		return nil, err
	}
	s.mu.Lock()
	se.alone = !se.over.Load()
	s.mu.Unlock()
	if !se.alone {
		return nil, fmt.Errorf("%w, or the connection is closing", ErrReplaced)
	}
	return se, nil
}

// An owner is who had a key before.
type owner struct {
	node  string   // "" is nobody
	claim uint64   // of that node's
	here  *Session // if it was this node
}

// write writes that c has the key, in place of whoever has it.
func (s *sessions) write(ctx context.Context, key, tok string, c *tcpio.Conn) (*Session, owner, error) {
	if err := s.start(ctx); err != nil {
		return nil, owner{}, err
	}
	if s.suspect.Load() || !s.leased() {
		return nil, owner{}, fmt.Errorf("%w: this node cannot renew its lease", ErrNoQuorum)
	}
	se := &Session{ss: s, key: key, token: tok, conn: c, claim: s.claims.Add(1), written: time.Now()}
	p := &claiming{token: tok, own: make(chan uint64, 1)}
	s.mu.Lock()
	s.pending[se.claim] = p
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.pending, se.claim)
		s.mu.Unlock()
		// Its record came after all: then nobody else will free it.
		select {
		case seq := <-p.own:
			if se.fence == 0 && !s.opts.Strict {
				s.free(tok, seq)
			}
		default:
		}
	}()
	before, fence, err := s.put(ctx, se, p)
	if err != nil {
		return nil, owner{}, err
	}
	se.fence, se.rev = fence, fence
	older, err := s.establish(se, p)
	if err == nil {
		// Before the older one loses it, so that somebody has it all the time.
		err = s.n.keys.add(tok, key, c)
		if err != nil {
			s.end(se)
		}
	}
	if older != nil && older.conn != c {
		s.n.count.evicted.Add(1)
		s.dismiss(older, Replaced{Key: key, Fence: fence})
	}
	if err != nil {
		se.over.Store(true)
		s.giveBack(se)
		return nil, owner{}, err
	}
	if se.over.Load() { // it was replaced or has closed meanwhile, before it was registered
		s.n.Unregister(key, c)
		return nil, owner{}, ErrReplaced
	}
	was := owner{node: before.node, claim: before.claim}
	if before.node == s.n.id {
		was.here = older
	}
	return se, was, nil
}

// put writes the record, and returns whose there was before.
func (s *sessions) put(ctx context.Context, se *Session, p *claiming) (before record, fence uint64, err error) {
	subject := s.keySubject(se.token)
	begun := time.Now()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		last, err := s.n.lastOf(ctx, s.stream, subject)
		if err != nil {
			return record{}, 0, s.doubtful(err)
		}
		if before = (record{}); last.seq != 0 {
			// What cannot be read is nobody's.
			if rec, err := readRecord(last.data); err == nil && rec != freeRecord {
				before = rec
			}
		}
		m := &nats.Msg{Subject: subject, Header: nats.Header{}, Data: record{s.n.id, se.claim}.append(nil)}
		fence, err = s.n.put(ctx, m, &last.seq, callLimit)
		select {
		case fence = <-p.own: // the stream has it, whatever became of the acknowledgement
			err = nil
		default:
		}
		if err == nil {
			return before, fence, nil
		}
		if !errors.Is(err, errConflict) {
			return record{}, 0, s.doubtful(err)
		}
		s.n.count.conflicts.Add(1)
		if time.Since(begun) > 5*callLimit {
			return record{}, 0, fmt.Errorf("%w: the key is written to all the time, or a replica is far behind", ErrNoQuorum)
		}
		select {
		case <-time.After(wait): // the read was of a replica that is behind, or others claim too
		case <-ctx.Done():
			return record{}, 0, ctx.Err()
		}
	}
}

// doubtful notes that JetStream has no majority, so that claims fail at once until it has.
func (s *sessions) doubtful(err error) error {
	if errors.Is(err, ErrNoQuorum) {
		s.suspect.Store(true)
	}
	return err
}

// takeFrom has the connection told that had the key before.
func (s *sessions) takeFrom(ctx context.Context, se *Session, before owner) error {
	if s.opts.Strict {
		return s.takeStrictly(ctx, se, before)
	}
	if before.node == "" || before.node == s.n.id {
		return nil
	}
	// Without an answer the node is cut off, and loses its lease, or hears of the record.
	_, _ = s.evictFrom(ctx, se, before.node, before.claim, toldWait)
	return ctx.Err()
}

// takeStrictly waits until nobody else has the key for certain.
func (s *sessions) takeStrictly(ctx context.Context, se *Session, before owner) error {
	if before.node == "" {
		return nil // who has freed it has closed, and was alone
	}
	if s.wasOurs(se, before) {
		return nil
	}
	limit := s.goodbye() + toldWait
	var had bool
	var err error
	if before.node == s.n.id {
		had, err = s.evictHere(ctx, se, before.claim)
	} else {
		had, err = s.evictFrom(ctx, se, before.node, before.claim, limit)
	}
	if err == nil && had {
		return nil
	}
	// Whoever wrote the record does not have the key, or has waited for another, or does not answer.
	// One before may have it.
	nodes, err := s.holders(ctx)
	if err != nil {
		return err
	}
	failed := make(chan error, len(nodes)+1)
	for _, id := range nodes {
		go func() { // until the node has answered, or its lease is over
			_, err := s.evictFrom(ctx, se, id, noClaim, limit)
			if err != nil {
				err = s.revoke(ctx, id)
			}
			failed <- err
		}()
	}
	_, err = s.evictHere(ctx, se, noClaim)
	for range nodes {
		if e := <-failed; e != nil && err == nil {
			err = e
		}
	}
	return err
}

// noClaim is the number of no claim.
const noClaim = 0

// wasOurs reports whether the session before was alone and of the same connection.
func (s *sessions) wasOurs(se *Session, before owner) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := before.here
	return h != nil && h.conn == se.conn && h.claim == before.claim && h.alone
}

// evictHere is evictFrom for this node. It waits for as long as a connection may take to close.
func (s *sessions) evictHere(ctx context.Context, se *Session, claim uint64) (had bool, err error) {
	answer := make(chan bool, 1)
	s.giveUp(se.token, se.fence, claim, func(had bool) { answer <- had })
	select {
	case had = <-answer:
		return had, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// evictFrom has a node give the key up. had reports whether the session of that claim had it; with
// Strict, whether it had it alone: then there is no other.
func (s *sessions) evictFrom(ctx context.Context, se *Session, id string, claim uint64, limit time.Duration) (had bool, err error) {
	data := binary.AppendUvarint([]byte{byte(kindEvict)}, se.fence)
	data = append(binary.AppendUvarint(data, claim), se.token...)
	a, err := s.n.call(ctx, &nats.Msg{Subject: s.n.subj.node(id, "evict"), Data: data}, limit)
	if err != nil {
		return false, err
	}
	outcome, _, err := readAnswer(a.Data)
	return outcome == outcomeTaken, err
}
