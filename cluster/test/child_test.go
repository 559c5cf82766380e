//go:build linux

// Package test proves what package cluster promises with processes that are killed, stopped and cut
// off, against NATS servers of their own.
package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

const (
	beat  = 250 * time.Millisecond
	lease = 2 * time.Second
	// members on each node, of the plain and of the recorded topic.
	members = 2
)

func TestMain(m *testing.M) {
	if proc.Main(map[string]func(*bufio.Scanner) error{"node": nodeRole}) {
		return
	}
	testnet.Main(m, "socket") // NATS' client leaves what it has dialed if the server says nothing
}

// A child is a node with members, in a process of its own.
type child struct {
	name  string
	n     *cluster.Node
	nc    *nats.Conn
	l     *tcpio.Listener
	plain *cluster.Topic
	log   *cluster.Topic
	conns sync.Map // from the peer's address to a channel for its *tcpio.Conn

	first *client // reads the plain topic
	logs  []*logClient

	kept    sync.Map // peers of connections that are not read
	claimed sync.Map // sessions
	load    context.CancelFunc
	loaders sync.WaitGroup

	published, recorded, doubtful atomic.Int64
	replaced, unsure              atomic.Int64
	bad                           atomic.Int64
}

// say prints a line, whole.
func say(format string, args ...any) { fmt.Fprintf(os.Stdout, format+"\n", args...) }

// violation says that a promise is broken, which fails the test.
func (c *child) violation(format string, args ...any) {
	c.bad.Add(1)
	say("violation "+format, args...)
}

func nodeRole(in *bufio.Scanner) error {
	ctx := context.Background()
	nc, end, err := connect(ctx)
	if err != nil {
		return err
	}
	defer end()
	c := &child{name: os.Getenv("NAME"), nc: nc}
	opening, cancel := context.WithTimeout(ctx, proc.Patience)
	defer cancel()
	c.n, err = cluster.Open(opening, nc, &cluster.Options{Name: "proof", Heartbeat: beat,
		Sessions: &cluster.Sessions{Lease: lease, Strict: os.Getenv("STRICT") != ""}})
	if err != nil {
		return err
	}
	defer c.n.Close()
	go func() { // until Close
		for ev := range c.n.Events() {
			say("event %v", ev)
		}
	}()
	if c.l, err = tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", WriteBuffer: 4 << 20,
		NewActor: func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(c.receive) }}); err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- c.l.Serve(ctx) }() // until Close
	defer func() { c.l.Close(); <-served }()
	if err := c.open(opening); err != nil {
		return err
	}
	say("ready %s", c.n.ID())
	for in.Scan() {
		word, rest, _ := strings.Cut(in.Text(), " ")
		c.do(ctx, word, rest)
	}
	c.stop()
	return nil
}

func (c *child) receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Opened:
		c.opened(ev.Conn.RemoteAddr()) <- ev.Conn
	case tcpio.Readable:
		_, err := ev.Conn.TryRead(make([]byte, 64))
		if err != nil && err != tcpio.ErrWouldBlock {
			return err
		}
	case tcpio.Message:
		switch ev.Value.(type) {
		case cluster.Replaced:
			c.replaced.Add(1)
			ev.Conn.Close()
		case cluster.Unsure:
			c.unsure.Add(1)
		}
	}
	return nil
}

