package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
)

// How the records of a topic reach its members here. The stream publishes each record again when a
// majority has it, and the shard's goroutine gets them. Delivering is a role that one has at a
// time: the shard's goroutine for the record that comes next; a filler for some records of a hole,
// or a timer until it is its turn again; a goroutine that resumes a connection, for a moment. Who
// does not have the role does not wait for it: the shard notes how far the stream is, and who lets
// go of the role has it filled up to there, by asking the stream.
//
// A replica of the stream answers for it, the one next to the node, which may be behind what the
// stream has published, for as long as its server takes to catch up. What it does not have is got
// from the stream's leader. A record is lost when the leader has given its number, and has neither
// the record nor one behind it.

// recorded is what a topic of a class has besides.
type recorded struct {
	// Guarded by the topic's mu.
	busy    bool            // somebody has the role
	waiting []chan struct{} // who wants it next
	known   bool            // last is
	last    uint64          // all up to this were delivered, or were before the first member
	seen    uint64          // the stream has this
	doubt   bool            // the stream may have more than seen
	gap     bool            // records behind last are missing: the next one says so
	odd     *stored         // has come, and the stream no longer had last when it got it
	stuck   time.Time       // since when there is nothing behind last, in spite of seen; zero: it is not so
	pause   time.Duration   // before the stream is asked again
	recent  recent
	excepts map[string]*tcpio.Conn
	users   int // goroutines that need the subscription
}

// unsubscribed forgets what is known of the stream.
func (r *recorded) unsubscribed() {
	r.known, r.last, r.seen, r.doubt, r.gap = false, 0, 0, false, false
	r.odd, r.stuck, r.pause = nil, time.Time{}, 0
	r.excepts = nil
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
	r := t.rec
	fresh := t.subscribed && s.seq > r.last
	if fresh {
		r.seen = max(r.seen, s.seq)
	}
	if !fresh || r.busy {
		t.mu.Unlock()
		return
	}
	r.busy = true
	next := r.known && before == r.last
	if r.known && before < r.last {
		r.odd = &s
	}
	t.mu.Unlock()
	if next {
		t.deliverRecord(s)
	}
	t.letGo()
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
	if t.subscribed {
		t.rec.seen = max(t.rec.seen, seq)
		t.fillLocked()
	}
}

// lookAgain has the stream asked for what may have been missed.
func (t *Topic) lookAgain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.subscribed {
		t.rec.doubt = true
		t.fillLocked()
	}
}

// missesLocked reports whether the stream is to be asked.
func (t *Topic) missesLocked() bool {
	return t.subscribed && (!t.rec.known || t.rec.doubt || t.rec.odd != nil || t.rec.seen > t.rec.last)
}

// fillLocked has what is missing got from the stream, unless somebody has the role: who lets go of
// it looks what there is.
func (t *Topic) fillLocked() {
	if !t.rec.busy {
		t.rec.busy = true
		t.letGoLocked(0)
	}
}

// letGo gives the role to whoever waits for it, or to a filler, after a pause if need be, or ends
// it.
func (t *Topic) letGo() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.letGoLocked(t.rec.pause)
}

func (t *Topic) letGoLocked(pause time.Duration) {
	r := t.rec
	switch {
	case len(r.waiting) > 0:
		next := r.waiting[0]
		r.waiting = r.waiting[1:]
		close(next)
	case t.missesLocked() && pause > 0:
		time.AfterFunc(pause, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.letGoLocked(0)
		})
	case t.missesLocked() && t.n.fill(t):
	default:
		r.busy = false
	}
}

