//go:build linux

package tcpio

import (
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestDemandCountsAnswersOfItsOwnBatch(t *testing.T) {
	var d demand
	a, b := d.add(), d.add()
	if !d.outstanding() {
		t.Fatal("two delivered, none outstanding")
	}
	if d.done(a) {
		t.Error("the first of two was the last")
	}
	if !d.done(b) {
		t.Error("the second of two was not the last")
	}
	if d.outstanding() {
		t.Error("all answered, some outstanding")
	}
	old := d.add()
	d.writeOff()
	if d.outstanding() {
		t.Error("written off, and still outstanding")
	}
	young := d.add()
	if d.done(old) || !d.outstanding() {
		t.Error("a late answer to what was written off has settled another Readable")
	}
	if !d.done(young) {
		t.Error("the only one was not the last")
	}
	if d.done(young) || d.outstanding() {
		t.Error("a second answer counts")
	}
}

// Every number of goroutines: exactly one answer is the last one.
func TestDemandHasOneLastAnswer(t *testing.T) {
	for range 200 {
		var d demand
		const n = 8
		var stamps [n]uint32
		for i := range stamps {
			stamps[i] = d.add()
		}
		var last [n]bool
		var wg sync.WaitGroup
		for i := range stamps {
			wg.Go(func() { last[i] = d.done(stamps[i]) })
		}
		wg.Wait()
		count := 0
		for _, l := range last {
			if l {
				count++
			}
		}
		if count != 1 || d.outstanding() {
			t.Fatalf("%d last answers, outstanding %v", count, d.outstanding())
		}
	}
}

// The table against a map: what is there is found under its own token, and nothing under any other.
func TestTableFindsByGeneration(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tab table
		live := map[token]*Conn{}
		var keys, dead []token
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				c := &Conn{}
				k := tab.add(c)
				if live[k] != nil {
					t.Fatalf("token %v given twice", k)
				}
				live[k] = c
				keys = append(keys, k)
			},
			"remove": func(t *rapid.T) {
				if len(keys) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(keys)-1).Draw(t, "which")
				k := keys[i]
				tab.remove(live[k])
				delete(live, k)
				keys[i] = keys[len(keys)-1]
				keys = keys[:len(keys)-1]
				dead = append(dead, k)
			},
			"": func(t *rapid.T) {
				var evs []readyEvent
				for _, k := range keys {
					evs = append(evs, makeReady(pollIn, k))
				}
				for _, k := range dead {
					evs = append(evs, makeReady(pollIn, k))
				}
				evs = append(evs, makeReady(pollIn, wakeToken), makeReady(pollIn, listenToken))
				batch := make([]*Conn, len(evs))
				tab.resolve(evs, batch)
				for i, ev := range evs {
					if batch[i] != live[ev.token()] {
						t.Fatalf("token %v finds %p, want %p", ev.token(), batch[i], live[ev.token()])
					}
				}
				if n := len(slices.Collect(tab.all())); n != len(live) {
					t.Fatalf("all has %d, want %d", n, len(live))
				}
				if len(tab.conns) > len(keys)+len(dead) || len(tab.conns)-len(tab.free) != len(keys) {
					t.Fatalf("%d places, %d free, %d in use", len(tab.conns), len(tab.free), len(keys))
				}
			},
		})
	})
}

func TestTableReusesSlotsAndSkipsGenerationZero(t *testing.T) {
	var tab table
	first := &Conn{}
	tab.add(first)
	for range 100 {
		tab.remove(first)
		first = &Conn{}
		if k := tab.add(first); k.slot != 0 {
			t.Fatalf("slot %d while 0 was free", k.slot)
		}
	}
	tab.gen = 1<<32 - 1
	if k := tab.add(&Conn{}); k.gen != 1 {
		t.Errorf("generation %d after the last one, want 1", k.gen)
	}
}

func TestWorkQueueKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q workQueue
		var want []*Conn
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				c := &Conn{}
				q.push(c)
				want = append(want, c)
			},
			"pop": func(t *rapid.T) {
				c := q.pop()
				if len(want) == 0 {
					if c != nil {
						t.Fatalf("an empty queue gave a connection")
					}
					return
				}
				if c != want[0] {
					t.Fatalf("wrong connection")
				}
				want = want[1:]
			},
			"": func(t *rapid.T) {
				if q.len() != len(want) {
					t.Fatalf("length %d, want %d", q.len(), len(want))
				}
			},
		})
	})
}

