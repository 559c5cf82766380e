package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	clusterws "github.com/rabbit-backend/tcpio/cluster/ws"
	"github.com/rabbit-backend/tcpio/examples/chat/cluster/rooms"
	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
	"github.com/rabbit-backend/tcpio/websocket"
)

// asPage is how pages get lines: as they come out of the chat. One that reads too slowly is closed,
// and comes back for what it has missed.
var asPage = &clusterws.Format{Slow: tcpio.CloseSlow}

// asTyping is how pages get word of who is typing, which nobody needs.
var asTyping = &clusterws.Format{Slow: tcpio.SkipSlow}

// A member is the actor of a page's connection in a chat on many nodes. Its fields belong to
// Receive, which never runs twice at a time. It may block there: while NATS answers, and while its
// page does not read; nothing more is read from the page then.
//
// What a visitor has in a hub, a member has in the cluster: a page that comes to another node has
// its token and the number of the last line that it has; what it says again has the same id.
type member struct {
	chat *rooms.Chat
	c    *websocket.Conn

	token string // "" before the hello
	by    string
	name  string
	has   *cluster.Session
	room  *rooms.Room // nil: in none
	seat  string      // the id of its membership there
	top   uint64      // the highest n that is known to have been said
}

// closeNow is what the timer of a Moved posts.
type closeNow struct{}

// Receive handles one event.
func (m *member) Receive(ev websocket.Event) error {
	switch ev := ev.(type) {
	case websocket.Text:
		var q request
		if err := json.Unmarshal(ev.Data, &q); err != nil || !m.do(&q) {
			m.c.Close(websocket.PolicyViolation, "not a message of this chat")
		}
	case websocket.Message:
		switch v := ev.Value.(type) {
		case cluster.Posted:
			ev.Reply(rooms.Owner(v, m.has, m.by))
		case cluster.Replaced:
			m.c.Close(closeMoved, "open elsewhere")
		case cluster.Unsure:
			m.c.Close(websocket.TryAgainLater, "this node is cut off from the others")
		case cluster.Moved:
			m.c.After(v.After, closeNow{})
		case closeNow:
			m.c.Close(websocket.GoingAway, "connect to another node")
		}
	case websocket.Closed:
		if m.room != nil {
			m.part(ev.By == websocket.Peer && ev.Code == websocket.Normal)
		}
	}
	return nil
}

// do carries out a request, and reports false for one that no page of this chat sends.
func (m *member) do(q *request) bool {
	switch {
	case q.T == "hello":
		if len(q.Token) < 16 || len(q.Token) > 64 || m.token != "" && m.token != q.Token {
			return false
		}
		m.hello(q)
	case q.T == "rooms":
		m.reply(&answer{T: "rooms", Rooms: m.rooms()})
	case m.room == nil:
		return m.token != "" // the hello has failed
	case q.T == "say":
		if q.N == 0 || q.N > 1<<53 {
			return false
		}
		m.say(q)
	case q.T == "typing":
		m.typing()
	default:
		return false
	}
	return true
}

// reply waits for room; an error is the connection's end.
func (m *member) reply(a *answer) { _ = m.c.WriteText(mustJSON(a)) }

// later ends a connection whose page has to try again, on another node best.
func (m *member) later(err error) {
	m.chat.Warn("a page is turned away", err)
	m.c.Close(websocket.TryAgainLater, "the chat cannot be reached from here")
}

func (m *member) rooms() []roomInfo {
	all := make([]roomInfo, 0)
	for name, users := range m.chat.List() {
		all = append(all, roomInfo{name, users})
	}
	slices.SortFunc(all, fullest)
	return all[:min(len(all), maxList)]
}

// hello takes the page into the room that it names, from the line on that it has.
func (m *member) hello(q *request) {
	if no := q.check(); no != nil {
		m.reply(&answer{T: "no", Field: no.field, Why: no.why})
		return
	}
	ctx, conn := m.c.Underlying().Context(), m.c.Underlying()
	m.token, m.by = q.Token, publicID(q.Token)
	r, err := m.chat.Enter(q.Room)
	if err != nil {
		m.later(err)
		return
	}
	was, taken := r.Here(ctx, m.by, q.Name)
	var has *cluster.Session
	if !taken {
		has, err = m.chat.Claim(ctx, q.Name, m.by, conn)
	}
	switch {
	case taken || errors.Is(err, rooms.ErrTaken):
		r.Exit()
		m.reply(&answer{T: "no", Field: "name", Why: q.Name + " is taken; choose another name."})
		return
	case err != nil:
		r.Exit()
		m.later(err)
		return
	}
	if m.has != nil && m.has.Key() != has.Key() {
		m.has.Release()
	}
	m.has = has
	if m.room != nil {
		m.part(m.room != r)
	}
	m.name, m.room, m.seat = q.Name, r, r.Membership(m.by)
	stayed, err := m.resume(ctx, q)
	if err != nil {
		m.later(err)
		return
	}
	switch {
	case was == "" && stayed: // its node was lost, and nobody was there who saw that
	case was == "":
		err = r.Record(ctx, "", rooms.Line{Kind: "came", Name: m.name, By: m.by})
	case was != m.name:
		err = r.Record(ctx, "", rooms.Line{Kind: "named", Name: was, Text: m.name, By: m.by})
	}
	if err != nil {
		m.chat.Warn("a line is missing", err)
	}
}

