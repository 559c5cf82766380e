package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
)

var errConnClosed = net.ErrClosed

// Limits of a Member, in bytes.
const (
	MaxID   = 255
	MaxInfo = 1024
)

// A Member is what others see of a connection that has joined a topic.
type Member struct {
	// ID is whatever the program calls it, a user's name say, of MaxID bytes at most. Two
	// connections may have the same: both are in the list.
	ID string
	// Info is what else there is to say, MaxInfo bytes at most.
	Info []byte
	// Node is the id of the node that it is connected to. Join ignores it.
	Node string
}

// A Topic is a name with members on any nodes: a chat room, a document, a user's devices.
// [Node.Topic] returns it. Its methods may be called from any goroutine.
type Topic struct {
	// Immutable.
	n       *Node
	sh      *shard
	name    string
	place   string // the subject without the prefix
	subject string
	err     error // the name cannot be
	run     uint64
	class   *Class // nil unless the topic is recorded
	group   tcpio.Group

	kept atomic.Bool  // the shard holds it
	used atomic.Int64 // when it was published to last, in nanoseconds since the node was opened

	pub sync.Mutex // held while a number is given and NATS is called, which may block; taken before mu
	// Guarded by pub.
	seq    uint64 // the last number in run
	data   uint64 // how many of these were published, and not changes of members
	seen   uint64 // what it was when the tail was looked at last
	listed bool   // the tail is to be told
	sub    *nats.Subscription

	mu sync.Mutex // taken before a Conn's
	// Guarded by mu.
	subscribed bool
	idle       bool                 // it is in the shard's list of those that may be unsubscribed
	members    map[*tcpio.Conn]seat // those that others see
	pending    map[uint64]change    // of members, not announced yet
	excepts    []except             // of this node's messages that are under way
	others     *others              // members that are written to in another way
	view       view                 // what the other nodes have told, while subscribed
	watchers   []*watcher
	telling    bool      // a goroutine calls the watchers
	rec        *recorded // nil without a class
}

// An except is that message seq does not go to c.
type except struct {
	seq uint64
	c   *tcpio.Conn
}

// init completes a topic whose place and name are set.
func (t *Topic) init() {
	t.subject = t.n.subj.topic(t.place)
	t.run = t.n.runs.Add(1)
	t.group.Slow, t.group.Notice = t.n.opts.Slow, t.n.opts.Notice
	t.group.Left = t.left
	if t.class != nil {
		t.rec = new(recorded)
	}
}

// Name returns the topic's name.
func (t *Topic) Name() string { return t.name }

// Group returns the members on this node that take messages as plain bytes: for writes that stay
// here. Join and Leave of the topic, not of the group, are what makes members.
func (t *Topic) Group() *tcpio.Group { return &t.group }

// Join makes c a member; who is what others see of it, nil for nothing. Joining again changes that.
// What this node publishes after Join reaches c; what others publish does as soon as NATS has spread
// the interest, within milliseconds on a network. A member leaves by Leave, by Conn.LeaveGroups, and
// by itself when it closes.
//
// Join works without a connection to NATS: the others learn of c when it is there again. The first
// Join of a topic makes a subscription, which blocks for as long as NATS takes no bytes
// (FlusherTimeout). It fails with ErrName, ErrTooLong for what who has, ErrClosed, and an error that
// matches net.ErrClosed if c is closing.
func (t *Topic) Join(c *tcpio.Conn, who *Member) error { return t.join(nil, c, nil, who) }

// join is JoinAs; a nil f is the group.
func (t *Topic) join(f Format, c *tcpio.Conn, as any, who *Member) error {
	record, err := t.checkJoin("Join", c, who)
	if err != nil {
		return err
	}
	if t.class != nil {
		if err := t.subscribe(); err != nil {
			return err
		}
		// Without an answer c gets what comes from when there is one.
		_ = t.awaitBase(t.n.ctx, callLimit)
	}
	return t.enter("Join", f, c, as, who, record)
}

// checkJoin returns who packed, or why c cannot join.
func (t *Topic) checkJoin(op string, c *tcpio.Conn, who *Member) (record string, err error) {
	switch {
	case t.err != nil:
		return "", t.err
	case c == nil:
		return "", errors.New("cluster: " + op + ": the connection is nil")
	case who != nil:
		if record, err = packMember(who); err != nil {
			return "", err
		}
	}
	return record, t.n.refusal(op)
}

