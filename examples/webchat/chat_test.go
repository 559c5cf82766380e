//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/rabbit-backend/tcpio/examples/internal/chatline"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// Two pages and a user of nc talk in one room, see each other come, go and change names, and all
// have the same lines.
func TestRoom(t *testing.T) {
	s := start(t, config{})
	ann, bob := s.dial(), s.dial()
	if w := ann.join("ann", "Lobby"); w.Room != "Lobby" || w.Name != "ann" || w.Count != 1 || w.Missed != 0 {
		t.Errorf("%+v", w)
	}
	ann.expect("came ann")
	if w := bob.join("bob", "lobby"); w.Room != "Lobby" || !slices.Equal(w.Here, []string{"ann", "bob"}) || w.Last != 2 {
		t.Errorf("%+v", w)
	}
	bob.expect("came ann", "came bob")
	ann.expect("came bob")
	ann.say(1, "hello <b>\u0007 you\u202e")
	for _, p := range []*peer{ann, bob} {
		p.expect("say ann hello <b>\ufffd you\ufffd")
	}
	nc := s.netcat()
	nc.say("/nick cy", "/join LOBBY", "from nc", "/who")
	nc.expect("* you are cy", "[Lobby] ann: hello <b>\ufffd you\ufffd", "[Lobby] * cy joined",
		"[Lobby] cy: from nc", "* 3 in Lobby: ann bob cy")
	bob.send(request{T: "hello", Token: token("bob"), Name: "rob", Room: "lobby", Epoch: "x"})
	if w := bob.until("welcome"); w.Missed != -1 || w.Name != "rob" {
		t.Errorf("%+v", w)
	}
	ann.expect("came cy", "say cy from nc", "named bob rob")
	nc.expect("[Lobby] * bob is now rob")
	bob.send(request{T: "typing"})
	if a := ann.until("typing"); a.Name != "rob" {
		t.Errorf("%+v", a)
	}
	ann.send(request{T: "rooms"})
	if a := ann.until("rooms"); !slices.Equal(a.Rooms, []roomInfo{{"Lobby", 3}}) {
		t.Errorf("%+v", a)
	}
	bob.send(request{T: "hello", Token: token("bob"), Name: "rob", Room: "Other"})
	if w := bob.until("welcome"); w.Room != "Other" || w.Count != 1 {
		t.Errorf("%+v", w)
	}
	ann.expect("left rob left")
	ann.c.Close(websocket.StatusNormalClosure, "")
	nc.expect("[Lobby] * rob left", "[Lobby] * ann left")
	nc.say("/quit")
	nc.expect("* goodbye")
}

// A name is one member's; its session has it again after a cut, and another one may not have it.
func TestNames(t *testing.T) {
	s := start(t, config{})
	ann, other := s.dial(), s.dial()
	ann.join("ann", "lobby")
	refused := func(name, room, field string) {
		t.Helper()
		other.send(request{T: "hello", Token: token("other"), Name: name, Room: room})
		if a := other.until("no"); a.Field != field || a.Why == "" {
			t.Errorf("%s, %s: %+v", name, room, a)
		}
	}
	refused("ANN", "lobby", "name")
	refused("guest-9", "lobby", "name")
	refused("a b", "lobby", "name")
	refused("<script>", "lobby", "name")
	refused("other", "", "room")
	refused("other", strings.Repeat("r", 21), "room")
	nc := s.netcat()
	nc.say("/nick Ann", "/nick guest-1", "/nick cy")
	nc.expect("* Ann is taken", "* names with guest- are for guests", "* you are cy")
	refused("cy", "lobby", "name")
	other.join("other", "lobby")
	other.expect("came ann", "came other")
	ann.c.CloseNow()
	again := s.dial()
	if w := again.join("ann", "lobby"); w.Name != "ann" || w.Count != 2 {
		t.Errorf("%+v", w)
	}
	again.say(1, "back")
	other.expect("say ann back") // neither left nor came
	// A second connection of a session ends the first.
	third := s.dial()
	third.join("ann", "lobby")
	if code := again.closed(); code != closeMoved {
		t.Errorf("closed with %v", code)
	}
	third.say(2, "third")
	other.expect("say ann third")
}

