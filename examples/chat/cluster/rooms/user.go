package rooms

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

// guest begins the names of users of nc who have not chosen one. Nobody can choose such a name, and
// what follows is unique.
const guest = "guest-"

// Reserved reports whether a name is one that only guests have.
func Reserved(name string) bool { return strings.HasPrefix(chatline.FoldName(name), guest) }

const (
	maxSeats = 16 // rooms that a user may be in
	maxTurn  = 64 // lines that one turn handles: behind it others have theirs
)

// A user is the actor of a connection that speaks the protocol of examples/chat. Its fields belong
// to Receive, which never runs twice at a time. It may block there, as it does while NATS answers,
// and while its peer does not read: nobody else waits for it, and nothing more is read from the
// peer.
type user struct {
	chat *Chat
	c    *tcpio.Conn
	by   string
	name string
	has  *cluster.Session // the name; nil for a guest
	in   []seat           // text goes to the last

	lines chatline.Splitter
}

// A seat is a user's membership of a room.
type seat struct {
	*Room
	id string
}

// User returns the actor for a connection of nc.
func (c *Chat) User(conn *tcpio.Conn) tcpio.Actor {
	by := NewID()
	return &user{chat: c, c: conn, by: by, name: guest + by[len(by)-8:]}
}

// closeNow is what the timer of a Moved posts.
type closeNow struct{}

// Receive handles one event.
func (u *user) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Opened:
		u.tell("* welcome, %s; /nick NAME to choose a name, /join ROOM to talk, /help for more", u.name)
	case tcpio.Readable:
		u.read()
	case tcpio.Message:
		switch v := ev.Value.(type) {
		case cluster.Posted:
			ev.Reply(Owner(v, u.has, u.by))
		case cluster.Replaced:
			u.end("* somebody else has your name now, goodbye", "left")
		case cluster.Unsure:
			u.end("* this node is cut off from the others; connect to another one", "left")
		case cluster.Moved:
			u.c.After(v.After, closeNow{})
		case closeNow:
			u.end("* the server is stopping, goodbye", "left")
		}
	case tcpio.Draining:
		u.tell("* the server is stopping, goodbye")
	case tcpio.Closed:
		why := "left"
		if u.c.Err() != nil {
			why = "lost the connection"
		}
		u.leaveAll(why)
	}
	return nil
}

// read handles lines that have arrived.
func (u *user) read() {
	n := 0
	for line, err := range u.c.Frames(u.lines.Split) {
		if err != nil {
			u.c.Close()
			return
		}
		if bytes.Equal(line, chatline.TooLong) {
			u.tell("* that line is longer than %d bytes and was thrown away", chatline.MaxLine)
		} else if !u.do(chatline.Clean(line)) {
			return
		}
		if n++; n == maxTurn {
			return // another Readable follows
		}
	}
}

// do carries out one line, and reports false when it was the last.
func (u *user) do(text string) (more bool) {
	if text == "" {
		return true
	}
	if text[0] != '/' {
		switch {
		case len(u.in) > 0:
			u.record(u.in[len(u.in)-1], Line{Kind: "say", Name: u.name, Text: text})
		case isHTTP(text):
			u.end("* this is no web server", "left")
			return false
		default:
			u.tell("* nobody hears you; /join a room first")
		}
		return true
	}
	command, arg, _ := strings.Cut(text, " ")
	arg = strings.TrimSpace(arg)
	switch command {
	case "/join":
		u.join(arg)
	case "/leave":
		u.leave()
	case "/nick":
		u.rename(arg)
	case "/who":
		if len(u.in) == 0 {
			u.tell("* you are in no room; /join one")
			break
		}
		r := u.in[len(u.in)-1]
		names := r.names()
		u.tell("* %d in %s: %s", len(names), r.Name, strings.Join(names, " "))
	case "/quit":
		u.end("* goodbye", "left")
		return false
	case "/help":
		u.tell("* /nick NAME   choose a name\n" +
			"* /join ROOM   enter a room, or talk there from now on\n" +
			"* /leave       leave the room you talk in\n" +
			"* /who         list who is in it\n" +
			"* /quit        end\n" +
			"* anything else is said in the room")
	default:
		u.tell("* no such command; /help")
	}
	return true
}

