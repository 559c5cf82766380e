package cluster

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// drained returns what is in the channel now.
func drained(o *outbox) (events []Event) {
	for {
		select {
		case ev := <-o.ch:
			events = append(events, ev)
		default:
			return events
		}
	}
}

// Filling Events never blocks, and what is received adds up to what happened.
func TestEventsAreMergedWhenNobodyReceives(t *testing.T) {
	o := newOutbox()
	for i := range 1000 {
		o.put(Lost{Topic: fmt.Sprint(i % 300), Node: idA, Count: 2})
		o.put(Disconnected{1})
		o.put(Connected{time.Second})
		o.put(NodeDown{[]string{idB}})
		o.put(NodeUp{[]string{idB}})
	}
	o.put(NodeDown{[]string{idA, idB}})
	o.put(NodeUp{[]string{idA}})
	o.put(Isolated{})
	first := drained(o)
	if len(first) != eventRoom {
		t.Fatalf("%d events found room", len(first))
	}
	all := first
	for range 10 { // each makes room for more
		o.flush()
		all = append(all, drained(o)...)
	}
	var lost uint64
	disconnected, connected, isolated := 0, false, 0
	up := make(map[string]bool)
	for _, ev := range all {
		switch ev := ev.(type) {
		case Lost:
			lost += ev.Count
		case Disconnected:
			disconnected += ev.Times
			connected = false
		case Connected:
			connected = true
		case NodeDown:
			for _, id := range ev.Nodes {
				up[id] = false
			}
		case NodeUp:
			for _, id := range ev.Nodes {
				up[id] = true
			}
		case Isolated:
			isolated++
		}
	}
	if lost != 2000 || disconnected != 1000 || !connected || isolated != 1 || !up[idA] || up[idB] {
		t.Errorf("%d lost, %d times disconnected, connected %v, %d times isolated, up %v", lost, disconnected, connected, isolated, up)
	}
	o.flush()
	if rest := drained(o); rest != nil {
		t.Errorf("more: %v", rest)
	}
	o.close()
	o.put(Isolated{}) // does nothing
	if _, ok := <-o.ch; ok {
		t.Error("the channel is open")
	}
}

func TestEventsHaveNames(t *testing.T) {
	var all []string
	for _, ev := range []Event{NodeUp{[]string{"a"}}, NodeDown{[]string{"a"}}, Disconnected{2}, Connected{time.Second},
		Isolated{}, Lost{Topic: "t", Node: "n", Count: 3}} {
		all = append(all, ev.String())
	}
	want := []string{"NodeUp([a])", "NodeDown([a])", "Disconnected(2 times)", "Connected(after 1s)", "Isolated",
		`Lost(3 of topic "t" from node "n")`}
	if !slices.Equal(all, want) {
		t.Errorf("got %q", all)
	}
}