// enter makes c a member.
func (t *Topic) enter(op string, f Format, c *tcpio.Conn, as any, who *Member, record string) error {
	for {
		if err := t.n.refusal(op); err != nil {
			return err
		}
		if err := t.subscribe(); err != nil {
			return err
		}
		t.mu.Lock()
		if t.subscribed {
			break
		}
		t.mu.Unlock() // it has lingered long enough just now
	}
	defer t.mu.Unlock()
	if !t.enterLocked(f, c, as) {
		return ended(op, c)
	}
	m, seen := t.members[c]
	num, old := m.split()
	switch {
	case who == nil && seen:
		t.forgetLocked(c, m)
	case who != nil && !seen:
		if t.members == nil {
			t.members = make(map[*tcpio.Conn]seat)
		}
		num = t.n.members.Add(1)
		t.members[c] = newSeat(num, record)
		t.announceLocked(change{num, true, record})
		t.tellLocked(t.n.id, diff{joined: map[uint64]string{num: record}})
	case who != nil && old != record:
		t.members[c] = newSeat(num, record)
		t.announceLocked(change{num, true, record})
		t.tellLocked(t.n.id, diff{left: map[uint64]string{num: old}, joined: map[uint64]string{num: record}})
	}
	return nil
}

// Leave ends c's membership. On a connection that is no member it does nothing. A message that is
// being written may still reach c. It does not block.
func (t *Topic) Leave(c *tcpio.Conn) {
	if t.err != nil || c == nil {
		return
	}
	t.group.Leave(c)
	t.mu.Lock()
	if t.others != nil {
		t.others.group.Leave(c)
	}
	t.mu.Unlock()
	t.left(c)
}

