package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

// guest begins the names of those who have not chosen one. Nobody can choose such a name, so that
// the connection's ID makes it unique.
const guest = "guest-"

// maxRooms is how many rooms one user may be in.
const maxRooms = 16

// A user is the actor of one connection. Its fields belong to Receive, which never runs twice at a
// time.
type user struct {
	h    *hub
	c    *tcpio.Conn
	name string

	rooms []*room // joined
	at    *room   // where text goes: one of rooms; nil when there is none

	lines chatline.Splitter
	held  []byte // a line that there was no room to answer; until Writable nothing more is read

	idleWarn, idleClose time.Duration
	seen                time.Time // when the last line came
	warned              time.Time // when a warning was given since then; zero when none was
	stopTimer           func() bool
}

func newUser(h *hub, c *tcpio.Conn, idleWarn, idleClose time.Duration) *user {
	return &user{h: h, c: c, idleWarn: idleWarn, idleClose: idleClose}
}

// idle is what the timer posts.
type idle struct{}

// errEnd says that the connection is closing, and that nothing more is to be done for it.
var errEnd = errors.New("end")

// Receive handles one event. It returns nil always: an orderly end is not an error.
func (u *user) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Opened:
		u.name = fmt.Sprint(guest, u.c.ID())
		_ = u.tell("* welcome, %s; /nick NAME to choose a name, /join ROOM to talk, /help for more", u.name)
		u.seen = time.Now()
		u.watch()
	case tcpio.Readable:
		// With a line held back, input stays in the kernel, and who sends without reading is slowed down
		// by TCP.
		if u.held == nil {
			u.read()
		}
	case tcpio.Writable:
		if u.held == nil {
			break
		}
		line := u.held
		u.held = nil
		if u.take(line) {
			u.read()
		}
	case tcpio.Message:
		if _, ok := ev.Value.(idle); ok {
			u.watch()
		}
	case tcpio.Draining:
		_ = u.tell("* the server is stopping, goodbye") // who has no room left is not told; the library closes
	case tcpio.Closed:
		switch err := u.c.Err(); {
		case err == nil:
			u.leaveAll("left")
		case errors.Is(err, tcpio.ErrSlow):
			u.leaveAll("read too slowly")
		default:
			u.leaveAll("lost the connection")
		}
		u.h.release(u.name)
	}
	return nil
}

// maxTurn is how many lines one turn handles: another follows behind what else waits for this user,
// a timer or the server's end, however much the peer sends.
const maxTurn = 64

