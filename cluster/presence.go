package cluster

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"
	"unique"
)

// What a node knows of the others, as pure state: no lock, no clock, no network. The time is an
// argument.

// An origin is what has come of a topic from one node.
type origin struct {
	node unique.Handle[string] // one string for all topics
	last mark                  // of the last message; 0: none has come
	// based says that a part has come since the subscription: from then on NATS has had the interest
	// everywhere, and a hole in the numbers is a loss.
	based bool
	// whole says that members is the node's part, as of its last message. It becomes so by a part
	// that was asked for, and ends with every doubt.
	whole   bool
	members roster
	coming  *pieces // of a part that has not come whole
}

// pieces are the first of a part.
type pieces struct {
	members []change
	next    uint64 // the piece to come
}

// A roster is the members of a node: those that have joined, by number. It takes half of a map's
// memory.
type roster []seat

// A seat is a member's number, as a varint, and its record, "" while it is being taken out. It
// takes a third less than a struct of both.
type seat string

func newSeat(num uint64, record string) seat {
	p := binary.AppendUvarint(make([]byte, 0, binary.MaxVarintLen64+len(record)), num)
	return seat(append(p, record...))
}

func (s seat) split() (num uint64, record string) {
	num, size := binary.Uvarint([]byte(s[:min(len(s), binary.MaxVarintLen64)]))
	return num, string(s[size:])
}

func (s seat) num() uint64 {
	num, _ := s.split()
	return num
}

func (s seat) record() string {
	_, record := s.split()
	return record
}

func (r roster) find(num uint64) (i int, found bool) {
	return slices.BinarySearchFunc(r, num, func(s seat, num uint64) int { return cmp.Compare(s.num(), num) })
}

// record returns num's, "" if it is not there.
func (r roster) record(num uint64) string {
	if i, found := r.find(num); found {
		return r[i].record()
	}
	return ""
}

// set puts a member in, or another record in its place. Numbers grow, so it is mostly the last.
func (r *roster) set(num uint64, record string) {
	i, found := r.find(num)
	if !found {
		if n := len(*r); n == cap(*r) { // there are many rosters: no room for as many again
			*r = append(make(roster, 0, n+n/8+1), *r...)
		}
		*r = slices.Insert(*r, i, "")
	}
	(*r)[i] = newSeat(num, record)
}

// compact takes out those that have no record any more.
func (r *roster) compact() {
	*r = slices.DeleteFunc(*r, func(s seat) bool { return s.record() == "" })
	if len(*r) < cap(*r)/4 {
		*r = slices.Clone(*r)
	}
}

// A view is what has come of a topic, by node. It is a list, which has a quarter of a map's memory:
// nodes are few, and topics many.
type view []*origin

// at returns what has come from a node, nil if nothing has.
func (v view) at(node string) *origin {
	for _, o := range v {
		if o.node.Value() == node {
			return o
		}
	}
	return nil
}

func (v *view) of(node []byte) *origin {
	o := v.at(string(node))
	if o == nil {
		o = &origin{node: unique.Make(string(node))}
		*v = append(*v, o)
	}
	return o
}

// forget drops all that is known of a node.
func (v *view) forget(node string) {
	*v = slices.DeleteFunc(*v, func(o *origin) bool { return o.node.Value() == node })
}

// A gap is what has not come before a message.
type gap struct {
	hole bool   // something has not: the node's members may be others
	lost uint64 // published messages that have not
}

// heard takes the number of a message that has come, which was published or is a change of members.
// fresh is false for one that comes too late: behind one with a higher number.
func (v *view) heard(s stamp, published bool) (g gap, fresh bool) {
	o := v.of(s.node)
	if !o.last.before(s.mark) {
		return g, false
	}
	before := s.mark
	before.seq--
	if published {
		before.data = less(s.data, 1)
	}
	g = o.gap(before)
	o.last = s.mark
	return g, true
}

