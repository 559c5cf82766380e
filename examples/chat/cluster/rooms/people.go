package rooms

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

// Who is in a room, as pure state: no lock, no network, and the time is an argument.
//
// Two things say that one has left: its membership ends, and its goodbye is recorded. They come by
// different ways, so in any order, and a goodbye may also come before the membership that it ends
// is known. What decides is which of one's memberships is the newest: by its id, not by when it is
// heard of.

// people are those in a room, by public id.
type people struct {
	there map[string]*person
	// byes are the newest memberships that goodbye was said of, also when nobody is there any more:
	// what is heard of these and of older ones later brings nobody back. Kept as long as keep.
	byes map[string]bye
	keep time.Duration // immutable
}

type bye struct {
	of string // the membership
	at time.Time
}

// A person is in a room, by one membership or, while it moves to another node, by two or none.
type person struct {
	name   string
	conns  int
	newest string    // of its memberships
	left   bool      // goodbye was said of that
	gone   time.Time // when the last one ended
}

func newPeople(grace time.Duration) people {
	return people{
		there: make(map[string]*person), byes: make(map[string]bye), keep: max(grace, time.Minute),
	}
}

// membership is an id. Of one's ids that with the greater stamp is the greater string.
func membership(by string, stamp int64) string {
	return fmt.Sprintf("%s %016x %s", by, stamp, NewID())
}

// owner is the public id in the id of a membership.
func owner(id string) string {
	by, _, _ := strings.Cut(id, " ")
	return by
}

// stampBehind is greater than that of the membership, and now at least.
func stampBehind(id string, now time.Time) int64 {
	stamp := now.UnixNano()
	if part := strings.Split(id, " "); len(part) == 3 {
		if last, err := strconv.ParseInt(part[1], 16, 64); err == nil {
			stamp = max(stamp, last+1)
		}
	}
	return stamp
}

// moved takes a change of the members. away is true if somebody has none now, and has not said
// goodbye.
func (ps *people) moved(pr cluster.Presence, now time.Time) (away bool) {
	maps.DeleteFunc(ps.byes, func(_ string, b bye) bool { return now.Sub(b.at) > ps.keep })
	for _, m := range pr.Joined {
		id := string(m.Info)
		p := ps.there[owner(id)]
		if p == nil {
			p = &person{}
			ps.there[owner(id)] = p
		}
		p.conns++
		if id >= p.newest { // the same one with another name, too
			p.name, p.newest, p.left = m.ID, id, ps.over(id)
		}
	}
	for _, m := range pr.Left {
		by := owner(string(m.Info))
		p := ps.there[by]
		if p == nil {
			continue
		}
		switch p.conns--; {
		case p.conns > 0:
		case p.left:
			delete(ps.there, by)
		default:
			p.gone, away = now, true
		}
	}
	return away
}

// over reports whether goodbye was said of a membership, or of a newer one of the same person.
func (ps *people) over(id string) bool { return id <= ps.byes[owner(id)].of }

// goodbye takes a goodbye of a membership. gone is true if that was all of somebody who was there.
func (ps *people) goodbye(id string, now time.Time) (gone bool) {
	by := owner(id)
	if id > ps.byes[by].of {
		ps.byes[by] = bye{id, now}
	}
	p := ps.there[by]
	if p == nil || id < p.newest {
		return false // it has come back
	}
	p.newest, p.left = id, true
	return ps.lost(id)
}

// lost takes the word of a node that a membership has ended, and that none came in time. That is
// not remembered: a node that was cut off may say it of one that is there.
func (ps *people) lost(id string) (gone bool) {
	p := ps.there[owner(id)]
	if gone = p != nil && p.conns == 0 && id >= p.newest; gone {
		delete(ps.there, owner(id))
	}
	return gone
}

// sweep takes out those who are away as long as grace.
func (ps *people) sweep(grace time.Duration, now time.Time) (lost []*person) {
	for by, p := range ps.there {
		if p.conns == 0 && now.Sub(p.gone) >= grace {
			lost = append(lost, p)
			delete(ps.there, by)
		}
	}
	return lost
}

// taken reports whether somebody else has the name.
func (ps *people) taken(by, name string) bool {
	for id, p := range ps.there {
		if id != by && !p.left && chatline.FoldName(p.name) == chatline.FoldName(name) {
			return true
		}
	}
	return false
}