// A member that is away for longer than the grace period has left, and its name is free.
func TestGrace(t *testing.T) {
	s := start(t, config{grace: time.Millisecond})
	ann, bob := s.dial(), s.dial()
	ann.join("ann", "lobby")
	bob.join("bob", "lobby")
	bob.expect("came ann", "came bob")
	ann.say(1, "one")
	bob.expect("say ann one")
	ann.c.CloseNow()
	bob.expect("left ann lost the connection")
	ann = s.dial()
	if w := ann.join("ann", "lobby"); w.N != 1 {
		t.Errorf("its lines are forgotten: %+v", w)
	}
	bob.expect("came ann")
}

// What was missed comes when a client says the last it has; what the log no longer has is
// announced.
func TestResume(t *testing.T) {
	s := start(t, config{history: 10})
	ann, bob := s.dial(), s.dial()
	ann.join("ann", "lobby")
	w := bob.join("bob", "lobby")
	bob.expect("came ann", "came bob")
	bob.c.CloseNow()
	for n := range 5 {
		ann.say(uint64(n+1), fmt.Sprint("line ", n+1))
	}
	ann.expect("came ann", "came bob", "say ann line 1", "say ann line 2", "say ann line 3", "say ann line 4", "say ann line 5")
	resume := func(epoch string, last uint64) answer {
		bob = s.dial()
		bob.send(request{T: "hello", Token: token("bob"), Name: "bob", Room: "lobby", Epoch: epoch, Last: last})
		return bob.until("welcome")
	}
	if w := resume(w.Epoch, 2); w.Missed != 0 || w.Last != 7 {
		t.Errorf("%+v", w)
	}
	bob.expect("say ann line 1", "say ann line 2", "say ann line 3", "say ann line 4", "say ann line 5")
	bob.c.CloseNow()
	for n := 5; n < 20; n++ {
		ann.say(uint64(n+1), fmt.Sprint("line ", n+1))
		ann.expect(fmt.Sprint("say ann line ", n+1))
	}
	if w := resume(w.Epoch, 7); w.Missed != 5 {
		t.Errorf("%+v", w)
	}
	for n := 10; n < 20; n++ {
		bob.expect(fmt.Sprint("say ann line ", n+1))
	}
	// A room that the client does not know: all there is.
	for epoch, last := range map[string]uint64{"another": 7, w.Epoch: 1000} {
		if w := resume(epoch, last); w.Missed != -1 {
			t.Errorf("%+v", w)
		}
		bob.expect("say ann line 11")
	}
	fresh := s.dial()
	if w := fresh.join("cy", "lobby"); w.Missed != 0 {
		t.Errorf("%+v", w)
	}
	fresh.expect("say ann line 12")
}

// A line that is sent again is said once, also when its session is forgotten but its line is not.
func TestResend(t *testing.T) {
	s := start(t, config{})
	ann := s.dial()
	ann.join("ann", "lobby")
	ann.expect("came ann")
	ann.say(1, "one")
	ann.say(1, "one")
	ann.say(2, "two")
	ann.say(1, "one")
	ann.expect("say ann one")
	if a := ann.until("ack"); a.N != 2 && a.N != 1 {
		t.Errorf("%+v", a)
	}
	ann.say(3, "three")
	ann.expect("say ann two", "say ann three")
	ann.say(4, strings.Repeat("x", chatline.MaxLine+1))
	if a := ann.until("no"); a.N != 4 || a.Why == "" {
		t.Errorf("%+v", a)
	}
	ann.say(5, "\u200b \t")
	ann.expect("say ann \ufffd")
	ann.say(6, "   ")
	if a := ann.until("no"); a.N != 6 {
		t.Errorf("%+v", a)
	}

	r := newRoom("r", 10)
	r.addLocked(line{By: publicID("t"), N: 7})
	r.addLocked(line{By: publicID("u"), N: 9})
	if n := r.saidLocked(publicID("t")); n != 7 {
		t.Errorf("said %d", n)
	}
}

