package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
)

func TestTwoTalkAndSeeTheSameLinesInTheSameOrder(t *testing.T) {
	addr, _, _ := startServer(t, config{})
	ann := enter(t, addr, "ann", "go")
	bob := enter(t, addr, "bob", "go")
	ann.want("[go] * bob joined")
	ann.send("hello, bob")
	for _, cl := range []*client{ann, bob} {
		cl.want("[go] ann: hello, bob")
	}
	bob.send("hello, ann", "/who")
	ann.want("[go] bob: hello, ann")
	bob.want("[go] bob: hello, ann", "* 2 in go: ann bob")

	bob.send("/nick rob", "hm")
	bob.want("* you are rob", "[go] * bob is now rob", "[go] rob: hm")
	ann.want("[go] * bob is now rob", "[go] rob: hm")

	bob.send("/leave", "anybody?", "/who", "/leave")
	bob.want("* you left go", "* nobody hears you; /join a room first", "* you are in no room; /join one", "* you are in no room")
	ann.want("[go] * rob left")
	ann.send("/who", "/quit", "not heard")
	ann.want("* 1 in go: ann", "* goodbye")
	ann.wantEnd()
}

func TestOneMayBeInManyRoomsAndTalkInOne(t *testing.T) {
	addr, _, _ := startServer(t, config{})
	ann := enter(t, addr, "ann", "go")
	bob := enter(t, addr, "bob", "go")
	cid := enter(t, addr, "cid", "c")
	ann.want("[go] * bob joined")
	ann.send("/join c", "hi c", "/join GO", "hi go", "/nick Ann", "/leave", "here again")
	ann.want("[c] * ann joined", "[c] ann: hi c", "* you talk in go now", "[go] ann: hi go",
		"* you are Ann", "[go] * ann is now Ann", "[c] * ann is now Ann", "* you left go", "[c] Ann: here again")
	bob.want("[go] ann: hi go", "[go] * ann is now Ann", "[go] * Ann left")
	cid.want("[c] * ann joined", "[c] ann: hi c", "[c] * ann is now Ann", "[c] Ann: here again")

	for i := range maxRooms - 1 {
		ann.send(fmt.Sprint("/join r", i))
		ann.want(fmt.Sprintf("[r%d] * Ann joined", i))
	}
	ann.send("/join another")
	ann.want(fmt.Sprintf("* %d rooms are enough; /leave one first", maxRooms))
	ann.c.Close()
	cid.want("[c] * Ann left")
}

func TestWhoJoinsSeesTheLastLines(t *testing.T) {
	addr, _, _ := startServer(t, config{history: 3})
	ann := enter(t, addr, "ann", "go")
	for i := range 5 {
		ann.send(fmt.Sprint(i))
		ann.want(fmt.Sprint("[go] ann: ", i))
	}
	bob := dial(t, addr)
	bob.send("/nick bob", "/join go")
	bob.want("* you are bob", "[go] ann: 2", "[go] ann: 3", "[go] ann: 4", "[go] * bob joined")
}

func TestABrowsersPOSTIsNotHeard(t *testing.T) {
	addr, _, _ := startServer(t, config{})
	ann := enter(t, addr, "ann", "go")
	for _, header := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n\r\n", "PUT / HTTP/1.1\r\nX: y\r\nhost: x\r\n\r\n",
		"POST /" + strings.Repeat("x", 2*chatline.MaxLine) + " HTTP/1.1\r\nHost: x\r\n\r\n", // the line is thrown away, the next is not
	} {
		browser := dial(t, addr)
		browser.send(header + "/join go\nbuy my coins")
		browser.until("* this is no web server")
		browser.wantEnd()
	}
	ann.send("/who", "Host: it is me") // in a room one may say that
	ann.want("* 1 in go: ann", "[go] ann: Host: it is me")
}

func TestAnEmptyRoomIsForgotten(t *testing.T) {
	addr, h, _ := startServer(t, config{history: 3})
	ann := enter(t, addr, "ann", "Go")
	ann.send("secret", "/leave", "/join go")
	ann.want("[Go] ann: secret", "* you left Go", "[go] * ann joined")
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.rooms) != 1 {
		t.Errorf("%d rooms are kept, want 1", len(h.rooms))
	}
}

