//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

// The page comes with a policy under which no other script can run, and only it may connect.
func TestPage(t *testing.T) {
	s := start(t, config{})
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for path, kind := range map[string]string{"": "text/html", "chat.js": "text/javascript", "link.js": "text/javascript", "chat.css": "text/css", "icon.svg": "image/svg+xml"} {
		res, err := client.Get(s.page + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		h := res.Header
		if err != nil || res.StatusCode != 200 || !strings.HasPrefix(h.Get("Content-Type"), kind) {
			t.Errorf("%s: %v, %s %v", path, err, res.Status, h)
		}
		if h.Get("Content-Security-Policy") != policy || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, h)
		}
		for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "onclick=\"", "style=\"", "//cdn", "src=\"http"} {
			if strings.Contains(string(body), bad) {
				t.Errorf("%s has %s", path, bad)
			}
		}
	}
	for origin, status := range map[string]int{"http://evil.example": 403, "null": 403, "http://" + s.addr(): 101} {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		c, res, err := websocket.Dial(ctx, "ws://"+s.addr()+"/ws", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {origin}}})
		if res == nil || res.StatusCode != status {
			t.Errorf("%s: %v, %v", origin, res, err)
		}
		if c != nil {
			c.CloseNow()
		}
		cancel()
	}
}

// What no page of this chat sends ends the connection with the code for it, and harms nobody else.
func TestHostile(t *testing.T) {
	s := start(t, config{})
	ann := s.dial()
	ann.join("ann", "lobby")
	ann.expect("came ann")
	hello := request{T: "hello", Token: token("eve"), Name: "eve", Room: "lobby"}
	for _, c := range []struct {
		what string
		kind websocket.MessageType
		raw  string
		join bool
		code websocket.StatusCode
	}{
		{"no JSON", websocket.MessageText, "hello", false, 1008},
		{"another JSON", websocket.MessageText, `[1,2]`, false, 1008},
		{"no kind", websocket.MessageText, `{}`, false, 1008},
		{"a wrong type", websocket.MessageText, `{"t":"say","n":"1"}`, true, 1008},
		{"a negative number", websocket.MessageText, `{"t":"say","n":-1,"text":"x"}`, true, 1008},
		{"a huge number", websocket.MessageText, `{"t":"say","n":18446744073709551615,"text":"x"}`, true, 1008},
		{"no number", websocket.MessageText, `{"t":"say","text":"x"}`, true, 1008},
		{"say before hello", websocket.MessageText, `{"t":"say","n":1,"text":"x"}`, false, 1008},
		{"typing before hello", websocket.MessageText, `{"t":"typing"}`, false, 1008},
		{"a short token", websocket.MessageText, `{"t":"hello","token":"x","name":"eve","room":"lobby"}`, false, 1008},
		{"another token", websocket.MessageText, `{"t":"hello","token":"0123456789abcdef","name":"eve","room":"lobby"}`, true, 1008},
		{"binary", websocket.MessageBinary, "x", true, 1003},
		{"no UTF-8", websocket.MessageText, "\"\xff\"", true, 1007},
		{"too large", websocket.MessageText, strings.Repeat(" ", 9<<10), true, 1009},
	} {
		p := s.dial()
		if c.join {
			p.send(hello)
			p.until("welcome")
		}
		if err := p.writeRaw(c.kind, []byte(c.raw)); err != nil {
			t.Fatal(c.what, err)
		}
		if code := p.closed(); code != c.code {
			t.Errorf("%s: closed with %v, want %v", c.what, code, c.code)
		}
	}
	ann.say(1, "still here")
	for l := ann.line(); l != "say ann still here"; l = ann.line() {
		if !strings.HasSuffix(l, " eve") && !strings.HasPrefix(l, "left eve") {
			t.Error(l)
		}
	}
	nc := s.netcat()
	nc.say("POST / HTTP/1.1")
	nc.expect("* this is no web server")
	nc = s.netcat()
	nc.say(strings.Repeat("x", 5000), "\x1b[2J/join lobby", "/join \x1b[2J", "/nope")
	nc.expect("* that line is longer than 1000 bytes and was thrown away", "* nobody hears you; /join a room first",
		"* a room's name is up to 20 letters, digits, - and _", "* no such command; /help")
}

// Rooms are bounded: the one that has been empty for longest is forgotten, an occupied one never.
func TestRoomsAreBounded(t *testing.T) {
	h := newHub(10, 0)
	sit := func(name string) (place, error) {
		r, err := h.roomLocked(name)
		if err != nil {
			return place{}, err
		}
		p := place{r, &seat{name: "x"}}
		h.sitLocked(r, p.seat)
		return p, nil
	}
	var all []place
	for i := range maxRooms {
		p, err := sit(fmt.Sprint("r", i))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if _, err := sit("more"); err != errRooms {
		t.Error(err)
	}
	h.leaveLocked(all[7].room, all[7].seat, "left")
	h.leaveLocked(all[3].room, all[3].seat, "left")
	if _, err := sit("more"); err != nil || h.rooms[chatline.FoldName(all[7].name)] != nil || h.rooms[chatline.FoldName(all[3].name)] == nil || len(h.rooms) != maxRooms {
		t.Error(err, len(h.rooms))
	}
}

// The longest line, all of it escaped, fits into what a page may send.
func TestLongestLine(t *testing.T) {
	s := start(t, config{})
	p := s.dial()
	p.join("ann", "lobby")
	p.expect("came ann")
	p.say(1<<53, strings.Repeat("\x01", chatline.MaxLine))
	p.expect("say ann " + strings.Repeat("\ufffd", chatline.MaxLine))
}