// dial makes a connection to this node, and returns both ends.
func (c *child) dial() (net.Conn, *tcpio.Conn, error) {
	nc, err := net.Dial("tcp", c.l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	defer c.conns.Delete(nc.LocalAddr().String())
	select {
	case conn := <-c.opened(nc.LocalAddr()):
		return nc, conn, nil
	case <-time.After(testnet.Limit):
		nc.Close()
		return nil, nil, errors.New("the connection was not accepted")
	}
}

func (c *child) opened(peer net.Addr) chan *tcpio.Conn {
	ch, _ := c.conns.LoadOrStore(peer.String(), make(chan *tcpio.Conn, 1))
	return ch.(chan *tcpio.Conn)
}

// open joins the topics.
func (c *child) open(ctx context.Context) error {
	c.plain = c.n.Topic("plain")
	for i := range members {
		peer, conn, err := c.dial()
		if err != nil {
			return err
		}
		cl := &client{last: make(map[string]uint64), count: make(map[string]int64)}
		if i == 0 {
			c.first = cl
		}
		go cl.read(c, peer) // until the listener is closed
		if err := c.plain.Join(conn, &cluster.Member{ID: c.name + strconv.Itoa(i)}); err != nil {
			return err
		}
	}
	var class *cluster.Class
	for {
		var err error
		class, err = c.n.Class(ctx, "log", cluster.History{PerTopic: 1_000_000, Encode: func(rec cluster.Record) []byte {
			return fmt.Appendf(nil, "%d %s\n", rec.Pos.Seq, rec.Data)
		}})
		if err == nil {
			break
		}
		if !errors.Is(err, cluster.ErrNoQuorum) || ctx.Err() != nil {
			return err
		}
	}
	c.log = class.Topic("log")
	for range members {
		peer, conn, err := c.dial()
		if err != nil {
			return err
		}
		lc := &logClient{}
		c.logs = append(c.logs, lc)
		go lc.read(c, peer) // until the listener is closed
		if err := c.log.Join(conn, nil); err != nil {
			return err
		}
	}
	return nil
}

// A client reads the plain topic: lines of a publisher and its number.
type client struct {
	mu    sync.Mutex
	last  map[string]uint64
	count map[string]int64
}

func (cl *client) read(c *child, peer net.Conn) {
	for s := bufio.NewScanner(peer); s.Scan(); {
		from, digits, _ := strings.Cut(s.Text(), " ")
		n, err := strconv.ParseUint(digits, 10, 64)
		cl.mu.Lock()
		if err != nil || n <= cl.last[from] {
			c.violation("order: %q behind %d", s.Text(), cl.last[from])
		}
		cl.last[from] = n
		cl.count[from]++
		cl.mu.Unlock()
	}
}

// A logClient reads the recorded topic: lines of a position and a text.
type logClient struct {
	mu   sync.Mutex
	seqs []uint64
}

func (lc *logClient) read(c *child, peer net.Conn) {
	for s := bufio.NewScanner(peer); s.Scan(); {
		digits, _, _ := strings.Cut(s.Text(), " ")
		seq, err := strconv.ParseUint(digits, 10, 64)
		lc.mu.Lock()
		if err != nil || len(lc.seqs) > 0 && seq <= lc.seqs[len(lc.seqs)-1] {
			c.violation("recorded order: %q", s.Text())
		}
		lc.seqs = append(lc.seqs, seq)
		lc.mu.Unlock()
	}
}

func (lc *logClient) all() []uint64 {
	lc.mu.Lock()
	defer lc.mu.Unlock()
	return slices.Clone(lc.seqs)
}

// do carries a command of the test out, and answers.
func (c *child) do(ctx context.Context, word, rest string) {
	switch word {
	case "load":
		every, _ := time.ParseDuration(rest)
		c.start(ctx, every)
		say("loading")
	case "stop":
		c.stop()
		say("stopped")
	case "claim":
		go c.claimFor(ctx, rest)
	case "members":
		all, whole := c.plain.Members()
		var ids []string
		for _, m := range all {
			ids = append(ids, m.ID)
		}
		slices.Sort(ids)
		say("members %v %s", whole, strings.Join(ids, " "))
	case "report":
		held := 0
		c.claimed.Range(func(se, _ any) bool {
			if se.(*cluster.Session).Held() {
				held++
			}
			return true
		})
		c.first.mu.Lock()
		p, err := json.Marshal(report{
			ID: c.n.ID(), Published: c.published.Load(), Recorded: c.recorded.Load(), Held: held,
			Received: c.first.count, Stats: c.n.Stats(), Replaced: c.replaced.Load(), Unsure: c.unsure.Load(),
		})
		c.first.mu.Unlock()
		say("report %s %v", p, err)
	case "verify":
		go c.verify(ctx)
	case "leader":
		m, err := c.nc.Request("$JS.API.STREAM.INFO.tcpio+proof+=sessions", nil, 2*time.Second)
		var info struct {
			Cluster struct{ Leader string }
		}
		if err == nil {
			err = json.Unmarshal(m.Data, &info)
		}
		say("leader %s %v", info.Cluster.Leader, err)
	}
}

// A report is what a child has counted.
type report struct {
	ID                  string
	Published, Recorded int64
	Received            map[string]int64 // by publisher
	Stats               cluster.Stats
	Replaced, Unsure    int64
	Held                int // sessions
}

// claimFor claims a key for a new connection, which the process keeps.
func (c *child) claimFor(ctx context.Context, key string) {
	begun := time.Now()
	peer, conn, err := c.dial()
	if err == nil {
		c.kept.Store(peer, nil) // or the garbage collector closes it
		ctx, cancel := context.WithTimeout(ctx, testnet.Limit)
		defer cancel()
		var se *cluster.Session
		if se, err = c.n.Claim(ctx, key, conn); err == nil {
			c.claimed.Store(se, nil)
			say("claimed %d %v", se.Fence(), time.Since(begun).Round(time.Millisecond))
			return
		}
		conn.Abort()
	}
	say("claimed 0 %v %v", time.Since(begun).Round(time.Millisecond), err)
}

// start publishes to both topics, each time something was published, and claims keys all the time.
func (c *child) start(ctx context.Context, every time.Duration) {
	ctx, c.load = context.WithCancel(ctx)
	tick := func(f func()) {
		c.loaders.Go(func() { // until stop
			t := time.NewTicker(every)
			defer t.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-t.C:
					f()
				}
			}
		})
	}
	n := 0
	tick(func() {
		// A number that failed is not used again: it may not arrive later.
		n++
		if c.plain.Publish(fmt.Appendf(nil, "%s %d\n", c.n.ID(), n)) == nil {
			c.published.Add(1)
		}
	})
	k := 0
	tick(func() {
		k++
		switch err := c.log.Publish(fmt.Appendf(nil, "%s %d", c.n.ID(), k)); {
		case err == nil:
			c.recorded.Add(1)
		case errors.Is(err, cluster.ErrUnknown):
			c.doubtful.Add(1)
		}
	})
	last := make(map[string]uint64)
	c.loaders.Go(func() { // until stop
		for ctx.Err() == nil {
			key := "user " + strconv.Itoa(rand.IntN(4))
			peer, conn, err := c.dial()
			if err != nil {
				continue // the process was stopped, say
			}
			se, err := c.n.Claim(ctx, key, conn)
			if err != nil {
				peer.Close()
				conn.Abort()
				select {
				case <-time.After(20 * time.Millisecond): // it fails at once without a majority
				case <-ctx.Done():
				}
				continue
			}
			if se.Fence() <= last[key] {
				c.violation("fence %d of %s behind %d", se.Fence(), key, last[key])
			}
			last[key] = se.Fence()
			c.claimed.Store(se, nil)
			say("fence %s=%d", key, se.Fence())
			time.AfterFunc(time.Duration(rand.IntN(200))*time.Millisecond, func() { peer.Close() })
			select {
			case <-time.After(every):
			case <-ctx.Done():
			}
		}
	})
}