// helping is a rig with one loop and its stream, warmed up and asleep.
func helping(t *testing.T) (*rig, *fakePoller, <-chan Event) {
	t.Helper()
	r, f := fakeOne(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	return r, f, events
}

// The loop does not poll beside a consumer that works; the consumer's own read does.
func TestConsumersReadPollsForAParkedLoop(t *testing.T) {
	r, _, events := helping(t)
	peerA, a := r.open()
	peerB, b := r.open()
	lp := r.loops[0]
	buf := make([]byte, 16)
	waitFor(t, "a read finds the loop parked and polls", func() bool {
		write(t, peerA, []byte("x"))
		receiveAs[Readable](t, events)
		// The loop is on its way to the park; a read before that helps nobody.
		for range 1000 {
			if role(lp.state.Load()&roleMask) == parked {
				break
			}
			runtime.Gosched()
		}
		write(t, peerB, []byte("y"))
		before := lp.helped.Load()
		if n, err := a.TryRead(buf); n != 1 || err != nil {
			t.Fatalf("TryRead: %d, %v", n, err)
		}
		helped := lp.helped.Load() > before
		if helped && len(events) != 1 {
			t.Errorf("A's read has polled, and %d events are delivered, want B's", len(events))
		}
		if got := receiveAs[Readable](t, events).Conn; got != b {
			t.Fatal("not B's Readable")
		}
		if n, err := b.TryRead(buf); n != 1 || err != nil {
			t.Fatalf("TryRead: %d, %v", n, err)
		}
		return helped
	})
	if lp.demand.outstanding() {
		t.Error("everything was read, and some is outstanding")
	}
}

// A consumer may sit on a Readable as long as it likes.
func TestHeldReadableDoesNotStopOtherConnections(t *testing.T) {
	r, _, events := helping(t)
	peerA, a := r.open()
	peerB, b := r.open()
	write(t, peerA, []byte("held"))
	if got := receiveAs[Readable](t, events).Conn; got != a {
		t.Fatal("not A's Readable")
	}
	buf := make([]byte, 16)
	for range 20 {
		write(t, peerB, []byte("more"))
		if got := receiveAs[Readable](t, events).Conn; got != b {
			t.Fatal("not B's Readable")
		}
		if n, err := b.TryRead(buf); n != 4 || err != nil {
			t.Fatalf("TryRead: %d, %v", n, err)
		}
	}
	if n, err := a.TryRead(buf); n != 4 || err != nil {
		t.Fatalf("TryRead of what was held: %d, %v", n, err)
	}
	asleep(t, r.Listener)
	if r.loops[0].demand.outstanding() {
		t.Error("everything was read, and some is outstanding")
	}
	// And A's next byte is announced as ever.
	write(t, peerA, []byte("next"))
	if got := receiveAs[Readable](t, events).Conn; got != a {
		t.Fatal("not A's Readable")
	}
}

// Nobody even receives: the loop gives up waiting for the consumer, and goes to sleep.
func TestUnansweredReadablesAreWrittenOff(t *testing.T) {
	r, f, events := helping(t)
	var peers []net.Conn
	var conns []*Conn
	for range 10 {
		peer, c := r.open()
		peers, conns = append(peers, peer), append(conns, c)
	}
	for _, peer := range peers {
		write(t, peer, []byte("x"))
		receiveAs[Readable](t, events)
	}
	asleep(t, r.Listener)
	if r.loops[0].demand.outstanding() {
		t.Error("the loop sleeps and still counts on the consumer")
	}
	before := f.waits.Load()
	for _, c := range conns {
		if n, err := c.TryRead(make([]byte, 16)); n != 1 || err != nil {
			t.Fatalf("TryRead: %d, %v", n, err)
		}
	}
	if n := f.waits.Load() - before; n > 0 {
		t.Errorf("%d polls by reads while the loop itself was in the poller", n)
	}
}