// A flaky is a client whose connection is cut at random, as a page is: it sends again what it has
// not seen, and asks for what it missed.
type flaky struct {
	name  string
	epoch string
	last  uint64
	said  uint64 // of its own lines, as the server says
	seen  []string
	rnd   *rand.Rand
}

// run connects again until the room has had total lines said.
func (f *flaky) run(t *testing.T, addr string, own uint64, total int) {
	for len(f.seen) < total {
		if !f.once(t, addr, own, total) {
			return
		}
	}
}

func (f *flaky) once(t *testing.T, addr string, own uint64, total int) bool {
	p := dialTo(t, addr, nil)
	defer p.c.CloseNow()
	err := p.write(request{T: "hello", Token: token(f.name), Name: f.name, Room: "lobby", Epoch: f.epoch, Last: f.last})
	life := 1 + f.rnd.IntN(25) // messages until it is cut
	under := uint64(0)         // lines sent over this connection
	for ; err == nil && life > 0 && len(f.seen) < total; life-- {
		var a answer
		if a, err = p.read(); err != nil {
			break
		}
		switch a.T {
		case "welcome":
			if f.epoch != "" && a.Missed != 0 {
				t.Errorf("%s: %+v", f.name, a)
				return false
			}
			f.epoch, f.said, under = a.Epoch, a.N, a.N
		case "gap", "no":
			t.Errorf("%s: %+v", f.name, a)
			return false
		}
		for _, l := range a.Lines {
			if l.Seq != f.last+1 {
				t.Errorf("%s: line %d behind %d", f.name, l.Seq, f.last)
				return false
			}
			f.last = l.Seq
			if l.Kind == "say" {
				f.seen = append(f.seen, l.Text)
			}
			if l.By == publicID(token(f.name)) {
				f.said = max(f.said, l.N)
			}
		}
		for ; f.epoch != "" && err == nil && under < min(own, f.said+4); under++ {
			err = p.write(request{T: "say", N: under + 1, Text: fmt.Sprint(f.name, " ", under+1)})
		}
	}
	return p.late == nil
}

// Under random cuts nobody loses a line and none is doubled, and all have the same order.
func TestRandomCuts(t *testing.T) {
	const own = 60
	s := start(t, config{history: 1000})
	var all []*flaky
	for i := range 4 {
		all = append(all, &flaky{name: fmt.Sprint("user", i), rnd: rand.New(rand.NewPCG(uint64(i), 7))})
	}
	var wg sync.WaitGroup
	for _, f := range all {
		wg.Go(func() { f.run(t, s.addr(), own, own*len(all)) })
	}
	wg.Wait()
	for _, f := range all {
		if !slices.Equal(f.seen, all[0].seen) {
			t.Errorf("%s and %s have seen different things", f.name, all[0].name)
		}
		var mine []string
		for _, text := range all[0].seen {
			if strings.HasPrefix(text, f.name+" ") {
				mine = append(mine, text)
			}
		}
		for i, text := range mine {
			if text != fmt.Sprint(f.name, " ", i+1) {
				t.Fatalf("line %d of %s is %q", i+1, f.name, text)
			}
		}
		if len(mine) != own {
			t.Errorf("%d lines of %s", len(mine), f.name)
		}
	}
}

