//go:build linux

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// settled waits until all sites see the topic's members as ids, whole.
func settled(t testing.TB, sites []*site, topic string, ids ...string) {
	t.Helper()
	slices.Sort(ids)
	for i, s := range sites {
		var got []string
		testnet.WaitFor(t, fmt.Sprintf("site %d sees the members %v", i, ids), func() bool {
			all, ok := s.Topic(topic).Members()
			got = nil
			for _, m := range all {
				got = append(got, m.ID)
			}
			slices.Sort(got)
			return ok && slices.Equal(got, ids)
		})
	}
}

func TestAMessageReachesEveryMemberOnEveryNodeOnceInOrder(t *testing.T) {
	sites := openSites(t, natsServers(t, 3), Options{})
	var clients []*client
	var ids []string
	for i, s := range sites {
		for j := range 2 {
			c := s.client(t)
			id := fmt.Sprint(i, " ", j)
			must(t, s.Topic("room").Join(c.conn, &Member{ID: id}))
			clients, ids = append(clients, c), append(ids, id)
		}
	}
	settled(t, sites, "room", ids...)
	const count = 100
	for k := range count {
		must(t, sites[k%3].Topic("room").Publish(fmt.Appendf(nil, "%d %d\n", k%3, k)))
	}
	for _, c := range clients {
		last := map[int]int{0: -1, 1: -1, 2: -1}
		for range count {
			var from, k int
			if _, err := fmt.Sscanf(c.line(t), "%d %d", &from, &k); err != nil || k <= last[from] {
				t.Fatalf("%d behind %d of node %d, %v", k, last[from], from, err)
			}
			last[from] = k
		}
	}
	for _, s := range sites {
		testnet.WaitFor(t, "the last write is counted, and all are up", func() bool {
			got := s.Stats()
			return got.Delivered >= 2*count && got.Nodes == 3
		})
		if got := s.Stats(); got.Lost != 0 || got.Delivered != 2*count || got.Members != 2 {
			t.Errorf("%+v", got)
		}
	}
}

func TestPublishExceptLeavesOutTheSenderAlone(t *testing.T) {
	sites := openSites(t, natsServers(t, 2), Options{})
	a, b, c := sites[0].client(t), sites[0].client(t), sites[1].client(t)
	must(t, sites[0].Topic("x").Join(a.conn, &Member{ID: "a"}))
	must(t, sites[0].Topic("x").Join(b.conn, nil))
	must(t, sites[1].Topic("x").Join(c.conn, &Member{ID: "c"}))
	settled(t, sites, "x", "a", "c")
	must(t, sites[0].Topic("x").PublishExcept(a.conn, []byte("not a\n")))
	must(t, sites[0].Topic("x").Publish([]byte("all\n")))
	if got := a.line(t); got != "all" {
		t.Errorf("the sender got %q first", got)
	}
	for _, cl := range []*client{b, c} {
		if got := cl.line(t) + cl.line(t); got != "not aall" {
			t.Errorf("got %q", got)
		}
	}
}

func TestMembersLeaveWithTheirConnections(t *testing.T) {
	sites := openSites(t, natsServers(t, 2), Options{})
	room := sites[0].Topic("room")
	var clients []*client
	for i := range 4 {
		c := sites[0].client(t)
		must(t, room.Join(c.conn, &Member{ID: fmt.Sprint(i), Info: []byte("info")}))
		clients = append(clients, c)
	}
	settled(t, sites, "room", "0", "1", "2", "3")
	room.Leave(clients[0].conn)
	clients[1].Close()
	clients[2].conn.LeaveGroups()
	settled(t, sites, "room", "3")
	must(t, room.Join(clients[0].conn, &Member{ID: "again"}))
	must(t, room.Join(clients[3].conn, &Member{ID: "other"}))
	settled(t, sites, "room", "again", "other")
	must(t, room.Join(clients[3].conn, nil))
	settled(t, sites, "room", "again")
	clients[1].conn.Close()
	if err := room.Join(clients[1].conn, nil); !errors.Is(err, errConnClosed) {
		t.Errorf("Join of a connection that has ended: %v", err)
	}
}

func TestPostReachesEveryDeviceAndSaysWhenNobodyIsThere(t *testing.T) {
	sites := openSites(t, natsServers(t, 2), Options{})
	ctx, cancel := context.WithTimeout(context.Background(), testnet.Limit)
	defer cancel()
	if err := sites[0].Post(ctx, "ann", nil); !errors.Is(err, ErrNobody) {
		t.Fatalf("Post to nobody: %v", err)
	}
	a, b := sites[0].client(t), sites[1].client(t)
	must(t, sites[0].Register("ann", a.conn))
	must(t, sites[1].Register("ann", b.conn))
	testnet.WaitFor(t, "both get it", func() bool { // when NATS has spread the interest
		// A node that has the key by the time of the probe alone knows nothing of the message.
		if err := sites[0].Post(ctx, "ann", []byte("hello")); err != nil && !errors.Is(err, ErrUnknown) {
			t.Fatal(err)
		}
		return len(sites[0].got) > 0 && len(sites[1].got) > 0
	})
	if got := (<-sites[1].got).Value.(Posted); got.Key != "ann" || string(got.Data) != "hello" {
		t.Errorf("got %+v", got)
	}
	if p, err := sites[0].Ask(ctx, "ann", []byte("echo x")); err != nil || string(p) != "x" {
		t.Errorf("Ask: %q, %v", p, err)
	}
	a.Close()
	sites[1].Unregister("ann", b.conn)
	testnet.WaitFor(t, "nobody is there", func() bool {
		return errors.Is(sites[1].Post(ctx, "ann", nil), ErrNobody)
	})
	must(t, b.conn.Abort())
	if err := sites[1].Register("ann", b.conn); !errors.Is(err, errConnClosed) {
		t.Errorf("Register of a connection that has ended: %v", err)
	}
}

// A part that is too long for one message comes in pieces, and so do changes.
// To see it fail: let readPiece or part take the last piece alone.
func TestALongPartComesInPieces(t *testing.T) {
	sites := openSites(t, natsServers(t, 2), Options{})
	const n = maxPiece/MaxInfo + 20
	for range n {
		c, err := net.Dial("tcp", sites[0].l.Addr().String())
		must(t, err)
		t.Cleanup(func() { c.Close() })
	}
	testnet.WaitFor(t, "the connections are there", func() bool { return sites[0].l.Len() == n })
	var ids []string
	for c := range sites[0].l.Conns() {
		id := fmt.Sprint(len(ids))
		ids = append(ids, id)
		must(t, sites[0].Topic("x").Join(c, &Member{ID: id, Info: bytes.Repeat([]byte{byte(len(ids))}, MaxInfo)}))
	}
	settled(t, sites, "x", ids...) // the second node has asked for the whole part
	all, _ := sites[1].Topic("x").Members()
	for _, m := range all {
		if len(m.Info) != MaxInfo {
			t.Fatalf("%s has %d bytes of info", m.ID, len(m.Info))
		}
	}
}
