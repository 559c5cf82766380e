//go:build linux

package websocket

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// What a Conn's methods do once it has ended.
func TestAfterTheEnd(t *testing.T) {
	conns := make(chan *Conn, 1)
	s, r := watched(t, "actor", tcpio.ListenerOptions{}, Options{}, func(ev Event) error {
		if ev, ok := ev.(Opened); ok {
			ev.Conn.SetData("mine")
			conns <- ev.Conn
		}
		return nil
	})
	p := dialPeer(t, s, "")
	c := <-conns
	if err := c.Attach(nil); err == nil {
		t.Error("a nil actor is taken")
	}
	if err := c.Close(1004, ""); err == nil || !strings.Contains(err.Error(), "1004") {
		t.Error(err)
	}
	if c.Err() != nil {
		t.Error(c.Err())
	}
	p.send(bye)
	p.expect("close 1000", "eof")
	r.wait(t, "closed")
	var g Group
	if g.Join(c); g.Len() != 0 {
		t.Error("a group takes it")
	}
	waitFor(t, func() bool { return c.Attach(ActorFunc(nothing)) != nil })
	for ev := range c.Events() {
		t.Error(ev)
	}
	for name, err := range map[string]error{
		"TryWriteText": c.TryWriteText(nil), "WriteBinary": c.WriteBinary(make([]byte, 1<<20)), "Ping": c.Ping(nil), "Post": c.Post(1),
		"Attach": c.Attach(ActorFunc(nothing)),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.Close(Normal, ""); err != nil {
		t.Error(err)
	}
	if err := c.Abort(); err != nil {
		t.Error(err)
	}
	if c.Data() != "mine" || c.Err() != nil || !strings.HasPrefix(c.String(), "conn ") {
		t.Error(c.Data(), c.Err(), c)
	}
	c.Pause()
	c.Resume()
}

// A peer that sends its Close frame and no longer reads: ours waits for room, and CloseTimeout ends
// it. One that reads on gets everything that was accepted, and the Close frame behind it.
func TestPeerClosesAndStopsReading(t *testing.T) {
	for _, reads := range []bool{false, true} {
		limit := 50 * time.Millisecond
		if reads {
			limit = testLimit
		}
		filled := make(chan bool, 1)
		s, r := watched(t, "actor", tcpio.ListenerOptions{CloseTimeout: limit, WriteBuffer: 64 << 10},
			Options{CloseTimeout: limit}, func(ev Event) error {
				if ev, ok := ev.(Opened); ok {
					fill(ev.Conn, []byte(long))
					filled <- true
				}
				return nil
			})
		p := dialPeer(t, s, "")
		<-filled
		p.send(join(fr(opPing, "1"), fr(opPing, "2"), bye))
		if !reads {
			r.wait(t, "closed 1000  Peer")
			p.Close()
			continue
		}
		line := ""
		for line = p.next(); line == big("binary", len(long)) || strings.HasPrefix(line, "pong "); line = p.next() {
		}
		if line != "close 1000" {
			t.Error(line)
		}
		p.Close()
	}
}

// Of several pings that wait for room only the last is answered.
func TestPongsWait(t *testing.T) {
	filled := make(chan int)
	s, _ := watched(t, "actor", tcpio.ListenerOptions{WriteBuffer: 64 << 10}, Options{}, func(ev Event) error {
		switch ev := ev.(type) {
		case Opened:
			filled <- fill(ev.Conn, []byte(long))
		case Text:
			filled <- 0
		}
		return nil
	})
	p := dialPeer(t, s, "")
	n := <-filled
	for range 3000 { // until the queue has no room for a pong either
		p.send(fr(opPing, long[:125]))
	}
	p.send(join(fr(opPing, "the last"), fr(opText, "have you seen them?")))
	<-filled
	messages, pongs := 0, 0
	for line := ""; line != "pong the last"; {
		switch line = p.next(); line {
		case big("binary", len(long)):
			messages++
		case big("pong", 125):
			pongs++
		case "pong the last":
		default:
			t.Fatal(line)
		}
	}
	if messages != n || pongs == 3000 {
		t.Errorf("%d messages of %d, %d pongs", messages, n, pongs)
	}
	p.send(bye)
	p.expect("close 1000", "eof")
}
