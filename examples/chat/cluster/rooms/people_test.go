package rooms

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/cluster"
)

// Memberships of one person, in the order in which they were made.
var (
	first, second = membership("ann", 1), membership("ann", 2)
	someTime      = time.Unix(1_000_000_000, 0)
)

// A fact is a word that comes to a node: "+1" and "-1" are the beginning and the end of the first
// membership, "bye1" its goodbye. Several with commas come in one Presence.
func (ps *people) hear(fact string, now time.Time) {
	id := func(s string) string { return map[byte]string{'1': first, '2': second}[s[len(s)-1]] }
	if strings.HasPrefix(fact, "bye") {
		ps.goodbye(id(fact), now)
		return
	}
	var pr cluster.Presence
	for _, f := range strings.Split(fact, ",") {
		m := cluster.Member{ID: "ann", Info: []byte(id(f))}
		if f[0] == '+' {
			pr.Joined = append(pr.Joined, m)
		} else {
			pr.Left = append(pr.Left, m)
		}
	}
	ps.moved(pr, now)
}

// state is "none", "there", "leaving" or "away".
func (ps *people) state() string {
	p := ps.there["ann"]
	switch {
	case p == nil:
		return "none"
	case p.left:
		return "leaving"
	case p.conns == 0:
		return "away"
	}
	return "there"
}

// merge calls f with all the ways to mix two sequences.
func merge(mixed, a, b []string, f func([]string)) {
	if len(a) == 0 && len(b) == 0 {
		f(mixed)
	}
	if len(a) > 0 {
		merge(append(mixed[:len(mixed):len(mixed)], a[0]), a[1:], b, f)
	}
	if len(b) > 0 {
		merge(append(mixed[:len(mixed):len(mixed)], b[0]), a, b[1:], f)
	}
}

// Whoever has said goodbye is nobody's namesake from then on, and is not waited for, however its
// goodbye and word of its memberships mix. Who has not is waited for.
func TestGoodbyeInAnyOrder(t *testing.T) {
	for _, test := range []struct {
		presence, goodbyes string // each comes in this order
		last               string // the goodbye behind which the name is free; "" if there is none
		end                string
	}{
		{"+1 -1", "bye1", "bye1", "none"},
		{"+1 -1", "", "", "away"},
		// The page has moved from the first to the second, and leaves.
		{"+1 +2 -1 -2", "bye2", "bye2", "none"},
		{"+1 +2 -2 -1", "bye2", "bye2", "none"},
		{"+2 +1 -2 -1", "bye2", "bye2", "none"},
		{"+1,+2 -1,-2", "bye2", "bye2", "none"},
		{"+2,+1 -2,-1", "bye2", "bye2", "none"},
		{"+1 -1,+2 -2", "bye2", "bye2", "none"},
		{"+1 -1", "bye2", "bye2", "none"}, // the second was over before word of it came
		// It has left, and is back at once.
		{"+1 -1 +2", "bye1", "", "there"},
		{"+1 +2 -1", "bye1", "", "there"},
		{"+2 +1 -1", "bye1", "", "there"},
		{"+1,+2 -1", "bye1", "", "there"},
		{"+2", "bye1", "", "there"},
		// Then it is lost.
		{"+1 +2 -1 -2", "bye1", "", "away"},
		{"+1 +2 -2 -1", "bye1", "", "away"},
		{"+1 -1 +2 -2", "bye1", "", "away"},
		{"+1,+2 -2,-1", "bye1", "", "away"},
		// Then it leaves again.
		{"+1 -1 +2 -2", "bye1 bye2", "bye2", "none"},
		{"+2 +1 -1 -2", "bye1 bye2", "bye2", "none"},
		// Its node was taken for dead, and was not.
		{"+1 -1 +1 -1", "bye1", "bye1", "none"},
		{"+1 -1 +1", "", "", "there"},
	} {
		merge(nil, strings.Fields(test.presence), strings.Fields(test.goodbyes), func(facts []string) {
			t.Run(strings.Join(facts, "_"), func(t *testing.T) {
				ps, free := newPeople(time.Second), false
				for _, f := range facts {
					ps.hear(f, someTime)
					free = free || f == test.last
					if taken := ps.taken("bob", "Ann"); taken && free {
						t.Errorf("the name is taken behind %s", f)
					} else if s := ps.state(); taken != (s == "there" || s == "away") {
						t.Errorf("the name is taken: %t, and ann is %s", taken, s)
					}
				}
				if got := ps.state(); got != test.end {
					t.Errorf("ann is %s, want %s", got, test.end)
				}
				lost := ps.sweep(time.Second, someTime.Add(time.Second))
				if (len(lost) == 1) != (test.end == "away") {
					t.Errorf("%d are lost", len(lost))
				}
			})
		})
	}
}

