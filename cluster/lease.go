package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// The lease. A node writes that it is there, three times in every Lease, and goes by the beginning
// of the last time that a majority has acknowledged. It gives up its sessions before the lease ends,
// so that they are closed when it does. Who must be certain of that takes the lease away by
// overwriting it: then the node's next renewal fails, and after one Lease it has none, whether it
// lives or not. Only monotonic time is used.

// leased reports whether this node may have sessions.
func (s *sessions) leased() bool {
	return time.Since(s.n.opened) < time.Duration(s.until.Load())
}

// safe is how long after a renewal the node gives its sessions up.
func (s *sessions) safe() time.Duration { return s.opts.Lease - s.goodbye() }

// renew renews the lease once. errConflict says that it was taken away.
func (s *sessions) renew(ctx context.Context) error {
	begun := time.Since(s.n.opened)
	m := s.leaseMessage(s.n.id, leaseRecord{leaseHeld, s.opts.Lease})
	var expect *uint64
	if s.leaseRev != 0 {
		expect = &s.leaseRev
	}
	rev, err := s.n.put(ctx, m, expect, min(callLimit, s.opts.Lease/5))
	if err != nil {
		return err
	}
	s.leaseRev = rev
	s.until.Store(int64(begun + s.safe()))
	s.suspect.Store(false)
	return nil
}

// armLocked has the sessions given up when the lease ends.
func (s *sessions) armLocked() {
	s.lapse.Reset(time.Duration(s.until.Load()) - time.Since(s.n.opened))
}

// runLease renews the lease for as long as the node is open. It retries quickly: a claim fails at
// once while the last renewal has failed.
func (s *sessions) runLease() {
	every, retry := s.opts.Lease/3, s.opts.Lease/20
	s.scanned = time.Now()
	next := time.NewTimer(every)
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-s.n.done:
			// Without its lease nobody waits for this node.
			_ = s.n.publishMsg(s.leaseMessage(s.n.id, leaseRecord{leaseOver, s.opts.Lease}))
			return
		}
		switch err := s.renew(s.n.ctx); {
		case err == nil:
			s.mu.Lock()
			s.armLocked()
			s.mu.Unlock()
			if time.Since(s.scanned) > recordAge/48 {
				s.scanned = time.Now()
				s.check()
			}
			next.Reset(every)
			continue
		case errors.Is(err, errConflict):
			if s.resolve() {
				next.Reset(0)
				continue
			}
		case errors.Is(err, errNoResponders):
			// There is no leader, or no stream.
			s.suspect.Store(true)
			_ = s.open(s.n.ctx) // it is tried again
		default:
			s.suspect.Store(true)
		}
		next.Reset(retry)
	}
}

// resolve looks why the lease's record is not the one that was written last. It reports whether the
// lease can be renewed now.
func (s *sessions) resolve() bool {
	last, err := s.n.lastOf(s.n.ctx, s.stream, s.leaseSubject(s.n.id))
	if err != nil || last.seq != 0 && last.seq < s.leaseRev {
		s.suspect.Store(true)
		return false // a stale read
	}
	if rec, err := readLease(last.data); err == nil && rec.state == leaseHeld {
		s.leaseRev = last.seq // it was renewed, and the acknowledgement was lost
		return true
	}
	s.leaseRev = 0
	if s.opts.Strict {
		s.n.log(slog.LevelWarn, "the lease was taken away")
		s.until.Store(0)
		s.lapsed()
	} else {
		s.check() // nobody takes it away: all records were lost
	}
	return true
}

// States of a lease in its record.
const (
	leaseOver  = iota // its node has closed
	leaseHeld         // it was renewed
	leaseTaken        // another node has taken it away
)

// A leaseRecord is what the stream has of a node's lease. It says how long that is, since each node
// decides for itself.
type leaseRecord struct {
	state byte
	lease time.Duration
}

func (rec leaseRecord) append(dst []byte) []byte {
	// Rounded up: nobody waits for less than the lease.
	ms := (rec.lease + time.Millisecond - 1) / time.Millisecond
	return binary.AppendUvarint(append(dst, byte(kindLease), rec.state), uint64(ms))
}

func readLease(p []byte) (leaseRecord, error) {
	k, r := kindOf(p)
	rec := leaseRecord{state: r.byte()}
	ms := r.uint()
	rec.lease = time.Duration(ms) * time.Millisecond
	if r.bad || k != kindLease || ms > uint64(maxLease/time.Millisecond) || rec.lease < minLease {
		return leaseRecord{}, &malformed{"lease"}
	}
	return rec, nil
}

func (s *sessions) leaseMessage(id string, rec leaseRecord) *nats.Msg {
	m := &nats.Msg{Subject: s.leaseSubject(id), Header: nats.Header{}, Data: rec.append(nil)}
	m.Header.Set(hdrTTL, strconv.Itoa(int(10*rec.lease.Seconds())))
	return m
}