// upTo takes the number of a node's last message, which comes behind that one.
func (v *view) upTo(s stamp) (g gap) {
	o := v.of(s.node)
	if o.last.before(s.mark) {
		g = o.gap(s.mark)
		o.last = s.mark
	}
	return g
}

// gap returns what is between the last message and m, if it should have come.
func (o *origin) gap(m mark) gap {
	switch {
	case !o.based:
		return gap{}
	case m.run == o.last.run:
		return gap{m.seq != o.last.seq, less(m.data, o.last.data)}
	}
	// A new run: what was before the end of the old one is told by tails, or not known any more.
	return gap{m.seq > 0, m.data}
}

// before reports whether m comes before n, of the same node.
func (m mark) before(n mark) bool { return m.run < n.run || m.run == n.run && m.seq < n.seq }

// less returns a - b, or 0.
func less(a, b uint64) uint64 { return a - min(a, b) }

// A diff is how a node's members have changed: records by number; a member that is another than
// before has left and joined.
type diff struct{ left, joined map[uint64]string }

func (d *diff) leave(num uint64, record string) {
	if d.left == nil {
		d.left = make(map[uint64]string)
	}
	d.left[num] = record
}

func (d *diff) join(num uint64, record string) {
	if d.joined == nil {
		d.joined = make(map[uint64]string)
	}
	d.joined[num] = record
}

func (d *diff) empty() bool { return len(d.left) == 0 && len(d.joined) == 0 }

// change takes changes that a node has told. As long as its part is not whole they mean nothing.
func (v *view) change(node []byte, changes []change) (d diff) {
	o := v.of(node)
	if !o.whole {
		return d
	}
	gone := false
	for _, c := range changes {
		old := o.members.record(c.num)
		if old == c.record {
			continue // known, or not here anyway
		}
		if old != "" {
			d.leave(c.num, old)
		}
		if c.joined {
			d.join(c.num, c.record)
			o.members.set(c.num, c.record)
		} else {
			o.members.set(c.num, "")
			gone = true
		}
	}
	if gone {
		o.members.compact()
	}
	return d
}

// part takes a piece of a part that was asked for. done says that the part is whole.
func (v *view) part(s stamp, p piece) (g gap, d diff, done bool) {
	g = v.upTo(s)
	o := v.of(s.node)
	if o.last.run != s.run || o.last.seq != s.seq { // it is older than what has come
		return g, d, false
	}
	if p.index == 0 {
		o.coming = new(pieces)
	}
	c := o.coming
	if c == nil || p.index != c.next {
		return g, d, false
	}
	c.next++
	c.members = append(c.members, p.members...)
	if !p.last {
		return g, d, false
	}
	members := make(roster, 0, len(c.members))
	for _, m := range c.members {
		members = append(members, newSeat(m.num, m.record))
	}
	slices.SortFunc(members, func(a, b seat) int { return cmp.Compare(a.num(), b.num()) })
	o.coming = nil
	return g, o.become(members), true
}

// none takes the word of a node that it has nothing of the topic, and that its newest run of
// numbers, in any topic, is run. It means nothing if a younger one has come.
func (v *view) none(node []byte, run uint64) (d diff, done bool) {
	o := v.of(node)
	if o.last.run > run {
		return d, false
	}
	o.last = mark{run: run} // the topic's next run is a younger one
	return o.become(nil), true
}

func (o *origin) become(members roster) (d diff) {
	for _, m := range o.members {
		if num, record := m.split(); members.record(num) != record {
			d.leave(num, record)
		}
	}
	for _, m := range members {
		if num, record := m.split(); o.members.record(num) != record {
			d.join(num, record)
		}
	}
	o.members, o.whole, o.based = members, true, true
	return d
}

// doubt says that a node's part may not be right any more. It stays until another comes.
func (v view) doubt(node string) {
	if o := v.at(node); o != nil {
		o.whole = false
	}
}