func TestANameIsOneUsersOnly(t *testing.T) {
	addr, _, _ := startServer(t, config{})
	ann := enter(t, addr, "Ann\u03a3", "go")
	bob := dial(t, addr)
	for _, name := range []string{"Ann\u03a3", "ann\u03c3", "ANN\u03c2"} {
		bob.send("/nick " + name)
		bob.want("* " + name + " is taken")
	}
	for _, name := range []string{"", "a b", "x\x1b[2J", "\x9b2J", "a\u202eb", "a\u0301", "\u3164", "a\u200db", "a:", "*", strings.Repeat("a", chatline.MaxName+1)} {
		bob.send("/nick "+name, "/join "+name)
		bob.want("* a name is up to 20 letters, digits, - and _", "* a room's name is up to 20 letters, digits, - and _")
	}
	for _, name := range []string{"guest-1", "GUE\u017fT-x"} {
		bob.send("/nick " + name)
		bob.want("* names with guest- are for guests")
	}
	ann.send("/nick ann\u03c3", "/nick zoe")
	ann.want("* you are ann\u03c3", "[go] * Ann\u03a3 is now ann\u03c3", "* you are zoe", "[go] * ann\u03c3 is now zoe")
	ann.send("/who") // the old name is free when the next command is answered
	ann.want("* 1 in go: zoe")
	bob.send("/nick Ann\u03a3", "/nick Ann\u03a3")
	bob.want("* you are Ann\u03a3", "* you are Ann\u03a3")
	ann.send("/quit")
	ann.want("* goodbye")
	ann.wantEnd()
	ann.c.Close()
	for { // the name is free once the server has seen the end of the connection
		bob.send("/nick Zoe")
		if bob.next() == "* you are Zoe" {
			return
		}
	}
}

func TestOfManyWhoWantANameOneGetsIt(t *testing.T) {
	addr, _, _ := startServer(t, config{})
	var mu sync.Mutex
	winners := 0
	var wg sync.WaitGroup
	for range 30 {
		cl := dial(t, addr)
		wg.Go(func() {
			cl.send("/nick ann")
			switch line := cl.next(); line {
			case "* you are ann":
				mu.Lock()
				winners++
				mu.Unlock()
			case "* ann is taken":
			default:
				t.Errorf("got %q", line)
			}
		})
	}
	wg.Wait()
	if winners != 1 {
		t.Errorf("%d are called ann", winners)
	}
}

func TestTheSilentAreWarnedThenClosed(t *testing.T) {
	addr, _, _ := startServer(t, config{idleWarn: 30 * time.Millisecond, idleClose: 90 * time.Millisecond})
	begin := time.Now() // before the server's clock starts
	ann := dial(t, addr)
	ann.want("* no line for 30ms; say something within 60ms", "* no line for 90ms, goodbye")
	ann.wantEnd()
	if d := time.Since(begin); d < 90*time.Millisecond {
		t.Errorf("closed after %v already", d)
	}
}

func TestALinePutsTheWarningOff(t *testing.T) {
	addr, _, _ := startServer(t, config{idleWarn: 30 * time.Millisecond, idleClose: time.Hour})
	ann := dial(t, addr)
	for range 3 { // with the timer set to an hour by a warning, the next would not come unless the line set it anew
		ann.until("* no line for 30ms; say something within 59m59.97s")
		ann.send("here")
		ann.until("* nobody hears you; /join a room first")
	}
	if _, err := ann.c.Write([]byte("half a line is not enough")); err != nil {
		t.Fatal(err)
	}
	ann.want("* no line for 30ms; say something within 59m59.97s")
}

func TestOthersLearnWhyOneIsGone(t *testing.T) {
	addr, _, _ := startServer(t, config{idleWarn: 0, idleClose: 4 * time.Second})
	ann := enter(t, addr, "ann", "go")
	bob := enter(t, addr, "bob", "go")
	cid := enter(t, addr, "cid", "go")
	ann.until("[go] * cid joined")
	if err := bob.c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	bob.c.Close() // a reset
	ann.send("I am here")
	want := map[string]bool{"[go] * bob lost the connection": true, "[go] * cid was silent for too long": true}
	for len(want) > 0 {
		line := ann.next()
		delete(want, line)
		if line == "[go] ann: I am here" { // again and again, so that ann is never silent; cid need not read it all
			time.Sleep(100 * time.Millisecond)
			ann.send("I am here")
		}
	}
	cid.until("* no line for 4s, goodbye")
	cid.wantEnd()
}

func TestASlowReaderIsDroppedWithANotice(t *testing.T) {
	addr, h, _ := startServer(t, config{writeBuffer: 64 << 10})
	slow := enter(t, addr, "slow", "go")
	ann := enter(t, addr, "ann", "go")
	bob := enter(t, addr, "bob", "go")
	ann.until("[go] * bob joined")

	h.mu.Lock()
	room := h.rooms["go"]
	h.mu.Unlock()
	const most = 64 << 20 // more than the kernel keeps for anybody
	text := strings.Repeat("x", chatline.MaxLine)
	said := 0
	members := func() int {
		room.mu.Lock() // who talks is out of the group while the line is told
		defer room.mu.Unlock()
		return room.group.Len()
	}
	for members() == 3 {
		if said*len(text) > most {
			t.Fatalf("slow is still a member after %d bytes", most)
		}
		ann.send(text)
		ann.want("[go] ann: " + text)
		bob.want("[go] ann: " + text) // the others go on
		said++
	}
	slow.until("[go] * bob joined")
	for range said { // the first lines are all there, up to the one that found no room, and only the notice is behind
		line := slow.next()
		if line == "* you read too slowly, goodbye" {
			slow.wantEnd()
			slow.c.Close()
			ann.want("[go] * slow read too slowly")
			bob.want("[go] * slow read too slowly")
			return
		}
		if line != "[go] ann: "+text {
			t.Fatalf("got %q", line)
		}
	}
	t.Error("no notice")
}

