package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
)

// Sessions says how Claim works. It needs JetStream of NATS 2.11 or newer, with a majority. Who has
// which key is kept on the servers' disks. What is kept survives that any of their processes are
// killed. When the stream is lost with all disks, sessions go on, and fences grow, as long as the
// clocks of the nodes do not go back. When most of the servers lose power at once, fences may come
// again that were given in the last two minutes, unless their jetstream has sync_interval: always.
type Sessions struct {
	// Replicas is how many servers keep the sessions: 1, 3 or 5; 0 is 3 in a NATS cluster and 1
	// without. The node that makes the stream decides.
	Replicas int
	// Lease is how long a node that JetStream's majority does not hear keeps its sessions: 15 s if 0,
	// since the election of a new leader takes JetStream 4 to 9 s; from 1 s to an hour.
	Lease time.Duration
	// Strict has Claim wait until the older connection is closed, or its node has lost its lease for
	// certain: two connections never have a key at once. A Claim may then take twice Lease when a
	// node is cut off or was killed. Without it Claim waits for the word that the older one was
	// told, a second at most, and in a partition two may have the key for Lease. Set it on all nodes or
	// on none: a node that claims without Strict does not wait for the others, whatever theirs is, and
	// the promise is none. Lease may be another on each node: whoever waits for a node waits for that
	// node's.
	Strict bool
	// KeepUnsure leaves a connection open whose node has lost its lease. It has its Unsure, and what
	// follows is the program's affair. Not together with Strict.
	KeepUnsure bool
}

const (
	defaultLease = 15 * time.Second
	minLease     = time.Second
	maxLease     = time.Hour
	maxClaims    = 64          // that wait for JetStream at once on a node, against a herd
	sessionsRoom = 16 << 10    // messages
	toldWait     = time.Second // for the word of the older one's node

	// A session's record is written again when it is half as old as it may get: what a node that was
	// killed has left is gone after that time.
	recordAge = 24 * time.Hour
	// A free record is there for whoever has read the one before. Seconds.
	freeTTL = "2"
)

func (s *Sessions) withDefaults() (*Sessions, error) {
	if s == nil {
		return nil, nil
	}
	d := *s
	if d.Lease == 0 {
		d.Lease = defaultLease
	}
	if err := checkReplicas("Options.Sessions.Replicas", d.Replicas); err != nil {
		return nil, err
	}
	if d.Lease < minLease || d.Lease > maxLease {
		return nil, fmt.Errorf("cluster: Options.Sessions.Lease is %v: it must be between %v and %v, or 0 for %v",
			d.Lease, minLease, maxLease, defaultLease)
	}
	if d.Strict && d.KeepUnsure {
		return nil, errors.New("cluster: Options.Sessions: Strict promises what KeepUnsure takes back")
	}
	return &d, nil
}

// A Session is a key that one connection has in the whole cluster. Its methods may be called from any
// goroutine.
type Session struct {
	// Immutable.
	ss    *sessions
	key   string
	token string
	conn  *tcpio.Conn
	claim uint64 // of this node's
	fence uint64

	// Guarded by sessions.mu.
	rev     uint64 // of its record, fence or more
	written time.Time

	over atomic.Bool // set once, under sessions.mu

	// Guarded by sessions.mu.
	alone   bool     // nobody else has the key for certain: Claim has returned it
	lost    bool     // it is over, and its connection is told so and closed, or will be
	waiting []func() // with Strict, who is to be called when that is closed
}

// Key returns the key.
func (s *Session) Key() string { return s.key }

// Conn returns the connection.
func (s *Session) Conn() *tcpio.Conn { return s.conn }

// Fence returns a number that grows with every Claim of the key, on whichever node. Give it to the
// database along with what you write, and have it refuse a smaller one than it has seen: what an
// older connection has under way then changes nothing. It is less than 2^53.
func (s *Session) Fence() uint64 { return s.fence }

// Held reports whether the connection has the key still, as far as this node knows: it was not
// replaced, has not closed, and the node has its lease.
func (s *Session) Held() bool { return !s.over.Load() && s.ss.leased() }

// Release gives the key back, at a logout say. The connection stays open, without the key, and gets
// neither Replaced nor Unsure for it. When the connection closes that happens by itself. It does not
// block, and does nothing on a session that is over.
func (s *Session) Release() {
	if s.ss.end(s) {
		s.ss.giveBack(s)
		s.ss.n.Unregister(s.key, s.conn)
	}
}

