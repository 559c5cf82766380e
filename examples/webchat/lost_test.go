//go:build linux

package main

import (
	"slices"
	"testing"
	"time"
)

// A network that loses a page without a word to either end: the others see that the page is gone
// when it has not answered a ping, and not before that. It comes back without losing or doubling a
// line, also of those that it sent into the void.
func TestLostWithoutAWord(t *testing.T) {
	t.Parallel()
	const ping = 2 * time.Second // so long nobody here keeps silent, but who is lost
	s := start(t, config{ping: ping, grace: 100 * time.Millisecond})
	relay := newCutter(t, s.addr())
	bob := s.dial() // coder's client answers pings while it reads
	bob.join("bob", "lobby")
	bob.expect("came bob")
	ann := dialTo(t, relay.addr(), nil)
	w := ann.join("ann", "lobby")
	heard := time.Now() // or later: the silence, and then the time for a pong, begin behind it
	ann.say(1, "before")
	ann.expect("came bob", "came ann", "say ann before")
	bob.expect("came ann", "say ann before")
	last := w.Last + 1 // what ann has seen

	relay.lose()
	ann.say(2, "into the void")
	bob.say(1, "is she there?")
	bob.expect("say bob is she there?", "left ann lost the connection")
	if took := time.Since(heard); took < 2*ping {
		t.Errorf("she was said to be gone after %v", took)
	}
	bob.send(request{T: "rooms"})
	if a := bob.until("rooms"); len(a.Rooms) != 1 || a.Rooms[0].Users != 1 {
		t.Errorf("%+v", a)
	}

	again := dialTo(t, relay.addr(), nil)
	again.send(request{T: "hello", Token: token("ann"), Name: "ann", Room: "lobby", Epoch: w.Epoch, Last: last})
	back := again.until("welcome")
	if back.Missed != 0 || back.N != 1 || !slices.Equal(back.Here, []string{"ann", "bob"}) {
		t.Errorf("%+v", back)
	}
	again.say(2, "into the void")
	again.say(2, "into the void")
	again.say(3, "and on")
	again.expect("say bob is she there?", "left ann lost the connection", "came ann", "say ann into the void", "say ann and on")
	bob.expect("came ann", "say ann into the void", "say ann and on")
}

// A page that comes back before the server has missed it takes its own place: nobody sees it leave,
// and what the server still sends to the dead connection is given again.
func TestBackBeforeItIsMissed(t *testing.T) {
	s := start(t, config{})
	relay := newCutter(t, s.addr())
	bob := s.dial()
	bob.join("bob", "lobby")
	ann := dialTo(t, relay.addr(), nil)
	w := ann.join("ann", "lobby")
	ann.expect("came bob", "came ann")
	bob.expect("came bob", "came ann")
	relay.lose()
	bob.say(1, "one")
	bob.say(2, "two")
	bob.expect("say bob one", "say bob two")
	again := dialTo(t, relay.addr(), nil)
	again.send(request{T: "hello", Token: token("ann"), Name: "ann", Room: "lobby", Epoch: w.Epoch, Last: w.Last})
	if w := again.until("welcome"); w.Missed != 0 || w.Count != 2 {
		t.Errorf("%+v", w)
	}
	again.say(1, "back")
	again.expect("say bob one", "say bob two", "say ann back")
	bob.expect("say ann back")
}