// A member that does not read is skipped, the others go on, and when it reads it is given what the
// log still has, and a message says how much it has not. The same goes for a user of nc.
func TestSlowMember(t *testing.T) {
	const total = 8000 // more than the kernel holds
	s := start(t, config{history: 100, writeBuffer: 16 << 10})
	slow := s.dialSmall()
	slow.join("slow", "lobby")
	nc := s.netcat()
	nc.say("/join lobby")
	ann := s.dial()
	ann.join("ann", "lobby")
	pad := strings.Repeat("x", 900)
	for n := uint64(1); n <= total; n++ {
		ann.say(n, fmt.Sprintf("%d %s", n, pad))
		if n%10 == 0 { // less than writeBuffer: she is not slow
			for l := ann.nextLine(); l.N != n; l = ann.nextLine() {
			}
		}
	}
	// Each number comes once, in order, or is counted in a gap.
	last, missed, gaps := uint64(0), 0, 0
	for last < total {
		a := slow.next()
		switch a.T {
		case "gap":
			missed += int(a.Missed)
			gaps++
		case "lines":
			for _, l := range a.Lines {
				if l.Kind != "say" {
					continue
				}
				if want := last + 1 + uint64(missed); l.N != want {
					t.Fatalf("line %d behind %d with %d missing", l.N, last, missed)
				}
				last, missed = l.N, 0
			}
		}
	}
	if gaps == 0 {
		t.Error("nothing was missed: the test is too easy")
	}
	last, missed, gaps = 0, 0, 0
	for last < total {
		var n uint64
		got := nc.line()
		if _, err := fmt.Sscanf(got, "[lobby] * you read too slowly: %d lines are missing here", &n); err == nil {
			missed += int(n)
			gaps++
		} else if _, err := fmt.Sscanf(got, "[lobby] ann: %d ", &n); err == nil {
			if n != last+1+uint64(missed) {
				t.Fatalf("nc: line %d behind %d with %d missing", n, last, missed)
			}
			last, missed = n, 0
		}
	}
	if gaps == 0 {
		t.Error("nothing was missed: the test is too easy")
	}
}

// One that sends and does not read is no longer read from, and all it sent is said when it reads.
func TestSenderThatDoesNotRead(t *testing.T) {
	const most = 80_000 // far more than the kernel holds, and the log
	s := start(t, config{history: 100, writeBuffer: 16 << 10})
	p := s.dialSmall()
	p.join("ann", "lobby")
	sent, enough := make(chan error, most), make(chan bool)
	go func() {
		defer close(sent)
		for n := uint64(1); n <= most; n++ {
			select {
			case <-enough:
				return
			default:
				sent <- p.write(request{T: "say", N: n, Text: strings.Repeat("y", 900)})
			}
		}
	}()
	// Begin to read when the server takes no more. On a slow machine that may be too early, and the
	// test is easier then.
	total := uint64(0)
	for going := true; going; {
		select {
		case err, ok := <-sent:
			if err != nil || !ok {
				t.Fatal("the server took everything from a client that does not read: ", err)
			}
			total++
		case <-time.After(300 * time.Millisecond):
			going = false
		}
	}
	close(enough)
	t.Logf("held back behind %d lines", total)
	for n := uint64(0); n < total; {
		if l := p.nextLine(); l.Kind == "say" {
			if n++; l.N != n {
				t.Fatalf("line %d, want %d", l.N, n)
			}
		}
	}
	for err := range sent {
		if err != nil {
			t.Error(err)
		}
	}
}

// An idle member costs no goroutine.
func TestNoGoroutineForAMember(t *testing.T) {
	s := start(t, config{})
	members := func() int {
		h := s.dial()
		defer h.c.CloseNow()
		h.send(request{T: "rooms"})
		sum := 0
		for _, r := range h.until("rooms").Rooms {
			sum += r.Users
		}
		return sum
	}
	before := runtime.NumGoroutine()
	var conns []net.Conn
	for range 100 {
		n := s.netcat()
		n.say("/join lobby")
		n.line()
		conns = append(conns, n.Conn)
	}
	if n := members(); n != len(conns) {
		t.Errorf("%d members", n)
	}
	testnet.WaitFor(t, fmt.Sprintf("at most 20 goroutines more for %d members", len(conns)), func() bool {
		return runtime.NumGoroutine()-before <= 20
	})
}