// everything is a number that no line has: who is there, as of that, is told by messages and not by
// lines.
const everything = 1<<53 - 1

// resume gives the page what it does not have, and what comes then. What of its own is among it
// need not be said again: no say is handled before. stayed is true if it has seen some lines of the
// room before, and none behind them says that it left.
func (m *member) resume(ctx context.Context, q *request) (stayed bool, err error) {
	r, conn := m.room, m.c.Underlying()
	err = m.c.WriteText(mustJSON(&answer{T: "welcome", Room: q.Room, Epoch: m.chat.Epoch(), Name: m.name, Me: m.by, Last: everything}))
	if err != nil {
		return false, err
	}
	var since cluster.Pos
	if q.Epoch != "" && q.Last != 0 {
		if since, err = cluster.ParsePos(fmt.Sprintf("%s-%d", q.Epoch, q.Last)); err != nil {
			since = cluster.Pos{Epoch: "none"} // it is told that lines may be missing
		}
	}
	told, left := false, false
	whole, err := r.Join(ctx, asPage, conn, m.c, m.seat, m.name, since, func(l rooms.Line) error {
		if l.By == m.by {
			m.top = max(m.top, l.N)
			left = left || l.Kind == "left"
		}
		told = told || l.Gap
		return m.c.WriteText(rooms.Lines(r.Name, l))
	})
	if err != nil {
		return false, err
	}
	if !whole && !told {
		m.reply(&answer{T: "gap", Missed: -1, Last: everything})
	}
	r.Pages.Join(m.c)
	_ = m.c.WriteText(r.People())
	err = asTyping.Join(m.chat.Topic("typing "+chatline.FoldName(r.Name)), m.c, nil)
	return since != (cluster.Pos{}) && whole && !left, err
}

// part ends what the page is in the room. One that has not said that it leaves may come back, to
// whichever node.
func (m *member) part(leaves bool) {
	r, conn := m.room, m.c.Underlying()
	m.room = nil
	m.chat.Topic("typing " + chatline.FoldName(r.Name)).Leave(conn)
	r.Pages.Leave(m.c)
	r.Leave(conn)
	if leaves {
		r.Goodbye("left", m.name, m.seat)
	}
	r.Exit()
}

// say says a line, once. A page whose line may not have been heard says it again, on another
// connection.
func (m *member) say(q *request) {
	text := chatline.Clean([]byte(q.Text))
	switch {
	case q.N <= m.top:
		m.reply(&answer{T: "ack", N: m.top})
		return
	case len(q.Text) > chatline.MaxLine:
		m.top = q.N
		m.reply(&answer{T: "no", N: q.N, Why: "That line is too long."})
		return
	case text == "":
		m.top = q.N
		m.reply(&answer{T: "no", N: q.N, Why: "That line is empty."})
		return
	}
	l := rooms.Line{Kind: "say", Name: m.name, Text: text, By: m.by, N: q.N}
	if err := m.room.Record(m.c.Underlying().Context(), fmt.Sprint("say ", m.by, " ", q.N), l); err != nil {
		m.later(err)
		m.part(false) // no later line may come before this one
		return
	}
	m.top = q.N
}

// typing tells the others that the page is being written on.
func (m *member) typing() {
	_ = m.chat.Topic("typing " + chatline.FoldName(m.room.Name)).Publish(mustJSON(&answer{T: "typing", Name: m.name}))
}

// check says what is wrong with a hello.
func (q *request) check() *refusal {
	switch {
	case !chatline.ValidName(q.Name):
		return &refusal{"name", "A name is up to 20 letters, digits, - and _."}
	case strings.HasPrefix(chatline.FoldName(q.Name), guest):
		return &refusal{"name", "Names with " + guest + " are for guests."}
	case !chatline.ValidName(q.Room):
		return &refusal{"room", "A room's name is up to 20 letters, digits, - and _."}
	}
	return nil
}
