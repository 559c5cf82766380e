package cluster

import "slices"

// A Presence is a change of a topic's members, on all nodes.
type Presence struct {
	// Joined and Left are the members that have come and gone. One that has joined again with
	// another Info has left and joined.
	Joined, Left []Member
	// Down are the ids of nodes that are down, whose members are in Left: all of a node come in one
	// Presence.
	Down []string
}

// A watcher is a function that is to know the members, and what it does not know yet.
type watcher struct {
	// Guarded by the topic's mu.
	f            func(Presence)
	joined, left map[memberKey]string
	down         []string
	stopped      bool
}

type memberKey struct {
	node string
	num  uint64
}

// Watch has f called when members join and leave, beginning with those of the moment. Changes that
// undo each other before their call are left out, so an f that is slow is not called for ever more.
// Calls for a topic come one at a time, under no lock, on a goroutine that lives while there is
// something to say; f may block and may call any method; a panic in it is logged. No call begins
// after stop has returned; one may be running. Watch subscribes to the topic, as Join does. On a
// node that is closed f is not called, nor on a topic whose name is too long.
func (t *Topic) Watch(f func(Presence)) (stop func()) {
	if t.err != nil {
		return func() {}
	}
	w := &watcher{f: f}
	for subscribed := false; !subscribed; {
		if t.n.closed.Load() || t.subscribe() != nil {
			return func() {}
		}
		t.mu.Lock()
		if subscribed = t.subscribed; subscribed {
			t.watchLocked(w)
		}
		t.mu.Unlock()
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if !w.stopped {
			w.stopped = true
			t.watchers = slices.DeleteFunc(slices.Clone(t.watchers), func(x *watcher) bool { return x == w })
			t.idleLocked()
		}
	}
}

func (t *Topic) watchLocked(w *watcher) {
	for _, m := range t.members {
		num, record := m.split()
		w.note(t.n.id, diff{joined: map[uint64]string{num: record}})
	}
	for _, o := range t.view {
		if node := o.node.Value(); node != t.n.id {
			var d diff
			for _, m := range o.members {
				d.join(m.split())
			}
			w.note(node, d)
		}
	}
	t.watchers = append(slices.Clone(t.watchers), w)
	t.startTellingLocked()
}

// note adds to what w is to be told.
func (w *watcher) note(node string, d diff) {
	for num, record := range d.left {
		key := memberKey{node, num}
		if _, untold := w.joined[key]; untold {
			delete(w.joined, key)
			continue
		}
		if w.left == nil {
			w.left = make(map[memberKey]string)
		}
		w.left[key] = record
	}
	for num, record := range d.joined {
		key := memberKey{node, num}
		if old, untold := w.left[key]; untold && old == record {
			delete(w.left, key)
			continue
		}
		if w.joined == nil {
			w.joined = make(map[memberKey]string)
		}
		w.joined[key] = record
	}
}

// take returns what w is to be told; false if there is nothing.
func (w *watcher) take() (p Presence, ok bool) {
	for key, record := range w.left {
		p.Left = append(p.Left, unpackMember(key.node, record))
	}
	for key, record := range w.joined {
		p.Joined = append(p.Joined, unpackMember(key.node, record))
	}
	p.Down = w.down
	w.joined, w.left, w.down = nil, nil, nil
	return p, len(p.Left)+len(p.Joined) > 0
}

// tellLocked has the watchers told of a change of a node's members.
func (t *Topic) tellLocked(node string, d diff) {
	if d.empty() || len(t.watchers) == 0 {
		return
	}
	for _, w := range t.watchers {
		w.note(node, d)
	}
	t.startTellingLocked()
}

// tellDownLocked is tellLocked for a node that is down.
func (t *Topic) tellDownLocked(node string, d diff) {
	if d.empty() {
		return
	}
	for _, w := range t.watchers {
		if !slices.Contains(w.down, node) {
			w.down = append(slices.Clone(w.down), node)
		}
	}
	t.tellLocked(node, d)
}

func (t *Topic) startTellingLocked() {
	if !t.telling {
		t.telling = t.n.start(t.tell) // until everything is told, or the node is closed
	}
}

// tell calls the watchers until they know everything.
func (t *Topic) tell() {
	ended := false
	defer func() {
		if !ended { // a watcher has ended the goroutine
			t.n.start(t.tell)
		}
	}()
	for {
		f, p := t.nextToTell()
		if f == nil {
			ended = true
			return
		}
		t.n.guard("Topic.Watch", func() { f(p) })
	}
}

// nextToTell returns a watcher's function and what it does not know; nil if there is none.
func (t *Topic) nextToTell() (func(Presence), Presence) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range t.watchers {
		if t.n.closed.Load() {
			break
		}
		if p, ok := w.take(); ok {
			return w.f, p
		}
	}
	t.telling = false
	return nil, Presence{}
}