// deliverRecord delivers a record to the members here, and to those who resume. The caller has the
// role.
func (t *Topic) deliverRecord(s stored) {
	rec := t.recordOf(s)
	t.mu.Lock()
	r := t.rec
	r.last, r.seen = s.seq, max(r.seen, s.seq)
	rec.Gap, r.gap = r.gap, false
	not := r.excepts[s.id]
	delete(r.excepts, s.id)
	r.recent.add(rec)
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

func (t *Topic) recordOf(s stored) Record {
	return Record{Topic: t.name, Pos: Pos{*t.class.epoch.Load(), s.seq}, Time: s.at, Data: s.data}
}

// missed tells, once, that records behind the last one are missing, one or more.
func (t *Topic) missed() {
	t.mu.Lock()
	told := t.rec.gap
	t.rec.gap = true
	t.mu.Unlock()
	if !told {
		t.n.lost(t, "", 1)
	}
}

// streamSubject is the subject of the topic's records in the stream.
func (t *Topic) streamSubject() string { return t.n.subj.prefix + "h." + t.place[len("r."):] }

// fillers get records from streams: some goroutines, as long as there is something to get, whatever
// the number of topics.
type fillers struct {
	mu sync.Mutex // taken under a Topic's
	// Guarded by mu.
	topics  []*Topic // whose turn comes; each is given the role of its
	running int
}

const maxFillers = 16

// fill has a filler take the role of t. It reports false when the node is closing.
func (n *Node) fill(t *Topic) bool {
	f := &n.fillers
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running < maxFillers {
		if !n.start(n.runFiller) {
			return false
		}
		f.running++
	}
	f.topics = append(f.topics, t)
	return true
}

// runFiller fills topics until there are none.
func (n *Node) runFiller() {
	f := &n.fillers
	over := false
	defer func() {
		if over {
			return
		}
		f.mu.Lock() // user code has ended the goroutine
		defer f.mu.Unlock()
		if !n.start(n.runFiller) {
			f.running--
		}
	}()
	for {
		f.mu.Lock()
		if over = len(f.topics) == 0; over {
			f.running--
			f.mu.Unlock()
			return
		}
		t := f.topics[0]
		if f.topics = f.topics[1:]; len(f.topics) == 0 {
			f.topics = nil
		}
		f.mu.Unlock()
		t.fill()
	}
}

const (
	firstPause = 5 * time.Millisecond
	lastPause  = 500 * time.Millisecond
	// leaderAfter is how long a replica may be behind before the leader is asked instead.
	leaderAfter = 200 * time.Millisecond
	// leaderLimit is how long the leader is waited for where a replica does, too.
	leaderLimit = 300 * time.Millisecond
	// goneAfter is when a record has gone of which the leader does not know that there was one: it
	// has become the leader just now, or the stream has lost records.
	goneAfter = 5 * time.Second
)

// fill delivers some of what the stream has behind the last record. The caller gives it the role.
func (t *Topic) fill() {
	defer t.letGo()
	t.mu.Lock()
	r := t.rec
	at := *r
	if subscribed := t.subscribed; !subscribed || t.n.closed.Load() {
		t.mu.Unlock()
		return
	}
	r.doubt, r.odd = r.doubt && r.odd != nil, nil // odd comes first
	t.mu.Unlock()
	came, err := true, error(nil)
	switch {
	case !at.known:
		err = t.findBase()
	case at.odd != nil:
		err = t.deliverOdd(*at.odd)
	case at.doubt:
		err = t.findSeen()
	default:
		came, err = t.fillHole(at.last, at.seen, since(at.stuck))
	}
	if noStream(err) {
		_ = t.class.ensure(t.n.ctx)
	}
	if err != nil && !t.n.closed.Load() {
		t.n.log(slog.LevelInfo, "the stream does not answer", "topic", t.name, "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		r.doubt, r.odd = r.doubt || at.doubt, at.odd
		r.stuck = time.Time{}
	case came || r.seen <= r.last:
		r.stuck, r.pause = time.Time{}, 0
		return
	case r.stuck.IsZero():
		r.stuck = time.Now()
	}
	r.pause = min(max(2*r.pause, firstPause), lastPause)
}

// findBase learns how far the stream is: what comes behind that is delivered.
func (t *Topic) findBase() error {
	ctx, cancel := context.WithTimeout(t.n.ctx, leaderLimit)
	defer cancel()
	last, err := t.n.atLeader(ctx, t.class.stream, getRequest{Last: t.streamSubject()})
	if err != nil { // there is no leader
		last, err = t.n.lastOf(t.n.ctx, t.class.stream, t.streamSubject())
	}
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rec.known, t.rec.last = true, last.seq
	return nil
}

// findSeen learns how far the stream is: up to there records are to be delivered.
func (t *Topic) findSeen() error {
	last, err := t.n.atLeader(t.n.ctx, t.class.stream, getRequest{Last: t.streamSubject()})
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rec.seen = max(t.rec.seen, last.seq)
	return nil
}

// since returns the time since then, 0 if it is zero.
func since(then time.Time) time.Duration {
	if then.IsZero() {
		return 0
	}
	return time.Since(then)
}

// deliverOdd delivers a record of which the stream said that there is none before it, while one was
// delivered: that one was kept long enough, or all of them were lost.
func (t *Topic) deliverOdd(s stored) error {
	if err := t.class.ensure(t.n.ctx); err != nil { // which tells that they were
		return err
	}
	t.deliverRecord(s)
	return nil
}

// fillHole delivers some of the records behind last, of which there is seen, and reports whether it
// has come further. Of those there was none for the time stuck.
func (t *Topic) fillHole(last, seen uint64, stuck time.Duration) (came bool, err error) {
	// The last one comes with them if it is still there: then all behind it are, too.
	batch, left, err := t.batch(t.n.ctx, last, stuck)
	if err != nil {
		return false, err
	}
	if len(batch) == 0 || batch[len(batch)-1].seq <= last {
		gone, err := t.gone(t.n.ctx, seen, stuck)
		if gone {
			t.missed()
			t.mu.Lock()
			t.rec.last = max(t.rec.last, seen)
			t.rec.recent.restart(t.rec.last)
			t.mu.Unlock()
		}
		return gone, err
	}
	gap := batch[0].seq > last
	if last == 0 { // there was none before: what comes first is known only while there are few
		gap = len(batch)+left >= t.class.h.PerTopic
	}
	if gap {
		if err := t.class.ensure(t.n.ctx); err != nil { // it may be another one
			return false, err
		}
		t.missed()
	}
	for _, s := range batch {
		if s.seq > last {
			t.n.count.refilled.Add(1)
			t.deliverRecord(s)
		}
	}
	return true, nil
}

// batch returns records of the topic from a sequence on, and how many there are behind them. The
// first one is the record of that sequence, if it is still there. They come from a replica, or from
// the leader if the replica does not have that record, or had none behind it for the time stuck.
func (t *Topic) batch(ctx context.Context, from uint64, stuck time.Duration) (all []stored, left int, err error) {
	all, left, err = t.n.batchOf(ctx, t.class.stream, t.streamSubject(), from)
	switch {
	case err != nil || len(all) == 0 && from == 0 && stuck < leaderAfter:
		return nil, 0, err
	case left > 0 || len(all) > 0 && (all[len(all)-1].seq > from || stuck < leaderAfter):
		return all, left, nil
	}
	return t.n.leaderBatch(ctx, t.class.stream, t.streamSubject(), from)
}

// gone reports whether a record that the stream has had has gone, with all behind it. batch has had
// nothing behind an earlier one for the time stuck.
func (t *Topic) gone(ctx context.Context, seq uint64, stuck time.Duration) (bool, error) {
	if stuck < leaderAfter { // the leader was not asked
		return false, nil
	}
	given, err := t.n.lastSequence(ctx, t.class.stream)
	return err == nil && (given >= seq || stuck >= goneAfter), err
}

// acquire waits for the role. It reports false when stop is closed first.
func (t *Topic) acquire(stop <-chan struct{}) bool {
	t.mu.Lock()
	r := t.rec
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
