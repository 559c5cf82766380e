package cluster

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// An Event is what concerns the node: a [NodeUp], [NodeDown], [Disconnected], [Connected],
// [Isolated] or [Lost].
type Event interface {
	fmt.Stringer
	event()
}

// NodeUp says that nodes have come, or have come back after they were down.
type NodeUp struct{ Nodes []string }

// NodeDown says that nodes have gone: each has said goodbye, or has not been heard of for 4 of its
// heartbeats. Their members are in no list any more.
type NodeDown struct{ Nodes []string }

// Disconnected says that the node has lost its connection to NATS, Times times since the last
// event. Publish and Post fail with ErrDisconnected until Connected.
type Disconnected struct{ Times int }

// Connected says that the connection to NATS is there again, after Down.
type Connected struct{ Down time.Duration }

// Isolated says that all other nodes are down at once: this one may be cut off from them.
type Isolated struct{}

// Lost says that members here have missed messages. Of a node that was down for more than 10
// minutes nothing is known any more: its NodeUp has no Lost.
type Lost struct {
	Topic string // its name; "" when Several topics are meant
	Node  string // that published them; "" when several are meant
	Count uint64 // messages that a topic has not got here; each may have had several members
	// Several says that this sums up losses in several topics, since Events was not received.
	Several bool
}

func (NodeUp) event()       {}
func (NodeDown) event()     {}
func (Disconnected) event() {}
func (Connected) event()    {}
func (Isolated) event()     {}
func (Lost) event()         {}

// String describes the event in a log.
func (e NodeUp) String() string { return fmt.Sprintf("NodeUp(%v)", e.Nodes) }

// String describes the event in a log.
func (e NodeDown) String() string { return fmt.Sprintf("NodeDown(%v)", e.Nodes) }

// String describes the event in a log.
func (e Disconnected) String() string { return fmt.Sprintf("Disconnected(%d times)", e.Times) }

// String describes the event in a log.
func (e Connected) String() string { return fmt.Sprintf("Connected(after %v)", e.Down) }

// String describes the event in a log.
func (e Isolated) String() string { return "Isolated" }

// String describes the event in a log.
func (e Lost) String() string {
	return fmt.Sprintf("Lost(%d of topic %q from node %q)", e.Count, e.Topic, e.Node)
}

const (
	eventRoom = 64  // of the channel
	lostRoom  = 256 // pairs of a topic and a node whose losses wait apart
)

// An outbox is the channel of events and what has found no room in it, merged. Filling it never
// blocks.
type outbox struct {
	ch chan Event

	mu sync.Mutex
	// Guarded by mu. At most one event of each kind waits, and those of lost.
	closed       bool
	down, up     []string // delivered in this order: a node is in both if it is up again
	isolated     bool
	disconnected int
	connected    *Connected
	lost         map[[2]string]uint64
	others       uint64 // losses that found no room in lost
}

func newOutbox() *outbox { return &outbox{ch: make(chan Event, eventRoom)} }

// put delivers ev, or merges it into what waits.
func (o *outbox) put(ev Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.mergeLocked(ev)
	o.flushLocked()
}

// flush delivers what waits, as far as there is room.
func (o *outbox) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.flushLocked()
	}
}

// close closes the channel behind what found room.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	close(o.ch)
}

func (o *outbox) mergeLocked(ev Event) {
	switch ev := ev.(type) {
	case NodeDown:
		for _, id := range ev.Nodes {
			if i := slices.Index(o.up, id); i >= 0 {
				o.up = slices.Delete(o.up, i, i+1)
			}
			if !slices.Contains(o.down, id) {
				o.down = append(o.down, id)
			}
		}
	case NodeUp:
		for _, id := range ev.Nodes {
			if !slices.Contains(o.up, id) {
				o.up = append(o.up, id)
			}
		}
	case Isolated:
		o.isolated = true
	case Disconnected:
		o.disconnected += ev.Times
		o.connected = nil
	case Connected:
		o.connected = &ev
	case Lost:
		key := [2]string{ev.Topic, ev.Node}
		if o.lost == nil {
			o.lost = make(map[[2]string]uint64)
		}
		if _, there := o.lost[key]; !there && len(o.lost) >= lostRoom {
			o.others += ev.Count
		} else {
			o.lost[key] += ev.Count
		}
	}
}

func (o *outbox) flushLocked() {
	room := func(ev Event) bool {
		select {
		case o.ch <- ev:
			return true
		default:
			return false
		}
	}
	if o.disconnected > 0 && room(Disconnected{o.disconnected}) {
		o.disconnected = 0
	}
	if o.connected != nil && o.disconnected == 0 && room(*o.connected) {
		o.connected = nil
	}
	if len(o.down) > 0 && room(NodeDown{o.down}) {
		o.down = nil
	}
	if o.isolated && room(Isolated{}) {
		o.isolated = false
	}
	if len(o.up) > 0 && len(o.down) == 0 && room(NodeUp{o.up}) {
		o.up = nil
	}
	for key, count := range o.lost {
		if !room(Lost{Topic: key[0], Node: key[1], Count: count}) {
			return
		}
		delete(o.lost, key)
	}
	if o.others > 0 && room(Lost{Count: o.others, Several: true}) {
		o.others = 0
	}
}
