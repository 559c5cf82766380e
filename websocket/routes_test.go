//go:build linux

package websocket

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/rabbit-backend/tcpio"
)

// numbered is n text messages.
func numbered(n int) []byte {
	var all []byte
	for i := range n {
		all = append(all, fr(opText, fmt.Sprint(i))...)
	}
	return all
}

func wantNumbered(t *testing.T, lines []string, n int) {
	t.Helper()
	want := []string{"opened /x?y=z"}
	for i := range n {
		want = append(want, fmt.Sprint("text ", i))
	}
	if want = append(want, "closed 1000  Peer"); !slices.Equal(lines, want) {
		t.Errorf("events %q, want %q", lines, want)
	}
}

// A pause after every message loses and doubles none.
func TestPause(t *testing.T) {
	for _, route := range allRoutes {
		t.Run(route, func(t *testing.T) {
			s, r := watched(t, route, tcpio.ListenerOptions{}, Options{}, func(ev Event) error {
				switch ev := ev.(type) {
				case Text:
					ev.Conn.Pause()
					go ev.Conn.Resume()
				}
				return nil
			})
			p := dialPeer(t, s, "")
			p.send(join(numbered(200), bye))
			p.expect("close 1000", "eof")
			lines := r.wait(t, "closed")
			if route == "mailbox" { // its Pause comes behind the next message
				lines = slices.Compact(lines)
			}
			wantNumbered(t, lines, 200)
		})
	}
}

