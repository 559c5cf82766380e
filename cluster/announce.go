package cluster

import (
	"sync"
	"time"
)

// An announcer tells the other nodes who has come and gone here. Join and Leave only note it, so
// they do not wait for NATS, and what happens together goes out together.
type announcer struct {
	wake chan struct{}

	mu sync.Mutex // a leaf
	// Guarded by mu.
	topics []*Topic // that have something pending
}

// gather is how long the announcer waits for more before it tells.
const gather = 2 * time.Millisecond

func (a *announcer) init() { a.wake = make(chan struct{}, 1) }

// add notes that t has something pending. t's mu is held.
func (a *announcer) add(t *Topic) {
	a.mu.Lock()
	a.topics = append(a.topics, t)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default: // it will look
	}
}

func (a *announcer) take() []*Topic {
	a.mu.Lock()
	defer a.mu.Unlock()
	topics := a.topics
	a.topics = nil
	return topics
}

// runAnnouncer is the announcer's goroutine.
func (n *Node) runAnnouncer() {
	for {
		select {
		case <-n.announce.wake:
		case <-n.done:
			return
		}
		select {
		case <-time.After(gather):
		case <-n.done:
			return
		}
		for _, t := range n.announce.take() {
			t.announce()
		}
	}
}

// announce sends what is pending. What NATS does not take the others ask for when they hear of this
// node again.
func (t *Topic) announce() {
	t.pub.Lock()
	defer t.pub.Unlock()
	t.mu.Lock()
	pending := t.pending
	t.pending = nil
	t.mu.Unlock()
	if t.n.leaving.Load() {
		return // they think nobody is here
	}
	changes := make([]change, 0, len(pending))
	size := 0
	for _, c := range pending {
		changes = append(changes, c)
		if size += len(c.record) + 8; size >= maxPiece {
			t.sendChangesLocked(changes)
			changes, size = changes[:0], 0
		}
	}
	if len(changes) > 0 {
		t.sendChangesLocked(changes)
	}
}

func (t *Topic) sendChangesLocked(changes []change) {
	t.n.count.changes.Add(uint64(len(changes)))
	_ = t.sendLocked(kindChange, appendChanges(nil, changes)) // without NATS: see announce
}

// tails are the topics whose last number is to be told, since nothing has followed it: who has
// missed it learns that.
type tails struct {
	mu sync.Mutex // taken under a Topic's pub
	// Guarded by mu.
	topics []*Topic
}

// add notes that t's tail is to be told. t's pub is held.
func (ts *tails) add(t *Topic) {
	ts.mu.Lock()
	ts.topics = append(ts.topics, t)
	ts.mu.Unlock()
}

// send tells the tails of the topics in which nothing was published since the last call.
func (ts *tails) send() {
	ts.mu.Lock()
	topics := ts.topics
	ts.topics = nil
	ts.mu.Unlock()
	for _, t := range topics {
		t.sendTail()
	}
}

func (t *Topic) sendTail() {
	t.pub.Lock()
	defer t.pub.Unlock()
	if t.seq != t.seen { // it goes on
		t.seen = t.seq
		t.n.tails.add(t)
		return
	}
	t.listed = false
	// Without NATS the others ask when it is there again.
	_ = t.n.publish(t.subject, appendStamp(nil, kindTail, t.n.id, t.run, t.seq, t.data))
}
