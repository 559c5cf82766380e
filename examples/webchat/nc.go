package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

// guest begins the names of users of nc who have not chosen one. Nobody can choose such a name, so
// the connection's ID makes it unique.
const guest = "guest-"

const (
	maxSeats = 16 // rooms that a user of nc may be in
	maxPast  = 20 // lines that it is shown when it comes
	maxTurn  = 64 // lines that one turn handles: behind it others have theirs
)

// A user is the actor of a connection that speaks the protocol of examples/chat. Its fields belong
// to Receive, which never runs twice at a time; as a sink it uses c only.
type user struct {
	h    *hub
	c    *tcpio.Conn
	name string

	in []place // the rooms that it is in; text goes to the last

	lines chatline.Splitter
	held  []byte // a line that there was no room to answer; until Writable nothing more is read
}

// A place is a user's seat in a room.
type place struct {
	*room
	seat *seat
}

func newUser(h *hub, c *tcpio.Conn) *user { return &user{h: h, c: c} }

// errEnd says that the connection is closing, and that nothing more is to be done for it.
var errEnd = errors.New("end")

// Receive handles one event.
func (u *user) Receive(ev tcpio.Event) error {
	switch ev.(type) {
	case tcpio.Opened:
		u.name = fmt.Sprint(guest, u.c.ID())
		_ = u.tell("* welcome, %s; /nick NAME to choose a name, /join ROOM to talk, /help for more", u.name)
	case tcpio.Readable:
		if u.held == nil && u.caughtUp() {
			u.read()
		}
	case tcpio.Writable:
		for _, p := range u.in {
			if !p.writable(p.seat, u) {
				return nil // another Writable follows
			}
		}
		line := u.held
		u.held = nil
		if line == nil || u.take(line) {
			u.read()
		}
	case tcpio.Draining:
		_ = u.tell("* the server is stopping, goodbye")
	case tcpio.Closed:
		why := "left"
		if u.c.Err() != nil {
			why = "lost the connection"
		}
		u.leaveAll(why)
	}
	return nil
}

// caughtUp reports whether u has been given all that was said. One that does not read is not read
// from either.
func (u *user) caughtUp() bool {
	return !slices.ContainsFunc(u.in, func(p place) bool { return !p.caughtUp(p.seat) })
}

// read handles lines that have arrived.
func (u *user) read() {
	n := 0
	for line, err := range u.c.Frames(u.lines.Split) {
		if err != nil {
			u.c.Close()
			return
		}
		if !u.take(line) {
			return // the rest waits, in the Conn and in the kernel
		}
		if n++; n == maxTurn {
			return // another Readable follows
		}
	}
}

// take handles one line and reports whether the next may follow.
func (u *user) take(line []byte) bool {
	err := tcpio.ErrWouldBlock
	switch {
	case !u.caughtUp():
	case bytes.Equal(line, chatline.TooLong):
		err = u.tell("* that line is longer than %d bytes and was thrown away", chatline.MaxLine)
	default:
		err = u.do(chatline.Clean(line))
	}
	if errors.Is(err, tcpio.ErrWouldBlock) {
		u.held = slices.Clone(line) // Frames will overwrite it
	}
	return err == nil
}

// do carries out one line. After tcpio.ErrWouldBlock it is called again with the same line once
// there is room, so every command either writes to u first, or can be done twice.
func (u *user) do(text string) error {
	if text == "" {
		return nil
	}
	if text[0] != '/' {
		switch at := len(u.in) - 1; {
		case at >= 0:
			u.in[at].say(u.in[at].seat, text)
			return nil
		case isHTTP(text):
			u.leaveAll("left")
			_ = u.tell("* this is no web server")
			u.c.Close()
			return errEnd
		}
		return u.tell("* nobody hears you; /join a room first")
	}
	command, arg, _ := strings.Cut(text, " ")
	arg = strings.TrimSpace(arg)
	switch command {
	case "/join":
		return u.join(arg)
	case "/leave":
		return u.leave()
	case "/nick":
		return u.rename(arg)
	case "/who":
		if len(u.in) == 0 {
			return u.tell("* you are in no room; /join one")
		}
		r := u.in[len(u.in)-1]
		names := r.names()
		return u.tell("* %d in %s: %s", len(names), r.room.name, strings.Join(names, " "))
	case "/quit":
		u.leaveAll("left")
		_ = u.tell("* goodbye")
		u.c.Close()
		return errEnd
	case "/help":
		return u.tell("* /nick NAME   choose a name\n" +
			"* /join ROOM   enter a room, or talk there from now on\n" +
			"* /leave       leave the room you talk in\n" +
			"* /who         list who is in it\n" +
			"* /quit        end\n" +
			"* anything else is said in the room")
	}
	return u.tell("* no such command; /help")
}

