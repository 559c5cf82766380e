package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nuid"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
	"github.com/rabbit-backend/tcpio/websocket"
)

// A Line is what happened in a room. Seq and At come from the stream.
type Line struct {
	Seq  uint64 `json:"seq,omitempty"`
	At   int64  `json:"at,omitempty"` // Unix time in milliseconds
	Kind string `json:"kind"`         // say, came, left, named
	Name string `json:"name"`
	Text string `json:"text,omitempty"` // what was said, why somebody left, the new name
	By   string `json:"by,omitempty"`   // public id of whom it is about
	N    uint64 `json:"n,omitempty"`    // its number of a line that it said
	Gap  bool   `json:"gap,omitempty"`  // lines before it are missing, and are not kept any more
}

// A Room is a recorded topic, and who is there. It is in the Chat while it has users here.
type Room struct {
	// Immutable.
	Name  string // as the first one here spelt it
	chat  *Chat
	fold  string
	topic *cluster.Topic
	stop  func() // the watch

	users int // guarded by the chat's mu

	// Those who are told who is there: pages. It has a lock of its own.
	Pages websocket.Group

	mu sync.Mutex
	// Guarded by mu.
	people map[string]*person // by public id
}

// A person is in a room, by one connection or, while it moves to another node, by two or none.
type person struct {
	name  string
	conns int
	gone  time.Time // when the last connection was lost
	was   string    // the id of that membership
	left  bool      // it has said so
}

// MaxHere is how many names a page is shown.
const MaxHere = 200

var errRooms = errors.New("there are too many rooms")

// maxRooms is how many rooms may have users here.
const maxRooms = 10_000

