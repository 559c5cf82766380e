package cluster

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func at(node string, run, seq uint64) stamp { return stamp{[]byte(node), mark{run, seq, seq}} }

func TestNumbersShowWhatIsLost(t *testing.T) {
	v := new(view)
	step := func(s stamp, wantLost uint64, wantFresh bool) {
		t.Helper()
		if g, fresh := v.heard(s, true); g != (gap{wantLost > 0, wantLost}) || fresh != wantFresh {
			t.Errorf("%v: %+v, %v, want %d, %v", s, g, fresh, wantLost, wantFresh)
		}
	}
	tail := func(s stamp, want uint64) {
		t.Helper()
		if g := v.upTo(s); g != (gap{want > 0, want}) {
			t.Errorf("the tail %v: %+v, want %d", s, g, want)
		}
	}
	step(at(idA, 5, 8), 0, true) // without a part they show nothing
	step(at(idA, 5, 10), 0, true)
	tail(at(idA, 5, 11), 0)
	if _, _, done := v.part(at(idA, 5, 11), piece{last: true}); !done {
		t.Fatal("a part is not taken")
	}
	step(at(idA, 5, 14), 2, true)
	step(at(idA, 5, 13), 0, false) // too late, and counted
	step(at(idA, 5, 14), 0, false)
	tail(at(idA, 5, 14), 0)
	tail(at(idA, 5, 16), 2)
	tail(at(idA, 5, 12), 0)
	step(at(idA, 5, 17), 0, true)
	step(at(idA, 9, 3), 2, true) // a new run
	step(at(idA, 5, 18), 0, false)
	tail(at(idA, 12, 4), 4)
	step(at(idB, 1, 1), 0, true) // another node

	// Changes of members have numbers too, and are no messages that anybody misses.
	if g, fresh := v.heard(stamp{[]byte(idA), mark{12, 8, 5}}, false); g != (gap{true, 1}) || !fresh {
		t.Errorf("a change behind two changes and a message: %+v", g)
	}
	if g, _ := v.heard(stamp{[]byte(idA), mark{12, 10, 6}}, true); g != (gap{true, 0}) {
		t.Errorf("a message behind a change: %+v", g)
	}
}

func TestAPartIsWholeOrNothing(t *testing.T) {
	v := new(view)
	if d := v.change([]byte(idA), []change{{1, true, "\x01x"}}); !d.empty() {
		t.Error("a change before the part shows", d)
	}
	if _, d, done := v.part(at(idA, 1, 5), piece{index: 1, last: true}); done || !d.empty() {
		t.Error("a part without its beginning is whole")
	}
	if _, _, done := v.part(at(idA, 1, 5), piece{index: 0, members: []change{{1, true, "\x01x"}}}); done {
		t.Error("a part without its end is whole")
	}
	_, d, done := v.part(at(idA, 1, 5), piece{index: 1, last: true, members: []change{{2, true, "\x01y"}}})
	if !done || len(d.joined) != 2 || !v.at(idA).whole {
		t.Error("a whole part:", d, done)
	}
	if d := v.change([]byte(idA), []change{{1, false, ""}, {2, true, "\x01z"}, {3, true, "\x01w"}, {9, false, ""}}); fmt.Sprint(d) !=
		"{map[1:\x01x 2:\x01y] map[2:\x01z 3:\x01w]}" {
		t.Errorf("the changes: %q", fmt.Sprint(d))
	}
	if _, _, done := v.part(at(idA, 1, 4), piece{last: true}); done {
		t.Error("a part that is older than what has come is taken")
	}
	v.doubt(idA)
	if v.at(idA).whole {
		t.Error("a part in doubt is whole")
	}
	if lost, d, done := v.part(at(idA, 1, 7), piece{last: true, members: []change{{3, true, "\x01w"}}}); lost.lost != 2 || !done || fmt.Sprint(d) != "{map[2:\x01z] map[]}" {
		t.Error("the part after the doubt:", lost, d, done)
	}
	if d := v.drop(idA); len(d.left) != 1 || v.at(idA).whole || v.at(idA).last.seq != 7 {
		t.Error("a node that is down:", d, v.at(idA))
	}
	if _, done := v.none([]byte(idA), 0); done {
		t.Error("nothing, said before what has come, is taken")
	}
	if _, done := v.none([]byte(idA), 4); !done || !v.at(idA).whole {
		t.Error("nothing is not taken")
	}
	if lost, fresh := v.heard(at(idA, 5, 3), true); lost.lost != 2 || !fresh {
		t.Error("the next run shows a loss of", lost)
	}
}

