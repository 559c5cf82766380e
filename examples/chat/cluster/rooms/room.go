package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
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

	// For the nodes: the membership that left ends, and that others say so, not who left.
	Of   string `json:"of,omitempty"`
	Lost bool   `json:"lost,omitempty"`
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
	people people
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
		r = &Room{Name: name, chat: c, fold: fold, topic: c.class.Topic(fold), people: newPeople(c.grace)}
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
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range all {
		if id := string(m.Info); owner(id) == by && !r.people.over(id) {
			was = m.ID
		}
	}
	if p := r.people.there[by]; p != nil && !p.left && was == "" {
		was = p.name
	}
	return was, r.people.taken(by, name)
}

// Membership returns an id for a membership of one whose public id is by: for Join, Rename and
// Goodbye. It is that of a newer one than all that are known here, also where the clocks of nodes
// differ.
func (r *Room) Membership(by string) (id string) {
	all, _ := r.topic.Members()
	r.mu.Lock()
	defer r.mu.Unlock()
	newest := r.people.byes[by].of
	if p := r.people.there[by]; p != nil {
		newest = max(newest, p.newest)
	}
	for _, m := range all {
		if id := string(m.Info); owner(id) == by {
			newest = max(newest, id)
		}
	}
	return membership(by, stampBehind(newest, time.Now()))
}

// Join makes conn a member, with an id of Membership, that gets lines in the format f, and calls
// write with what was said since first. whole is false when lines are missing. Joining again needs
// a Leave and another id.
func (r *Room) Join(ctx context.Context, f cluster.Format, conn *tcpio.Conn, as any, id, name string,
	since cluster.Pos, write func(Line) error) (whole bool, err error) {
	return r.topic.ResumeAs(ctx, f, conn, as, member(id, name), since, func(rec cluster.Record) error {
		l := lineOf(rec)
		if time.Since(rec.Time) < r.people.keep {
			r.heard(l)
		}
		return write(l)
	})
}

// Rename shows conn, which has joined with that id, under another name.
func (r *Room) Rename(f cluster.Format, conn *tcpio.Conn, as any, id, name string) error {
	return r.topic.JoinAs(f, conn, as, member(id, name))
}

// member is what others see of one: its name, and the id of its membership.
func member(id, name string) *cluster.Member {
	return &cluster.Member{ID: name, Info: []byte(id)}
}

// Leave ends a Join.
func (r *Room) Leave(conn *tcpio.Conn) { r.topic.Leave(conn) }

// Record puts a line into the room. Of two with the same id, within two minutes, one is recorded.
// An error says that nobody has it, or that it is not known: then do it again, with the same id.
func (r *Room) Record(ctx context.Context, id string, l Line) error {
	_, err := r.topic.PublishRecord(ctx, id, mustJSON(l))
	return err
}

// Goodbye says that one leaves, behind the Leave of the membership with that id.
func (r *Room) Goodbye(why, name, id string) {
	r.say("", Line{Kind: "left", Name: name, Text: why, By: owner(id), Of: id})
}

// say records a line that a node says.
func (r *Room) say(id string, l Line) {
	if err := r.Record(r.chat.ctx, id, l); err != nil {
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
		room = r.Name
		r.heard(l)
	}
	return Lines(room, l)
}

// heard takes note of who leaves by a line.
func (r *Room) heard(l Line) {
	if l.Kind != "left" || l.Of == "" {
		return
	}
	r.mu.Lock()
	gone := false
	if l.Lost {
		gone = r.people.lost(l.Of)
	} else {
		gone = r.people.goodbye(l.Of, time.Now())
	}
	r.mu.Unlock()
	if gone {
		r.Pages.WriteText(r.People())
	}
}

// moved follows who is there. It runs on a goroutine of the node's, one call at a time.
func (r *Room) moved(pr cluster.Presence) {
	r.mu.Lock()
	away := r.people.moved(pr, time.Now())
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
	r.mu.Lock()
	lost := r.people.sweep(r.chat.grace, time.Now())
	r.mu.Unlock()
	if len(lost) == 0 {
		return
	}
	for _, p := range lost {
		r.say("lost "+p.newest, Line{
			Kind: "left", Name: p.name, Text: "lost the connection",
			By: owner(p.newest), Of: p.newest, Lost: true,
		})
	}
	r.Pages.WriteText(r.People())
}

// names lists who is there, sorted: the members, and who was one a moment ago.
func (r *Room) names() []string {
	members, _ := r.topic.Members()
	there := make(map[string]string)
	for _, m := range members {
		there[owner(string(m.Info))] = m.ID
	}
	r.mu.Lock()
	for by, p := range r.people.there {
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
