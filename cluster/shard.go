package cluster

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"weak"

	"github.com/nats-io/nats.go"
)

// A shard has a part of the topics and keys: their messages come on its channel, and its goroutine
// takes them one after the other.
type shard struct {
	// Immutable.
	n     *Node
	index int
	ch    chan *nats.Msg
	wake  chan struct{}

	mu sync.Mutex // taken under a Topic's
	// Guarded by mu.
	topics  map[string]held // by place
	asks    map[string]*asked
	token   uint64 // of the last request for parts
	lingers []lingering
	swept   time.Time

	// Owned by the goroutine.
	overflow bool // the channel was full: something may have been dropped
}

// A held is a topic, and whether it is held here: otherwise it is there for as long as anybody holds
// it, so that there are no two of a name.
type held struct {
	weak weak.Pointer[Topic]
	hold *Topic
}

// An asked is what a node has been asked for, or is to be asked for: for each topic the oldest
// request whose answer counts.
type asked struct {
	topics map[*Topic]uint64
	fresh  []*Topic  // not asked for yet
	came   bool      // an answer has, since the last request
	again  time.Time // when to ask again
}

type lingering struct {
	t     *Topic
	until time.Time
}

const (
	maxRequest = 32 << 10         // bytes of a request for parts, without its last place
	keepTopic  = 10 * time.Minute // how long the numbers of a topic are kept that is only published to
)

func newShard(n *Node, index, room int) *shard {
	return &shard{
		n:      n,
		index:  index,
		ch:     make(chan *nats.Msg, room),
		wake:   make(chan struct{}, 1),
		topics: make(map[string]held),
		asks:   make(map[string]*asked),
	}
}

// inbox is where the shard gets parts.
func (s *shard) inbox() string { return inboxOf(s.index) }

func inboxOf(shard int) string { return "s" + strconv.Itoa(shard) }

// run takes messages, and asks for parts.
func (s *shard) run() {
	over := false
	defer func() {
		if !over { // user code has ended the goroutine
			s.n.over.Go(s.run)
		}
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case m := <-s.ch:
			waiting := len(s.ch)
			if waiting >= cap(s.ch)-1 { // it may have been full, when NATS' client drops
				s.overflow = true
			}
			if w := uint64(waiting) + 1; w > s.n.count.maxWait.Load() {
				s.n.count.maxWait.Store(w) // of several shards about the greatest
			}
			s.receive(m)
			if s.overflow && len(s.ch) <= cap(s.ch)/2 {
				s.overflow = false
				s.n.count.overflows.Add(1)
				s.doubtAll()
			}
		case <-s.wake:
			timer.Reset(s.sendAsks())
		case <-timer.C:
			timer.Reset(s.sendAsks())
		case <-s.n.done:
			over = true
			return
		}
	}
}

// receive takes one message.
func (s *shard) receive(m *nats.Msg) {
	place, ok := strings.CutPrefix(m.Subject, s.n.subj.prefix)
	if !ok {
		s.n.malformed(m, &malformed{"subject"})
		return
	}
	if m.Header.Get(hdrSequence) != "" { // a stream has sent it
		if t := s.lookup(place); t != nil && t.class != nil {
			t.receiveRecord(m)
		}
		return
	}
	k, r := kindOf(m.Data)
	switch k {
	case kindLast:
		if t := s.lookup(place); t != nil && t.class != nil {
			t.receiveLast(r, m)
		}
	case kindData, kindChange, kindTail:
		if t := s.lookup(place); t != nil {
			t.receive(k, r, m)
		}
	case kindPost, kindAsk:
		s.n.keys.receive(k, r, place, m)
	case kindPart, kindNone:
		s.receivePart(k, r, m)
	case kindProbe:
		s.n.keys.receiveProbe(m)
	default:
		s.n.malformed(m, &malformed{"kind"})
	}
}

func (s *shard) receivePart(k kind, r reader, m *nats.Msg) {
	st := r.stamp()
	p, err := readPiece(r)
	if err != nil || st.run == 0 {
		s.n.malformed(m, &malformed{"part of a topic"})
		return
	}
	switch t := s.lookup(p.place); {
	case t == nil: // it is wanted no longer
	case k == kindNone:
		t.receiveNone(st, p.token)
	default:
		t.receivePart(st, p)
	}
}