// Enter returns the room of a name, and counts the caller as a user of it until Exit.
func (c *Chat) Enter(name string) (*Room, error) {
	fold := chatline.FoldName(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[fold]
	switch {
	case c.closed:
		return nil, cluster.ErrClosed
	case r == nil && len(c.rooms) >= maxRooms:
		return nil, errRooms
	case r == nil:
		r = &Room{Name: name, chat: c, fold: fold, topic: c.class.Topic(fold), people: make(map[string]*person)}
		r.Pages.Slow = tcpio.CloseSlow
		r.stop = r.topic.Watch(r.moved)
		c.rooms[fold] = r
	}
	r.users++
	return r, nil
}

// Exit takes back an Enter.
func (r *Room) Exit() {
	r.chat.mu.Lock()
	defer r.chat.mu.Unlock()
	if r.users--; r.users == 0 {
		delete(r.chat.rooms, r.fold)
		r.stop()
	}
}

// settle waits until it is known who is there, for a second at most: a node may hang.
func (r *Room) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for {
		if _, whole := r.topic.Members(); whole {
			return
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// Here reports under which name one is in the room, or was until a moment ago, and whether another
// one is there with that name.
func (r *Room) Here(ctx context.Context, by, name string) (was string, taken bool) {
	r.settle(ctx)
	all, _ := r.topic.Members()
	for _, m := range all {
		if publicID(m) == by {
			was = m.ID
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, p := range r.people {
		switch {
		case p.left:
		case id == by && was == "":
			was = p.name
		case id != by && chatline.FoldName(p.name) == chatline.FoldName(name):
			taken = true
		}
	}
	return was, taken
}

// Join makes conn a member that gets lines in the format f, and calls write with what was said
// since first. whole is false when lines are missing. Joining again, after a new name say, needs a
// Leave.
func (r *Room) Join(ctx context.Context, f cluster.Format, conn *tcpio.Conn, as any, by, name string,
	since cluster.Pos, write func(Line) error) (whole bool, err error) {
	return r.topic.ResumeAs(ctx, f, conn, as, member(by, name), since,
		func(rec cluster.Record) error { return write(lineOf(rec)) })
}

// Rename shows conn, which has joined, under another name.
func (r *Room) Rename(f cluster.Format, conn *tcpio.Conn, as any, by, name string) error {
	return r.topic.JoinAs(f, conn, as, member(by, name))
}

// member is what others see of one: its name, its public id, and an id of this membership.
func member(by, name string) *cluster.Member {
	return &cluster.Member{ID: name, Info: []byte(by + " " + NewID())}
}

func publicID(m cluster.Member) string {
	by, _, _ := strings.Cut(string(m.Info), " ")
	return by
}

// Leave ends a Join.
func (r *Room) Leave(conn *tcpio.Conn) { r.topic.Leave(conn) }

// Record puts a line into the room. Of two with the same id, within two minutes, one is recorded.
// An error says that nobody has it, or that it is not known: then do it again, with the same id.
func (r *Room) Record(ctx context.Context, id string, l Line) error {
	_, err := r.topic.PublishRecord(ctx, id, mustJSON(l))
	return err
}

// Goodbye says that one leaves, behind its Leave.
func (r *Room) Goodbye(why, name, by string) {
	if err := r.Record(r.chat.ctx, "", Line{Kind: "left", Name: name, Text: why, By: by}); err != nil {
		r.chat.Warn("a line is missing", err)
	}
}

// lineOf is the line of a record.
func lineOf(rec cluster.Record) (l Line) {
	_ = json.Unmarshal(rec.Data, &l) // what is no line is an empty one
	l.Seq, l.At, l.Gap = rec.Pos.Seq, rec.Time.UnixMilli(), rec.Gap
	return l
}

// Lines is the message that carries a line of a room to a page.
func Lines(room string, l Line) []byte {
	return mustJSON(struct {
		T     string `json:"t"`
		Room  string `json:"room"`
		Lines []Line `json:"lines"`
	}{"lines", room, []Line{l}})
}

// encode makes the message of a record, once for all members here. Who has said that it leaves is
// not waited for.
func (c *Chat) encode(rec cluster.Record) []byte {
	if epoch := c.epoch.Load(); epoch != nil && *epoch != rec.Pos.Epoch {
		c.epoch.Store(&rec.Pos.Epoch)
	}
	l, room := lineOf(rec), rec.Topic
	c.mu.Lock()
	r := c.rooms[rec.Topic]
	c.mu.Unlock()
	if r != nil {
		if room = r.Name; l.Kind == "left" {
			r.saidGoodbye(l.By)
		}
	}
	return Lines(room, l)
}

func (r *Room) saidGoodbye(by string) {
	r.mu.Lock()
	p := r.people[by]
	away := p != nil && p.conns == 0
	if away {
		delete(r.people, by)
	} else if p != nil {
		p.left = true
	}
	r.mu.Unlock()
	if away {
		r.Pages.WriteText(r.People())
	}
}

// moved follows who is there. It runs on a goroutine of the node's, one call at a time.
func (r *Room) moved(pr cluster.Presence) {
	now, away := time.Now(), false
	r.mu.Lock()
	for _, m := range pr.Joined {
		p := r.people[publicID(m)]
		if p == nil {
			p = &person{}
			r.people[publicID(m)] = p
		}
		p.conns++
		p.name, p.left = m.ID, false
	}
	for _, m := range pr.Left {
		p := r.people[publicID(m)]
		if p == nil {
			continue
		}
		if p.conns--; p.conns > 0 {
			continue
		}
		if p.left {
			delete(r.people, publicID(m))
		} else {
			p.gone, p.was, away = now, string(m.Info), true
		}
	}
	r.mu.Unlock()
	if away {
		r.chat.over.Go(func() { // until the grace is over, or Close
			select {
			case <-time.After(r.chat.grace):
				r.sweep()
			case <-r.chat.ctx.Done():
			}
		})
	}
	r.Pages.WriteText(r.People())
	// In a room where many come and go pages get the list ten times a second, not each time.
	select {
	case <-time.After(100 * time.Millisecond):
	case <-r.chat.ctx.Done():
	}
}

// sweep says of those who have not come back in time that they are lost. All nodes do so, with one
// id: it is recorded once.
func (r *Room) sweep() {
	now := time.Now()
	lost := make(map[string]*person)
	r.mu.Lock()
	for by, p := range r.people {
		if p.conns == 0 && now.Sub(p.gone) >= r.chat.grace {
			lost[by] = p
			delete(r.people, by)
		}
	}
	r.mu.Unlock()
	if len(lost) == 0 {
		return
	}
	for by, p := range lost {
		l := Line{Kind: "left", Name: p.name, Text: "lost the connection", By: by}
		if err := r.Record(r.chat.ctx, "lost "+p.was, l); err != nil {
			r.chat.Warn("a line is missing", err)
		}
	}
	r.Pages.WriteText(r.People())
}

// names lists who is there, sorted: the members, and who was one a moment ago.
func (r *Room) names() []string {
	members, _ := r.topic.Members()
	there := make(map[string]string)
	for _, m := range members {
		there[publicID(m)] = m.ID
	}
	r.mu.Lock()
	for by, p := range r.people {
		if there[by] == "" && p.conns == 0 && !p.left {
			there[by] = p.name
		}
	}
	r.mu.Unlock()
	return slices.Sorted(maps.Values(there))
}

// People is the message that tells a page who is there.
func (r *Room) People() []byte {
	names := r.names()
	return mustJSON(struct {
		T     string   `json:"t"`
		Count int      `json:"count"`
		Here  []string `json:"here"`
	}{"here", len(names), names[:min(len(names), MaxHere)]})
}

// NewID returns a public id.
func NewID() string { return nuid.Next() }