// A view that misses any messages, and is given the part again after each doubt, has the members
// that the node has, and the losses it is told of and the messages that came are all that were
// sent.
// To see it fail: have part not take the members, or change apply while the part is in doubt.
func TestAViewFollowsItsNode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := new(view)
		members := make(map[uint64]string)
		var seq, came, lost uint64
		all := func() (p []change) {
			for num, r := range members {
				p = append(p, change{num, true, r})
			}
			return p
		}
		_, _, _ = v.part(at(idA, 1, 0), piece{last: true})
		inDoubt := false
		ask := func() {
			l, _, done := v.part(at(idA, 1, seq), piece{last: true, members: all()})
			lost += l.lost
			if !done {
				t.Fatal("the part is not taken")
			}
			inDoubt = false
		}
		t.Repeat(map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				c := change{num: rapid.Uint64Range(1, 5).Draw(t, "member"), joined: rapid.Bool().Draw(t, "joins")}
				if c.joined {
					c.record = rapid.SampledFrom([]string{"\x01a", "\x01b"}).Draw(t, "record")
					members[c.num] = c.record
				} else {
					delete(members, c.num)
				}
				seq++
				if rapid.IntRange(0, 3).Draw(t, "fate") == 0 {
					return // lost
				}
				came++
				l, fresh := v.heard(at(idA, 1, seq), true)
				if lost += l.lost; !fresh {
					t.Fatal("it is not fresh")
				}
				if l.hole {
					v.doubt(idA)
					inDoubt = true
				} else {
					v.change([]byte(idA), []change{c})
				}
			},
			"tail": func(t *rapid.T) {
				if l := v.upTo(at(idA, 1, seq)); l.hole {
					lost += l.lost
					v.doubt(idA)
					inDoubt = true
				}
			},
			"ask": func(t *rapid.T) { ask() },
			"down": func(t *rapid.T) {
				v.drop(idA)
				inDoubt = true
			},
			"": func(t *rapid.T) {
				if v.at(idA).whole == inDoubt {
					t.Fatal("whole is", v.at(idA).whole)
				}
			},
		})
		ask()
		has := make(map[uint64]string)
		for _, m := range v.at(idA).members {
			num, record := m.split()
			has[num] = record
		}
		if !maps.Equal(has, members) {
			t.Fatalf("the view has %v, the node %v", v.at(idA).members, members)
		}
		if came+lost != seq {
			t.Fatalf("%d came, %d are lost, %d were sent", came, lost, seq)
		}
	})
}

// watched is a set of peers that hears itself and others under a clock of its own.
type clock struct {
	ps     peers
	now    time.Time
	number map[string]uint64
}

func newClock() *clock {
	return &clock{ps: peers{self: idA, all: make(map[string]*peer)}, now: time.Unix(0, 0), number: make(map[string]uint64)}
}

func (c *clock) beat(id string, skip uint64, flags byte) report {
	c.number[id] += 1 + skip
	return c.ps.hear(beat{id, c.number[id], 1000, flags}, c.now)
}

func (c *clock) tick(after time.Duration) report {
	c.now = c.now.Add(after)
	return c.ps.tick(c.now, time.Second, time.Second)
}