// topic returns the topic of a place, a new one if nobody has it.
func (s *shard) topic(place, name string) *Topic { return s.topicOf(place, name, nil) }

// topicOf is topic for one of a class.
func (s *shard) topicOf(place, name string, class *Class) *Topic {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.topics[place].weak.Value(); t != nil {
		return t
	}
	t := &Topic{n: s.n, sh: s, place: place, name: name, class: class}
	t.init()
	s.topics[place] = held{weak: weak.Make(t)}
	return t
}

// lookup returns the topic of a place if there is one.
func (s *shard) lookup(place string) *Topic {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topics[place].weak.Value()
}

// keep has the shard hold t.
func (s *shard) keep(t *Topic) {
	if t.kept.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.kept.Store(true)
	s.topics[t.place] = held{weak.Make(t), t}
}

// subscribed returns the topics that are.
func (s *shard) subscribed() []*Topic {
	s.mu.Lock()
	all := make([]*Topic, 0, len(s.topics))
	for _, h := range s.topics {
		if h.hold != nil {
			all = append(all, h.hold)
		}
	}
	s.mu.Unlock()
	n := 0
	for _, t := range all {
		t.mu.Lock()
		if t.subscribed {
			all[n] = t
			n++
		}
		t.mu.Unlock()
	}
	return all[:n]
}

// linger has t unsubscribed after Linger, if nobody has used it by then.
func (s *shard) linger(t *Topic) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lingers = append(s.lingers, lingering{t, time.Now().Add(s.n.opts.Linger)})
}

// sweep unsubscribes topics that have lingered, and once in a while lets go of those that are not
// used any more.
func (s *shard) sweep(now time.Time) {
	s.mu.Lock()
	n := 0
	for n < len(s.lingers) && !s.lingers[n].until.After(now) {
		n++
	}
	over := s.lingers[:n:n]
	if s.lingers = s.lingers[n:]; len(s.lingers) == 0 {
		s.lingers = nil
	}
	var old []*Topic
	if now.Sub(s.swept) >= keepTopic/10 {
		s.swept = now
		old = s.unusedLocked(now)
	}
	s.mu.Unlock()
	for _, l := range over {
		l.t.endLinger()
	}
	for _, t := range old {
		s.release(t)
	}
}

// unusedLocked returns topics that were not published to for long, and forgets those that are gone.
func (s *shard) unusedLocked(now time.Time) (old []*Topic) {
	since := now.Sub(s.n.opened) - keepTopic
	for place, h := range s.topics {
		switch {
		case h.hold == nil && h.weak.Value() == nil:
			delete(s.topics, place)
		case h.hold != nil && time.Duration(h.hold.used.Load()) < since:
			old = append(old, h.hold)
		}
	}
	return old
}

// release lets go of t if it is not subscribed.
func (s *shard) release(t *Topic) {
	t.pub.Lock() // nobody subscribes or publishes meanwhile
	defer t.pub.Unlock()
	if t.sub != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.kept.Store(false)
	s.topics[t.place] = held{weak: weak.Make(t)}
}

// ask has a node asked for its part of t, by a request that is younger than now.
func (s *shard) ask(node string, t *Topic) {
	s.mu.Lock()
	s.askLocked(node, t)
	s.mu.Unlock()
	s.wakeUp()
}

// askAll has all nodes asked for their part of t. Of this one the numbers are known.
func (s *shard) askAll(t *Topic) {
	s.mu.Lock()
	for _, node := range *s.n.alive.Load() {
		if node != s.n.id {
			s.askLocked(node, t)
		}
	}
	s.mu.Unlock()
	s.wakeUp()
}

// askLocked does nothing for a node that is down: when it comes back it will be asked.
func (s *shard) askLocked(node string, t *Topic) {
	if !slices.Contains(*s.n.alive.Load(), node) {
		return
	}
	a := s.asks[node]
	if a == nil {
		a = &asked{topics: make(map[*Topic]uint64)}
		s.asks[node] = a
	}
	next := s.token + 1
	if a.topics[t] != next {
		a.topics[t] = next
		a.fresh = append(a.fresh, t)
	}
}

func (s *shard) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default: // it will wake
	}
}

