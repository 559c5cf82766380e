// Package rooms is a chat on many nodes: what examples/chat and examples/webchat have in a hub of
// one process, by package cluster.
//
// A room is a recorded topic: its lines are kept in a stream, in one order for all, and have
// positions. Who was away gives the position of the last line it has, to whichever node, and gets
// what follows: nothing twice and nothing missing, or word that something is. Who is there is the
// topic's presence. A name is a key that one connection has. A line that is said again, since its
// sender does not know whether it was heard, has the same id, and is recorded once.
//
// All of that needs JetStream: without it there is no history, no order for all, and no resuming,
// so Open fails.
package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/cluster/embedded"
	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

// Config is that of Open. All nodes have the same, and one of Dir and URL.
type Config struct {
	Dir     string        // processes on one machine find each other in it: see embedded.Options.Dir
	URL     string        // of an external NATS server with JetStream
	History int           // lines that a room keeps
	Grace   time.Duration // how long one whose connection was lost may be away
	Log     *slog.Logger
}

// A Chat is this process's part of the chat.
type Chat struct {
	// Immutable.
	node  *cluster.Node
	class *cluster.Class
	nc    *nats.Conn
	stop  func() // ends nc, and the server if there is one here
	grace time.Duration
	log   *slog.Logger
	lists *nats.Subscription
	ctx   context.Context // ends with Close
	end   context.CancelFunc
	over  sync.WaitGroup

	epoch atomic.Pointer[string] // that of the stream's positions

	mu sync.Mutex // taken before a room's
	// Guarded by mu.
	rooms  map[string]*Room // by chatline.FoldName
	others map[string]list  // by node
	closed bool
}

// A list is what a node has said of its rooms.
type list struct {
	Node  string         `json:"node"`
	Rooms map[string]int `json:"rooms"` // names to the connections there

	at time.Time
}

const (
	listSubject = "tcpio.chat.rooms" // a cluster's node has all of tcpio.chat.>
	listEvery   = time.Second
)

// ErrTaken says that somebody else has the name.
var ErrTaken = errors.New("that name is taken")

// Open joins the chat. It blocks until this process is a node, or ctx ends.
func Open(ctx context.Context, cfg Config) (*Chat, error) {
	c := &Chat{
		grace: cfg.Grace, log: cfg.Log,
		rooms: make(map[string]*Room), others: make(map[string]list),
	}
	if err := c.connect(ctx, cfg); err != nil {
		return nil, err
	}
	c.ctx, c.end = context.WithCancel(context.Background())
	var err error
	if c.node, err = cluster.Open(ctx, c.nc, &cluster.Options{
		Name: "chat", Sessions: &cluster.Sessions{}, Logger: cfg.Log,
	}); err != nil {
		c.stop()
		return nil, err
	}
	if err := c.open(ctx, cfg.History); err != nil {
		c.Close()
		return nil, err
	}
	c.over.Go(c.run) // until Close
	return c, nil
}

func (c *Chat) connect(ctx context.Context, cfg Config) error {
	switch {
	case (cfg.Dir == "") == (cfg.URL == ""):
		return errors.New("one of -cluster and -nats is needed, and not both")
	case cfg.Dir != "":
		// One of the processes runs the server, with what is stored in the directory. When it ends,
		// another one does.
		s, err := embedded.Open(ctx, &embedded.Options{Dir: cfg.Dir, Store: true})
		if err != nil {
			return err
		}
		c.nc, c.stop = s.Conn(), func() { s.Close() }
	default:
		nc, err := nats.Connect(cfg.URL, cluster.NATSOptions()...)
		if err != nil {
			return err
		}
		c.nc, c.stop = nc, nc.Close
	}
	return nil
}

