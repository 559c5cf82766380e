//go:build linux

package cluster

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// What the prototype got wrong first.

// A lost request for a part is repeated until it is answered.
// To see it fail: have sendAsks send only what is fresh.
func TestMistake1OneLostRequestIsAskedAgain(t *testing.T) {
	sites := openSites(t, natsServers(t, 2), Options{Heartbeat: time.Second, Linger: time.Hour}) // nothing else makes it ask
	c := sites[1].client(t)
	must(t, sites[1].Topic("x").Join(c.conn, &Member{ID: "b"}))
	settled(t, sites[1:], "x", "b")
	sub := sites[1].subs[1]
	if sub.Subject != sites[1].subj.node(sites[1].id, "sync") {
		t.Fatal(sub.Subject)
	}
	must(t, sub.Unsubscribe())
	must(t, sites[1].nc.Flush())
	asked := sites[0].Stats().Asks
	testnet.WaitFor(t, "it is asked three times in vain", func() bool {
		if _, whole := sites[0].Topic("x").Members(); whole {
			t.Fatal("a list is whole whose owner was not heard")
		}
		return sites[0].Stats().Asks >= asked+3
	})
	again, err := sites[1].nc.ChanSubscribe(sub.Subject, sites[1].syncs)
	must(t, err)
	defer func() { _ = again.Unsubscribe() }()
	settled(t, sites, "x", "b")
}

// A node that hung is down for the others, and is asked for everything when it runs again; it asks
// itself too.
// To see it fail: have hear report no node as up that is known.
func TestMistake2ANodeThatHungIsAdmittedAgain(t *testing.T) {
	sites, gates := openGated(t, natsServers(t, 3), Options{})
	for i, s := range sites {
		must(t, s.Topic("x").Join(s.client(t).conn, &Member{ID: fmt.Sprint(i)}))
	}
	settled(t, sites, "x", "0", "1", "2")
	var mu sync.Mutex
	var seen []Presence
	stop := sites[0].Topic("x").Watch(func(p Presence) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, p)
	})
	defer stop()
	// told sums up what the watcher has been told.
	told := func() (joined, left, downs int) {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range seen {
			joined, left = joined+len(p.Joined), left+len(p.Left)
			if p.Down != nil {
				downs++
			}
		}
		return joined, left, downs
	}
	for round := range 2 {
		// A change that undoes one before it is left out, so each is told before the next is made.
		testnet.WaitFor(t, "the watcher knows three members", func() bool { joined, left, _ := told(); return joined-left == 3 })
		gates[2].hold()
		settled(t, sites[:2], "x", "0", "1")
		testnet.WaitFor(t, "the watcher knows that the node is down", func() bool { _, _, downs := told(); return downs > round })
		testnet.WaitFor(t, "the node finds that it is not heard", func() bool { return sites[2].Ready() != nil })
		gates[2].release()
		settled(t, sites, "x", "0", "1", "2")
		testnet.WaitFor(t, "the node is ready again", func() bool { return sites[2].Ready() == nil })
	}
	mu.Lock()
	defer mu.Unlock()
	downs := 0
	for _, p := range seen {
		if p.Down != nil {
			if downs++; !slices.Equal(p.Down, []string{sites[2].ID()}) || len(p.Left) != 1 || p.Left[0].ID != "2" {
				t.Errorf("a node that is down: %+v", p)
			}
		}
	}
	if downs != 2 {
		t.Errorf("%d nodes went down, want one twice: %+v", downs, seen)
	}
}

// The last messages of a topic are lost, nothing follows and no heartbeat is missed: they are told.
// To see it fail: have tails.send do nothing.
func TestMistake3ALostTailIsTold(t *testing.T) {
	sites := openSites(t, natsServers(t, 2), Options{Heartbeat: time.Second}) // b hears again before the tail is told, once
	a, b := sites[0], sites[1]
	r := b.record(t, "x", "r")
	lost := b.losses(t)
	settled(t, sites, "x", "r")
	must(t, a.Topic("x").Publish([]byte("a first\n")))
	testnet.WaitFor(t, "the first comes", func() bool { return r.count("a") == 1 })
	topic := b.Topic("x")
	topic.pub.Lock()
	must(t, topic.sub.Unsubscribe())
	must(t, b.nc.Flush())
	testnet.WaitFor(t, "messages are lost", func() bool { // when the interest is gone at the other server
		must(t, a.Topic("x").Publish([]byte("a lost\n")))
		must(t, a.nc.Flush())
		return a.Topic("x").seq >= 10
	})
	var err error
	topic.sub, err = b.nc.ChanSubscribe(topic.subject, topic.sh.ch)
	must(t, err)
	topic.pub.Unlock()
	testnet.WaitFor(t, "the loss is told", func() bool { return r.count("a")+lost.of(a.id) == 10 })
	if lost.of(a.id) == 0 {
		t.Error("nothing was lost, so nothing is shown")
	}
}

