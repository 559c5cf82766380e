//go:build linux

package cluster

import (
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func heap() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A member costs less than 700 bytes, of which a third is for the group that it is in, when all
// three nodes know all members.
func TestMemoryOfAMember(t *testing.T) {
	if testnet.Race {
		t.Skip("the race detector's memory is not the program's")
	}
	const each = 1000
	sites := openSites(t, natsServers(t, 3), Options{})
	conns := make([][]*tcpio.Conn, len(sites))
	for i, s := range sites {
		for range each {
			c, err := net.Dial("tcp", s.l.Addr().String())
			must(t, err)
			t.Cleanup(func() { c.Close() })
		}
		testnet.WaitFor(t, "the connections are there", func() bool { return s.l.Len() == each })
		for c := range s.l.Conns() {
			conns[i] = append(conns[i], c)
		}
	}
	before := heap()
	for i, s := range sites {
		for j, c := range conns[i] {
			must(t, s.Topic("room").Join(c, &Member{ID: fmt.Sprintf("user-%d-%d", i, j)}))
		}
	}
	for _, s := range sites {
		testnet.WaitFor(t, "the node knows all", func() bool {
			all, whole := s.Topic("room").Members()
			return whole && len(all) == each*len(sites)
		})
	}
	per := int64(heap()-before) / int64(each*len(sites))
	t.Logf("%d bytes a member", per)
	if per > 700 {
		t.Errorf("a member costs %d bytes", per)
	}
	runtime.KeepAlive(conns)
}

// A topic costs little: each node has all that it has members of, often a handful, and of these
// each node knows those of all others.
var (
	_ [448 - unsafe.Sizeof(Topic{})]byte
	_ [80 - unsafe.Sizeof(origin{})]byte
)

// What a topic knows of ten members on each of two other nodes costs 48 bytes a member, and their
// records.
// To see it fail: have a roster grow by doubling, or a view be a map.
func TestMemoryOfAView(t *testing.T) {
	if testnet.Race {
		t.Skip("the race detector's memory is not the program's")
	}
	const topics, each = 2000, 10
	nodes := []string{idA, idB, "own-------------------"}
	records := make([]string, each)
	for i := range records {
		records[i] = fmt.Sprintf("\x06user-%d", i)
	}
	views := make([]view, topics)
	before := heap()
	for i := range views {
		v := &views[i]
		for _, node := range nodes {
			_, _, _ = v.part(at(node, 1, 0), piece{last: true})
			for k, record := range records {
				if node != nodes[2] {
					v.change([]byte(node), []change{{uint64(1000 + k), true, record}})
				}
			}
		}
	}
	per := int(heap()-before) / (topics * 2 * each)
	t.Logf("%d bytes a member", per)
	if per > 48 {
		t.Errorf("a member costs %d bytes", per)
	}
	runtime.KeepAlive(views)
}

// A message costs no allocation of this package's: NATS' client makes one for its bytes.
func TestAMessageAllocatesNothing(t *testing.T) {
	if testnet.Race {
		t.Skip("the race detector allocates")
	}
	s := openSites(t, natsServers(t, 1), Options{Heartbeat: time.Minute})[0] // which allocates
	topic := s.Topic("x")
	must(t, topic.Join(s.client(t).conn, nil))
	seq := uint64(0)
	p := make([]byte, 0, 100)
	in := testing.AllocsPerRun(1000, func() {
		seq++
		p = appendStamp(p[:0], kindData, idA, 1, seq, seq) // an empty message: nothing is written
		m := nats.Msg{Subject: topic.subject, Data: p}
		topic.sh.receive(&m)
	})
	out := testing.AllocsPerRun(1000, func() { must(t, topic.Publish([]byte("\n"))) })
	if in > 1 || out > 4 { // the test's own message; the node's own messages that come back meanwhile
		t.Errorf("%v allocations for a message that comes, %v for one that goes out and comes back", in, out)
	}
	t.Log(in, out)
}