// drop takes a node's members out. The numbers stay: should it come back, they show what was lost.
func (v view) drop(node string) (d diff) {
	o := v.at(node)
	if o == nil {
		return d
	}
	for _, m := range o.members {
		d.leave(m.split())
	}
	o.whole, o.members, o.coming = false, nil, nil
	return d
}

// A peer is a node as its heartbeats show it.
type peer struct {
	number uint64
	every  time.Duration
	heard  time.Time
	state  peerState
}

// peerState is whether a node's members count:
//
//	up --not heard of for 4 heartbeats--> down --heard again--> up
//	up, down --says that it leaves--> leaving --not heard of, says goodbye--> down
//	down --not heard of for keepPeer--> forgotten
type peerState uint8

const (
	peerUp peerState = iota
	peerDown
	peerLeaving
)

// keepPeer is how long a node that is down is remembered: coming back within that time it shows
// what was lost meanwhile.
const keepPeer = 10 * time.Minute

// peers is what a node knows of all nodes, itself among them. It is the control goroutine's.
type peers struct {
	self string
	all  map[string]*peer
	last time.Time // of the last tick
}

// A report is what follows from a heartbeat or a tick.
type report struct {
	up      []string // have come, or come back: ask them for everything
	down    []string // have gone: drop their members
	doubts  []string // may have said more than has come: ask them for everything
	forget  []string // will not be thought of any more
	changed bool     // somebody's state has
	silent  bool     // those that are down have not said so
	late    bool     // this node itself was held up: what it knows is old
}

// hear takes a heartbeat that has come at now.
func (ps *peers) hear(b beat, now time.Time) (r report) {
	p := ps.all[b.node]
	if p == nil {
		p = &peer{state: peerDown, number: b.number - 1}
		ps.all[b.node] = p
	} else if b.number <= p.number {
		return r // it has been overtaken
	}
	state := peerUp
	switch {
	case b.flags&flagBye != 0:
		state = peerDown
	case b.flags&flagLeaving != 0:
		state = peerLeaving
	}
	switch {
	case p.state == peerUp && state != peerUp:
		r.down = []string{b.node}
	case p.state != peerUp && state == peerUp:
		r.up = []string{b.node}
	case b.number != p.number+1 && state != peerDown:
		r.doubts = []string{b.node}
	}
	r.changed = p.state != state
	p.state, p.number, p.heard = state, b.number, now
	p.every = time.Duration(b.every) * time.Millisecond
	return r
}

// next returns when to look again who has not been heard of: when somebody is down by then unless
// he is heard, and grace has passed, but not after due.
func (ps *peers) next(due time.Time, grace time.Duration) time.Time {
	for id, p := range ps.all {
		if at := p.heard.Add(missed*p.every + grace); id != ps.self && p.state != peerDown && at.Before(due) {
			due = at
		}
	}
	return due
}

// tick looks who has not been heard of. every is after what time since the last call it was to be
// called, beat this node's heartbeat.
func (ps *peers) tick(now time.Time, every, beat time.Duration) (r report) {
	if late := now.Sub(ps.last) - every; !ps.last.IsZero() && late > beat/2 {
		for _, p := range ps.all { // what they have said meanwhile is not heard yet
			p.heard = p.heard.Add(late)
		}
		r.late = late > (missed-1)*beat
	}
	ps.last = now
	for id, p := range ps.all {
		silent := now.Sub(p.heard)
		switch {
		case id == ps.self:
		case p.state != peerDown && silent >= missed*p.every:
			if p.state == peerUp {
				r.down, r.silent = append(r.down, id), true
			}
			p.state, r.changed = peerDown, true
		case p.state == peerDown && silent >= keepPeer:
			delete(ps.all, id)
			r.forget = append(r.forget, id)
		}
	}
	return r
}

// in returns the nodes that are in one of the states.
func (ps *peers) in(states ...peerState) []string {
	ids := make([]string, 0, len(ps.all))
	for id, p := range ps.all {
		if slices.Contains(states, p.state) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
