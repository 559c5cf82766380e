package cluster

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/rabbit-backend/tcpio"
)

// A Node is this process in the cluster. Its methods may be called from any goroutine.
//
// It has a few goroutines, whatever the numbers of topics, members and keys: one for each shard of
// the topics (GOMAXPROCS of them, 8 at most), one for control, one that watches the connection, one
// that tells others who is here when they ask, one for answers, one that announces members, and 16 at
// most that get records from streams, while some are missing. NATS delivers to the channels of these;
// nothing that blocks runs in its callbacks.
type Node struct {
	// Immutable.
	nc      *nats.Conn
	opts    Options
	id      string
	subj    subjects
	shards  []*shard
	seed    maphash.Seed
	control chan *nats.Msg
	syncs   chan *nats.Msg
	answers chan *nats.Msg
	status  chan nats.Status     // of runLink
	subs    []*nats.Subscription // the node's own
	out     *outbox
	opened  time.Time
	done    chan struct{}  // closed when Close begins
	over    sync.WaitGroup // goroutines

	runs    atomic.Uint64 // of topics' numbers
	members atomic.Uint64 // numbers of members
	leaving atomic.Bool   // Drain has begun
	closed  atomic.Bool
	heardAt atomic.Int64             // when its own heartbeat came back, in nanoseconds since opened; 0: not yet
	others  atomic.Pointer[[]string] // the nodes that are up, without this one
	alive   atomic.Pointer[[]string] // all that can be asked: those that are up or leaving, and this one
	count   counters
	frames  sync.Pool // *[]byte: room for a message that is sent

	keys     keys
	classes  classes
	fillers  fillers
	batches  chan struct{} // has a value for each batch that is got from a stream
	sessions *sessions     // nil without Options.Sessions
	requests requests
	link     link
	announce announcer
	tails    tails
	delay    delay

	ctx  context.Context // ends with done
	end  context.CancelFunc
	poke chan chan struct{} // has the control goroutine send a heartbeat

	// Owned by the control goroutine.
	peers      peers
	planned    time.Duration // from the last look who has not been heard of to the next
	number     uint64        // of the last heartbeat
	hello      bool          // the next heartbeat asks for the others'
	answered   time.Time
	connected  bool
	reconnects uint64
	lostAt     time.Time // the connection

	closing sync.Mutex // held by Close

	starting sync.Mutex // held while a goroutine is started that Close waits for; a leaf
	sealed   bool       // no more; guarded by starting
}

const (
	maxShards   = 8
	controlRoom = 4096 // messages
)

