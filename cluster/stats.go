package cluster

import (
	"fmt"
	"io"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// counters are a node's, since Open.
type counters struct {
	topics                                       atomic.Int64
	published, received, delivered               atomic.Uint64
	skipped, slow, lost, changes, asks           atomic.Uint64
	posts, malformed, overflows, late            atomic.Uint64
	recorded, refilled                           atomic.Uint64
	claims, conflicts, evicted, unsure, noQuorum atomic.Uint64
	nodesDown, disconnects, downNanos, maxWait   atomic.Uint64
}

// Stats are what a node counts. Those whose metric ends in _total grow from 0 at Open.
type Stats struct {
	Nodes   int `metric:"nodes" help:"Nodes that are up, this one too."`
	Topics  int `metric:"topics" help:"Topics that are subscribed to."`
	Members int `metric:"members" help:"Members of topics on this node; a connection counts once for each topic."`
	Keys    int `metric:"keys" help:"Keys that connections of this node have."`

	Published uint64 `metric:"published_total" help:"Messages that NATS took from this node."`
	Received  uint64 `metric:"received_total" help:"Messages of topics that came in, this node's own too."`
	Delivered uint64 `metric:"delivered_total" help:"Messages that members of this node took."`
	Skipped   uint64 `metric:"skipped_total" help:"Messages that slow members of this node missed."`
	Slow      uint64 `metric:"closed_slow_total" help:"Memberships of connections that were closed since they were slow."`
	Lost      uint64 `metric:"lost_total" help:"Messages that topics of this node missed."`
	Posts     uint64 `metric:"posts_total" help:"Posts and asks of this node."`
	Changes   uint64 `metric:"presence_changes_total" help:"Changes of members that this node announced."`
	Asks      uint64 `metric:"presence_asks_total" help:"Parts of topics that this node asked for."`
	Malformed uint64 `metric:"malformed_total" help:"Messages that were dropped since they could not be."`

	Recorded uint64 `metric:"recorded_total" help:"Records that this node has published."`
	Refilled uint64 `metric:"refilled_total" help:"Records that were got from their stream, since they had not come."`

	Sessions  int    `metric:"sessions" help:"Keys that connections of this node have by Claim."`
	Claims    uint64 `metric:"claims_total" help:"Claims of this node that succeeded."`
	Conflicts uint64 `metric:"claim_conflicts_total" help:"Times that a claim of this node was tried again, since another had written or a replica was behind."`
	Evicted   uint64 `metric:"evictions_total" help:"Sessions of this node that a newer claim has ended."`
	Unsure    uint64 `metric:"unsure_total" help:"Sessions of this node that ended since its lease did."`
	NoQuorum  uint64 `metric:"no_quorum_total" help:"Claims of this node that failed since JetStream had no majority."`

	Waiting   int    `metric:"queue_length" help:"Messages that wait for their local fan-out."`
	MaxWait   uint64 `metric:"queue_length_max" help:"The most that have waited in one shard."`
	Overflows uint64 `metric:"queue_overflows_total" help:"Times that a queue was full."`

	NodesDown    uint64        `metric:"nodes_down_total" help:"Nodes that have gone."`
	HeldUp       uint64        `metric:"held_up_total" help:"Times that this node did not run for 3 heartbeats."`
	Disconnects  uint64        `metric:"disconnects_total" help:"Times that the connection to NATS was lost."`
	Disconnected time.Duration `metric:"disconnected_seconds_total" help:"Time without a connection to NATS."`

	// FanOut is the time from Publish to the end of the fan-out here, of Sampled messages of this
	// node, together.
	FanOut  time.Duration `metric:"fan_out_seconds_sum" help:"Time from Publish to the end of the fan-out on the same node, of the messages that were measured."`
	Sampled uint64        `metric:"fan_out_seconds_count" help:"Messages of which that was measured."`
}

// Stats returns what the node has counted. It looks at every topic and key, so call it every few
// seconds at most. It works after Close.
func (n *Node) Stats() Stats {
	s := Stats{
		Nodes:        1 + len(*n.others.Load()),
		Topics:       int(n.count.topics.Load()),
		Published:    n.count.published.Load(),
		Received:     n.count.received.Load(),
		Delivered:    n.count.delivered.Load(),
		Skipped:      n.count.skipped.Load(),
		Slow:         n.count.slow.Load(),
		Lost:         n.count.lost.Load(),
		Posts:        n.count.posts.Load(),
		Changes:      n.count.changes.Load(),
		Asks:         n.count.asks.Load(),
		Malformed:    n.count.malformed.Load(),
		MaxWait:      n.count.maxWait.Load(),
		Overflows:    n.count.overflows.Load(),
		Recorded:     n.count.recorded.Load(),
		Refilled:     n.count.refilled.Load(),
		Claims:       n.count.claims.Load(),
		Conflicts:    n.count.conflicts.Load(),
		Evicted:      n.count.evicted.Load(),
		Unsure:       n.count.unsure.Load(),
		NoQuorum:     n.count.noQuorum.Load(),
		NodesDown:    n.count.nodesDown.Load(),
		HeldUp:       n.count.late.Load(),
		Disconnects:  n.count.disconnects.Load(),
		Disconnected: time.Duration(n.count.downNanos.Load()),
	}
	for _, sh := range n.shards {
		s.Waiting += len(sh.ch)
		for _, t := range sh.subscribed() {
			s.Members += t.len()
		}
	}
	if n.sessions != nil {
		n.sessions.mu.Lock()
		s.Sessions = len(n.sessions.byToken)
		n.sessions.mu.Unlock()
	}
	n.keys.mu.Lock()
	for _, k := range n.keys.byToken {
		if len(k.conns) > 0 {
			s.Keys++
		}
	}
	n.keys.mu.Unlock()
	s.FanOut, s.Sampled = n.delay.sum()
	return s
}

// WriteMetrics writes s in Prometheus' text format, the names with tcpio_cluster_ in front: for a
// handler of /metrics, behind what the module metrics writes for the listener.
func (s Stats) WriteMetrics(w io.Writer) error {
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		name := "tcpio_cluster_" + tag.Get("metric")
		kind, value := "gauge", fmt.Sprint(v.Field(i).Interface())
		if d, ok := v.Field(i).Interface().(time.Duration); ok {
			value = fmt.Sprint(d.Seconds())
		}
		if v.Field(i).Kind() != reflect.Int && name != "tcpio_cluster_queue_length_max" {
			kind = "counter"
		}
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %s\n", name, tag.Get("help"), name, kind, name, value); err != nil {
			return err
		}
	}
	return nil
}

// A delay measures how long a message takes from Publish to the end of the fan-out here, one
// message at a time.
type delay struct {
	running atomic.Pointer[sample]

	mu sync.Mutex // a leaf
	// Guarded by mu.
	total time.Duration
	count uint64
}

type sample struct {
	t     *Topic
	seq   uint64
	begun time.Time
}

func (d *delay) begin(t *Topic, seq uint64) {
	if d.running.Load() == nil {
		d.running.CompareAndSwap(nil, &sample{t, seq, time.Now()})
	}
}

func (d *delay) end(t *Topic, seq uint64) {
	s := d.running.Load()
	if s == nil || s.t != t || s.seq > seq {
		return
	}
	if s.seq == seq {
		d.mu.Lock()
		d.total += time.Since(s.begun)
		d.count++
		d.mu.Unlock()
	}
	d.running.CompareAndSwap(s, nil)
}

// forget gives up on a message that does not come.
func (d *delay) forget() {
	if s := d.running.Load(); s != nil && time.Since(s.begun) > 10*time.Second {
		d.running.CompareAndSwap(s, nil)
	}
}

func (d *delay) sum() (time.Duration, uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.total, d.count
}
