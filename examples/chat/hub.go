package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

// A hub is what the connections share. Who owns what:
//
//   - hub.mu guards which names are taken and which rooms exist. Nothing is written to a connection
//     under it.
//   - room.mu guards who is in that room and what was said there, and gives the room its one order:
//     a line is added to the history and written to the members in one piece, and so is a newcomer
//     shown the history and made a member. So nobody misses a line at the join and nobody sees one
//     twice. Nothing under it blocks: writes to connections are queued, or refused. A busy room
//     holds up no other one.
//   - A user's own state belongs to its actor. Rooms keep the name they show beside the member,
//     since other actors' /who reads it.
//
// The two locks are never held together. Between them a room is kept alive by its count of users.
type hub struct {
	keep int // lines of history; immutable

	mu sync.Mutex
	// Guarded by mu.
	names map[string]bool  // by chatline.FoldName
	rooms map[string]*room // by chatline.FoldName
}

type room struct {
	name string // as the first one spelt it; immutable
	keep int    // immutable

	users int // in the room, on the way in, or on the way out; guarded by the hub's mu

	mu sync.Mutex
	// Guarded by mu.
	members map[*user]string // to the names shown
	past    net.Buffers      // the last lines said, oldest first

	// Has locks of its own; changed and written to under mu, for the order.
	group tcpio.Group
}

func newHub(keep int) *hub {
	return &hub{keep: keep, names: make(map[string]bool), rooms: make(map[string]*room)}
}

// claim takes a name for one user, and reports false when somebody has it. Of two who ask together
// one gets it.
func (h *hub) claim(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.names[chatline.FoldName(name)] {
		return false
	}
	h.names[chatline.FoldName(name)] = true
	return true
}

func (h *hub) release(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.names, chatline.FoldName(name))
}

// enter returns the room of that name, made if there is none, and counts the caller as a user of it
// until exit.
func (h *hub) enter(name string) *room {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.rooms[chatline.FoldName(name)]
	if r == nil {
		r = &room{name: name, keep: h.keep, members: make(map[*user]string)}
		r.group.Slow = tcpio.CloseSlow
		r.group.Notice = []byte("* you read too slowly, goodbye\n")
		h.rooms[chatline.FoldName(name)] = r
	}
	r.users++
	return r
}

// exit takes back an enter. The last one out forgets the room and what was said in it.
func (h *hub) exit(r *room) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.users--; r.users == 0 {
		delete(h.rooms, chatline.FoldName(r.name))
	}
}

// join shows u the history and makes it a member; either both, or neither and an error.
func (r *room) join(u *user, name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	joined := r.note(name + " joined")
	// All of it is taken, or nothing is: after ErrWouldBlock join is simply called again.
	if _, err := u.c.TryWritev(append(slices.Clip(r.past), joined)); err != nil {
		return err
	}
	r.tellLocked(joined)
	r.members[u] = name
	r.group.Join(u.c)
	return nil
}

// part tells u that it leaves, and makes it leave; either both, or neither and an error. Nothing of
// this room reaches u behind the answer.
func (r *room) part(u *user) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := u.tell("* you left %s", r.name); err != nil {
		return err
	}
	r.leaveLocked(u, "left")
	return nil
}

func (r *room) leave(u *user, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaveLocked(u, why)
}

// leaveLocked ends u's membership and tells the others.
func (r *room) leaveLocked(u *user, why string) {
	name := r.members[u]
	delete(r.members, u)
	r.group.Leave(u.c)
	r.tellLocked(r.note(name + " " + why))
}

// rename tells the others that u has another name, and shows it from now on. u has been told.
func (r *room) rename(u *user, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.members[u]
	r.members[u] = name
	r.tellOthersLocked(u, r.renamed(old, name))
}

// say writes a line of u's to all members, u too: everybody sees the same lines in the same order.
// For u it is an answer: when there is no room for it, nobody has heard it, and say is called
// again. Who is slow to read what others say is dropped, but not who is slow to read what they have
// said themselves.
func (r *room) say(u *user, text string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	line := fmt.Appendf(nil, "[%s] %s: %s\n", r.name, r.members[u], text)
	if _, err := u.c.TryWrite(line); errors.Is(err, tcpio.ErrWouldBlock) {
		return err
	} // Any other error is u's end, and the others hear what came before it.
	if r.keep > 0 {
		if len(r.past) == r.keep {
			r.past = slices.Delete(r.past, 0, 1)
		}
		r.past = append(r.past, line)
	}
	r.tellOthersLocked(u, line)
	return nil
}

func (r *room) tellLocked(line []byte) {
	_, _ = r.group.Write(line) // never fails: members that do are its business
}

func (r *room) tellOthersLocked(u *user, line []byte) {
	r.group.Leave(u.c)
	r.tellLocked(line)
	r.group.Join(u.c)
}

func (r *room) note(what string) []byte { return fmt.Appendf(nil, "[%s] * %s\n", r.name, what) }

func (r *room) renamed(old, name string) []byte { return r.note(old + " is now " + name) }

// who lists the members by name.
func (r *room) who() string {
	r.mu.Lock()
	names := make([]string, 0, len(r.members))
	for _, name := range r.members {
		names = append(names, name)
	}
	r.mu.Unlock()
	slices.Sort(names)
	return fmt.Sprintf("* %d in %s: %s\n", len(names), r.name, strings.Join(names, " "))
}
