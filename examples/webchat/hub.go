package main

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

// maxRooms bounds the rooms, empty ones too. With 300 lines of chatline.MaxLine bytes in each, the
// logs of all take at most some 130 MB.
const maxRooms = 200

// A hub is what the connections share: which names are taken, which rooms exist, which sessions are
// known. hub.mu is taken before a room's mu, and only to come, go and rename; lines are said under
// the room's alone.
type hub struct {
	keep  int           // lines of a log; immutable
	grace time.Duration // immutable

	mu sync.Mutex
	// Guarded by mu.
	names    map[string]bool     // by chatline.FoldName
	rooms    map[string]*room    // by chatline.FoldName
	sessions map[string]*session // by token
	gone     []*session          // those without a seat, oldest first
	stopped  bool
}

func newHub(keep int, grace time.Duration) *hub {
	return &hub{
		keep: keep, grace: grace,
		names: make(map[string]bool), rooms: make(map[string]*room), sessions: make(map[string]*session),
	}
}

// stop stops the timers of members that are away.
func (h *hub) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	for _, s := range h.sessions {
		if s.leaving != nil {
			s.leaving.Stop()
		}
	}
}

var errRooms = errors.New("there are too many rooms")

// roomLocked returns the room of that name, made if there is none. When there are too many it
// forgets the one that has been empty for longest.
func (h *hub) roomLocked(name string) (*room, error) {
	r := h.rooms[chatline.FoldName(name)]
	if r != nil {
		return r, nil
	}
	if len(h.rooms) >= maxRooms {
		var oldest *room
		for _, r := range h.rooms {
			if r.users == 0 && (oldest == nil || r.empty.Before(oldest.empty)) {
				oldest = r
			}
		}
		if oldest == nil {
			return nil, errRooms
		}
		delete(h.rooms, chatline.FoldName(oldest.name))
	}
	r = newRoom(name, h.keep)
	h.rooms[chatline.FoldName(name)] = r
	return r, nil
}

// claimLocked changes the claim of a name from old, which may be empty, to name, and reports false
// when somebody else has it.
func (h *hub) claimLocked(old, name string) bool {
	if chatline.FoldName(old) == chatline.FoldName(name) {
		return true
	}
	if h.names[chatline.FoldName(name)] {
		return false
	}
	h.names[chatline.FoldName(name)] = true
	delete(h.names, chatline.FoldName(old))
	return true
}

// sitLocked puts s into r, and everybody in it is given a line that says so.
func (h *hub) sitLocked(r *room, s *seat) {
	r.users++
	r.mu.Lock()
	defer r.mu.Unlock()
	s.at, s.hail = r.last, true
	r.seats[s] = struct{}{}
	r.addLocked(line{Kind: "came", Name: s.name})
}

// leaveLocked takes s out of r, and gives the others a line that says why.
func (h *hub) leaveLocked(r *room, s *seat, why string) {
	if r.users--; r.users == 0 {
		r.empty = time.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.seats, s)
	s.out = nil
	r.addLocked(line{Kind: "left", Name: s.name, Text: why})
}

// renameLocked has everybody in r, the member too, see s under another name.
func (h *hub) renameLocked(r *room, s *seat, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := s.name
	s.name = name
	r.addLocked(line{Kind: "named", Name: old, Text: name})
}

// list returns the fullest rooms.
func (h *hub) list() []roomInfo {
	h.mu.Lock()
	all := make([]roomInfo, 0, len(h.rooms))
	for _, r := range h.rooms {
		all = append(all, roomInfo{r.name, r.users})
	}
	h.mu.Unlock()
	slices.SortFunc(all, fullest)
	return all[:min(len(all), maxList)]
}

// fullest orders rooms for a list.
func fullest(a, b roomInfo) int {
	return cmp.Or(cmp.Compare(b.Users, a.Users), cmp.Compare(a.Name, b.Name))
}
