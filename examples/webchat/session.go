package main

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

// maxGone is how many sessions without a seat are remembered, so that a line that one of them sends
// again is known.
const maxGone = 10_000

// A session is a page, over all its connections. A connection that knows the token is the page's:
// one that names it takes the place of the one before. Its fields are guarded by hub.mu, but for
// top.
type session struct {
	token   string // immutable
	by      string // immutable
	name    string
	room    *room
	seat    *seat    // nil: it has left
	user    *visitor // nil: it is away
	leaving *time.Timer

	top uint64 // the highest n that was said; guarded by the room's mu, and without a seat by hub.mu
}

// publicID is what others see of a token.
func publicID(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:8])
}

// A refusal answers a hello.
type refusal struct{ field, why string }

// hello seats the session of u's page in the room that it names, or says why not. u's connection
// takes the place of the one that the session had.
func (h *hub) hello(u *visitor, q *request) *refusal {
	if no := q.check(); no != nil {
		return no
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[q.Token]
	known := s != nil
	if !known {
		s = &session{token: q.Token, by: publicID(q.Token)}
	}
	r, err := h.roomLocked(q.Room)
	if err != nil {
		return &refusal{"room", "There are too many rooms; choose one that exists."}
	}
	had := s.name
	if s.seat == nil {
		had = "" // it was released
	}
	if !h.claimLocked(had, q.Name) {
		if r.users == 0 && r.empty.IsZero() {
			delete(h.rooms, chatline.FoldName(r.name)) // it was made for this
		}
		return &refusal{"name", q.Name + " is taken; choose another name."}
	}
	h.sessions[q.Token] = s
	if s.leaving != nil {
		s.leaving.Stop()
		s.leaving = nil
	}
	if old := s.user; old != u {
		if s.user = u; old != nil {
			old.c.Close(closeMoved, "open elsewhere")
		}
	}
	if s.seat != nil && s.room != r {
		s.room.typing.Leave(u.c)
		h.leaveLocked(s.room, s.seat, "left")
		s.seat = nil
	} else if s.seat == nil && known {
		h.gone = slices.DeleteFunc(h.gone, func(g *session) bool { return g == s })
	}
	came := s.seat == nil
	if came {
		s.seat = &seat{name: q.Name, sess: s}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	st := s.seat
	st.out = nil // it is given what follows from the welcome on
	switch {
	case came:
		r.users++
		r.seats[st] = struct{}{}
		r.addLocked(line{Kind: "came", Name: q.Name})
	case s.name != q.Name:
		st.name = q.Name
		r.addLocked(line{Kind: "named", Name: s.name, Text: q.Name})
	}
	if !known {
		s.top = r.saidLocked(s.by)
	}
	s.name, s.room, st.out = q.Name, r, u
	r.resumeLocked(st, q.Epoch, q.Last)
	r.giveLocked(st)
	r.typing.Join(u.c)
	u.sess, u.room, u.seat = s, r, st
	return nil
}

// lost notes that u's connection is over. The session keeps its seat and its name for the grace
// period, unless it said that it leaves.
func (h *hub) lost(u *visitor, leaves bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := u.sess
	if s == nil || s.user != u {
		return
	}
	s.user = nil
	s.room.mu.Lock()
	s.seat.out = nil
	s.room.mu.Unlock()
	if leaves {
		h.goneLocked(s, "left")
		return
	}
	if h.stopped {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(h.grace, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if s.leaving == t {
			s.leaving = nil
			h.goneLocked(s, "lost the connection")
		}
	})
	s.leaving = t
}

// goneLocked takes a session's seat and name. What it has said is remembered.
func (h *hub) goneLocked(s *session, why string) {
	h.leaveLocked(s.room, s.seat, why)
	delete(h.names, chatline.FoldName(s.name))
	s.seat = nil
	h.gone = append(h.gone, s)
	if len(h.gone) > maxGone {
		delete(h.sessions, h.gone[0].token)
		h.gone = slices.Delete(h.gone, 0, 1)
	}
}

// say says the line of a request of u's, once. It returns what u is to be answered, if anything.
func (u *visitor) say(q *request) *answer {
	text, r, s := chatline.Clean([]byte(q.Text)), u.room, u.seat
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case s.out != u:
		return nil // the session has moved to another connection
	case q.N <= s.sess.top:
		return &answer{T: "ack", N: s.sess.top}
	}
	s.sess.top = q.N
	switch {
	case len(q.Text) > chatline.MaxLine:
		return &answer{T: "no", N: q.N, Why: "That line is too long."}
	case text == "":
		return &answer{T: "no", N: q.N, Why: "That line is empty."}
	}
	r.addLocked(line{Kind: "say", Name: s.name, Text: text, By: s.sess.by, N: q.N})
	return nil
}

// typing tells the room that u is writing, at most once a second. The log does not have it: a
// member without room for it does not need it.
func (u *visitor) typing() {
	u.room.mu.Lock()
	name, now := u.seat.name, time.Now()
	tell := u.seat.out == u && now.Sub(u.seat.typed) >= time.Second
	if tell {
		u.seat.typed = now
	}
	u.room.mu.Unlock()
	if tell {
		u.room.typing.WriteText(mustJSON(&answer{T: "typing", Name: name}))
	}
}
