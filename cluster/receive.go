package cluster

import (
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
)

// receive takes a message of the topic. It runs on the shard's goroutine.
func (t *Topic) receive(k kind, r reader, m *nats.Msg) {
	s := r.stamp()
	if r.bad || s.run == 0 {
		t.n.malformed(m, &malformed{"number"})
		return
	}
	own := string(s.node) == t.n.id
	var changes []change
	if k == kindChange {
		var err error
		if changes, err = readChanges(r); err != nil {
			t.n.malformed(m, err)
			return
		}
	}
	t.mu.Lock()
	if !t.subscribed {
		t.mu.Unlock()
		return
	}
	var g gap
	fresh := false
	if k == kindTail {
		g = t.view.upTo(s)
	} else {
		g, fresh = t.view.heard(s, k == kindData)
	}
	var not *tcpio.Conn
	if own {
		not = t.exceptLocked(s)
	}
	if g.hole {
		t.view.doubt(string(s.node))
	}
	if fresh && k == kindChange && !own && !g.hole {
		t.tellLocked(string(s.node), t.view.change(s.node, changes))
	}
	outlets := t.outletsLocked()
	t.mu.Unlock()
	if g.hole {
		t.sh.ask(string(s.node), t)
	}
	if g.lost > 0 {
		t.n.lost(t, string(s.node), g.lost)
	}
	if fresh && k == kindData {
		t.deliver(r.p, not, outlets)
		if own {
			t.n.delay.end(t, s.seq)
		}
	}
}

// exceptLocked returns who does not get the message of this node's with that number, and forgets
// older ones.
func (t *Topic) exceptLocked(s stamp) (not *tcpio.Conn) {
	for len(t.excepts) > 0 && s.run == t.run && t.excepts[0].seq <= s.seq {
		if t.excepts[0].seq == s.seq {
			not = t.excepts[0].c
		}
		t.excepts = t.excepts[1:]
	}
	if len(t.excepts) == 0 {
		t.excepts = nil
	}
	return not
}

// deliver writes p to the members here.
func (t *Topic) deliver(p []byte, not *tcpio.Conn, outlets []*use) {
	t.n.count.received.Add(1)
	if len(p) == 0 {
		return
	}
	if to := t.group.Len(); to > 0 {
		before := t.group.Skipped()
		_, _ = t.group.WriteExcept(not, p)
		skipped := t.group.Skipped() - before
		if not != nil && t.group.Has(not) {
			to--
		}
		t.n.count.skipped.Add(skipped)
		t.n.count.delivered.Add(uint64(max(0, to-int(skipped))))
	}
	for _, o := range outlets {
		t.n.count.delivered.Add(uint64(max(0, t.n.writeOutlet(o.outlet, p, not))))
	}
}

// receivePart takes a node's part of the topic. What was not asked for, or no longer since the node
// is down, shows no members: nobody would take them out again.
func (t *Topic) receivePart(s stamp, p piece) {
	node := string(s.node)
	t.mu.Lock()
	if !t.subscribed {
		t.sh.answered(node, t, p.token, true)
		t.mu.Unlock()
		return
	}
	var g gap
	switch asked, newest := t.sh.answered(node, t, p.token, false); {
	case !asked:
		g = t.view.upTo(s)
	case newest: // otherwise it is the answer to an older question, perhaps of an older subscription
		if node == t.n.id {
			p.members = nil // they are known; the number is what counts
		}
		var d diff
		var done bool
		if g, d, done = t.view.part(s, p); done {
			t.sh.answered(node, t, p.token, true)
		}
		t.tellLocked(node, d)
	}
	t.mu.Unlock()
	if g.lost > 0 {
		t.n.lost(t, node, g.lost)
	}
}

// receiveNone takes the word of a node that it has nothing of the topic.
func (t *Topic) receiveNone(s stamp, token uint64) {
	node := string(s.node)
	t.mu.Lock()
	defer t.mu.Unlock()
	asked, newest := t.sh.answered(node, t, token, !t.subscribed)
	if !asked || !newest || !t.subscribed {
		return
	}
	if d, done := t.view.none(s.node, s.run); done {
		t.tellLocked(node, d)
		t.sh.answered(node, t, token, true)
	}
}

// maxPiece is the size of a piece of a part in bytes, without its last record.
const maxPiece = 256 << 10

// answer sends this node's part of the topic. Holding pub, it comes between two numbers.
func (t *Topic) answer(to string, token uint64) {
	t.pub.Lock()
	defer t.pub.Unlock()
	var members []change
	t.mu.Lock()
	if !t.n.leaving.Load() {
		members = make([]change, 0, len(t.members))
		for _, m := range t.members {
			num, record := m.split()
			members = append(members, change{num, true, record})
		}
	}
	t.mu.Unlock()
	for index := uint64(0); ; index++ {
		size, end := 0, 0
		for end < len(members) && size < maxPiece {
			size += len(members[end].record) + 8
			end++
		}
		p := piece{token: token, place: t.place, index: index, last: end == len(members), members: members[:end]}
		if t.n.publish(to, p.append(appendStamp(nil, kindPart, t.n.id, t.run, t.seq, t.data))) != nil {
			return // it will be asked for again
		}
		if members = members[end:]; p.last {
			return
		}
	}
}

// Members returns the members on all nodes, of whom Join had something to say, in no order. whole is
// false while a node's part is missing: for some milliseconds after the first Join, Watch or Members
// here, and after a doubt. It does not block, but for the subscription that a call without members
// here makes; that ends when there was no call for Linger.
func (t *Topic) Members() (all []Member, whole bool) {
	if t.err != nil || t.n.closed.Load() || t.subscribe() != nil {
		return nil, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.idleLocked()
	return t.membersLocked(), t.wholeLocked()
}

func (t *Topic) membersLocked() []Member {
	all := make([]Member, 0, len(t.members))
	for _, m := range t.members {
		all = append(all, unpackMember(t.n.id, m.record()))
	}
	for _, o := range t.view {
		if node := o.node.Value(); node != t.n.id {
			for _, m := range o.members {
				all = append(all, unpackMember(node, m.record()))
			}
		}
	}
	return all
}

func (t *Topic) wholeLocked() bool {
	if time.Since(t.n.opened) < t.n.opts.Heartbeat { // others may not have been heard yet
		return false
	}
	for _, node := range *t.n.others.Load() {
		if o := t.view.at(node); o == nil || !o.whole {
			return false
		}
	}
	return true
}

// all returns the members here.
func (t *Topic) all() map[*tcpio.Conn]struct{} {
	all := make(map[*tcpio.Conn]struct{}, t.group.Len())
	for c := range t.group.All() {
		all[c] = struct{}{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.others != nil {
		for c := range t.others.via {
			all[c] = struct{}{}
		}
	}
	return all
}

// len returns how many members there are here.
func (t *Topic) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.group.Len()
	if t.others != nil {
		n += t.others.group.Len()
	}
	return n
}
