//go:build linux

package cluster

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

const beatForTests = 100 * time.Millisecond

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
func connect(t testing.TB, s *server.Server, opts ...nats.Option) *nats.Conn {
	t.Helper()
	opts = append(NATSOptions(), append([]nats.Option{
		nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(10*time.Millisecond, 0),
	}, opts...)...)
	nc, err := nats.Connect(s.ClientURL(), opts...)
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
	for _, s := range all {
		testnet.WaitFor(t, "the nodes know each other", func() bool { return len(s.Nodes()) == len(all) })
	}
	return all
}

func openSite(t testing.TB, on *server.Server, o Options) *site {
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
	s.l, s.nc = l, connect(t, on)
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
	_ = c.SetDeadline(time.Now().Add(testnet.Limit))
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
	s, err := c.lines.ReadString('\n')
	if err != nil {
		t.Fatalf("the client: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

// must is for what has no reason to fail.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// whole returns the ids of t's members as n sees them, when the list is whole.
func whole(t testing.TB, topic *Topic) []string {
	t.Helper()
	var ids []string
	testnet.WaitFor(t, "the list is whole", func() bool {
		all, ok := topic.Members()
		ids = nil
		for _, m := range all {
			ids = append(ids, m.ID)
		}
		return ok
	})
	return ids
}