// lapsed gives up all sessions, if the lease is over.
func (s *sessions) lapsed() {
	s.mu.Lock()
	if s.closed || s.leased() {
		s.mu.Unlock()
		return
	}
	all := make([]*Session, 0, len(s.byToken))
	for _, se := range s.byToken {
		all = append(all, se)
	}
	for _, se := range all {
		if s.opts.KeepUnsure {
			s.endLocked(se)
		} else {
			s.loseLocked(se)
		}
	}
	s.mu.Unlock()
	if len(all) == 0 {
		return
	}
	s.n.count.unsure.Add(uint64(len(all)))
	s.n.log(slog.LevelWarn, "sessions given up: the lease could not be renewed", "sessions", len(all))
	for _, se := range all {
		if s.opts.KeepUnsure {
			s.n.Unregister(se.key, se.conn)
			_ = se.conn.Post(Unsure{Key: se.key}) // without room it learns from Held
		} else {
			s.dismiss(se, Unsure{Key: se.key})
		}
	}
}

// A taking is that the lease of a node was taken from it.
type taking struct {
	at    time.Time
	lease time.Duration // how long it was
	rev   uint64
}

// over is when the node has no lease for certain.
func (t taking) over() time.Time { return t.at.Add(t.lease) }

// revoke takes the lease of a node away, and waits until that has none for certain.
func (s *sessions) revoke(ctx context.Context, id string) error {
	last, err := s.n.lastOf(ctx, s.stream, s.leaseSubject(id))
	if err != nil {
		return err
	}
	if last.seq == 0 {
		return nil // it was not heard of for ten Leases
	}
	rec, err := readLease(last.data)
	if err != nil {
		return fmt.Errorf("the lease of node %s: %w", id, err)
	}
	if rec.state == leaseOver {
		return nil // it has closed
	}
	s.mu.Lock()
	t, known := s.taken[id]
	s.mu.Unlock()
	if !known || t.rev != last.seq {
		t.lease = rec.lease
		if t.rev, err = s.n.put(ctx, s.leaseMessage(id, leaseRecord{leaseTaken, t.lease}), nil, callLimit); err != nil {
			return err
		}
		t.at = time.Now()
		s.mu.Lock()
		s.taken[id] = t
		for old, t := range s.taken {
			if time.Since(t.at) > 20*t.lease { // its record has gone
				delete(s.taken, old)
			}
		}
		s.mu.Unlock()
	}
	select {
	case <-time.After(time.Until(t.over())):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.n.done:
		return ErrClosed
	}
}

// holders returns the nodes that may have a lease, without this one.
func (s *sessions) holders(ctx context.Context) ([]string, error) {
	var info struct {
		State struct {
			Subjects map[string]int `json:"subjects"`
		} `json:"state"`
	}
	filter := map[string]string{"subjects_filter": s.leaseSubject("*")}
	if err := s.n.api(ctx, "STREAM.INFO."+s.stream, filter, &info); err != nil {
		return nil, err
	}
	var ids []string
	for subject := range info.State.Subjects {
		if id := strings.TrimPrefix(subject, s.leaseSubject("")); id != s.n.id && validID(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// check has the records of all sessions here looked at: some may have been overwritten unheard.
func (s *sessions) check() {
	s.again.Store(true)
	if !s.started.Load() || s.checking.Swap(true) {
		return
	}
	s.n.start(func() { // until everything is looked at
		for s.again.Swap(false) {
			s.checkAll()
		}
		s.checking.Store(false)
		if s.again.Load() {
			s.check()
		}
	})
}

func (s *sessions) checkAll() {
	s.mu.Lock()
	all := make([]*Session, 0, len(s.byToken))
	for _, se := range s.byToken {
		all = append(all, se)
	}
	s.mu.Unlock()
	for _, se := range all {
		for !se.over.Load() {
			err := s.checkOne(se)
			if err == nil {
				break
			}
			select {
			case <-time.After(s.opts.Lease / 20): // there is no majority, or it was a stale read
			case <-s.n.done:
				return
			}
		}
	}
}

// checkOne compares a session with its record, and writes that again if it is old, or gone.
func (s *sessions) checkOne(se *Session) error {
	last, err := s.n.lastOf(s.n.ctx, s.stream, s.keySubject(se.token))
	if err != nil {
		return err
	}
	rec := freeRecord
	if last.seq != 0 {
		if rec, err = readRecord(last.data); err != nil {
			rec = freeRecord
		}
	}
	mine := rec.node == s.n.id && rec.claim == se.claim
	s.mu.Lock()
	rev, written := se.rev, se.written
	s.mu.Unlock()
	switch {
	case !mine && last.seq > rev:
		s.hear(se.token, last.seq, rec)
		return nil
	case !mine && last.seq != 0:
		return fmt.Errorf("stale read: %w", errConflict)
	case mine && time.Since(written) < recordAge/2:
		return nil
	}
	m := &nats.Msg{Subject: s.keySubject(se.token), Header: nats.Header{}, Data: record{s.n.id, se.claim}.append(nil)}
	now := time.Now()
	seq, err := s.n.put(s.n.ctx, m, &last.seq, callLimit)
	if err != nil {
		return err
	}
	s.mu.Lock()
	se.rev, se.written = max(se.rev, seq), now
	s.mu.Unlock()
	if se.over.Load() {
		s.giveBack(se)
	}
	return nil
}
