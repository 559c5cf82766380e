package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// A resuming is a connection that catches up. Behind the point where it began to, records come to it
// instead of to the connection.
type resuming struct {
	// Guarded by the topic's mu.
	records []Record
	over    bool // there were too many: they have to be got from the stream
}

// maxResuming is how many records wait for a connection that catches up.
const maxResuming = 1024

func (g *resuming) addLocked(rec Record) {
	if g.over = g.over || len(g.records) >= maxResuming; g.over {
		g.records = nil
	} else {
		g.records = append(g.records, rec)
	}
}

// Resume makes c a member of a topic of a Class, and has write called with every record behind since
// before c gets what comes then: nothing twice, and nothing between missing. Of the zero Pos all that
// is kept is written. write is called on the caller's goroutine, in order; its error ends Resume, and
// c is no member then. To write by c's blocking Write is fine.
//
// whole is false when the stream no longer has all of it, or cannot tell: since is of another epoch,
// or its record is not kept any more. Then what is kept has been written, the first of it with
// Record.Gap set, and the client must load anew what it derives from earlier records. A client that
// was away for longer than Age gets false even when there was nothing.
//
// It blocks until c has caught up, which takes some milliseconds and as long as write does; c gets no
// message meanwhile. It fails with ErrNoQuorum, ErrDisconnected, ErrClosed, ctx's error, as Join
// does, and with errors.ErrUnsupported on a topic without a class. A c that is a member already is an
// error.
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
		t.rec.users--
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
	u := &upward{t: t, write: write, whole: true}
	if err := u.begin(ctx, since); err != nil {
		return u.whole, fmt.Errorf("cluster: Resume: %w", err)
	}
	for {
		if err := u.fromStream(ctx); err != nil {
			return u.whole, fmt.Errorf("cluster: Resume: %w", err)
		}
		joined, err := u.splice(ctx, func() error { return t.enter("Resume", f, c, as, who, record) })
		if err != nil {
			return u.whole, fmt.Errorf("cluster: Resume: %w", err)
		}
		if joined {
			return u.whole, nil
		}
	}
}

// An upward is how far a connection has caught up.
type upward struct {
	t     *Topic
	write func(Record) error
	at    uint64 // the last record that was written, or need not be
	gap   bool   // records behind at are missing
	whole bool
}

func (u *upward) put(rec Record) error {
	rec.Gap = rec.Gap || u.gap
	u.whole = u.whole && !rec.Gap
	u.gap, u.at = false, rec.Pos.Seq
	return u.write(rec)
}

// begin finds out whether all behind since is there.
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
		u.whole, u.gap = false, true
		return nil
	}
	u.at = since.Seq
	begun := time.Now()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		batch, _, err := u.t.n.batchOf(ctx, u.t.class.stream, u.t.streamSubject(), since.Seq)
		if err != nil {
			return err
		}
		if len(batch) > 0 {
			u.whole = batch[0].seq == since.Seq
			break
		}
		last, err := u.t.n.lastOf(ctx, u.t.class.stream, u.t.streamSubject())
		if err != nil {
			return err
		}
		if last.seq < since.Seq && time.Since(begun) > behindLimit {
			u.whole, u.at = false, 0 // it is not there any more, or never was
			break
		}
		if err := u.pause(ctx, wait); err != nil { // a replica is behind
			return err
		}
	}
	u.gap = !u.whole
	return nil
}

func (u *upward) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-u.t.n.done:
		return ErrClosed
	}
}

// upTo writes what the stream has, as far as a record that it is known to have.
func (u *upward) upTo(ctx context.Context, seq uint64) error {
	begun := time.Now()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		before := u.at
		if err := u.fromStream(ctx); err != nil || u.at >= seq {
			return err
		}
		if u.at > before {
			begun, wait = time.Now(), 5*time.Millisecond
		}
		if time.Since(begun) > behindLimit {
			u.at, u.gap = seq, true // it has gone
			return nil
		}
		if err := u.pause(ctx, wait); err != nil { // a replica is behind
			return err
		}
	}
}

// fromStream writes what the stream has behind at.
func (u *upward) fromStream(ctx context.Context) error {
	for {
		batch, left, err := u.t.n.batchOf(ctx, u.t.class.stream, u.t.streamSubject(), u.at+1)
		if err != nil {
			return err
		}
		for _, s := range batch {
			if err := u.put(u.t.recordOf(s, false)); err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
	}
}

// splice has the connection get what comes next. It reports false if more has to be got from the
// stream first.
func (u *upward) splice(ctx context.Context, enter func() error) (joined bool, err error) {
	t := u.t
	g := &resuming{}
	ahead := false // this connection has got more than the members here
	start := uint64(0)
	if err := u.withRole(ctx, func(last uint64) error {
		switch {
		case last == u.at:
			joined = true
			return enter()
		case last < u.at:
			ahead = true
		default: // from here on records come to g
			start = last
			t.mu.Lock()
			t.rec.resumes = append(t.rec.resumes, g)
			t.mu.Unlock()
		}
		return nil
	}); err != nil || joined {
		return joined, err
	}
	if ahead {
		return false, u.awaitLast(ctx)
	}
	defer func() {
		t.mu.Lock()
		t.rec.resumes = slices.DeleteFunc(t.rec.resumes, func(x *resuming) bool { return x == g })
		t.mu.Unlock()
	}()
	if err := u.upTo(ctx, start); err != nil {
		return false, err
	}
	for ctx.Err() == nil {
		t.mu.Lock()
		records, over := g.records, g.over
		g.records = nil
		t.mu.Unlock()
		if over {
			return false, nil
		}
		for _, rec := range records {
			if rec.Pos.Seq > u.at {
				if err := u.put(rec); err != nil {
					return false, err
				}
			}
		}
		if len(records) > 0 {
			continue
		}
		if err := u.withRole(ctx, func(last uint64) error {
			t.mu.Lock()
			more := len(g.records) > 0 || g.over
			t.mu.Unlock()
			if ahead = last < u.at; more || ahead {
				return nil
			}
			joined = true
			return enter()
		}); err != nil || joined {
			return err == nil, err
		}
		if ahead {
			if err := u.awaitLast(ctx); err != nil {
				return false, err
			}
		}
	}
	return false, ctx.Err()
}

// withRole calls f, which has the role, with the last record that was delivered.
func (u *upward) withRole(ctx context.Context, f func(last uint64) error) error {
	t := u.t
	if !t.acquire(ctx.Done()) {
		return errors.Join(ctx.Err(), t.n.refusal("Resume"))
	}
	defer t.letGo()
	t.mu.Lock()
	last, known, subscribed := t.rec.last, t.rec.known, t.subscribed
	t.mu.Unlock()
	if !known || !subscribed { // Close has unsubscribed it
		return ErrClosed
	}
	return f(last)
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
