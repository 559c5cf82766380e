//go:build linux

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestOpenChecksWhatItIsGiven(t *testing.T) {
	url := natsServers(t, 1)[0].ClientURL()
	ctx := context.Background()
	nc := connect(t, url)
	for field, o := range map[string]*Options{
		"options are nil":   nil,
		"Options.Name":      {Name: strings.Repeat("n", 101)},
		"Options.Heartbeat": {Heartbeat: time.Millisecond},
		"Options.Buffer":    {Buffer: -1},
		"Options.Linger":    {Linger: -1},
		"Options.Slow":      {Slow: 7},
	} {
		if _, err := Open(ctx, nc, o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := Open(ctx, nil, &Options{}); err == nil || !strings.Contains(err.Error(), "nil") {
		t.Error(err)
	}
	buffered, err := nats.Connect(url)
	must(t, err)
	defer buffered.Close()
	if _, err := Open(ctx, buffered, &Options{}); err == nil || !strings.Contains(err.Error(), "ReconnectBufSize(-1)") {
		t.Errorf("a connection with a reconnect buffer: %v", err)
	}
	if _, err := Open(ctx, connect(t, url, nats.NoEcho()), &Options{}); err == nil || !strings.Contains(err.Error(), "NoEcho") {
		t.Errorf("a connection that does not hear itself: %v", err)
	}
	old, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, NoHeaderSupport: true})
	must(t, err)
	old.Start()
	defer old.WaitForShutdown()
	defer old.Shutdown()
	if _, err := Open(ctx, connect(t, old.ClientURL()), &Options{}); err == nil || !strings.Contains(err.Error(), "headers") {
		t.Errorf("a server without headers: %v", err)
	}
	closed := connect(t, url)
	closed.Close()
	if _, err := Open(ctx, closed, &Options{}); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Error(err)
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	s := natsServers(t, 1)[0]
	g := newGate(t, strings.TrimPrefix(s.ClientURL(), "nats://"))
	nc := connect(t, g.url())
	g.hold()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, nc, &Options{}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "heartbeat") {
		t.Error(err)
	}
	g.release()
	if n := nc.NumSubscriptions(); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
}

func TestClusters(t *testing.T) {
	url := natsServers(t, 1)[0].ClientURL()
	a, b := openSiteAt(t, url, Options{Name: "a"}), openSiteAt(t, url, Options{Name: "b.*"})
	must(t, a.Topic("x").Join(a.client(t).conn, &Member{ID: "a"}))
	c := b.client(t)
	must(t, b.Topic("x").Join(c.conn, &Member{ID: "b"}))
	settled(t, []*site{a}, "x", "a")
	settled(t, []*site{b}, "x", "b")
	must(t, a.Topic("x").Publish([]byte("a\n")))
	must(t, b.Topic("x").Publish([]byte("b\n")))
	if got := c.line(t); got != "b" {
		t.Errorf("got %q from another cluster", got)
	}
}