// sessions are those of a node. Records are messages of a stream, the last one of a key's subject
// says who has the key; its sequence is the fence. The stream publishes each record again when it
// has it, so that every node hears of every claim: who has the key then knows that it has lost it,
// also when the claimer cannot tell it, or does not live to.
type sessions struct {
	// Immutable.
	n      *Node
	opts   Sessions
	stream string
	admit  chan struct{} // has a value for each claim that waits for JetStream
	ch     chan *nats.Msg
	group  tcpio.Group // of the connections that have one, for its Left

	starting chan struct{} // has a value while the lease is being got for the first time
	started  atomic.Bool
	subs     []*nats.Subscription // set before started

	until    atomic.Int64 // when the lease ends here, in nanoseconds since the node was opened
	suspect  atomic.Bool  // the last renewal failed
	claims   atomic.Uint64
	checking atomic.Bool // a goroutine checks the records
	again    atomic.Bool // it is to start anew
	lapse    *time.Timer // ends the lease; set before started

	mu sync.Mutex // taken before a Conn's
	// Guarded by mu.
	byToken map[string]*Session
	byConn  map[*tcpio.Conn][]*Session
	leaving map[string][]*Session // with Strict, by token: those that were lost, until their connection is closed
	pending map[uint64]*claiming  // by claim
	taken   map[string]taking     // leases that this node has taken away
	closed  bool

	// Owned by the goroutine that renews.
	leaseRev uint64
	scanned  time.Time
}

// A claiming is a claim that is under way.
type claiming struct {
	token  string
	own    chan uint64 // the sequence of its record, if that was heard of before its acknowledgement
	newest uint64      // record of another for the key
}

func (n *Node) newSessions() *sessions {
	s := &sessions{
		n:        n,
		opts:     *n.opts.Sessions,
		stream:   "tcpio+" + encodeName(n.opts.Name) + "+=sessions", // no class has that name
		admit:    make(chan struct{}, maxClaims),
		ch:       make(chan *nats.Msg, sessionsRoom),
		starting: make(chan struct{}, 1),
		byToken:  make(map[string]*Session),
		byConn:   make(map[*tcpio.Conn][]*Session),
		leaving:  make(map[string][]*Session),
		pending:  make(map[uint64]*claiming),
		taken:    make(map[string]taking),
	}
	s.group.Left = s.left
	return s
}

// The subjects of sessions: records of keys, leases of nodes, records that the stream has.
func (s *sessions) keySubject(token string) string { return s.n.subj.prefix + "s.k." + token }
func (s *sessions) leaseSubject(id string) string  { return s.n.subj.prefix + "s.n." + id }
func (s *sessions) heardSubject() string           { return s.n.subj.prefix + "sr.*" }