func TestANodeIsDownAfter4HeartbeatsAndUpWhenItIsHeardAgain(t *testing.T) {
	c := newClock()
	c.beat(idA, 0, 0)
	if r := c.beat(idB, 0, 0); !slices.Equal(r.up, []string{idB}) || !r.changed {
		t.Fatalf("%+v", r)
	}
	for range 3 {
		if r := c.tick(time.Second); r.down != nil || r.late {
			t.Fatalf("%+v", r)
		}
	}
	if r := c.tick(time.Second); !slices.Equal(r.down, []string{idB}) || !r.silent || r.late {
		t.Fatalf("%+v", r)
	}
	if r := c.tick(time.Second); r.down != nil {
		t.Fatalf("it is down twice: %+v", r)
	}
	if r := c.beat(idB, 7, 0); !slices.Equal(r.up, []string{idB}) {
		t.Fatalf("%+v", r)
	}
	if r := c.beat(idB, 1, 0); !slices.Equal(r.doubts, []string{idB}) || r.up != nil {
		t.Fatalf("a hole: %+v", r)
	}
	if r := c.ps.hear(beat{idB, c.number[idB] - 1, 1000, 0}, c.now); r.up != nil || r.doubts != nil {
		t.Fatalf("one that was overtaken: %+v", r)
	}
	if r := c.beat(idB, 0, flagLeaving); !slices.Equal(r.down, []string{idB}) || r.silent || !slices.Equal(c.ps.in(peerLeaving), []string{idB}) {
		t.Fatalf("it leaves: %+v", r)
	}
	if r := c.beat(idB, 0, flagLeaving|flagBye); r.down != nil || !r.changed || len(c.ps.in(peerUp, peerLeaving)) != 1 {
		t.Fatalf("goodbye: %+v", r)
	}
	if r := c.tick(keepPeer); r.forget != nil {
		t.Fatalf("time in which this node did not run counts: %+v", r)
	}
	for range int(keepPeer/time.Second) - 2 {
		if r := c.tick(time.Second); r.forget != nil {
			t.Fatal("it is forgotten early")
		}
	}
	if r := c.tick(2 * time.Second); !slices.Equal(r.forget, []string{idB}) {
		t.Fatalf("%+v", r)
	}
}

// To see it fail: have next look at all nodes, or at none.
func TestANodeLooksWhenSomebodyIsDownByThen(t *testing.T) {
	const beat, grace, idC = time.Second, time.Second / 8, "c"
	c := newClock()
	next := func() time.Duration { return c.ps.next(c.now.Add(10*beat), grace).Sub(c.now) }
	c.beat(idA, 0, 0)
	if got := next(); got != 10*beat {
		t.Errorf("alone it looks after %v", got)
	}
	c.beat(idB, 0, 0)
	c.tick(beat)
	c.beat(idC, 0, 0)
	if got := next(); got != 3*beat+grace {
		t.Errorf("it looks after %v", got)
	}
	c.tick(beat)
	c.beat(idB, 0, 0)
	if got := next(); got != 3*beat+grace {
		t.Errorf("it looks for another after %v", got)
	}
	for range 3 {
		c.tick(beat)
	}
	if got := next(); got != beat+grace {
		t.Errorf("with one down it looks after %v", got)
	}
	if got := c.ps.next(c.now.Add(beat/2), grace).Sub(c.now); got != beat/2 {
		t.Errorf("before its heartbeat it looks after %v", got)
	}
}

func TestANodeThatWasHeldUpTakesNobodyForDead(t *testing.T) {
	c := newClock()
	c.beat(idA, 0, 0)
	c.beat(idB, 0, 0)
	c.tick(time.Second)
	if r := c.tick(time.Minute); !r.late || r.down != nil {
		t.Fatalf("after a minute without running: %+v", r)
	}
	if r := c.tick(time.Second); r.down != nil || r.late {
		t.Fatalf("%+v", r)
	}
	if r := c.tick(time.Second); !slices.Equal(r.down, []string{idB}) {
		t.Fatalf("one that has not come back: %+v", r)
	}
}
