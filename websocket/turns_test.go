//go:build linux

package websocket

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// What was read before a reset is delivered, though it takes more than a turn.
func TestManyMessagesAndAReset(t *testing.T) {
	const n = 10 * turnWork / frameCost
	for _, route := range allRoutes {
		t.Run(route, func(t *testing.T) {
			s, r := watched(t, route, tcpio.ListenerOptions{}, Options{}, func(ev Event) error {
				if ev, ok := ev.(Text); ok && string(ev.Data) == "0" {
					<-ev.Conn.Underlying().Context().Done()
				}
				return nil
			})
			p := dialPeer(t, s, "")
			r.wait(t, "opened")
			p.send(numbered(n))
			r.wait(t, "text 0")
			_ = p.Conn.(*net.TCPConn).SetLinger(0)
			p.Close()
			lines := r.wait(t, "closed 1006")
			for i := range n {
				if len(lines) <= i+1 || lines[i+1] != fmt.Sprint("text ", i) {
					t.Fatalf("%d events, of which the last are %q", len(lines), lines[max(0, len(lines)-3):])
				}
			}
		})
	}
}

// A peer that sends many small messages in one segment does not keep the stream for as long as they
// take: others have their turns in between. Nothing is lost by that.
// To see it fail: let a turn of the stream go on to the end of what it has read.
func TestTurnsOfTheStream(t *testing.T) {
	const n, most = 5 * turnWork / frameCost, turnWork/frameCost + 1
	s, err := Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	events := s.Listener().Events()
	serving := make(chan error, 1)
	go func() { serving <- s.Serve(context.Background()) }()
	defer func() {
		s.Listener().Close()
		<-serving
	}()
	got := make(chan int, 1)
	go func() { // it ends with the listener
		next := 0
		for ev := range events {
			texts := 0
			for ev := range s.Receive(ev) {
				if text, ok := ev.(Text); ok {
					if want := fmt.Sprint(next); string(text.Data) != want {
						t.Errorf("text %s, want %s", text.Data, want)
					}
					next++
					texts++
				}
			}
			if texts > most {
				t.Errorf("%d messages in one turn, at most %d are its share", texts, most)
			}
			if texts > 0 && next == n {
				got <- next
			}
		}
	}()
	p := dialPeer(t, s, "")
	p.send(numbered(n))
	select {
	case <-got:
	case <-time.After(testLimit):
		t.Fatal("not all messages came")
	}
}