// Word that one is lost ends its being away, not its being there.
func TestLostIsNoGoodbye(t *testing.T) {
	ps := newPeople(time.Second)
	ps.hear("+1", someTime)
	if ps.lost(first) || ps.state() != "there" {
		t.Errorf("ann is %s", ps.state())
	}
	ps.hear("-1", someTime)
	if ps.lost(membership("ann", 0)); ps.state() != "away" {
		t.Errorf("behind word of an older membership ann is %s", ps.state())
	}
	if !ps.lost(first) || ps.state() != "none" {
		t.Errorf("ann is %s", ps.state())
	}
	if ps.hear("+1", someTime); ps.state() != "there" {
		t.Errorf("her node was cut off and is back, and ann is %s", ps.state())
	}
}

// A goodbye is forgotten after a minute, or the grace; a person who has said it stays leaving.
func TestGoodbyesAreForgotten(t *testing.T) {
	ps := newPeople(2 * time.Minute)
	ps.hear("+1", someTime)
	ps.hear("bye1", someTime)
	for n := range 10 {
		ps.goodbye(membership(fmt.Sprint("p", n), 1), someTime)
	}
	ps.moved(cluster.Presence{}, someTime.Add(2*time.Minute))
	if len(ps.byes) != 11 {
		t.Errorf("%d goodbyes are known, want 11", len(ps.byes))
	}
	ps.moved(cluster.Presence{}, someTime.Add(2*time.Minute+1))
	if len(ps.byes) != 0 {
		t.Errorf("%d goodbyes are known, want none", len(ps.byes))
	}
	if ps.state() != "leaving" {
		t.Errorf("ann is %s", ps.state())
	}
	if ps.hear("-1", someTime); ps.state() != "none" {
		t.Errorf("ann is %s", ps.state())
	}
}

// Another name is the same membership's.
func TestRenamedWithinAMembership(t *testing.T) {
	ps := newPeople(time.Second)
	ps.hear("+1", someTime)
	ps.moved(cluster.Presence{
		Left:   []cluster.Member{{ID: "ann", Info: []byte(first)}},
		Joined: []cluster.Member{{ID: "anna", Info: []byte(first)}},
	}, someTime)
	if ps.state() != "there" || ps.taken("bob", "ann") || !ps.taken("bob", "anna") {
		t.Errorf("ann is %s, %+v", ps.state(), ps.there["ann"])
	}
	if ps.goodbye(first, someTime); ps.taken("bob", "anna") {
		t.Error("her name is taken behind her goodbye")
	}
}

// A membership is newer than those that are known, also where the clock is behind.
func TestMembershipsGrow(t *testing.T) {
	id := membership("ann", someTime.UnixNano())
	for range 100 {
		next := membership("ann", stampBehind(id, someTime.Add(-time.Hour)))
		if next <= id || owner(next) != "ann" {
			t.Fatalf("%q comes behind %q", next, id)
		}
		id = next
	}
	if at := stampBehind("", someTime); at != someTime.UnixNano() {
		t.Errorf("the first has the stamp %d", at)
	}
}
