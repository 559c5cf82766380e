package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// Resume makes c a member of a topic of a Class, and has write called with every record behind
// since before c gets what comes then: nothing twice, and nothing between missing. Of the zero Pos
// all that is kept is written. write is called on the caller's goroutine, in order; its error ends
// Resume, and c is no member then. To write by c's blocking Write is fine.
//
// whole is false when the stream no longer has all of it, or cannot tell: since is of another
// epoch, or its record is not kept any more. Then what is kept has been written, the first of it
// with Record.Gap set, and the client must load anew what it derives from earlier records. A client
// that was away for longer than Age gets false even when there was nothing.
//
// It blocks until c has caught up, which takes some milliseconds and as long as write does; c gets
// no message meanwhile. Many may resume at one moment: what they have missed is got from the stream
// once. A stream that is lost is made anew, empty, and what comes in it has another Epoch.
//
// It fails with ErrNoQuorum, ErrDisconnected, ErrClosed, ctx's error, as Join does, and with
// errors.ErrUnsupported on a topic without a class. A c that is a member already is an error.
func (t *Topic) Resume(ctx context.Context, c *tcpio.Conn, who *Member, since Pos, write func(Record) error) (whole bool, err error) {
	return t.resume(ctx, nil, c, nil, who, since, write)
}

// ResumeAs is Resume for a member that takes messages in the format f, as JoinAs has it.
func (t *Topic) ResumeAs(ctx context.Context, f Format, c *tcpio.Conn, as any, who *Member, since Pos,
	write func(Record) error) (whole bool, err error) {
	if f == nil {
		return false, errors.New("cluster: ResumeAs: the format is nil")
	}
	return t.resume(ctx, f, c, as, who, since, write)
}

func (t *Topic) resume(ctx context.Context, f Format, c *tcpio.Conn, as any, who *Member, since Pos,
	write func(Record) error) (whole bool, err error) {
	record, err := t.checkJoin("Resume", c, who)
	if err != nil {
		return false, err
	}
	if t.class == nil {
		return false, fmt.Errorf("cluster: Resume: topic %q has no Class: %w", t.name, errors.ErrUnsupported)
	}
	if write == nil {
		return false, errors.New("cluster: Resume: write is nil")
	}
	t.mu.Lock()
	member := t.hasLocked(c)
	t.rec.users++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		if t.rec.users--; t.rec.users == 0 {
			t.rec.recent = recent{}
		}
		t.idleLocked()
		t.mu.Unlock()
	}()
	if member {
		return false, errors.New("cluster: Resume: the connection is a member already")
	}
	if err := t.subscribe(); err != nil {
		return false, err
	}
	if err := t.awaitBase(ctx, callLimit); err != nil {
		return false, fmt.Errorf("cluster: Resume: %w", err)
	}
	t.mu.Lock()
	t.rec.recent.begin(t.rec.last)
	t.mu.Unlock()
	u := &upward{t: t, write: write, whole: true, sure: true}
	err = u.begin(ctx, since)
	for joined := false; err == nil && !joined; {
		joined, err = u.step(ctx, func() error { return t.enter("Resume", f, c, as, who, record) })
	}
	if err != nil {
		err = fmt.Errorf("cluster: Resume: %w", err)
	}
	return u.whole, err
}

// An upward is how far a connection has caught up.
type upward struct {
	t     *Topic
	write func(Record) error
	at    uint64 // the last record that was written, or need not be; 0 is the beginning
	sure  bool   // that one is, or was, there
	gap   bool   // records behind at are missing
	whole bool

	stuck time.Time     // since when there is nothing behind at, and should be; zero: it is not so
	pause time.Duration // before the stream is asked again
	deaf  time.Time     // since when there is no stream; zero: there is one
}

// begin finds out whether since is of this stream.
func (u *upward) begin(ctx context.Context, since Pos) error {
	if since == (Pos{}) {
		return nil
	}
	if since.Epoch != *u.t.class.epoch.Load() {
		// Another node may have made the stream anew.
		if err := u.t.class.ensure(ctx); err != nil {
			return err
		}
	}
	if since.Epoch != *u.t.class.epoch.Load() {
		u.missed()
		return nil
	}
	u.at, u.sure = since.Seq, since.Seq == 0
	return nil
}

// missed notes that records behind at are missing.
func (u *upward) missed() { u.whole, u.gap = false, true }