// What a node publishes while it is down for another is lost there, and counted when it is back.
// To see it fail: have drop delete the origin.
func TestMistake4AReturnIsALoss(t *testing.T) {
	sites, gates := openGated(t, natsServers(t, 2), Options{})
	a, b := sites[0], sites[1]
	r := b.record(t, "x", "r")
	lost := b.losses(t)
	settled(t, sites, "x", "r")
	const n = 50
	for i := range n {
		must(t, a.Topic("x").Publish(fmt.Appendf(nil, "a %d\n", i)))
	}
	testnet.WaitFor(t, "they come", func() bool { return r.count("a") == n })
	gates[1].close() // b is cut off
	testnet.WaitFor(t, "each takes the other for dead", func() bool { return len(a.Nodes()) == 1 && len(b.Nodes()) == 1 })
	for i := range n {
		must(t, a.Topic("x").Publish(fmt.Appendf(nil, "a lost %d\n", i)))
	}
	must(t, a.nc.Flush())
	if err := b.Topic("x").Publish([]byte("b\n")); !errors.Is(err, ErrDisconnected) {
		t.Errorf("Publish without a connection: %v", err)
	}
	gates[1].release()
	settled(t, sites, "x", "r")
	testnet.WaitFor(t, "the loss is told", func() bool { return lost.of(a.id) == n })
	must(t, a.Topic("x").Publish([]byte("a again\n")))
	testnet.WaitFor(t, "the next one comes", func() bool { return r.count("a again") == 1 })
	for _, ev := range []string{"Disconnected", "Connected", "NodeDown", "NodeUp", "Isolated"} {
		testnet.WaitFor(t, "there is the event "+ev, func() bool { return lost.saw(ev) })
	}
	if s := b.Stats(); s.Lost != n || s.Disconnects != 1 || s.NodesDown != 1 || s.Disconnected == 0 {
		t.Errorf("%+v", s)
	}
	if lost.of(b.id) != 0 {
		t.Error("what Publish refused counts as lost")
	}
}

// A publisher that is back before its subscribers has buffered nothing for nobody: what was refused
// was told by an error, what was taken arrives or is counted.
// To see it fail: connect with a reconnect buffer, and let Open take it.
func TestMistake6APublisherThatIsBackFirstLosesNothingInSilence(t *testing.T) {
	sites, gates := openGated(t, natsServers(t, 2), Options{})
	a, b := sites[0], sites[1]
	r, ownRecord := b.record(t, "x", "r"), a.record(t, "x", "own")
	lost, ownLost := b.losses(t), a.losses(t)
	settled(t, sites, "x", "r", "own")
	var taken int
	var refused atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Microsecond):
			}
			switch err := a.Topic("x").Publish([]byte("a\n")); {
			case err == nil:
				taken++
			case errors.Is(err, ErrDisconnected):
				refused.Add(1)
			default:
				t.Errorf("Publish: %v", err)
			}
		}
	})
	for range 3 {
		gates[0].close()
		gates[1].close()
		testnet.WaitFor(t, "both are cut off", func() bool { return !a.nc.IsConnected() && !b.nc.IsConnected() })
		before := refused.Load()
		testnet.WaitFor(t, "the publisher is refused", func() bool { return refused.Load() > before })
		gates[0].release()
		testnet.WaitFor(t, "the publisher is back", func() bool { return a.nc.IsConnected() })
		gates[1].release()
		testnet.WaitFor(t, "the subscriber is back", func() bool { return b.nc.IsConnected() })
		settled(t, sites, "x", "r", "own")
	}
	close(stop)
	wg.Wait()
	testnet.WaitFor(t, "all is there or told at the other node", func() bool { return r.count("a")+lost.of(a.id) >= taken })
	testnet.WaitFor(t, "all is there or told at the publisher's", func() bool { return ownRecord.count("a")+ownLost.of(a.id) >= taken })
	if got := r.count("a") + lost.of(a.id); got != taken {
		t.Errorf("%d taken, %d refused; %d came and %d are lost", taken, refused.Load(), r.count("a"), lost.of(a.id))
	}
}

// Another node's heartbeats that come late are no death: up to 3 of them, of its own interval.
// To see it fail: set missed to 3.
func TestMistake7ALiveNodeIsNotTakenForDead(t *testing.T) {
	c := newClock()
	c.beat(idA, 0, 0)
	c.beat(idB, 0, 0)
	for range 5 {
		c.now = c.now.Add(3900 * time.Millisecond)
		c.ps.last = c.now.Add(-time.Second) // this node has run
		if r := c.ps.tick(c.now, time.Second, time.Second); r.down != nil {
			t.Fatalf("%+v", r)
		}
		c.beat(idB, 0, 0)
	}
}

// What finds no room in the queue is dropped by NATS' client: it is told, exactly, with no message
// behind it.
// To see it fail: never set overflow, and have tails.send do nothing.
func TestWhatFindsNoRoomIsTold(t *testing.T) {
	const room = 16
	sites := openSites(t, natsServers(t, 1), Options{Buffer: room})
	s := sites[0]
	r := s.record(t, "x", "r")
	lost := s.losses(t)
	settled(t, sites, "x", "r")
	gate := make(chan struct{})
	must(t, s.Topic("x").JoinAs(blocking{gate}, s.client(t).conn, nil, nil))
	const n = 500
	for range n {
		must(t, s.Topic("x").Publish([]byte("a\n")))
	}
	must(t, s.nc.Flush())
	testnet.WaitFor(t, "the queue is full", func() bool { return len(s.Topic("x").sh.ch) == cap(s.Topic("x").sh.ch) })
	close(gate)
	testnet.WaitFor(t, "all is there or told", func() bool { return r.count("a")+lost.of(s.id) == n })
	testnet.WaitFor(t, "the overflow is counted", func() bool { return s.Stats().Overflows > 0 })
	if lost.of(s.id) < n-2*room {
		t.Errorf("%d lost, %+v", lost.of(s.id), s.Stats())
	}
}

// blocking is a format whose outlet blocks until the channel is closed.
type blocking struct{ until chan struct{} }

func (b blocking) NewOutlet(*Topic) Outlet               { return b }
func (b blocking) Join(*tcpio.Conn, any) bool            { return true }
func (b blocking) Leave(*tcpio.Conn)                     {}
func (b blocking) Write(p []byte, _ *tcpio.Conn) (n int) { <-b.until; return 1 }