// start makes the stream and gets the lease, at the first claim.
func (s *sessions) start(ctx context.Context) error {
	if s.started.Load() {
		return nil
	}
	select {
	case s.starting <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.starting }()
	if s.started.Load() {
		return nil
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	if len(s.subs) == 0 {
		for _, subject := range []string{s.heardSubject(), s.n.subj.node(s.n.id, "evict")} {
			sub, err := s.n.nc.ChanSubscribe(subject, s.ch)
			if err != nil {
				return sendCause(err)
			}
			s.subs = append(s.subs, sub)
		}
	}
	// Whoever claims after this node has its lease, and knows it, must be heard.
	flushing, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := s.n.nc.FlushWithContext(flushing); err != nil {
		return sendCause(err)
	}
	if err := s.renew(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.lapse = time.AfterFunc(s.opts.Lease, s.lapsed)
	s.armLocked()
	s.started.Store(true)
	s.n.over.Go(s.runLease) // until done is closed, as is run
	s.n.over.Go(s.run)
	return nil
}

// open makes the stream.
func (s *sessions) open(ctx context.Context) error {
	c := newStreamConfig(s.stream, s.n.replicasOr(s.opts.Replicas))
	c.Subjects = []string{s.n.subj.prefix + "s.>"}
	c.MaxMsgsPer, c.MaxAge, c.AllowMsgTTL = 1, recordAge, true
	c.RePublish = &republish{Src: s.n.subj.prefix + "s.k.*", Dest: s.n.subj.prefix + "sr.{{wildcard(1)}}"}
	// Fences grow too when all of JetStream was lost. A microsecond is less than a claim takes.
	c.FirstSeq = uint64(time.Now().UnixMicro())
	_, _, err := s.n.openStream(ctx, c)
	return err
}

// A record says who has a key: the node's id, empty for a free one, and which of its claims.
type record struct {
	node  string
	claim uint64
}

func (r record) append(dst []byte) []byte {
	return binary.AppendUvarint(append(append(dst, byte(kindRecord)), r.node...), r.claim)
}

func readRecord(p []byte) (rec record, err error) {
	k, r := kindOf(p)
	rec.node, rec.claim = string(r.take(idLen)), r.uint()
	if k != kindRecord || r.bad || len(r.p) > 0 || !validID(rec.node) {
		return record{}, &malformed{"record of a session"}
	}
	return rec, nil
}

// freeRecord is that of a key that nobody has.
var freeRecord = record{node: "----------------------"}

// giveBack says that nobody has the key of a session that is over. With Strict it does so only for
// one that was alone, and whose connection has closed or given it back: behind any other an owner
// before it, or its own connection, may still be there.
func (s *sessions) giveBack(se *Session) {
	s.mu.Lock()
	rev, nobody := se.rev, se.alone && !se.lost
	s.mu.Unlock()
	if nobody || !s.opts.Strict {
		s.free(se.token, rev)
	}
}

// free says that nobody has the key, unless its record has another revision by now. It is not
// waited for: what does not arrive is replaced by the next claim, or gone after recordAge.
func (s *sessions) free(token string, rev uint64) {
	m := &nats.Msg{Subject: s.keySubject(token), Header: nats.Header{}, Data: freeRecord.append(nil)}
	m.Header.Set(hdrExpected, strconv.FormatUint(rev, 10))
	m.Header.Set(hdrTTL, freeTTL)
	_ = s.n.publishMsg(m)
}

// end takes a session out of the tables. It reports false if it was over.
func (s *sessions) end(se *Session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endLocked(se)
}

func (s *sessions) endLocked(se *Session) bool {
	if se.over.Swap(true) {
		return false
	}
	delete(s.byToken, se.token)
	list := s.byConn[se.conn]
	for i, x := range list {
		if x == se {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(s.byConn, se.conn)
		s.group.Leave(se.conn)
	} else {
		s.byConn[se.conn] = list
	}
	return true
}

// loseLocked ends a session whose connection is to be told and closed; dismiss follows, without mu.
// It reports false if the session was over.
func (s *sessions) loseLocked(se *Session) bool {
	if !s.endLocked(se) {
		return false
	}
	if se.lost = true; s.opts.Strict {
		s.leaving[se.token] = append(s.leaving[se.token], se)
	}
	return true
}

// left releases the sessions of a connection that has closed, or left its groups.
func (s *sessions) left(c *tcpio.Conn) {
	s.mu.Lock()
	if s.group.Has(c) {
		s.mu.Unlock()
		return
	}
	list := append([]*Session(nil), s.byConn[c]...)
	s.mu.Unlock()
	for _, se := range list {
		se.Release()
	}
}

// establish makes the session one that this node has. It reports false if a newer one is known.
func (s *sessions) establish(se *Session, p *claiming) (older *Session, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	older = s.byToken[se.token]
	if p.newest > se.fence || older != nil && older.fence > se.fence {
		return nil, ErrReplaced
	}
	if !s.leased() {
		return nil, fmt.Errorf("%w: the lease has just ended", ErrNoQuorum)
	}
	switch {
	case older == nil:
	case older.conn == se.conn:
		s.endLocked(older)
	default:
		s.loseLocked(older)
	}
	s.group.Join(se.conn)
	if !s.group.Has(se.conn) {
		return older, errConnClosed
	}
	s.byToken[se.token] = se
	s.byConn[se.conn] = append(s.byConn[se.conn], se)
	return older, nil
}

// goodbye is how long a connection may take to pass on why it will be closed.
func (s *sessions) goodbye() time.Duration { return s.opts.Lease / 5 }

// close gives all keys back, and has no goroutine started any more.
func (s *sessions) close() {
	s.mu.Lock()
	s.closed = true
	lapse := s.lapse
	all := make([]*Session, 0, len(s.byToken))
	for _, se := range s.byToken {
		all = append(all, se)
	}
	s.mu.Unlock()
	if lapse != nil {
		lapse.Stop()
	}
	for _, se := range all {
		if s.end(se) {
			s.giveBack(se)
		}
	}
}

func (s *sessions) unsubscribe() {
	s.starting <- struct{}{} // whoever is at it fails, as the node is closed
	defer func() { <-s.starting }()
	for _, sub := range s.subs {
		_ = sub.Unsubscribe() // fails if the connection to NATS has ended
	}
}