// step has the connection come further: by the records that were delivered last, as soon as it is
// as far as these, before that by the stream's. At the end it enters.
func (u *upward) step(ctx context.Context, enter func() error) (joined bool, err error) {
	t := u.t
	t.mu.Lock()
	last, there := t.rec.last, t.subscribed && t.rec.known
	records, near := t.rec.recent.behind(u.at)
	t.mu.Unlock()
	switch {
	case !there: // Close has unsubscribed it
		return false, ErrClosed
	case !near:
		return false, u.fromStream(ctx, last)
	case len(records) > 0:
		u.sure = true
		return false, u.put(records)
	}
	u.sure = true
	if !t.acquire(ctx.Done()) {
		return false, errors.Join(ctx.Err(), t.n.refusal("Resume"))
	}
	defer t.letGo()
	t.mu.Lock()
	last, there = t.rec.last, t.subscribed
	t.mu.Unlock()
	if !there || last != u.at {
		return false, nil
	}
	return true, enter()
}

// put writes records.
func (u *upward) put(records []Record) error {
	for _, rec := range records {
		rec.Gap = rec.Gap || u.gap
		u.whole = u.whole && !rec.Gap
		u.gap, u.at = false, rec.Pos.Seq
		if err := u.write(rec); err != nil {
			return err
		}
	}
	return nil
}

// fromStream writes some records that the stream has behind at, which is before those that are kept
// here, or may be of nothing. last was delivered to the members.
func (u *upward) fromStream(ctx context.Context, last uint64) error {
	t := u.t
	t.mu.Lock()
	turn := t.rec.recent.turn
	t.mu.Unlock()
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-t.n.done:
		return ErrClosed
	}
	stuck := since(u.stuck)
	records, err := u.fetch(ctx, stuck)
	<-turn
	switch {
	case noStream(err):
		if u.deaf.IsZero() {
			u.deaf = time.Now()
		}
		if time.Since(u.deaf) < callLimit && t.class.ensure(ctx) == nil {
			return u.wait(ctx)
		}
		return err
	case err != nil:
		return err
	case len(records) > 0:
		u.stuck, u.pause, u.deaf = time.Time{}, 0, time.Time{}
		return u.put(records)
	}
	return u.nothing(ctx, last, stuck)
}

// fetch gets records from the stream, which had none for the time stuck.
func (u *upward) fetch(ctx context.Context, stuck time.Duration) (records []Record, err error) {
	t := u.t
	t.mu.Lock()
	records, near := t.rec.recent.behind(u.at)
	t.mu.Unlock()
	if near { // another connection has got them meanwhile
		u.sure = true
		return records, nil
	}
	batch, _, err := t.batch(ctx, u.at, stuck)
	if err != nil || len(batch) == 0 {
		return nil, err
	}
	u.sure = true
	for _, s := range batch {
		if s.seq > u.at {
			records = append(records, t.recordOf(s))
		}
	}
	if u.at > 0 && batch[0].seq > u.at { // the record at is not there any more
		u.missed()
		return records, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rec.recent.extend(u.at, records)
	return records, nil
}

// nothing is what to do if the stream has nothing behind at, nor at if that is not sure.
func (u *upward) nothing(ctx context.Context, last uint64, stuck time.Duration) error {
	if u.sure && u.at >= last { // this connection has got more than the members here
		return u.awaitLast(ctx)
	}
	want := last
	if !u.sure {
		want = u.at
	}
	gone, err := u.t.gone(ctx, want, stuck)
	switch {
	case err != nil:
		return err
	case !gone:
		if u.stuck.IsZero() {
			u.stuck = time.Now()
		}
		return u.wait(ctx)
	case !u.sure:
		u.missed()
		u.at, u.sure = 0, true
	case u.at > 0:
		u.missed()
		u.at = last
	default: // nothing of it is kept
		u.at = last
	}
	u.stuck, u.pause = time.Time{}, 0
	return nil
}

func (u *upward) wait(ctx context.Context) error {
	u.pause = min(max(2*u.pause, firstPause), lastPause)
	select {
	case <-time.After(u.pause):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-u.t.n.done:
		return ErrClosed
	}
}

// awaitLast waits until the members here have got what this connection has.
func (u *upward) awaitLast(ctx context.Context) error {
	t := u.t
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		t.mu.Lock()
		there := t.rec.last >= u.at
		if !there {
			t.rec.seen = max(t.rec.seen, u.at)
			t.fillLocked()
		}
		t.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		case <-t.n.done:
			return ErrClosed
		}
	}
}

// awaitBase waits until it is known how far the stream was when the topic was subscribed.
func (t *Topic) awaitBase(ctx context.Context, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		t.mu.Lock()
		known := t.rec.known
		if !known {
			t.fillLocked()
		}
		t.mu.Unlock()
		if known {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-timer.C:
			return fmt.Errorf("%w: %w within %v", ErrNoQuorum, errNoAnswer, limit)
		case <-ctx.Done():
			return ctx.Err()
		case <-t.n.done:
			return ErrClosed
		}
	}
}