// Who sends commands and does not read the answers is held back, not dropped, and gets every answer
// later.
func TestAnswersWaitForWhoDoesNotRead(t *testing.T) {
	addr, _, _ := startServer(t, config{writeBuffer: 4 << 10, history: 5})
	ann := dial(t, addr)
	ann.c.SetReadBuffer(64 << 10)
	ann.c.SetWriteBuffer(32 << 10)
	ann.send("/nick ann")
	ann.want("* you are ann")

	// Nothing is read until nothing more can be sent. (A machine that is very slow may look like that
	// too, for which the test gets weaker, not wrong.)
	question := strings.Repeat("/help\n", 20) + "/join go\nhello\n/leave\n"
	rest, times := "", 0
	for rest == "" {
		if times > 100_000 {
			t.Fatal("the server takes everything")
		}
		ann.c.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := io.WriteString(ann.c, question)
		if rest = question[n:]; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		times++
	}
	ann.c.SetDeadline(time.Now().Add(limit))
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(ann.c, rest+"/nick half a line")
		sent <- errors.Join(err, ann.c.CloseWrite())
	}()
	for range times {
		for range 20 * 6 {
			ann.next()
		}
		ann.want("[go] * ann joined", "[go] ann: hello", "* you left go")
	}
	ann.want("* a name is up to 20 letters, digits, - and _")
	ann.wantEnd()
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// What one says oneself is an answer, too: who talks and does not read is held back and not
// dropped, and then gets every line.
func TestOwnLinesWaitForWhoDoesNotRead(t *testing.T) {
	addr, _, _ := startServer(t, config{writeBuffer: 4 << 10, history: 5})
	ann := dial(t, addr)
	ann.c.SetReadBuffer(64 << 10)
	ann.c.SetWriteBuffer(32 << 10)
	ann.send("/nick ann", "/join a", "/join b", "/join c")
	ann.want("* you are ann", "[a] * ann joined", "[b] * ann joined", "[c] * ann joined")
	sent := make(chan error, 1)
	const most, names = 100_000, 4 // most is more than the kernel keeps for anybody
	text := strings.Repeat("x", 900)
	var times atomic.Int64
	var stop atomic.Bool
	go func() {
		for !stop.Load() && times.Load() < most {
			if _, err := fmt.Fprintf(ann.c, "%s\n/nick ann%d\n/leave\n/join c\n", text, times.Load()%names); err != nil {
				sent <- err
				return
			}
			times.Add(1)
		}
		sent <- ann.c.CloseWrite()
	}()
	// Nothing is read until nothing more is taken. (A machine that stands still looks like that too, for
	// which the test gets weaker, not wrong.)
	for last := int64(0); last == 0 || last != times.Load(); time.Sleep(300 * time.Millisecond) {
		last = times.Load()
	}
	if stop.Store(true); times.Load() == most {
		t.Fatal("the server takes everything")
	}
	name, heard := "ann", int64(0)
	for ; ; heard++ {
		if _, err := ann.in.Peek(1); err == io.EOF {
			break
		}
		ann.want("[c] " + name + ": " + text)
		next := fmt.Sprint("ann", heard%names)
		ann.want("* you are " + next)
		for _, room := range []string{"a", "b", "c"} {
			ann.want("[" + room + "] * " + name + " is now " + next)
		}
		name = next
		ann.want("* you left c", "[c] * "+name+" joined")
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if n := times.Load(); heard != n {
		t.Errorf("the answers to %d of %d rounds have come", heard, n)
	}
}

func TestShutdownSaysGoodbyeToEverybody(t *testing.T) {
	addr, _, stop := startServer(t, config{idleWarn: time.Hour, idleClose: 2 * time.Hour, history: 3})
	clients := make([]*client, 50)
	for i := range clients {
		clients[i] = enter(t, addr, fmt.Sprint("c", i), fmt.Sprint("r", i%5))
	}
	var wg sync.WaitGroup
	for _, cl := range clients {
		wg.Go(func() {
			cl.until("* the server is stopping, goodbye")
			for { // others may be said to have left before this connection's turn comes
				line, err := cl.in.ReadString('\n')
				if err != nil {
					break
				}
				if !strings.HasSuffix(line, " left\n") {
					t.Errorf("after the goodbye: %q", line)
				}
			}
			cl.c.Close()
		})
	}
	stop()
	wg.Wait()
}
