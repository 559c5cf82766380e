//go:build linux

package cluster

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// NATS' client leaves what it has dialed to the garbage collector if the server says nothing.
func TestMain(m *testing.M) { testnet.Main(m, "socket") }

// beatForTests is short, and long enough for a machine that is busy: a node of which nothing is heard
// for four of it is down.
const beatForTests = 250 * time.Millisecond

// natsServers runs n servers of one cluster until the end of the test.
func natsServers(t testing.TB, n int) []*server.Server {
	t.Helper()
	var all []*server.Server
	for i := range n {
		o := &server.Options{
			Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, ServerName: fmt.Sprint("s", i),
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: -1, PoolSize: -1},
		}
		if n == 1 {
			o.Cluster = server.ClusterOpts{}
		}
		if i > 0 {
			for _, s := range all {
				o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: s.ClusterAddr().String()})
			}
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(testnet.Limit) {
			t.Fatal("the NATS server does not become ready")
		}
		all = append(all, s)
	}
	for _, s := range all {
		testnet.WaitFor(t, "the servers know each other", func() bool { return s.NumRoutes() >= n-1 })
	}
	return all
}

// connect makes a connection to NATS that ends with the test.
func connect(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	opts = append(NATSOptions(), append([]nats.Option{
		nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(10*time.Millisecond, 0),
		nats.IgnoreDiscoveredServers(), // a gate would be passed by
	}, opts...)...)
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// openNode makes a node that ends with the test.
func openNode(t testing.TB, nc *nats.Conn, o Options) *Node {
	t.Helper()
	if o.Heartbeat == 0 {
		o.Heartbeat = beatForTests
	}
	ctx, cancel := context.WithTimeout(context.Background(), testnet.Limit)
	defer cancel()
	n, err := Open(ctx, nc, &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// A site is a node and the listener of its connections, with whatever it heard.
type site struct {
	*Node
	nc *nats.Conn
	l  *tcpio.Listener
	// got has what was posted to connections.
	got chan tcpio.Message
}

// openSites makes a node on each of as many servers.
func openSites(t testing.TB, servers []*server.Server, o Options) []*site {
	t.Helper()
	var all []*site
	for _, s := range servers {
		all = append(all, openSite(t, s, o))
	}
	acquainted(t, all)
	return all
}

// openGated is openSites with a gate before each node.
func openGated(t testing.TB, servers []*server.Server, o Options) (all []*site, gates []*gate) {
	t.Helper()
	for _, s := range servers {
		g := newGate(t, strings.TrimPrefix(s.ClientURL(), "nats://"))
		gates = append(gates, g)
		all = append(all, openSiteAt(t, g.url(), o))
	}
	acquainted(t, all)
	return all, gates
}

// acquainted waits until the nodes know each other.
func acquainted(t testing.TB, all []*site) {
	t.Helper()
	for _, s := range all {
		testnet.WaitFor(t, "the nodes know each other", func() bool { return len(s.Nodes()) == len(all) })
	}
}

func openSite(t testing.TB, on *server.Server, o Options) *site {
	t.Helper()
	return openSiteAt(t, on.ClientURL(), o)
}

func openSiteAt(t testing.TB, url string, o Options) *site {
	t.Helper()
	s := &site{got: make(chan tcpio.Message, 1000)}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Readable:
				_, err := ev.Conn.TryRead(make([]byte, 100))
				if err != nil && err != tcpio.ErrWouldBlock {
					return err
				}
			case tcpio.Message:
				if p, ok := ev.Value.(Posted); ok && strings.HasPrefix(string(p.Data), "echo ") {
					ev.Reply([]byte(strings.TrimPrefix(string(p.Data), "echo ")))
				}
				select {
				case s.got <- ev:
				default:
				}
			}
			return nil
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- l.Serve(context.Background()) }() // until Close
	t.Cleanup(func() { l.Close(); <-served })
	s.l, s.nc = l, connect(t, url)
	s.Node = openNode(t, s.nc, o)
	return s
}

// A client is the peer of a connection.
type client struct {
	net.Conn
	lines *bufio.Reader
	conn  *tcpio.Conn // the server's side
}

// client makes a connection to the site.
func (s *site) client(t testing.TB) *client {
	t.Helper()
	c, err := net.Dial("tcp", s.l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(proc.Patience))
	cl := &client{Conn: c, lines: bufio.NewReader(c)}
	testnet.WaitFor(t, "the server has the connection", func() bool {
		for conn := range s.l.Conns() {
			if conn.RemoteAddr().String() == c.LocalAddr().String() {
				cl.conn = conn
			}
		}
		return cl.conn != nil
	})
	return cl
}

// line returns the next line that has come.
func (c *client) line(t testing.TB) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(proc.Patience))
	s, err := c.lines.ReadString('\n')
	if err != nil {
		t.Fatalf("the client: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

// A recorder is a member that counts what it gets.
type recorder struct {
	*client
	mu  sync.Mutex
	got []string
}

// record makes a member of the topic that records lines.
func (s *site) record(t testing.TB, topic, id string) *recorder {
	t.Helper()
	r := &recorder{client: s.client(t)}
	_ = r.SetDeadline(time.Time{})
	must(t, s.Topic(topic).Join(r.conn, &Member{ID: id}))
	done := make(chan struct{})
	go func() { // until the connection ends
		defer close(done)
		for {
			line, err := r.lines.ReadString('\n')
			if err != nil {
				return
			}
			r.mu.Lock()
			r.got = append(r.got, strings.TrimSuffix(line, "\n"))
			r.mu.Unlock()
		}
	}()
	t.Cleanup(func() { r.Close(); <-done })
	return r
}

// count returns how many lines with the prefix have come.
func (r *recorder) count(prefix string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range r.got {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

// losses sums up Lost, by node, until the test ends.
type losses struct {
	mu     sync.Mutex
	byNode map[string]uint64
	events []string
}

func (s *site) losses(t testing.TB) *losses {
	l := &losses{byNode: make(map[string]uint64)}
	done := make(chan struct{})
	go func() { // until the node is closed
		defer close(done)
		for ev := range s.Events() {
			l.mu.Lock()
			if lost, ok := ev.(Lost); ok {
				l.byNode[lost.Node] += lost.Count
			}
			l.events = append(l.events, ev.String())
			l.mu.Unlock()
		}
	}()
	t.Cleanup(func() { s.Close(); <-done })
	return l
}

func (l *losses) of(node string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.byNode[node])
}

// saw reports whether an event with the prefix has come.
func (l *losses) saw(prefix string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.events, func(ev string) bool { return strings.HasPrefix(ev, prefix) })
}

// must is for what has no reason to fail.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
