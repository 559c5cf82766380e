package cluster

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
)

// How the records of a topic reach its members here. The stream publishes each record again when a
// majority has it, and the shard's goroutine gets them. Delivering is a role that one goroutine has
// at a time: the shard's for the record that comes next; one that fills a hole, as long as it takes;
// one that resumes a connection, for a moment. Who does not have the role does not wait for it: the
// shard notes how far the stream is, and who lets go of the role goes on from there, by asking the
// stream.

// recorded is what a topic of a class has besides.
type recorded struct {
	// Guarded by the topic's mu.
	busy    bool            // somebody has the role
	waiting []chan struct{} // who wants it next
	known   bool            // last is
	last    uint64          // all up to this were delivered, or were before the first member
	seen    uint64          // the stream has this
	excepts map[string]*tcpio.Conn
	resumes []*resuming
	users   int // goroutines that need the subscription
}

func appendLast(seq uint64) []byte { return binary.AppendUvarint([]byte{byte(kindLast)}, seq) }

// receiveRecord takes a record that the stream has published. It runs on the shard's goroutine.
func (t *Topic) receiveRecord(m *nats.Msg) {
	s, err := readStored(m)
	before, err2 := strconv.ParseUint(m.Header.Get(hdrLastSequence), 10, 64)
	if err = errors.Join(err, err2); err != nil {
		t.n.malformed(m, err)
		return
	}
	t.mu.Lock()
	r := &t.rec
	fresh := t.subscribed && s.seq > r.last
	if fresh {
		r.seen = max(r.seen, s.seq)
	}
	if !fresh || r.busy {
		t.mu.Unlock()
		return
	}
	r.busy = true
	next := r.known && before <= r.last
	t.mu.Unlock()
	if next {
		t.deliverRecord(s, false)
		t.letGo()
	} else if !t.n.start(t.fill) { // until the hole is filled
		t.letGo()
	}
}

// receiveLast takes the word of a node that the stream has this record.
func (t *Topic) receiveLast(r reader, m *nats.Msg) {
	seq := r.uint()
	if r.bad || len(r.p) > 0 {
		t.n.malformed(m, &malformed{"last record"})
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.subscribed && seq > t.rec.last {
		t.rec.seen = max(t.rec.seen, seq)
		t.fillLocked()
	}
}

// lookAgain has the stream asked for what may have been missed.
func (t *Topic) lookAgain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.subscribed {
		t.fillLocked()
	}
}

// fillLocked starts filling, unless somebody has the role: who lets go of it looks what there is.
func (t *Topic) fillLocked() {
	if !t.rec.busy {
		t.rec.busy = t.n.start(t.fill)
	}
}

// letGo gives the role to whoever waits for it, or goes on filling, or ends it.
func (t *Topic) letGo() {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := &t.rec
	switch {
	case len(r.waiting) > 0:
		next := r.waiting[0]
		r.waiting = r.waiting[1:]
		close(next)
	case t.subscribed && (r.seen > r.last || !r.known) && t.n.start(t.fill):
	default:
		r.busy = false
	}
}

// deliverRecord delivers a record to the members here, and to those who resume. The caller has the
// role.
func (t *Topic) deliverRecord(s stored, gap bool) {
	rec := t.recordOf(s, gap)
	t.mu.Lock()
	r := &t.rec
	r.last, r.seen = s.seq, max(r.seen, s.seq)
	not := r.excepts[s.id]
	delete(r.excepts, s.id)
	for _, g := range r.resumes {
		g.addLocked(rec)
	}
	outlets := t.outletsLocked()
	used := t.group.Len() > 0 || len(outlets) > 0
	t.mu.Unlock()
	if !used {
		return
	}
	p := rec.Data
	if encode := t.class.h.Encode; encode != nil {
		t.n.guard("History.Encode", func() { p = encode(rec) })
	}
	t.deliver(p, not, outlets)
}

func (t *Topic) recordOf(s stored, gap bool) Record {
	return Record{Topic: t.name, Pos: Pos{*t.class.epoch.Load(), s.seq}, Time: s.at, Data: s.data, Gap: gap}
}

// maxFilling is how many topics get records from their streams at once.
const maxFilling = 64

// streamSubject is the subject of the topic's records in the stream.
func (t *Topic) streamSubject() string { return t.n.subj.prefix + "h." + t.place[len("r."):] }

// How long a replica may be behind what others have seen.
const behindLimit = 5 * time.Second

// fill delivers what the stream has behind the last record. The caller gives it the role.
func (t *Topic) fill() {
	defer t.letGo()
	select {
	case t.n.filling <- struct{}{}:
		defer func() { <-t.n.filling }()
	case <-t.n.done:
		return
	}
	begun := time.Now()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		t.mu.Lock()
		last, known, subscribed := t.rec.last, t.rec.known, t.subscribed
		t.mu.Unlock()
		if !subscribed {
			return
		}
		err := error(nil)
		if !known {
			err = t.findBase()
		} else {
			var more bool
			if more, err = t.fillOnce(last); err == nil && more {
				begun, wait = time.Now(), 5*time.Millisecond
				continue
			}
		}
		if err != nil {
			t.n.log(slog.LevelInfo, "the stream does not answer", "topic", t.name, "error", err)
			begun = time.Now()
		} else if t.filled(time.Since(begun) > behindLimit) {
			return
		}
		select {
		case <-time.After(wait): // there is no majority, or a replica is behind
		case <-t.n.done:
			return
		}
	}
}

// findBase learns how far the stream is: what comes behind that is delivered.
func (t *Topic) findBase() error {
	last, err := t.n.lastOf(t.n.ctx, t.class.stream, t.streamSubject())
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rec.known, t.rec.last = true, last.seq
	return nil
}

// fillOnce delivers a batch, and reports whether there is more.
func (t *Topic) fillOnce(last uint64) (more bool, err error) {
	// The last one comes with them if it is still there: then all behind it are, too.
	batch, left, err := t.n.batchOf(t.n.ctx, t.class.stream, t.streamSubject(), last)
	if err != nil {
		return false, err
	}
	gap := last > 0 && len(batch) > 0 && batch[0].seq > last
	if gap {
		t.n.lost(t, "", 1) // or more
		_ = t.class.ensure(t.n.ctx)
	}
	for _, s := range batch {
		if s.seq > last {
			t.n.count.refilled.Add(1)
			t.deliverRecord(s, gap)
			gap = false
		}
	}
	return left > 0, nil
}

// filled reports whether everything is delivered that the stream is known to have. What does not
// come is gone.
func (t *Topic) filled(giveUp bool) bool {
	t.mu.Lock()
	r := &t.rec
	if r.seen <= r.last {
		t.mu.Unlock()
		return true
	}
	if giveUp {
		r.last = r.seen
	}
	t.mu.Unlock()
	if giveUp {
		t.n.lost(t, "", 1)
	}
	return giveUp
}

// acquire waits for the role. It reports false when stop is closed first.
func (t *Topic) acquire(stop <-chan struct{}) bool {
	t.mu.Lock()
	r := &t.rec
	if !r.busy {
		r.busy = true
		t.mu.Unlock()
		return true
	}
	mine := make(chan struct{})
	r.waiting = append(r.waiting, mine)
	t.mu.Unlock()
	select {
	case <-mine:
		return true
	case <-stop:
	case <-t.n.done:
	}
	t.mu.Lock()
	i := slices.Index(r.waiting, mine)
	if i >= 0 {
		r.waiting = slices.Delete(r.waiting, i, i+1)
	}
	t.mu.Unlock()
	if i < 0 { // it was given just now
		t.letGo()
	}
	return false
}
