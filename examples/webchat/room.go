package main

import (
	"crypto/rand"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/rabbit-backend/tcpio/websocket"
)

// A room is a log of lines and the seats of those who are given it. Its lock gives the room its one
// order. Nothing under it blocks: a write to a connection is queued, or refused.
//
// Nobody misses a line in silence and nobody is given one twice, because a seat is given the log in
// order, from its number on. A seat whose connection has no room is left alone until Writable, and
// then goes on where it was.
type room struct {
	name  string // as the first one spelt it; immutable
	epoch string // tells this room from a later one of the same name; immutable
	keep  int    // lines; immutable

	users int       // seats; guarded by hub.mu
	empty time.Time // when the last one left; guarded by hub.mu

	typing websocket.Group // has a lock of its own

	mu sync.Mutex // behind hub.mu
	// Guarded by mu.
	log   []*line // the last ones, oldest first
	last  uint64  // number of the newest
	seats map[*seat]struct{}
}

// A line is what happened in a room. It does not change once it is in the log.
type line struct {
	Seq  uint64 `json:"seq"`
	At   int64  `json:"at"`   // Unix time in milliseconds
	Kind string `json:"kind"` // say, came, left, named
	Name string `json:"name"`
	Text string `json:"text,omitempty"` // what was said, why somebody left, the new name
	By   string `json:"by,omitempty"`   // public id of the session that said it
	N    uint64 `json:"n,omitempty"`    // the session's number of it
	Gap  bool   `json:"gap,omitempty"`  // on many nodes: lines before it are missing

	whole []byte // the message that carries this line alone
}

// A seat is a membership of a room. Its fields are guarded by the room's mu.
type seat struct {
	name   string
	sess   *session // nil for a user of nc
	out    sink     // nil while the member is away
	at     uint64   // how far it was given the log
	missed int64    // what the welcome says of it
	hail   bool     // the welcome is owed
	behind bool     // a write was refused: Writable follows
	typed  time.Time
}

// A sink is a member's connection. Its methods are called with the room's mu held. They take all or
// nothing, and an error of tcpio.ErrWouldBlock means that a Writable follows.
type sink interface {
	welcome(r *room, s *seat) error
	gap(r *room, missed uint64) error
	give(r *room, lines []*line) error
}

func newRoom(name string, keep int) *room {
	return &room{name: name, epoch: rand.Text(), keep: keep, seats: make(map[*seat]struct{})}
}

// addLocked puts l into the log and gives it to all who have room.
func (r *room) addLocked(l line) {
	r.last++
	l.Seq, l.At = r.last, time.Now().UnixMilli()
	l.whole = slices.Concat(linesHead, mustJSON(&l), linesTail)
	if len(r.log) == r.keep {
		r.log = slices.Delete(r.log, 0, 1)
	}
	r.log = append(r.log, &l)
	for s := range r.seats {
		if s.out != nil && !s.behind {
			r.giveLocked(s)
		}
	}
}

// batch bounds what one message carries, in lines. With lines of chatline.MaxLine it is some 20
// KiB.
const batch = 16

// giveLocked gives s what it is owed: the welcome, word of what is no longer in the log, and the
// lines. It reports whether that was all.
func (r *room) giveLocked(s *seat) bool {
	s.behind = true
	if s.hail {
		if s.out.welcome(r, s) != nil {
			return false
		}
		s.hail = false
	}
	if first := r.last - uint64(len(r.log)); s.at < first {
		if s.out.gap(r, first-s.at) != nil {
			return false
		}
		s.at = first
	}
	for s.at < r.last {
		next := r.log[len(r.log)-int(r.last-s.at):]
		next = next[:min(len(next), batch)]
		if s.out.give(r, next) != nil {
			return false
		}
		s.at += uint64(len(next))
	}
	s.behind = false
	return true
}

// writable gives s what it is owed, if out is still its connection, and reports whether that was
// all.
func (r *room) writable(s *seat, out sink) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return s.out != out || r.giveLocked(s)
}

// caughtUp reports whether nothing is owed to s.
func (r *room) caughtUp(s *seat) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !s.behind
}

// say puts text of s into the log.
func (r *room) say(s *seat, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addLocked(line{Kind: "say", Name: s.name, Text: text})
}

// resumeLocked sets how far s has been given the log: by what its client says it has. A client that
// knew another room of this name is given all there is.
func (r *room) resumeLocked(s *seat, epoch string, last uint64) {
	first := r.last - uint64(len(r.log))
	switch {
	case epoch != r.epoch || last > r.last:
		s.at, s.missed = first, 0
		if epoch != "" {
			s.missed = -1 // nobody knows how many
		}
	case last < first:
		s.at, s.missed = first, int64(first-last)
	default:
		s.at, s.missed = last, 0
	}
	s.hail, s.behind = true, false
}

// saidLocked returns the highest number of the session's lines in the log.
func (r *room) saidLocked(by string) (n uint64) {
	for _, l := range r.log {
		if l.By == by {
			n = max(n, l.N)
		}
	}
	return n
}

// namesLocked lists the members, sorted.
func (r *room) namesLocked() []string {
	names := make([]string, 0, len(r.seats))
	for s := range r.seats {
		names = append(names, s.name)
	}
	slices.Sort(names)
	return names
}

func (r *room) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.namesLocked()
}

// mustJSON encodes a value of this package's types, which always can be.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