// left drops what there is of c if it is no member any more. It is Left of the groups too.
func (t *Topic) left(c *tcpio.Conn) {
	if t.group.Slow == tcpio.CloseSlow && errors.Is(context.Cause(c.Context()), tcpio.ErrSlow) {
		t.n.count.slow.Add(1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hasLocked(c) {
		return // it has joined again
	}
	t.leaveOutletLocked(c)
	if m, ok := t.members[c]; ok {
		t.forgetLocked(c, m)
	}
	t.idleLocked()
}

// forgetLocked has c seen by nobody any more.
func (t *Topic) forgetLocked(c *tcpio.Conn, m seat) {
	num, record := m.split()
	if delete(t.members, c); len(t.members) == 0 {
		t.members = nil
	}
	t.announceLocked(change{num: num})
	t.tellLocked(t.n.id, diff{left: map[uint64]string{num: record}})
}

// announceLocked has the others told of a change. Until then a younger one of the same member takes
// its place.
func (t *Topic) announceLocked(c change) {
	if t.pending == nil {
		t.pending = make(map[uint64]change)
		t.n.announce.add(t)
	}
	t.pending[c.num] = c
}

// subscribe has the topic's messages come here. It blocks only to do so.
func (t *Topic) subscribe() error {
	t.mu.Lock()
	subscribed := t.subscribed
	t.mu.Unlock()
	if subscribed {
		return nil
	}
	t.pub.Lock()
	defer t.pub.Unlock()
	if t.sub != nil {
		return nil
	}
	sub, err := t.n.nc.ChanSubscribe(t.subject, t.sh.ch)
	if err != nil {
		return sendError("subscribe", err)
	}
	t.sub = sub
	t.mu.Lock()
	// What comes of this node's own messages is known from the first on.
	t.view = view{{node: unique.Make(t.n.id), last: mark{t.run, t.seq, t.data}, whole: true, based: true}}
	t.subscribed = true
	t.mu.Unlock()
	t.sh.keep(t)
	t.n.count.topics.Add(1)
	if t.n.closed.Load() { // Close may have passed already
		t.unsubscribeLocked()
		return fmt.Errorf("cluster: subscribe: %w", ErrClosed)
	}
	t.sh.askAll(t)
	return nil
}

// unsubscribeLocked undoes subscribe. The caller holds pub.
func (t *Topic) unsubscribeLocked() {
	t.mu.Lock()
	sub := t.sub
	t.sub, t.subscribed, t.view, t.excepts = nil, false, nil, nil
	if t.rec != nil {
		t.rec.unsubscribed()
	}
	t.mu.Unlock()
	if sub != nil {
		_ = sub.Unsubscribe() // fails if the connection has ended
		t.n.count.topics.Add(-1)
	}
}

// inUseLocked reports whether the topic's messages are for anybody here.
func (t *Topic) inUseLocked() bool {
	return t.group.Len() > 0 || len(t.watchers) > 0 || t.rec != nil && t.rec.users > 0 ||
		t.others != nil && t.others.group.Len() > 0
}

// idleLocked has the topic unsubscribed after Linger if it is in use no longer.
func (t *Topic) idleLocked() {
	if t.subscribed && !t.idle && !t.inUseLocked() {
		t.idle = true
		t.sh.linger(t)
	}
}

// endLinger unsubscribes a topic that has lingered.
func (t *Topic) endLinger() {
	t.pub.Lock()
	defer t.pub.Unlock()
	t.mu.Lock()
	t.idle = false
	used := t.inUseLocked()
	if !used {
		t.subscribed = false // Join and receive see it before the subscription has gone
	}
	t.mu.Unlock()
	if !used {
		t.unsubscribeLocked()
	}
}

// Publish sends p to every member on every node, those of this node too, by way of NATS: all members
// see this node's messages of the topic in one order. Each gets it once at most; what is lost on the
// way comes out as Lost at the node that has missed it.
//
// A nil error means that NATS took it, not that there is anybody. Without a connection, and when the
// node has not heard itself for 4 heartbeats (4 s at least), Publish fails at once with
// ErrDisconnected, and nobody has it. ErrTooLong: p has more than the server's
// max_payload (1 MiB by default) less 64 bytes. Publish blocks for as long as NATS takes no bytes,
// FlusherTimeout at most. On a topic of a Class it is [Topic.PublishRecord]. p is the caller's again
// afterwards.
func (t *Topic) Publish(p []byte) error { return t.publish("Publish", nil, p) }

// PublishExcept is Publish to every member but c, a connection of this node, from which p came, say.
// c need not be a member.
func (t *Topic) PublishExcept(c *tcpio.Conn, p []byte) error { return t.publish("PublishExcept", c, p) }

func (t *Topic) publish(op string, not *tcpio.Conn, p []byte) error {
	if t.err != nil {
		return t.err
	}
	if t.class != nil {
		_, err := t.record(t.n.ctx, op, "", not, p)
		return err
	}
	if t.n.closed.Load() {
		return fmt.Errorf("cluster: %s: %w", op, ErrClosed)
	}
	t.pub.Lock()
	defer t.pub.Unlock()
	t.sh.keep(t)
	if not != nil {
		t.mu.Lock()
		if t.hasLocked(not) {
			t.excepts = append(t.excepts, except{t.seq + 1, not})
		}
		t.mu.Unlock()
	}
	if err := t.sendLocked(kindData, p); err != nil {
		if not != nil {
			t.mu.Lock()
			t.excepts = slices.DeleteFunc(t.excepts, func(e except) bool { return e.seq == t.seq+1 })
			t.mu.Unlock()
		}
		return sendError(op, err)
	}
	t.n.count.published.Add(1)
	if t.sub != nil {
		t.n.delay.begin(t, t.seq)
	}
	return nil
}

// sendLocked gives a message its number and sends it. What NATS has not taken has used none. The
// caller holds pub.
func (t *Topic) sendLocked(k kind, body []byte) error {
	data := t.data
	if k == kindData {
		data++
	}
	frame, _ := t.n.frames.Get().(*[]byte)
	if frame == nil {
		frame = new([]byte)
	}
	b := append(appendStamp((*frame)[:0], k, t.n.id, t.run, t.seq+1, data), body...)
	err := t.n.publish(t.subject, b)
	if cap(b) <= 4<<10 {
		*frame = b
		t.n.frames.Put(frame)
	}
	if err != nil {
		return err
	}
	t.used.Store(int64(time.Since(t.n.opened)))
	t.seq, t.data = t.seq+1, data
	if !t.listed {
		t.listed = true
		t.n.tails.add(t)
	}
	return nil
}