// isHTTP reports whether a line is one that a browser sends. A page can make its visitor's browser
// POST to any port that the visitor reaches, with lines for this server in the body. The header
// comes first, and nobody who is in no room has a reason to say such a line.
func isHTTP(text string) bool {
	text = strings.ToLower(text)
	return strings.HasPrefix(text, "post ") || strings.HasPrefix(text, "host:")
}

func (u *user) join(name string) error {
	if !chatline.ValidName(name) {
		return u.tell("* a room's name is up to %d letters, digits, - and _", chatline.MaxName)
	}
	for i, p := range u.in {
		if chatline.FoldName(p.room.name) == chatline.FoldName(name) {
			if err := u.tell("* you talk in %s now", p.room.name); err != nil {
				return err
			}
			u.in = append(slices.Delete(u.in, i, i+1), p)
			return nil
		}
	}
	if len(u.in) == maxSeats {
		return u.tell("* %d rooms are enough; /leave one first", maxSeats)
	}
	u.h.mu.Lock()
	defer u.h.mu.Unlock()
	r, err := u.h.roomLocked(name)
	if err != nil {
		return u.tell("* %v", err)
	}
	p := place{r, &seat{name: u.name, out: u}}
	u.h.sitLocked(r, p.seat)
	u.in = append(u.in, p)
	return nil
}

func (u *user) leave() error {
	at := len(u.in) - 1
	if at < 0 {
		return u.tell("* you are in no room")
	}
	p := u.in[at]
	if err := u.tell("* you left %s", p.room.name); err != nil {
		return err
	}
	u.in = u.in[:at]
	u.h.mu.Lock()
	defer u.h.mu.Unlock()
	u.h.leaveLocked(p.room, p.seat, "left")
	return nil
}

// rename changes the name in all rooms of u. Nobody can have the old one before all show the new.
func (u *user) rename(name string) error {
	switch {
	case !chatline.ValidName(name):
		return u.tell("* a name is up to %d letters, digits, - and _", chatline.MaxName)
	case strings.HasPrefix(chatline.FoldName(name), guest):
		return u.tell("* names with %s are for guests", guest)
	}
	u.h.mu.Lock()
	defer u.h.mu.Unlock()
	old := u.name
	if chatline.FoldName(old) != chatline.FoldName(name) && u.h.names[chatline.FoldName(name)] {
		return u.tell("* %s is taken", name)
	}
	if err := u.tell("* you are %s", name); err != nil {
		return err
	}
	u.h.claimLocked(old, name)
	u.name = name
	if old != name {
		for _, p := range u.in {
			u.h.renameLocked(p.room, p.seat, name)
		}
	}
	return nil
}

// leaveAll is the end of u: it leaves its rooms, and its name is free.
func (u *user) leaveAll(why string) {
	u.h.mu.Lock()
	defer u.h.mu.Unlock()
	for _, p := range u.in {
		u.h.leaveLocked(p.room, p.seat, why)
	}
	u.in = nil
	delete(u.h.names, chatline.FoldName(u.name))
	u.name = fmt.Sprint(guest, u.c.ID())
}

func (u *user) tell(format string, args ...any) error {
	_, err := u.c.TryWrite(fmt.Appendf(nil, format+"\n", args...))
	return err
}

// welcome shows u the last lines that were said before it came.
func (u *user) welcome(r *room, s *seat) error {
	var past net.Buffers
	for _, l := range slices.Backward(r.log) {
		if len(past) == maxPast {
			break
		}
		if l.Seq <= s.at && l.Kind == "say" {
			past = append(past, l.text(r))
		}
	}
	if len(past) == 0 {
		return nil
	}
	slices.Reverse(past)
	_, err := u.c.TryWritev(past)
	return err
}

func (u *user) gap(r *room, missed uint64) error {
	return u.tell("[%s] * you read too slowly: %d lines are missing here", r.name, missed)
}

func (u *user) give(r *room, lines []*line) error {
	out := make(net.Buffers, len(lines))
	for i, l := range lines {
		out[i] = l.text(r)
	}
	_, err := u.c.TryWritev(out)
	return err
}

// text is l as users of nc see it.
func (l *line) text(r *room) []byte {
	switch l.Kind {
	case "came":
		return fmt.Appendf(nil, "[%s] * %s joined\n", r.name, l.Name)
	case "left":
		return fmt.Appendf(nil, "[%s] * %s %s\n", r.name, l.Name, l.Text)
	case "named":
		return fmt.Appendf(nil, "[%s] * %s is now %s\n", r.name, l.Name, l.Text)
	}
	return fmt.Appendf(nil, "[%s] %s: %s\n", r.name, l.Name, l.Text)
}