func (c *child) stop() {
	if c.load != nil {
		c.load()
		c.loaders.Wait()
		c.load = nil
	}
}

// verify compares what the members of the recorded topic have got with what is stored: nothing may
// be missing or double behind the first record.
func (c *child) verify(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, proc.Patience/2) // before the test gives up
	defer cancel()
	peer, conn, err := c.dial()
	if err != nil {
		c.violation("dial: %v", err)
		return
	}
	defer peer.Close()
	for {
		var stored []uint64
		_, err := c.log.Resume(ctx, conn, nil, cluster.Pos{}, func(rec cluster.Record) error {
			stored = append(stored, rec.Pos.Seq)
			return nil
		})
		c.log.Leave(conn)
		if err == nil {
			missing := ""
			for i, lc := range c.logs {
				got := lc.all()
				want := stored
				if len(got) > 0 {
					if at, ok := slices.BinarySearch(stored, got[0]); ok {
						want = stored[at:]
					}
				}
				if len(got) == 0 && len(stored) > 0 || !slices.Equal(got, want) {
					at := 0
					for at < min(len(got), len(want)) && got[at] == want[at] {
						at++
					}
					missing = fmt.Sprintf("member %d has got %d, and %d are stored; they differ from %d on: %v, %v", i,
						len(got), len(want), at, got[at:min(at+3, len(got))], want[at:min(at+3, len(want))])
				}
			}
			if missing == "" {
				say("verified %d", len(stored))
				return
			}
			err = errors.New(missing)
		}
		select {
		case <-ctx.Done():
			c.violation("recorded: %v", err)
			return
		case <-time.After(100 * time.Millisecond): // some may be under way
		}
	}
}
