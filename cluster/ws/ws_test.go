//go:build linux

package ws_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/cluster/embedded"
	"github.com/rabbit-backend/tcpio/cluster/ws"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/websocket"
)

// NATS' client leaves what it has dialed to the garbage collector if the server says nothing.
func TestMain(m *testing.M) { testnet.Main(m, "socket") }

// A site is a node with a server for WebSocket; join is called with each connection.
type site struct {
	node *cluster.Node
	s    *websocket.Server
	got  chan string // what Dial's connections receive: "name: text"
}

func open(t *testing.T, dir string, join func(*site, *websocket.Conn)) *site {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testnet.Limit)
	t.Cleanup(cancel)
	server, err := embedded.Open(ctx, &embedded.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	st := &site{got: make(chan string, 100)}
	if st.node, err = cluster.Open(ctx, server.Conn(), &cluster.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.node.Close() })
	st.s, err = websocket.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"}, &websocket.Options{
		NewActor: func(*websocket.Conn) websocket.Actor {
			return websocket.ActorFunc(func(ev websocket.Event) error {
				if _, ok := ev.(websocket.Opened); ok {
					join(st, websocket.ConnOf(ev))
				}
				return nil
			})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- st.s.Serve(context.Background()) }() // until Close
	t.Cleanup(func() { st.s.Listener().Close(); <-served })
	return st
}

// dial connects; what the client gets goes to got.
func (st *site) dial(t *testing.T, name string) *websocket.Conn {
	t.Helper()
	c, err := st.s.Dial(context.Background(), "ws://"+st.s.Listener().Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Attach(websocket.ActorFunc(func(ev websocket.Event) error {
		switch ev := ev.(type) {
		case websocket.Text:
			st.got <- name + " text " + string(ev.Data)
		case websocket.Binary:
			st.got <- name + " binary " + string(ev.Data)
		}
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	return c
}

// A topic has members of both kinds on two nodes; each gets a message once, in its own format, and
// leaves with its connection.
// To see it fail: have outlet.Write ignore except, or Leave do nothing.
func TestATopicHasMembersOfBothKinds(t *testing.T) {
	upper := &ws.Format{Binary: true, Render: bytes.ToUpper}
	asText := new(ws.Format)
	dir := filepath.Join(t.TempDir(), "nats")
	conns := make(chan *websocket.Conn, 10)
	join := func(st *site, c *websocket.Conn) {
		if err := asText.Join(st.node.Topic("room"), c, &cluster.Member{ID: "text"}); err != nil {
			t.Error(err)
		}
		conns <- c
	}
	a, b := open(t, dir, join), open(t, dir, join)
	clientA := a.dial(t, "a")
	connA := testnet.Receive(t, "a's connection", conns)
	b.dial(t, "b")
	connB := testnet.Receive(t, "b's connection", conns)
	if err := upper.Join(b.node.Topic("room"), connB, &cluster.Member{ID: "binary"}); err != nil { // another format now
		t.Fatal(err)
	}
	// One that takes plain bytes.
	plain, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", NewActor: func(c *tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if _, ok := ev.(tcpio.Opened); ok {
				return a.node.Topic("room").Join(c, &cluster.Member{ID: "plain"})
			}
			return nil
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- plain.Serve(context.Background()) }()
	defer func() { plain.Close(); <-served }()
	nc, err := net.Dial("tcp", plain.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()

	members := func(n *cluster.Node, want ...string) {
		t.Helper()
		testnet.WaitFor(t, fmt.Sprint("the members are ", want), func() bool {
			all, ok := n.Topic("room").Members()
			var ids []string
			for _, m := range all {
				ids = append(ids, m.ID)
			}
			slices.Sort(ids)
			return ok && slices.Equal(ids, want)
		})
	}
	members(a.node, "binary", "plain", "text")
	members(b.node, "binary", "plain", "text")

	if err := b.node.Topic("room").Publish([]byte("hello \xff")); err != nil {
		t.Fatal(err)
	}
	if got := testnet.Receive(t, "a message", a.got); got != "a text hello \uFFFD" {
		t.Errorf("got %q", got)
	}
	if got := testnet.Receive(t, "a message", b.got); got != "b binary HELLO \uFFFD" {
		t.Errorf("got %q", got)
	}
	buf := make([]byte, 100)
	if n, err := nc.Read(buf); err != nil || string(buf[:n]) != "hello \xff" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	if err := a.node.Topic("room").PublishExcept(connA.Underlying(), []byte("others")); err != nil {
		t.Fatal(err)
	}
	if got := testnet.Receive(t, "a message", b.got); got != "b binary OTHERS" {
		t.Errorf("got %q", got)
	}
	testnet.WaitFor(t, "the last write is counted", func() bool { return a.node.Stats().Delivered >= 3 })
	if s := a.node.Stats(); s.Members != 2 || s.Delivered != 3 {
		t.Errorf("%+v", s)
	}
	if err := clientA.Close(websocket.Normal, ""); err != nil {
		t.Fatal(err)
	}
	members(b.node, "binary", "plain")
	if err := asText.Join(a.node.Topic("room"), connA, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Join of a connection that has ended: %v", err)
	}
	select {
	case got := <-a.got:
		t.Errorf("the sender got %q", got)
	default:
	}
}
