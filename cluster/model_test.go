//go:build linux

package cluster

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"pgregory.net/rapid"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// A world is three nodes under anything that may happen to them, beside a map of what must be true
// when all is well again.
type world struct {
	t       *testing.T
	servers []*server.Server
	gates   []*gate
	places  []*station
	members map[string]map[string]int // by topic and id: on which node
	ids     int
}

// A station is a node, with a member in each topic that records what comes.
type station struct {
	*site
	lost      *losses
	recorders map[string]*recorder
	clients   map[string]*client        // members by topic and id
	published map[string]map[string]int // by topic and node: what it published since this one is there
}

var topics = []string{"a", "b"}

func newWorld(t *testing.T, servers []*server.Server) *world {
	w := &world{t: t, servers: servers, members: map[string]map[string]int{"a": {}, "b": {}}}
	for i, s := range servers {
		w.gates = append(w.gates, newGate(t, strings.TrimPrefix(s.ClientURL(), "nats://")))
		w.places = append(w.places, nil)
		w.open(i)
	}
	w.settle(t)
	return w
}

// open makes the node of a place.
func (w *world) open(i int) {
	st := &station{
		site:      openSiteAt(w.t, w.gates[i].url(), Options{Heartbeat: 100 * time.Millisecond, Linger: 50 * time.Millisecond}),
		recorders: make(map[string]*recorder), clients: make(map[string]*client),
		published: map[string]map[string]int{"a": {}, "b": {}},
	}
	st.lost = st.losses(w.t)
	for _, topic := range topics {
		st.recorders[topic] = st.record(w.t, topic, fmt.Sprint("recorder ", i))
	}
	w.places[i] = st
}

// settle waits until all nodes agree, on what is true.
func (w *world) settle(t testing.TB) {
	for _, g := range w.gates {
		g.release()
	}
	for i, st := range w.places {
		testnet.WaitFor(t, "the node is well", func() bool { return st.Ready() == nil && len(st.Nodes()) == len(w.places) })
		for _, topic := range topics {
			want := slices.Collect(maps.Keys(w.members[topic]))
			for j := range w.places {
				want = append(want, fmt.Sprint("recorder ", j))
			}
			slices.Sort(want)
			var got []string
			defer func() {
				if t.Failed() {
					t.Logf("node %d topic %s: %q, want %q", i, topic, got, want)
				}
			}()
			testnet.WaitFor(t, "the list is right", func() bool {
				all, whole := st.Topic(topic).Members()
				got = nil
				for _, m := range all {
					got = append(got, m.ID)
				}
				slices.Sort(got)
				return whole && slices.Equal(got, want)
			})
		}
	}
}

// publish publishes, and notes what was taken.
func (w *world) publish(i int, topic string, n int) {
	st := w.places[i]
	for range n {
		seq := st.published[topic][st.id]
		if err := st.Topic(topic).Publish(fmt.Appendf(nil, "%s %d\n", st.id, seq+1)); err == nil {
			for _, to := range w.places {
				to.published[topic][st.id] = max(to.published[topic][st.id], 0) + 1
			}
		}
	}
}

// check holds that nothing came twice or out of order, and that nothing is missing that was not
// told.
func (w *world) check(t testing.TB) {
	for i, st := range w.places {
		sum := make(map[string]int) // of publishers that are there: came and published
		testnet.WaitFor(t, fmt.Sprintf("node %d has or knows lost what the others published", i), func() bool {
			clear(sum)
			for _, from := range w.places {
				came, published := 0, 0
				for _, topic := range topics {
					came += st.recorders[topic].count(from.id + " ")
					published += st.published[topic][from.id]
				}
				if came > published {
					t.Fatalf("%d came of %d", came, published)
				}
				if came+st.lost.of(from.id) < published {
					return false
				}
			}
			return true
		})
		for _, topic := range topics {
			st.recorders[topic].mu.Lock()
			last := make(map[string]int)
			for _, line := range st.recorders[topic].got {
				var from string
				var n int
				if _, err := fmt.Sscan(line, &from, &n); err != nil || n <= last[from] {
					t.Fatalf("node %d topic %s: %q behind %d, %v", i, topic, line, last[from], err)
				}
				last[from] = n
			}
			st.recorders[topic].mu.Unlock()
		}
	}
}

// To see it fail: have follow not ask nodes that are up again; or let receive count no loss.
func TestModel(t *testing.T) {
	checks, steps := "4", "20"
	if testnet.Long {
		checks, steps = "10", "30"
	}
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.steps": steps, "rapid.shrinktime": "1s"} {
		before := flag.Lookup(name).Value.String()
		must(t, flag.Set(name, value))
		defer func() { _ = flag.Set(name, before) }()
	}
	servers := natsServers(t, 3)
	w := newWorld(t, servers)
	rapid.Check(t, func(r *rapid.T) {
		node := func() int { return rapid.IntRange(0, len(w.places)-1).Draw(r, "node") }
		topic := func() string { return rapid.SampledFrom(topics).Draw(r, "topic") }
		r.Repeat(map[string]func(*rapid.T){
			"join": func(*rapid.T) {
				i, name := node(), topic()
				w.ids++
				id := fmt.Sprint("m", w.ids)
				c := w.places[i].client(t)
				must(t, w.places[i].Topic(name).Join(c.conn, &Member{ID: id}))
				w.places[i].clients[name+id] = c
				w.members[name][id] = i
			},
			"leave": func(r *rapid.T) {
				name := topic()
				if len(w.members[name]) == 0 {
					return
				}
				id := rapid.SampledFrom(slices.Sorted(maps.Keys(w.members[name]))).Draw(r, "member")
				i := w.members[name][id]
				c := w.places[i].clients[name+id]
				delete(w.members[name], id)
				delete(w.places[i].clients, name+id)
				if rapid.Bool().Draw(r, "closes") {
					c.Close()
				} else {
					w.places[i].Topic(name).Leave(c.conn)
				}
			},
			"publish": func(r *rapid.T) { w.publish(node(), topic(), rapid.IntRange(1, 20).Draw(r, "messages")) },
			"cut":     func(*rapid.T) { w.gates[node()].cut() },
			"close":   func(*rapid.T) { w.gates[node()].close() },
			"hold":    func(*rapid.T) { w.gates[node()].hold() },
			"release": func(*rapid.T) { w.gates[node()].release() },
			"kill": func(*rapid.T) {
				i := node()
				w.settle(w.t) // what it has published is not for the dead to tell
				w.check(w.t)
				w.places[i].nc.Close()
				for _, name := range topics {
					maps.DeleteFunc(w.members[name], func(_ string, at int) bool { return at == i })
				}
				w.open(i)
				w.settle(w.t)
			},
			"settle": func(*rapid.T) { w.settle(w.t) },
		})
		w.settle(w.t)
		w.check(w.t)
	})
}