// Behind a break out of Events, or out of Receive, the rest follows.
func TestBreak(t *testing.T) {
	s, err := Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	events := s.Events()
	go func() { served <- s.Serve(t.Context()) }()
	p := dialRaw(t, s.Listener().Addr())
	p.send(join([]byte(handshakeOf+"\r\n"), numbered(50), bye))
	r := newRecord()
	for done := false; !done; {
		for ev := range events {
			r.add(ev)
			if text, ok := ev.(Text); ok && string(text.Data) == "49" {
				_ = p.Conn.(*net.TCPConn).CloseWrite() // which the server waits for
			}
			_, done = ev.(Closed)
			break
		}
	}
	wantNumbered(t, r.wait(t, "closed"), 50)

	p = dialRaw(t, s.Listener().Addr())
	p.send(join([]byte(handshakeOf+"\r\n"), numbered(50), bye))
	r = newRecord()
	for done := false; !done; {
		for ev := range s.Receive(<-s.Listener().Events()) {
			r.add(ev)
			if text, ok := ev.(Text); ok && string(text.Data) == "49" {
				_ = p.Conn.(*net.TCPConn).CloseWrite() // which the server waits for
			}
			_, done = ev.(Closed)
			break
		}
	}
	wantNumbered(t, r.wait(t, "closed"), 50)
	s.Listener().Close()
	for range events {
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A connection that moves to another route in the middle of a read loses and doubles nothing.
func TestMoves(t *testing.T) {
	for _, from := range []string{"stream", "actor"} {
		for _, to := range []string{"actor", "mailbox"} {
			for _, at := range []string{"opened", "text 20"} {
				t.Run(from+" to "+to+" at "+at, func(t *testing.T) {
					r := newRecord()
					move := func(ev Event) {
						var c *Conn
						switch ev := ev.(type) {
						case Opened:
							if at == "opened" {
								c = ev.Conn
							}
						case Text:
							if at == "text "+string(ev.Data) {
								c = ev.Conn
							}
						}
						switch {
						case c == nil:
						case to == "actor":
							_ = c.Attach(ActorFunc(func(ev Event) error { r.add(ev); return nil }))
						default:
							events := c.Events()
							if events != c.Events() {
								t.Error("Events returns another channel")
							}
							go func() {
								for ev := range events {
									r.add(ev)
								}
							}()
						}
					}
					first := func(ev Event) error { r.add(ev); move(ev); return nil }
					var s *Server
					if from == "stream" {
						s = start(t, tcpio.ListenerOptions{}, Options{}, func(ev Event) { _ = first(ev) })
					} else {
						s = start(t, tcpio.ListenerOptions{}, Options{NewActor: func(*Conn) Actor { return ActorFunc(first) }}, nil)
					}
					for range 20 {
						p := dialPeer(t, s, "")
						p.send(numbered(40))
						p.send(bye)
						p.expect("close 1000", "eof")
						wantNumbered(t, r.wait(t, "closed"), 40)
						r.mu.Lock()
						r.lines = nil
						r.mu.Unlock()
					}
				})
			}
		}
	}
}

// A claim that is given up for an actor loses nothing, and its channel is closed.
func TestClaimLeft(t *testing.T) {
	r := newRecord()
	gone := make(chan bool)
	s := start(t, tcpio.ListenerOptions{}, Options{NewActor: func(c *Conn) Actor {
		events := c.Events()
		go func() {
			defer close(gone)
			for ev := range events {
				r.add(ev)
				if ev, ok := ev.(Text); ok && string(ev.Data) == "3" {
					_ = c.Attach(ActorFunc(func(ev Event) error { r.add(ev); return nil }))
				}
			}
		}()
		return nil
	}}, nil)
	p := dialPeer(t, s, "")
	p.send(join(numbered(10), bye))
	p.expect("close 1000", "eof")
	<-gone
	wantNumbered(t, r.wait(t, "closed"), 10)
}

// Every loop's stream has its connections.
func TestStreams(t *testing.T) {
	s, err := Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", Loops: 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	all := s.EventsPerLoop()
	if len(all) != 3 {
		t.Fatal(len(all))
	}
	ended := make(chan bool)
	for _, events := range all {
		go func() {
			for ev := range events {
				_ = tryEcho(ev)
			}
			ended <- true
		}()
	}
	go s.Serve(t.Context())
	for range 6 {
		p := dialPeer(t, s, "")
		p.send(fr(opText, "x"))
		p.expect("text x")
	}
	s.Listener().Close()
	for range all {
		<-ended
	}
}

// fill writes until the connection refuses, and returns how many messages it took.
func fill(c *Conn, p []byte) (n int) {
	for c.TryWriteBinary(p) == nil {
		n++
	}
	return n
}

func TestWritable(t *testing.T) {
	for _, route := range allRoutes {
		t.Run(route, func(t *testing.T) {
			took := make(chan int, 2)
			s, r := watched(t, route, tcpio.ListenerOptions{}, Options{}, func(ev Event) error {
				switch ev := ev.(type) {
				case Opened:
					took <- fill(ev.Conn, []byte(long))
				case Writable:
					took <- 1
					return ev.Conn.TryWriteText([]byte("last"))
				}
				return nil
			})
			p := dialPeer(t, s, "")
			n := <-took
			for range n {
				p.expect(big("binary", len(long)))
			}
			<-took
			p.expect("text last")
			r.wait(t, "writable false")
		})
	}
}

// Answers to pings, and a Close frame, find their place between the fragments of a message.
func TestControlBetweenFragments(t *testing.T) {
	const size, buffer = 16 << 20, 256 << 10
	wrote := make(chan error, 1)
	conns := make(chan *Conn, 1)
	s, r := watched(t, "actor", tcpio.ListenerOptions{WriteBuffer: buffer}, Options{}, func(ev Event) error {
		if ev, ok := ev.(Opened); ok {
			conns <- ev.Conn
			go func() { wrote <- ev.Conn.WriteText([]byte(strings.Repeat("x", size))) }()
		}
		return nil
	})
	p := dialPeer(t, s, "")
	p.parts = true
	p.expect(big("text-", fragmentSize))
	// The rest is more than the sockets and the queue take: the write waits.
	c := <-conns
	waitFor(t, func() bool { return c.Underlying().Buffered() > buffer-fragmentSize-ws.MaxHeaderSize })
	p.send(join(fr(opPing, "are you there?"), fr(opText, "behind it")))
	r.wait(t, "text behind it") // so the ping was handled
	got, pong := fragmentSize, 0
	for got < size {
		switch line := p.next(); {
		case line == "pong are you there?":
			pong = got
			p.send(fr(opPing, "again"))
		case line == big("more-", fragmentSize), line == big("more", fragmentSize):
			got += fragmentSize
		case line == "pong again":
		default:
			t.Fatal(line)
		}
	}
	if pong == 0 || pong == size {
		t.Errorf("the pong came behind %d of %d bytes", pong, size)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	p.send(bye)
	for line := ""; line != "close 1000"; line = p.next() {
	}
}

// A blocking write ends when the connection is closed under it, and the Close frame still goes out.
func TestCloseDuringWrite(t *testing.T) {
	wrote := make(chan error, 1)
	conns := make(chan *Conn, 1)
	s, r := watched(t, "actor", tcpio.ListenerOptions{}, Options{CloseTimeout: testLimit}, func(ev Event) error {
		if ev, ok := ev.(Opened); ok {
			conns <- ev.Conn
			go func() { wrote <- ev.Conn.WriteText(make([]byte, 64<<20)) }()
		}
		return nil
	})
	p := dialPeer(t, s, "")
	p.parts = true
	p.expect(big("text-", fragmentSize))
	if err := (<-conns).Close(4002, "stop"); err != nil {
		t.Fatal(err)
	}
	line := ""
	for line = p.next(); strings.HasPrefix(line, "more-"); line = p.next() {
	}
	if line != "close 4002 stop" {
		t.Fatal(line)
	}
	if err := <-wrote; quiet(err) != nil || err == nil {
		t.Error(err)
	}
	p.send(fr(opClose, closeOf(4002, "")))
	p.expect("eof")
	r.wait(t, "closed 4002 stop Local")
}

// A write that its deadline has cut ends the connection: half a frame is on its way.
func TestWriteDeadline(t *testing.T) {
	wrote := make(chan error, 1)
	s, r := watched(t, "actor", tcpio.ListenerOptions{}, Options{}, func(ev Event) error {
		if ev, ok := ev.(Opened); ok {
			_ = ev.Conn.Underlying().SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			wrote <- ev.Conn.WriteText(make([]byte, 64<<20))
		}
		return nil
	})
	p := dialPeer(t, s, "")
	if err := <-wrote; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	r.wait(t, "closed 1006  Neither: ")
	p.Close()
}

// Whatever ends a connection while its claim's receiver is busy, the channel is closed.
func TestClaimEnds(t *testing.T) {
	for name, end := range map[string]func(*Server, *Conn){
		"abort":  func(_ *Server, c *Conn) { c.Abort() },
		"close":  func(_ *Server, c *Conn) { c.Close(Normal, "") },
		"server": func(s *Server, _ *Conn) { s.Listener().Close() },
	} {
		t.Run(name, func(t *testing.T) {
			over := make(chan bool)
			conns := make(chan *Conn, 1)
			busy := make(chan bool)
			s := start(t, tcpio.ListenerOptions{CloseTimeout: 100 * time.Millisecond}, Options{NewActor: func(c *Conn) Actor {
				events := c.Events()
				go func() {
					defer close(over)
					conns <- c
					<-busy
					for range events {
					}
				}()
				return nil
			}}, nil)
			p := dialPeer(t, s, "")
			p.send(numbered(10))
			end(s, <-conns)
			p.Close()
			close(busy)
			<-over
		})
	}
}

// Connections that pause and move at random get every message once, in order, and one Closed.
func TestRandomMoves(t *testing.T) {
	const conns, messages = 8, 400
	type state struct {
		next   int
		closed bool
		events <-chan Event
	}
	var mu sync.Mutex
	states := map[*Conn]*state{}
	done := make(chan bool, conns)
	var handle func(ev Event) error
	handle = func(ev Event) error {
		mu.Lock()
		defer mu.Unlock()
		switch ev := ev.(type) {
		case Opened:
			if states[ev.Conn] != nil {
				t.Error("opened twice")
			}
			states[ev.Conn] = new(state)
		case Text:
			st := states[ev.Conn]
			if want := fmt.Sprint(st.next); string(ev.Data) != want || st.closed {
				t.Errorf("%q, want %q", ev.Data, want)
			}
			st.next++
			switch rand.IntN(20) {
			case 0, 1:
				ev.Conn.Pause()
				go ev.Conn.Resume()
			case 2:
				_ = ev.Conn.Attach(ActorFunc(handle))
			case 3:
				events := ev.Conn.Events()
				if events == st.events {
					break // it has its receiver
				}
				st.events = events
				go func() {
					for ev := range events {
						_ = handle(ev)
					}
				}()
			}
		case Closed:
			st := states[ev.Conn]
			if st.next != messages || st.closed || ev.Code != 1000 {
				t.Errorf("closed behind %d messages: %v", st.next, ev)
			}
			st.closed = true
			done <- true
		}
		return nil
	}
	for _, s := range []*Server{
		start(t, tcpio.ListenerOptions{}, Options{}, func(ev Event) { _ = handle(ev) }),
		start(t, tcpio.ListenerOptions{}, Options{NewActor: func(*Conn) Actor { return ActorFunc(handle) }}, nil),
	} {
		for range conns {
			p := dialPeer(t, s, "")
			go func() {
				all := join(numbered(messages), bye)
				for len(all) > 0 {
					n := min(len(all), 1+rand.IntN(700))
					if _, err := p.Write(all[:n]); err != nil {
						t.Error(err)
						return
					}
					all = all[n:]
				}
				for line := ""; line != "eof"; line = p.next() {
				}
			}()
		}
		for range conns {
			select {
			case <-done:
			case <-time.After(testLimit):
				mu.Lock()
				defer mu.Unlock()
				for c, st := range states {
					t.Errorf("%v: %d messages, closed %v", c, st.next, st.closed)
				}
				return
			}
		}
	}
}