// Open makes this process a node of the cluster that opts.Name names. nc stays the caller's: its
// addresses, TLS, NKeys and credentials are options of nats.Connect, beside [NATSOptions]; close it
// after the node. Open refuses an nc with a reconnect buffer. A node needs the permission to publish
// and to subscribe to tcpio.NAME.>, and without sessions and classes nothing else: answers come there
// too, so it needs no inbox. For a stream, which is tcpio+NAME+=sessions or tcpio+NAME+CLASS with the
// names encoded, it needs to publish to these subjects, in an account with JetStream:
//
//	$JS.API.STREAM.CREATE.STREAM  $JS.API.STREAM.UPDATE.STREAM  $JS.API.STREAM.INFO.STREAM
//	$JS.API.DIRECT.GET.STREAM  $JS.API.DIRECT.GET.STREAM.>
//	$JS.API.STREAM.MSG.GET.STREAM  for a class
//
// In an encoded name letters, digits, - and _ stay, any other byte is = and two hex digits, and the
// empty name is =.
//
// Open blocks until the node has heard its own heartbeat through NATS, or ctx ends.
func Open(ctx context.Context, nc *nats.Conn, opts *Options) (*Node, error) {
	o, err := opts.withDefaults()
	if err == nil {
		err = checkConn(nc)
	}
	if err != nil {
		return nil, err
	}
	n := &Node{
		nc:        nc,
		opts:      o,
		id:        nuid.New().Next(),
		subj:      newSubjects(o.Name),
		seed:      maphash.MakeSeed(),
		control:   make(chan *nats.Msg, controlRoom),
		syncs:     make(chan *nats.Msg, controlRoom),
		answers:   make(chan *nats.Msg, controlRoom),
		out:       newOutbox(),
		opened:    time.Now(),
		done:      make(chan struct{}),
		connected: nc.IsConnected(),
		hello:     true,
		poke:      make(chan chan struct{}),
	}
	n.ctx, n.end = context.WithCancel(context.Background())
	n.reconnects = nc.Stats().Reconnects
	n.peers = peers{self: n.id, all: make(map[string]*peer)}
	n.others.Store(new([]string))
	n.alive.Store(&[]string{n.id})
	n.runs.Store(1)
	n.classes = classes{byToken: make(map[string]*Class), lasts: make(map[*Topic]uint64)}
	n.batches = make(chan struct{}, maxBatches)
	n.keys.init(n)
	if o.Sessions != nil {
		n.sessions = n.newSessions()
	}
	n.requests.init()
	n.link.now = make(chan struct{}, 1)
	n.announce.init()
	shards := min(runtime.GOMAXPROCS(0), maxShards)
	for i := range shards {
		n.shards = append(n.shards, newShard(n, i, max(o.Buffer/shards, 1)))
	}
	if err := n.subscribe(); err != nil {
		n.unsubscribe()
		return nil, fmt.Errorf("cluster: Open: %w", err)
	}
	n.status = nc.StatusChanged()
	n.link.up.Store(nc.IsConnected())
	for _, s := range n.shards {
		n.over.Go(s.run) // until done is closed, as are all of them
	}
	n.over.Go(n.runLink)
	n.over.Go(n.runControl)
	n.over.Go(n.runSync)
	n.over.Go(n.runAnswers)
	n.over.Go(n.runAnnouncer)
	for n.Ready() != nil {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			err := fmt.Errorf("cluster: Open: %w: %w", n.Ready(), ctx.Err())
			if last := nc.LastError(); last != nil { // permissions that are missing, say
				err = fmt.Errorf("%w (NATS: %w)", err, last)
			}
			n.Close()
			return nil, err
		}
	}
	return n, nil
}

// subscribe makes the node's own subscriptions.
func (n *Node) subscribe() error {
	sub := func(subject string, ch chan *nats.Msg) error {
		s, err := n.nc.ChanSubscribe(subject, ch)
		if err == nil {
			n.subs = append(n.subs, s)
		}
		return err
	}
	err := errors.Join(
		sub(n.subj.heartbeat(), n.control),
		sub(n.subj.node(n.id, "sync"), n.syncs),
		sub(n.subj.node(n.id, "re.*"), n.answers),
	)
	for _, s := range n.shards {
		err = errors.Join(err, sub(n.subj.node(n.id, s.inbox()), s.ch))
	}
	return err
}

func (n *Node) unsubscribe() {
	for _, s := range n.subs {
		_ = s.Unsubscribe() // fails if the connection has ended
	}
}

// ID returns the node's id, by which others know it in events and lists. It is another one at each
// Open.
func (n *Node) ID() string { return n.id }

// Events returns the channel of what concerns the node. It holds 64; the node never waits for its
// receiver: what finds no room is merged into the next event of its kind, with its counts, and
// follows when there is room. Close closes it.
func (n *Node) Events() <-chan Event { return n.out.ch }

// Ready returns nil when the node hears itself through the cluster: for health checks. Otherwise it
// says why not, with an error that matches ErrClosed also from the beginning of Drain, or
// ErrDisconnected.
func (n *Node) Ready() error {
	if n.closed.Load() {
		return ErrClosed
	}
	if n.leaving.Load() {
		return fmt.Errorf("%w: it is in Drain", ErrClosed)
	}
	if !n.link.up.Load() {
		return fmt.Errorf("%w: the connection is away", ErrDisconnected)
	}
	at := n.heardAt.Load()
	if at == 0 {
		return errors.New("cluster: the node has not heard its own heartbeat yet")
	}
	if silent := time.Since(n.opened) - time.Duration(at); silent >= missed*n.opts.Heartbeat {
		return fmt.Errorf("cluster: the node has not heard its own heartbeat for %v", silent.Round(time.Millisecond))
	}
	return nil
}