// Close tells the others at once, leaves nothing in NATS, and ends what waits.
func TestClose(t *testing.T) {
	sites := openSites(t, natsServers(t, 2), Options{Heartbeat: 10 * time.Second}) // nobody waits for that
	a, b := sites[0], sites[1]
	c := a.client(t)
	must(t, a.Topic("x").Join(c.conn, &Member{ID: "a"}))
	must(t, a.Register("k", c.conn))
	var all []string
	testnet.WaitFor(t, "b sees the member", func() bool {
		list, _ := b.Topic("x").Members()
		all = nil
		for _, m := range list {
			all = append(all, m.ID)
		}
		return slices.Equal(all, []string{"a"})
	})
	must(t, a.Close())
	must(t, a.Close())
	testnet.WaitFor(t, "b has heard", func() bool {
		list, _ := b.Topic("x").Members()
		return len(list) == 0 && len(b.Nodes()) == 1
	})
	if n := a.nc.NumSubscriptions(); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
	ctx := context.Background()
	_, errAsk := a.Ask(ctx, "k", nil)
	for what, err := range map[string]error{
		"Ready": a.Ready(), "Join": a.Topic("x").Join(c.conn, nil), "Publish": a.Topic("x").Publish([]byte("x")),
		"Post": a.Post(ctx, "k", nil), "Ask": errAsk, "Register": a.Register("k", c.conn), "Drain": a.Drain(ctx, 0),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	a.Topic("x").Leave(c.conn)
	a.Unregister("k", c.conn)
	a.Topic("x").Watch(func(Presence) { t.Error("Watch after Close") })()
	if _, whole := a.Topic("x").Members(); whole {
		t.Error("a list is whole after Close")
	}
	if s := a.Stats(); s.Topics != 0 {
		t.Errorf("%+v", s)
	}
	testnet.WaitFor(t, "nobody has the key", func() bool { return errors.Is(b.Post(ctx, "k", nil), ErrNobody) })
}

// Drain takes the node out of the lists, gives each connection a delay of its own, and waits.
// To see it fail: give all connections the same delay, or do not set leaving.
func TestDrain(t *testing.T) {
	// So that a is not taken for dead on a machine that is busy, which would be a loss.
	sites := openSites(t, natsServers(t, 2), Options{Heartbeat: time.Second})
	a, b := sites[0], sites[1]
	lost := b.losses(t)
	const n = 20
	over := time.Minute
	var clients []*client
	for i := range n {
		c := a.client(t)
		must(t, a.Topic("x").Join(c.conn, &Member{ID: fmt.Sprint(i)}))
		clients = append(clients, c)
	}
	keyed := a.client(t)
	must(t, a.Register("k", keyed.conn))
	other := b.client(t)
	must(t, b.Topic("x").Join(other.conn, &Member{ID: "b"}))
	testnet.WaitFor(t, "all are there", func() bool { list, ok := b.Topic("x").Members(); return ok && len(list) == n+1 })
	drained := make(chan error, 1)
	go func() { drained <- a.Drain(context.Background(), over) }()
	delays := make(map[time.Duration]bool)
	for range n + 1 {
		m := testnet.Receive(t, "a Moved", a.got).Value.(Moved)
		if m.After < 0 || m.After >= over || delays[m.After] {
			t.Errorf("a delay of %v", m.After)
		}
		delays[m.After] = true
	}
	settled(t, sites[1:], "x", "b")
	testnet.WaitFor(t, "nobody has the key", func() bool {
		return errors.Is(b.Post(context.Background(), "k", nil), ErrNobody)
	})
	if err := a.Ready(); !errors.Is(err, ErrClosed) {
		t.Errorf("Ready in Drain: %v", err)
	}
	if err := a.Topic("x").Join(keyed.conn, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Join in Drain: %v", err)
	}
	must(t, b.Topic("x").Publish([]byte("still\n"))) // both ways work
	for _, c := range clients {
		if got := c.line(t); got != "still" {
			t.Errorf("got %q", got)
		}
	}
	must(t, a.Topic("x").Publish([]byte("from a\n")))
	if got := other.line(t) + other.line(t); got != "stillfrom a" {
		t.Errorf("got %q", got)
	}
	select {
	case err := <-drained:
		t.Fatalf("Drain has ended before its connections: %v", err)
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := a.Drain(ctx, over); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a Drain whose ctx ends: %v", err)
	}
	for _, c := range append(clients, keyed) {
		c.Close()
	}
	must(t, testnet.Receive(t, "Drain's end", drained))
	must(t, a.Close())
	testnet.WaitFor(t, "b has heard", func() bool { return lost.saw("NodeDown") })
	if lost.saw("Isolated") || lost.of(a.ID()) != 0 {
		t.Errorf("a node that has said goodbye is a loss: %v", lost.events)
	}
	if err := a.Drain(context.Background(), -1); err == nil {
		t.Error("a negative time")
	}
}

// Watch begins with the members of the moment; what undoes itself is left out; f may do anything.
// To see it fail: have note not look for what cancels, or tell call f twice at once.
func TestWatch(t *testing.T) {
	log := new(testnet.Log)
	sites := openSites(t, natsServers(t, 2), Options{Logger: slog.New(log), Heartbeat: time.Second}) // nobody is down meanwhile
	a, b := sites[0], sites[1]
	first := b.client(t)
	must(t, b.Topic("x").Join(first.conn, &Member{ID: "first", Info: []byte("1")}))
	settled(t, sites, "x", "first")
	calls := make(chan Presence, 100)
	gate := make(chan struct{}, 100)
	stop := a.Topic("x").Watch(func(p Presence) {
		a.Topic("x").Members() // it is under no lock
		calls <- p
		<-gate
		switch p.Joined[0].ID {
		case "panic":
			panic("in Watch")
		case "exit":
			runtime.Goexit()
		}
	})
	got := testnet.Receive(t, "the members of the moment", calls)
	if len(got.Joined) != 1 || got.Joined[0].ID != "first" || got.Joined[0].Node != b.ID() || string(got.Joined[0].Info) != "1" || got.Left != nil {
		t.Fatalf("%+v", got)
	}
	// While f is busy: one comes and goes, another stays, the first changes.
	passing := b.client(t)
	must(t, b.Topic("x").Join(passing.conn, &Member{ID: "passing"}))
	settled(t, sites, "x", "first", "passing")
	b.Topic("x").Leave(passing.conn)
	settled(t, sites, "x", "first")
	must(t, b.Topic("x").Join(first.conn, &Member{ID: "panic"}))
	must(t, a.Topic("x").Join(a.client(t).conn, &Member{ID: "panic"}))
	settled(t, sites, "x", "panic", "panic")
	gate <- struct{}{}
	got = testnet.Receive(t, "what has changed since", calls)
	if len(got.Joined) != 2 || len(got.Left) != 1 || got.Left[0].ID != "first" || got.Down != nil {
		t.Fatalf("%+v", got)
	}
	gate <- struct{}{} // it panics
	must(t, b.Topic("x").Join(first.conn, &Member{ID: "exit"}))
	testnet.Receive(t, "a call behind a panic", calls)
	gate <- struct{}{}
	must(t, b.Topic("x").Join(first.conn, &Member{ID: "calm"}))
	testnet.Receive(t, "a call behind an exit", calls)
	gate <- struct{}{}
	testnet.WaitFor(t, "the panic is logged", func() bool { return log.Count("Topic.Watch panicked") == 1 })
	stop()
	stop()
	must(t, b.Topic("x").Join(first.conn, &Member{ID: "unseen"}))
	settled(t, sites, "x", "unseen", "panic")
	select {
	case p := <-calls:
		t.Errorf("a call after stop: %+v", p)
	default:
	}
}

// A topic without members stays subscribed for Linger and no longer, and its name is one Topic for
// as long as anybody holds it.
func TestATopicLingersAndIsForgotten(t *testing.T) {
	s := openSites(t, natsServers(t, 1), Options{Linger: 300 * time.Millisecond})[0]
	c := s.client(t)
	begun := time.Now()
	topic := s.Topic("x")
	must(t, topic.Join(c.conn, nil))
	topic.Leave(c.conn)
	testnet.WaitFor(t, "it is unsubscribed", func() bool { return s.Stats().Topics == 0 })
	if took := time.Since(begun); took < 300*time.Millisecond {
		t.Errorf("it has lingered for %v", took)
	}
	must(t, topic.Join(c.conn, nil))
	must(t, topic.Publish([]byte("back\n")))
	if got := c.line(t); got != "back" {
		t.Errorf("got %q", got)
	}
	if s.Topic("x") != topic {
		t.Error("there are two topics of a name")
	}
	topic.Leave(c.conn)
	testnet.WaitFor(t, "it is unsubscribed again", func() bool { return s.Stats().Topics == 0 })
	topic.used.Store(0)
	later := time.Now().Add(2 * keepTopic)
	topic.sh.sweep(later)
	runtime.GC()
	if s.Topic("x") != topic {
		t.Error("a topic that is held is forgotten")
	}
	sh := topic.sh
	runtime.KeepAlive(topic)
	topic = nil
	testnet.WaitFor(t, "it is forgotten", func() bool {
		runtime.GC()
		later = later.Add(keepTopic)
		sh.sweep(later)
		sh.mu.Lock()
		defer sh.mu.Unlock()
		return len(sh.topics) == 0
	})
}

// Concurrent Joins, Leaves, Publishes and ends of connections leave nothing behind.
func TestConcurrentUse(t *testing.T) {
	sites := openSites(t, natsServers(t, 2), Options{Linger: 20 * time.Millisecond})
	var wg sync.WaitGroup
	for i, s := range sites {
		for j := range 4 {
			c := s.client(t)
			go func() { _, _ = c.lines.WriteTo(new(bytes.Buffer)) }() // until the connection ends
			wg.Go(func() {
				for k := range 200 {
					topic := s.Topic(fmt.Sprint(k % 3))
					_ = topic.Join(c.conn, &Member{ID: fmt.Sprint(i, j)})
					_ = topic.PublishExcept(c.conn, []byte("x\n"))
					_ = s.Register("key", c.conn)
					if k%10 == 0 { // one that meets the key just given up waits for a probe
						_ = s.Post(context.Background(), "key", []byte("x"))
					}
					_, _ = topic.Members()
					if k%2 == 0 {
						topic.Leave(c.conn)
						s.Unregister("key", c.conn)
					} else {
						c.conn.LeaveGroups()
					}
				}
				_ = s.Topic("0").Join(c.conn, &Member{ID: fmt.Sprint(i, j)})
				if j%2 == 0 {
					c.Close()
				}
			})
		}
	}
	wg.Wait()
	settled(t, sites, "0", "0 1", "0 3", "1 1", "1 3")
	settled(t, sites, "1")
	for _, s := range sites {
		testnet.WaitFor(t, "nobody has the key", func() bool { return s.Stats().Keys == 0 })
		if st := s.Stats(); st.Lost != 0 || st.Malformed != 0 {
			t.Errorf("%+v", st)
		}
	}
}

// Nothing that comes over NATS makes a node panic, or believe.
func TestMalformedMessagesAreDropped(t *testing.T) {
	log := new(testnet.Log)
	s := openSites(t, natsServers(t, 1), Options{Logger: slog.New(log)})[0]
	c := s.client(t)
	must(t, s.Topic("x").Join(c.conn, &Member{ID: "x"}))
	must(t, s.Register("k", c.conn))
	subjects := []string{s.subj.heartbeat(), s.subj.node(s.id, "sync"), s.subj.node(s.id, "s0"), s.subj.topic("t.x"),
		s.subj.key("k"), s.subj.node(s.id, "re.1")}
	sent := 0
	for _, subject := range subjects {
		for _, p := range samples(t) {
			for end := range len(p) {
				must(t, s.nc.Publish(subject, p[:end]))
				sent++
			}
		}
		must(t, s.nc.Publish(subject, []byte{0xff}))
	}
	must(t, s.nc.Flush())
	testnet.WaitFor(t, "they are counted", func() bool { return s.Stats().Malformed > uint64(sent/4) })
	must(t, s.Topic("x").Publish([]byte("well\n")))
	for c.line(t) != "well" { // what looks like data is data
	}
	testnet.WaitFor(t, "a line", func() bool { return log.Count("message dropped") > 0 })
}

func TestStatsAreRendered(t *testing.T) {
	var b strings.Builder
	must(t, Stats{Nodes: 3, Lost: 7, Disconnected: 1500 * time.Millisecond}.WriteMetrics(&b))
	for _, want := range []string{
		"# TYPE tcpio_cluster_nodes gauge\ntcpio_cluster_nodes 3\n",
		"# TYPE tcpio_cluster_lost_total counter\ntcpio_cluster_lost_total 7\n",
		"# TYPE tcpio_cluster_queue_length_max gauge\n",
		"tcpio_cluster_disconnected_seconds_total 1.5\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "tcpio_cluster_ ") || strings.Count(b.String(), "# HELP") != reflect.TypeFor[Stats]().NumField() {
		t.Errorf("%d metrics:\n%s", strings.Count(b.String(), "# HELP"), b.String())
	}
}

// A node that is killed is in no list any more within 4.5 heartbeats.
// To see it fail: set missed to 5.
func TestAKilledNodeIsGoneInTime(t *testing.T) {
	const beat = 400 * time.Millisecond
	servers := natsServers(t, 2)
	a := openSite(t, servers[0], Options{Heartbeat: beat})
	var all []time.Duration
	for range 20 { // on a machine that is busy it may take longer, or be seen late
		b := openSite(t, servers[1], Options{Heartbeat: beat})
		acquainted(t, []*site{a, b})
		must(t, b.Topic("x").Join(b.client(t).conn, &Member{ID: "b"}))
		settled(t, []*site{a, b}, "x", "b")
		last := b.heardAt.Load()
		testnet.WaitFor(t, "it has just sent a heartbeat", func() bool { return b.heardAt.Load() != last })
		killed := time.Now()
		b.nc.Close()
		testnet.WaitFor(t, "its member is gone", func() bool { all, whole := a.Topic("x").Members(); return whole && len(all) == 0 })
		took := time.Since(killed)
		if took > 3*beat && took < 4*beat+beat/2 {
			return
		}
		all = append(all, took)
	}
	t.Errorf("that took %v", all)
}

// What an Outlet or a Watch does costs the node nothing but a line in the log.
// To see it fail: call Write without guard, or have run not start again.
func TestAnOutletMayPanicAndExit(t *testing.T) {
	log := new(testnet.Log)
	s := openSites(t, natsServers(t, 1), Options{Logger: slog.New(log)})[0]
	c, plain := s.client(t), s.client(t)
	topic := s.Topic("x")
	must(t, topic.JoinAs(unruly{}, c.conn, nil, nil))
	must(t, topic.Join(plain.conn, nil))
	for _, p := range []string{"panic\n", "exit\n", "well\n"} {
		must(t, topic.Publish([]byte(p)))
		if got := plain.line(t); got+"\n" != p {
			t.Errorf("got %q", got)
		}
	}
	testnet.WaitFor(t, "the panic is logged", func() bool { return log.Count("Outlet.Write panicked") == 1 })
	if err := topic.JoinAs(nil, c.conn, nil, nil); err == nil {
		t.Error("a format that is nil is taken")
	}
	must(t, topic.Join(c.conn, nil)) // plain from now on
	must(t, topic.Publish([]byte("plain\n")))
	if got := c.line(t); got != "plain" {
		t.Errorf("got %q", got)
	}
}

// unruly is a format whose outlet panics and exits.
type unruly struct{}

func (u unruly) NewOutlet(*Topic) Outlet    { return u }
func (u unruly) Join(*tcpio.Conn, any) bool { return true }
func (u unruly) Leave(*tcpio.Conn)          {}
func (u unruly) Write(p []byte, _ *tcpio.Conn) int {
	switch string(p) {
	case "panic\n":
		panic("in Write")
	case "exit\n":
		runtime.Goexit()
	}
	return 0
}

// A member that does not keep up is dealt with as Options.Slow says, and counted.
func TestASlowMemberIsCounted(t *testing.T) {
	servers := natsServers(t, 1)
	for _, policy := range []tcpio.SlowPolicy{tcpio.SkipSlow, tcpio.CloseSlow} {
		s := openSites(t, servers, Options{Name: policy.String(), Slow: policy})[0]
		c := s.client(t) // it does not read
		must(t, s.Topic("x").Join(c.conn, &Member{ID: "slow"}))
		p := make([]byte, 256<<10)
		testnet.WaitFor(t, "it is counted", func() bool {
			st := s.Stats()
			if st.Received == st.Published { // no more is under way than NATS takes
				must(t, s.Topic("x").Publish(p))
			}
			return policy == tcpio.SkipSlow && st.Skipped > 0 || policy == tcpio.CloseSlow && st.Slow == 1 && st.Members == 0
		})
		if st := s.Stats(); st.Lost != 0 {
			t.Errorf("what a slow member misses is no loss of the topic: %+v", st)
		}
	}
}