// open has the stream made, and learns the epoch of its positions. JetStream may be without a
// leader at first.
func (c *Chat) open(ctx context.Context, history int) (err error) {
	for {
		if c.class == nil {
			c.class, err = c.node.Class(ctx, "rooms", cluster.History{PerTopic: history, Encode: c.encode})
		}
		if c.class != nil {
			var pos cluster.Pos
			// No room has this name.
			if pos, err = c.class.Topic("").PublishRecord(ctx, "", []byte("opened")); err == nil {
				c.epoch.Store(&pos.Epoch)
				break
			}
		}
		if !errors.Is(err, cluster.ErrNoQuorum) && !errors.Is(err, cluster.ErrDisconnected) || ctx.Err() != nil {
			return fmt.Errorf("the chat needs NATS with JetStream (nats-server -js): %w", err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	c.lists, err = c.nc.Subscribe(listSubject, c.hear)
	return err
}

// Drain tells the users, each with a delay of its own, to connect to another node, and waits until
// they have gone or ctx ends.
func (c *Chat) Drain(ctx context.Context, over time.Duration) { _ = c.node.Drain(ctx, over) }

// Ready is for health checks: nil while the node hears itself through NATS.
func (c *Chat) Ready() error { return c.node.Ready() }

// Close leaves the chat. Connections stay open: they are the caller's.
func (c *Chat) Close() {
	c.mu.Lock()
	c.closed = true
	all := make([]*Room, 0, len(c.rooms))
	for _, r := range c.rooms {
		all = append(all, r)
	}
	c.mu.Unlock()
	c.end()
	for _, r := range all {
		r.stop()
	}
	if c.lists != nil {
		_ = c.lists.Unsubscribe() // fails if the connection has ended
	}
	if err := c.node.Close(); err != nil {
		c.log.Warn("chat: close", "error", err)
	}
	c.over.Wait()
	c.stop()
}

// run logs what concerns the node, and tells the others which rooms are here.
func (c *Chat) run() {
	tick := time.NewTicker(listEvery)
	defer tick.Stop()
	events := c.node.Events()
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				return // Close
			}
			c.log.Info("chat: " + ev.String())
		case <-tick.C:
			c.tell()
		}
	}
}

func (c *Chat) tell() {
	l := list{Node: c.node.ID(), Rooms: make(map[string]int)}
	c.mu.Lock()
	for _, r := range c.rooms {
		l.Rooms[r.Name] = r.users
	}
	for node, o := range c.others {
		if time.Since(o.at) > 4*listEvery {
			delete(c.others, node)
		}
	}
	c.mu.Unlock()
	_ = c.nc.Publish(listSubject, mustJSON(l)) // without NATS the next one follows
}

// hear takes another node's list.
func (c *Chat) hear(m *nats.Msg) {
	var l list
	if json.Unmarshal(m.Data, &l) != nil || l.Node == c.node.ID() {
		return
	}
	l.at = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.others[l.Node] = l
}

// List returns the rooms of all nodes with how many connections are in each; those of other nodes
// as of a second ago.
func (c *Chat) List() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[string]int)
	names := make(map[string]string) // by chatline.FoldName
	add := func(name string, users int) {
		fold := chatline.FoldName(name)
		if names[fold] == "" {
			names[fold] = name
		}
		all[names[fold]] += users
	}
	for _, r := range c.rooms {
		add(r.Name, r.users)
	}
	for _, o := range c.others {
		for name, users := range o.Rooms {
			add(name, users)
		}
	}
	return all
}

// Topic returns a topic that is not recorded.
func (c *Chat) Topic(name string) *cluster.Topic { return c.node.Topic(name) }

// Warn logs that something has failed.
func (c *Chat) Warn(what string, err error) { c.log.Warn("chat: "+what, "error", err) }

// Epoch is that of the positions of now.
func (c *Chat) Epoch() string { return *c.epoch.Load() }

// Claim gives conn a name, for one whose public id is by. It fails with ErrTaken when somebody else
// has it. A connection that has it with the same id gets a cluster.Replaced: the client is here
// now. Whoever has claimed a name answers a cluster.Posted with what Owner returns.
func (c *Chat) Claim(ctx context.Context, name, by string, conn *tcpio.Conn) (*cluster.Session, error) {
	key := "name " + chatline.FoldName(name)
	if has := c.node.Registered(key); !slices.Contains(has, conn) {
		asking, cancel := context.WithTimeout(ctx, time.Second)
		holder, err := c.node.Ask(asking, key, []byte(by))
		cancel()
		if err == nil && len(holder) > 0 && string(holder) != by {
			return nil, ErrTaken
		}
		// Who does not answer hangs, or is about to be gone.
	}
	claiming, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return c.node.Claim(claiming, key, conn)
}

// Owner answers who has the name that is asked for: one whose public id is by, and who has the name
// of has. It is nobody when has is another name's, or nil, or was taken: what is asked may have
// waited in a mailbox while its connection gave the name back.
func Owner(asked cluster.Posted, has *cluster.Session, by string) []byte {
	if has == nil || has.Key() != asked.Key || !has.Held() {
		return []byte{}
	}
	return []byte(by)
}

// mustJSON encodes a value of this package's types, which always can be.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