// Nodes returns the ids of the nodes that are up, this one first.
func (n *Node) Nodes() []string { return append([]string{n.id}, *n.others.Load()...) }

// Topic returns the topic of that name, the same for as long as it is in use or anybody holds it. It
// costs a few hundred bytes and nothing in NATS before the first Join, Watch or Members. A name may
// be any string; one that is too long fails at the first use, with ErrName. A topic that is only
// published to is remembered for 10 minutes.
func (n *Node) Topic(name string) *Topic {
	tok, err := token("Topic", name)
	if err != nil {
		return &Topic{n: n, name: name, err: err}
	}
	return n.topicAt("t."+tok, name)
}

// topicAt returns the topic of a place, which is its subject without the prefix.
func (n *Node) topicAt(place, name string) *Topic {
	return n.shardOf(place).topic(place, name)
}

func (n *Node) shardOf(place string) *shard {
	return n.shards[maphash.String(n.seed, place)%uint64(len(n.shards))]
}

// Close takes the node out of the cluster: others drop its members at once. It unsubscribes all that
// the node has subscribed; connections stay open and in their groups, and lose their keys and
// sessions. Close blocks until the node's goroutines have ended, for as long as NATS takes nothing
// (FlusherTimeout) and Watch's functions take. It must not be called from those. A second Close waits
// for the first and returns nil.
func (n *Node) Close() error {
	n.closing.Lock()
	defer n.closing.Unlock()
	if n.closed.Swap(true) {
		return nil
	}
	n.tails.send()
	n.tails.send()
	n.keys.close() // while the shards still answer what is under way
	if n.sessions != nil {
		n.sessions.close()
	}
	n.starting.Lock()
	n.sealed = true
	n.starting.Unlock()
	close(n.done)
	n.end()
	n.nc.RemoveStatusListener(n.status)
	n.over.Wait()
	n.number++
	_ = n.beat(flagLeaving | flagBye) // without NATS the others find out
	err := n.nc.FlushTimeout(n.opts.Heartbeat)
	n.unsubscribe()
	if n.sessions != nil {
		n.sessions.unsubscribe()
	}
	for _, s := range n.shards {
		s.close()
	}
	n.requests.failAll(ErrClosed)
	n.out.close()
	if err != nil && n.nc.IsConnected() {
		return fmt.Errorf("cluster: Close: the others may not have heard: %w", err)
	}
	return nil
}

// start starts a goroutine that Close waits for, and which must end when done is closed. It reports
// false when the node is closing.
func (n *Node) start(f func()) bool {
	n.starting.Lock()
	defer n.starting.Unlock()
	if n.sealed {
		return false
	}
	n.over.Go(f)
	return true
}

// log writes a line.
func (n *Node) log(level slog.Level, msg string, args ...any) {
	if n.opts.Logger != nil {
		n.opts.Logger.Log(context.Background(), level, "cluster: "+msg, append(args, "node", n.id)...)
	}
}

// malformed counts and logs a message that cannot be.
func (n *Node) malformed(m *nats.Msg, err error) {
	if n.count.malformed.Add(1)&1023 == 1 { // of many one line
		n.log(slog.LevelWarn, "message dropped", "subject", m.Subject, "error", err)
	}
}

// lost tells that a topic has missed messages of a node.
func (n *Node) lost(t *Topic, node string, count uint64) {
	n.count.lost.Add(count)
	n.out.put(Lost{Topic: t.name, Node: node, Count: count})
}

// refusal says why nothing new may begin.
func (n *Node) refusal(op string) error {
	if n.refuses() {
		return fmt.Errorf("cluster: %s: %w", op, ErrClosed)
	}
	return nil
}

// refuses reports whether the node takes nothing new: it is leaving, or has closed.
func (n *Node) refuses() bool { return n.closed.Load() || n.leaving.Load() }

// ended is the error for a connection that has ended.
func ended(op string, c *tcpio.Conn) error {
	return fmt.Errorf("cluster: %s: %w", op, endedCause(c))
}

func endedCause(c *tcpio.Conn) error { return fmt.Errorf("connection %v: %w", c, errConnClosed) }
