package main

import (
	"encoding/json"
	"errors"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/websocket"
)

// A visitor is the actor of a page's connection. Its fields belong to Receive, which never runs
// twice at a time; as a sink it uses c only.
type visitor struct {
	h *hub
	c *websocket.Conn

	sess *session // nil before the hello; these three are set by hub.hello
	room *room
	seat *seat

	// While one of these is set, the connection is paused: at Writable it goes on.
	held *request // a request that waits until its sender has taken what it is owed
	owed [][]byte // answers to the last request
}

// Receive handles one event.
func (u *visitor) Receive(ev websocket.Event) error {
	switch ev := ev.(type) {
	case websocket.Text:
		var q request
		if err := json.Unmarshal(ev.Data, &q); err != nil || !u.do(&q) {
			u.c.Close(websocket.PolicyViolation, "not a message of this chat")
		}
	case websocket.Writable:
		u.goOn()
	case websocket.Closed:
		u.h.lost(u, ev.By == websocket.Peer && ev.Code == websocket.Normal)
	}
	return nil
}

// goOn gives what there was no room for, and lets the peer's next request come when that was all.
func (u *visitor) goOn() {
	for len(u.owed) > 0 {
		if errors.Is(u.c.TryWriteText(u.owed[0]), tcpio.ErrWouldBlock) {
			return
		}
		u.owed = u.owed[1:]
	}
	if u.seat != nil && !u.room.writable(u.seat, u) {
		return
	}
	if q := u.held; q != nil {
		u.held = nil
		u.do(q)
	}
	if u.held == nil && len(u.owed) == 0 {
		u.c.Resume()
	}
}

// do carries out a request, and reports false for one that no page of this chat sends. One whose
// sender has not taken what it is owed is held, and nothing more is read from the sender.
func (u *visitor) do(q *request) bool {
	if u.seat != nil && !u.room.caughtUp(u.seat) {
		u.held = q
		u.c.Pause()
		return true
	}
	switch q.T {
	case "hello":
		if len(q.Token) < 16 || len(q.Token) > 64 || u.sess != nil && u.sess.token != q.Token {
			return false
		}
		if no := u.h.hello(u, q); no != nil {
			u.reply(&answer{T: "no", Field: no.field, Why: no.why})
		}
		return true
	case "rooms":
		u.reply(&answer{T: "rooms", Rooms: u.h.list()})
		return true
	}
	if u.sess == nil {
		return false
	}
	switch q.T {
	case "say":
		if q.N == 0 || q.N > 1<<53 {
			return false
		}
		if a := u.say(q); a != nil {
			u.reply(a)
		}
	case "typing":
		u.typing()
	default:
		return false
	}
	return true
}

// reply answers a request. An answer without room waits, and so does the peer's next request.
func (u *visitor) reply(a *answer) {
	p := mustJSON(a)
	if len(u.owed) > 0 || errors.Is(u.c.TryWriteText(p), tcpio.ErrWouldBlock) {
		u.owed = append(u.owed, p)
		u.c.Pause()
	}
}

func (u *visitor) welcome(r *room, s *seat) error {
	a := answer{
		T: "welcome", Room: r.name, Epoch: r.epoch, Name: s.name, Me: s.sess.by,
		N: s.sess.top, Missed: s.missed,
	}
	return u.present(&a, r)
}

func (u *visitor) gap(r *room, missed uint64) error {
	return u.present(&answer{T: "gap", Missed: int64(missed)}, r)
}

// present sends a with who is there now.
func (u *visitor) present(a *answer, r *room) error {
	names := r.namesLocked()
	a.Last, a.Count, a.Here = r.last, len(names), names[:min(len(names), maxHere)]
	return u.c.TryWriteText(mustJSON(a))
}

func (u *visitor) give(_ *room, lines []*line) error {
	if len(lines) == 1 {
		return u.c.TryWriteText(lines[0].whole)
	}
	p := append([]byte(nil), linesHead...)
	for i, l := range lines {
		if i > 0 {
			p = append(p, ',')
		}
		p = append(p, l.whole[len(linesHead):len(l.whole)-len(linesTail)]...)
	}
	return u.c.TryWriteText(append(p, linesTail...))
}
