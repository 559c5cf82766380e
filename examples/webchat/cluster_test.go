//go:build linux

package main

import (
	"path/filepath"
	"testing"
	"time"
)

// Pages on two nodes are in one room: they see the same lines with the same numbers, and each
// other; a name has one owner; and a page that comes back on the other node goes on where it was.
func TestTwoNodes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "nodes")
	one, two := start(t, config{cluster: dir}), start(t, config{cluster: dir})
	ann, bob := one.dial(), two.dial()
	ann.join("ann", "lobby")
	ann.expect("came ann")
	bob.send(request{T: "hello", Token: token("bob"), Name: "ANN", Room: "lobby"})
	if a := bob.until("no"); a.Field != "name" {
		t.Fatalf("%+v", a)
	}
	epoch := bob.join("bob", "lobby").Epoch
	bob.expect("came ann", "came bob")
	ann.expect("came bob")
	ann.people(2)
	bob.people(2)
	nc := one.netcat()
	nc.say("/join lobby")
	ann.nextLine()
	bob.nextLine()
	ann.say(1, "one")
	first, second := ann.nextLine(), bob.nextLine()
	if first.Seq == 0 || first.Seq != second.Seq || first.Text != "one" || second.Text != "one" {
		t.Errorf("they get %+v and %+v", first, second)
	}
	bob.send(request{T: "typing"})
	if a := ann.until("typing"); a.Name != "bob" {
		t.Errorf("%+v", a)
	}
	for ; ; time.Sleep(10 * time.Millisecond) { // the lists come every second
		ann.send(request{T: "rooms"})
		if a := ann.until("rooms"); len(a.Rooms) == 1 && a.Rooms[0] == (roomInfo{"lobby", 3}) {
			break
		}
	}
	// Ann's connection is lost behind two lines, of which she has seen none. She says them again on
	// the other node, and a third one.
	ann.say(2, "two")
	ann.say(3, "three")
	bob.expect("say ann two", "say ann three")
	ann.c.CloseNow()
	ann = two.dial()
	ann.send(request{T: "hello", Token: token("ann"), Name: "ann", Room: "lobby", Epoch: epoch, Last: first.Seq})
	for n, text := range []string{"two", "three", "four"} {
		ann.say(uint64(n+2), text)
	}
	ann.until("ack")
	ann.expect("say ann two", "say ann three", "say ann four")
	bob.expect("say ann four")
	nc.until("ann: four")
	// Open on one node and then on the other: the first is told.
	again := one.dial()
	again.join("ann", "lobby")
	if code := ann.closed(); code != closeMoved {
		t.Errorf("closed with %v", code)
	}
	again.say(5, "five")
	bob.expect("say ann five")
	// Another room, another name.
	again.send(request{T: "hello", Token: token("ann"), Name: "anna", Room: "den"})
	bob.expect("left ann left")
	bob.send(request{T: "hello", Token: token("bob"), Name: "ann", Room: "lobby", Epoch: epoch, Last: bob.last})
	bob.say(1, "it is me")
	bob.expect("named bob ann", "say ann it is me")
	// The end of a node sends its pages away.
	go two.stop()
	if code := bob.closed(); code != 1001 {
		t.Errorf("closed with %v", code)
	}
}

// Who does not come back to any node is lost, and said to be so once.
func TestLostOnNodes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "nodes")
	cfg := config{cluster: dir, grace: 300 * time.Millisecond}
	one, two := start(t, cfg), start(t, cfg)
	ann, bob, cy := one.dial(), two.dial(), one.dial()
	ann.join("ann", "lobby")
	ann.expect("came ann")
	bob.join("bob", "lobby")
	bob.expect("came ann", "came bob")
	cy.join("cy", "lobby")
	cy.expect("came ann", "came bob", "came cy")
	bob.expect("came cy")
	ann.c.CloseNow()
	bob.expect("left ann lost the connection")
	bob.say(1, "once?")
	bob.expect("say bob once?")
	cy.expect("left ann lost the connection", "say bob once?")
	bob.people(2)
}