// isHTTP reports whether a line is one that a browser sends, whose page wants it to POST to here.
func isHTTP(text string) bool {
	text = strings.ToLower(text)
	return strings.HasPrefix(text, "post ") || strings.HasPrefix(text, "host:")
}

// record puts a line into a room. nc cannot say a line again, so its user is told.
func (u *user) record(r seat, l Line) {
	l.By = u.by
	if err := r.Record(u.chat.ctx, "", l); errors.Is(err, cluster.ErrUnknown) {
		u.tell("* your line may have been heard or not: %v", err)
	} else if err != nil {
		u.tell("* nobody has heard that: %v", err)
	}
}

func (u *user) join(name string) {
	if !chatline.ValidName(name) {
		u.tell("* a room's name is up to %d letters, digits, - and _", chatline.MaxName)
		return
	}
	for i, r := range u.in {
		if chatline.FoldName(r.Name) == chatline.FoldName(name) {
			u.in = append(slices.Delete(u.in, i, i+1), r)
			u.tell("* you talk in %s now", r.Name)
			return
		}
	}
	if len(u.in) == maxSeats {
		u.tell("* %d rooms are enough; /leave one first", maxSeats)
		return
	}
	ctx := u.c.Context()
	r, err := u.chat.Enter(name)
	if err != nil {
		u.tell("* %v", err)
		return
	}
	if _, taken := r.Here(ctx, u.by, u.name); taken {
		r.Exit()
		u.tell("* there is a %s in that room who was away just now; /nick another name", u.name)
		return
	}
	s := seat{r, r.Membership(u.by)}
	_, err = r.Join(ctx, asText, u.c, nil, s.id, u.name, cluster.Pos{}, func(l Line) error {
		_, err := u.c.Write(l.text(r.Name))
		return err
	})
	if err != nil {
		r.Exit()
		u.tell("* %v", err)
		return
	}
	u.in = append(u.in, s)
	u.record(s, Line{Kind: "came", Name: u.name})
}

func (u *user) leave() {
	if len(u.in) == 0 {
		u.tell("* you are in no room")
		return
	}
	r := u.in[len(u.in)-1]
	u.in = u.in[:len(u.in)-1]
	r.Leave(u.c)
	u.tell("* you left %s", r.Name)
	u.part(r, "left")
}

// part ends what u is in r, and tells the others.
func (u *user) part(r seat, why string) {
	r.Leave(u.c)
	r.Goodbye(why, u.name, r.id)
	r.Exit()
}

func (u *user) rename(name string) {
	switch {
	case !chatline.ValidName(name):
		u.tell("* a name is up to %d letters, digits, - and _", chatline.MaxName)
		return
	case Reserved(name):
		u.tell("* names with %s are for guests", guest)
		return
	}
	for _, r := range u.in {
		if _, taken := r.Here(u.c.Context(), u.by, name); taken {
			u.tell("* %s is taken", name)
			return
		}
	}
	has, err := u.chat.Claim(u.c.Context(), name, u.by, u.c)
	if errors.Is(err, ErrTaken) {
		u.tell("* %s is taken", name)
		return
	} else if err != nil {
		u.tell("* %v", err)
		return
	}
	if u.has != nil && u.has.Key() != has.Key() {
		u.has.Release()
	}
	old := u.name
	u.has, u.name = has, name
	u.tell("* you are %s", name)
	if old == name {
		return
	}
	for _, r := range u.in {
		u.record(r, Line{Kind: "named", Name: old, Text: name})
		_ = r.Rename(asText, u.c, nil, r.id, name) // fails if u is closing
	}
}

// end says goodbye to u and to its rooms, and closes. What is queued goes out first. Whoever hears
// that u has left may have its name.
func (u *user) end(goodbye, why string) {
	if u.has != nil {
		u.has.Release()
	}
	u.leaveAll(why)
	u.tell("%s", goodbye)
	u.c.Close()
}

func (u *user) leaveAll(why string) {
	in := u.in
	u.in = nil
	for _, r := range in {
		u.part(r, why)
	}
}

// tell waits for room. An error is u's end.
func (u *user) tell(format string, args ...any) {
	_, _ = u.c.Write(fmt.Appendf(nil, format+"\n", args...))
}