// answered reports whether a node is asked for t, and whether the answer to the request with that
// token is young enough; with done set such an answer ends the asking. A topic's mu is held.
func (s *shard) answered(node string, t *Topic, token uint64, done bool) (isAsked, newest bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.asks[node]
	if a == nil {
		return false, false
	}
	want, isAsked := a.topics[t]
	if !isAsked {
		return false, false
	}
	a.came = true
	if newest = token >= want; newest && done {
		if delete(a.topics, t); len(a.topics) == 0 {
			delete(s.asks, node)
		}
	}
	return true, newest
}

// sendAsks sends what is to be asked for, once more what was not answered, and returns when to do so
// again.
func (s *shard) sendAsks() time.Duration {
	retry := s.n.opts.Heartbeat / 4
	now := time.Now()
	next := time.Hour
	requests := make(map[string][]*Topic)
	s.mu.Lock()
	s.token++
	token := s.token
	for node, a := range s.asks {
		switch {
		case a.again.IsZero() || len(a.fresh) > 0 && len(a.fresh) == len(a.topics):
			requests[node] = keysOf(a.topics)
		case !now.Before(a.again) && !a.came:
			requests[node] = keysOf(a.topics)
		default:
			requests[node] = a.fresh
		}
		if a.again.IsZero() || !now.Before(a.again) {
			a.again, a.came = now.Add(retry), false
		}
		a.fresh = nil
		next = min(next, max(a.again.Sub(now), time.Millisecond))
	}
	s.mu.Unlock()
	for node, topics := range requests {
		s.request(node, token, topics)
	}
	return next
}

func keysOf(topics map[*Topic]uint64) []*Topic {
	all := make([]*Topic, 0, len(topics))
	for t := range topics {
		all = append(all, t)
	}
	return all
}

// request asks a node for its parts of topics. What is not sent is asked for again.
func (s *shard) request(node string, token uint64, topics []*Topic) {
	for len(topics) > 0 {
		q := syncRequest{node: s.n.id, shard: uint64(s.index), token: token}
		size := 0
		for len(topics) > 0 && size < maxRequest {
			q.places = append(q.places, topics[0].place)
			size += len(topics[0].place) + 2
			topics = topics[1:]
		}
		s.n.count.asks.Add(uint64(len(q.places)))
		_ = s.n.publish(s.n.subj.node(node, "sync"), q.append(nil))
	}
}

// doubt has nodes asked for their parts of all topics.
func (s *shard) doubt(nodes []string) {
	if len(nodes) == 0 {
		return
	}
	for _, t := range s.subscribed() {
		t.mu.Lock()
		for _, node := range nodes {
			if t.subscribed && node != s.n.id {
				t.view.doubt(node)
			}
		}
		t.mu.Unlock()
		s.mu.Lock()
		for _, node := range nodes {
			s.askLocked(node, t)
		}
		s.mu.Unlock()
		if t.class != nil {
			t.lookAgain()
		}
	}
	s.wakeUp()
}

// doubtAll has everybody asked: the channel was full.
func (s *shard) doubtAll() {
	s.doubt(*s.n.alive.Load())
}

// dontAsk asks only nodes that are alive.
func (s *shard) dontAsk(alive []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for node := range s.asks {
		if !slices.Contains(alive, node) {
			delete(s.asks, node)
		}
	}
}

// drop takes the members of nodes that are down out of all topics.
func (s *shard) drop(nodes []string) {
	for _, t := range s.subscribed() {
		t.mu.Lock()
		for _, node := range nodes {
			if t.subscribed {
				t.tellDownLocked(node, t.view.drop(node))
			}
		}
		t.mu.Unlock()
	}
}

// forget forgets the numbers of nodes that were down for long.
func (s *shard) forget(nodes []string) {
	if len(nodes) == 0 {
		return
	}
	for _, t := range s.subscribed() {
		t.mu.Lock()
		for _, node := range nodes {
			t.view.forget(node)
		}
		t.mu.Unlock()
	}
}

// close unsubscribes all topics.
func (s *shard) close() {
	for _, t := range s.subscribed() {
		t.pub.Lock()
		t.mu.Lock()
		t.subscribed = false
		t.mu.Unlock()
		t.unsubscribeLocked()
		t.pub.Unlock()
	}
}