// read handles lines that have arrived.
func (u *user) read() {
	n := 0
	for line, err := range u.c.Frames(u.lines.Split) {
		if err != nil {
			// The end of the stream, or of the connection; Closed tells the rooms.
			u.c.Close()
			return
		}
		u.seen = time.Now()
		if !u.warned.IsZero() {
			u.warned = time.Time{}
			if u.stopTimer() { // else it was due, and its message sets the next one
				u.watch()
			}
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
	var err error
	if string(line) == string(chatline.TooLong) {
		err = u.tell("* that line is longer than %d bytes and was thrown away", chatline.MaxLine)
	} else {
		err = u.do(chatline.Clean(line))
	}
	if errors.Is(err, tcpio.ErrWouldBlock) {
		u.held = slices.Clone(line) // Frames will overwrite it
	}
	return err == nil
}

// do carries out one line. After tcpio.ErrWouldBlock it is called again with the same line once
// there is room, so every command either writes to u first, or can be done twice.
func (u *user) do(line string) error {
	if line == "" {
		return nil
	}
	if line[0] != '/' {
		if u.at == nil {
			if isHTTP(line) {
				u.end("* this is no web server", "left")
				return errEnd
			}
			return u.tell("* nobody hears you; /join a room first")
		}
		return u.at.say(u, line)
	}
	command, arg, _ := strings.Cut(line, " ")
	arg = strings.TrimSpace(arg)
	switch command {
	case "/join":
		return u.join(arg)
	case "/leave":
		return u.leave()
	case "/nick":
		return u.rename(arg)
	case "/who":
		if u.at == nil {
			return u.tell("* you are in no room; /join one")
		}
		return u.write(u.at.who())
	case "/quit":
		u.end("* goodbye", "left")
		return errEnd
	case "/help":
		return u.write("* /nick NAME   choose a name\n" +
			"* /join ROOM   enter a room, or talk there from now on\n" +
			"* /leave       leave the room you talk in\n" +
			"* /who         list who is in it\n" +
			"* /quit        end\n" +
			"* anything else is said in the room\n")
	}
	return u.tell("* no such command; /help")
}

// isHTTP reports whether a line is one that a browser sends. A page can make its visitor's browser
// POST to any port that the visitor reaches, with lines for this server in the body. The header
// comes first, and nobody who is in no room has a reason to say such a line.
func isHTTP(line string) bool {
	line = strings.ToLower(line)
	return strings.HasPrefix(line, "post ") || strings.HasPrefix(line, "host:")
}

func (u *user) join(name string) error {
	if !chatline.ValidName(name) {
		return u.tell("* a room's name is up to %d letters, digits, - and _", chatline.MaxName)
	}
	for _, r := range u.rooms {
		if chatline.FoldName(r.name) == chatline.FoldName(name) {
			if err := u.tell("* you talk in %s now", r.name); err != nil {
				return err
			}
			u.at = r
			return nil
		}
	}
	if len(u.rooms) == maxRooms {
		return u.tell("* %d rooms are enough; /leave one first", maxRooms)
	}
	r := u.h.enter(name)
	if err := r.join(u, u.name); err != nil {
		u.h.exit(r)
		return err
	}
	u.rooms = append(u.rooms, r)
	u.at = r
	return nil
}

func (u *user) leave() error {
	if u.at == nil {
		return u.tell("* you are in no room")
	}
	r := u.at
	if err := r.part(u); err != nil {
		return err
	}
	u.h.exit(r)
	u.rooms = slices.DeleteFunc(u.rooms, func(other *room) bool { return other == r })
	if u.at = nil; len(u.rooms) > 0 {
		u.at = u.rooms[len(u.rooms)-1]
	}
	return nil
}

// rename changes the name everywhere. The old one is free only when no room shows it any more, so
// that nobody can talk under it in between.
func (u *user) rename(name string) error {
	switch {
	case !chatline.ValidName(name):
		return u.tell("* a name is up to %d letters, digits, - and _", chatline.MaxName)
	case strings.HasPrefix(chatline.FoldName(name), guest):
		return u.tell("* names with %s are for guests", guest)
	case name == u.name:
		return u.tell("* you are %s", name)
	}
	same := chatline.FoldName(name) == chatline.FoldName(u.name) // other capitals: the name is u's already
	if !same && !u.h.claim(name) {
		return u.tell("* %s is taken", name)
	}
	// u is told all of it, or nothing, so that it can be done again.
	old := u.name
	told := net.Buffers{fmt.Appendf(nil, "* you are %s\n", name)}
	for _, r := range u.rooms {
		told = append(told, r.renamed(old, name))
	}
	if _, err := u.c.TryWritev(told); err != nil {
		if !same {
			u.h.release(name)
		}
		return err
	}
	u.name = name
	for _, r := range u.rooms {
		r.rename(u, name)
	}
	if !same {
		u.h.release(old)
	}
	return nil
}

// watch warns or closes who has been silent, and sets the timer for what comes next. There is one
// timer at most: a line does not set it anew, it looks at the time of the last line when it is due.
// The close keeps its distance from the warning, however late that was: what a user is told it has
// time for, it has.
func (u *user) watch() {
	if u.idleClose == 0 {
		return
	}
	next := u.seen.Add(u.idleClose)
	switch {
	case u.idleWarn == 0:
	case !u.warned.IsZero():
		next = u.warned.Add(u.idleClose - u.idleWarn)
	default:
		next = u.seen.Add(u.idleWarn)
	}
	wait := time.Until(next)
	if wait <= 0 && u.idleWarn > 0 && u.warned.IsZero() {
		_ = u.tell("* no line for %v; say something within %v", u.idleWarn, u.idleClose-u.idleWarn)
		u.warned, wait = time.Now(), u.idleClose-u.idleWarn
	}
	if wait <= 0 {
		u.end(fmt.Sprintf("* no line for %v, goodbye", u.idleClose), "was silent for too long")
		return
	}
	u.stopTimer = u.c.After(wait, idle{})
}

// end says goodbye to u and to its rooms, and closes. What is queued goes out first.
func (u *user) end(goodbye, why string) {
	u.leaveAll(why)
	_ = u.tell("%s", goodbye) // who has no room left is not told
	u.c.Close()
}

func (u *user) leaveAll(why string) {
	for _, r := range u.rooms {
		r.leave(u, why)
		u.h.exit(r)
	}
	u.rooms, u.at = nil, nil
}

func (u *user) tell(format string, args ...any) error {
	return u.write(fmt.Sprintf(format+"\n", args...))
}

func (u *user) write(s string) error {
	_, err := u.c.TryWrite([]byte(s))
	return err
}
