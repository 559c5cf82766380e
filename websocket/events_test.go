//go:build linux

package websocket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// watched serves on a route and has each event recorded before handle gets it.
func watched(t testing.TB, route string, tcp tcpio.ListenerOptions, opts Options, handle func(Event) error) (*Server, *record) {
	t.Helper()
	r := newRecord()
	both := func(ev Event) error {
		r.add(ev)
		return handle(ev)
	}
	switch route {
	case "stream":
		return start(t, tcp, opts, func(ev Event) { _ = both(ev) }), r
	case "actor":
		opts.NewActor = func(*Conn) Actor { return ActorFunc(both) }
	case "mailbox":
		opts.NewActor = func(c *Conn) Actor {
			events := c.Events()
			go func() {
				for ev := range events {
					_ = both(ev)
				}
			}()
			return nil
		}
	}
	return start(t, tcp, opts, nil), r
}

func nothing(Event) error { return nil }

var allRoutes = []string{"stream", "actor", "mailbox"}

func TestEventsInOrder(t *testing.T) {
	for _, route := range allRoutes {
		t.Run(route, func(t *testing.T) {
			s, r := watched(t, route, tcpio.ListenerOptions{}, Options{}, func(ev Event) error {
				switch ev := ev.(type) {
				case Opened:
					return ev.Conn.Post("posted")
				case Text:
					if string(ev.Data) == "last" {
						ev.Conn.After(time.Millisecond, "timed")
					}
				case Message:
					ev.Reply(ev.Value.(string) + "!")
				}
				return nil
			})
			p := dialPeer(t, s, "")
			r.wait(t, "message posted")
			p.send(join(fr(opText, "one"), fr(opBinary, "two"), fr(opText, "last")))
			r.wait(t, "message timed")
			dialRaw(t, s.Listener().Addr()) // not a connection before its handshake is done
			for c := range s.Conns() {
				if answer, err := c.Ask(t.Context(), "asked"); answer != "asked!" || err != nil {
					t.Errorf("Ask: %v, %v", answer, err)
				}
			}
			for range mustNew(t, Options{}).Conns() {
				t.Error("a Server without a listener has connections")
			}
			p.send(fr(opClose, closeOf(4001, "so long")))
			p.expect("close 4001", "eof")
			want := []string{"opened /x?y=z", "message posted", "text one", "binary two", "text last", "message timed",
				"message asked", "closed 4001 so long Peer"}
			if got := r.wait(t, "closed"); !slices.Equal(got, want) {
				t.Errorf("events %q, want %q", got, want)
			}
		})
	}
}

func TestCloseByUs(t *testing.T) {
	for _, route := range allRoutes {
		t.Run(route, func(t *testing.T) {
			s, r := watched(t, route, tcpio.ListenerOptions{}, Options{}, func(ev Event) error {
				if ev, ok := ev.(Text); ok {
					_ = ev.Conn.TryWriteText([]byte("before"))
					if err := ev.Conn.Close(1005, ""); err == nil {
						t.Error("Close takes a code that may not be sent")
					}
					if err := ev.Conn.Close(4000, "enough"); err != nil {
						t.Error(err)
					}
					if err := ev.Conn.TryWriteText([]byte("late")); !errors.Is(err, net.ErrClosed) {
						t.Errorf("a write behind Close: %v", err)
					}
				}
				return nil
			})
			p := dialPeer(t, s, "")
			p.send(join(fr(opText, "a"), fr(opText, "is not delivered"), fr(opText, "cut", "-")))
			p.expect("text before", "close 4000 enough")
			p.send(join(fr(opMore, ""), fr(opText, long), fr(opPing, "is not answered"), fr(opClose, closeOf(4000, ""))))
			p.expect("eof")
			want := []string{"opened /x?y=z", "text a", "closed 4000 enough Local"}
			got := r.wait(t, "closed")
			if route == "mailbox" { // the next message was on its way
				got = slices.DeleteFunc(got, func(l string) bool { return l == "text is not delivered" })
			}
			if !slices.Equal(got, want) {
				t.Errorf("events %q, want %q", got, want)
			}
		})
	}
}

// A peer that does not answer the Close frame is not waited for longer than CloseTimeout.
func TestCloseUnanswered(t *testing.T) {
	s, r := watched(t, "actor", tcpio.ListenerOptions{CloseTimeout: 50 * time.Millisecond},
		Options{CloseTimeout: 50 * time.Millisecond}, func(ev Event) error {
			if ev, ok := ev.(Opened); ok {
				return ev.Conn.Close(Normal, "")
			}
			return nil
		})
	p := dialPeer(t, s, "")
	p.expect("close 1000", "eof")
	r.wait(t, "closed 1000  Local")
}

func TestEndings(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name   string
		handle func(Event) error
		sent   string
		event  string
		err    func(error) bool
	}{
		{"error", func(Event) error { return boom }, "close 1011", "closed 1011  Local: boom", func(err error) bool { return err == boom }},
		{"io.EOF", func(Event) error { return io.EOF }, "close 1000", "closed 1000  Local", func(err error) bool { return err == nil }},
		{"panic", func(Event) error { panic(boom) }, "close 1011", "closed 1011  Local: tcpio: panic: boom",
			func(err error) bool { p := new(tcpio.PanicError); return errors.As(err, &p) && errors.Is(err, boom) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ended := make(chan error, 1)
			s, r := watched(t, "actor", tcpio.ListenerOptions{}, Options{}, func(ev Event) error {
				switch ev := ev.(type) {
				case Text:
					return c.handle(ev)
				case Closed:
					ended <- ev.Conn.Err()
				}
				return nil
			})
			p := dialPeer(t, s, "")
			p.send(join(fr(opText, "x"), bye))
			p.expect(c.sent, "eof")
			if got := r.wait(t, "closed"); got[len(got)-1] != c.event {
				t.Errorf("%q, want %q", got, c.event)
			}
			if err := <-ended; !c.err(err) {
				t.Errorf("Err: %v", err)
			}
		})
	}
	t.Run("no actor", func(t *testing.T) {
		s := start(t, tcpio.ListenerOptions{}, Options{NewActor: func(*Conn) Actor { return nil }}, nil)
		dialPeer(t, s, "").expect("close 1008", "eof")
	})
	t.Run("cut", func(t *testing.T) {
		for _, route := range allRoutes {
			s, r := watched(t, route, tcpio.ListenerOptions{}, Options{}, echo)
			p := dialPeer(t, s, "")
			p.send(join(fr(opText, "x"), fr(opText, "cut")[:7]))
			p.expect("text x")
			p.Close()
			r.wait(t, "closed 1006  Neither: ")
		}
	})
}

// A panic is a line in the default logger of the moment, unless the listener has one. An error at
// Closed is none of the level Info.
func TestPanicGoesToTheDefaultLogger(t *testing.T) {
	var byDefault, own lockedBuffer
	was := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&byDefault, nil)))
	defer func() {
		slog.SetDefault(was)
		log.SetOutput(os.Stderr) // SetDefault takes it along
	}()
	logged := func(b *lockedBuffer) int { return strings.Count(b.String(), "panic=\"at last\"") }
	for _, logger := range []*slog.Logger{nil, slog.New(slog.NewTextHandler(&own, nil))} {
		b := &byDefault
		if logger != nil {
			b = &own
		}
		s, r := watched(t, "actor", tcpio.ListenerOptions{Logger: logger}, Options{}, func(ev Event) error {
			switch ev.(type) {
			case Text:
				panic("at last")
			case Closed:
				return errors.New("too late")
			}
			return nil
		})
		p := dialPeer(t, s, "")
		p.send(join(fr(opText, "x"), bye))
		p.expect("close 1011", "eof")
		r.wait(t, "closed")
		waitFor(t, func() bool { st := s.Listener().Stats(); return st.Panics == 1 && st.HandlerErrors == 1 })
		waitFor(t, func() bool { return logged(b) > 0 }) // another goroutine writes the line
	}
	for name, b := range map[string]*lockedBuffer{"default": &byDefault, "own": &own} {
		if logged(b) != 1 || strings.Contains(b.String(), "too late") {
			t.Errorf("the %s logger has %q", name, b)
		}
	}
}

// What every peer can cause is counted each time, and logged at a limited rate. In an HTTP handler
// a panic is the handler's.
func TestPanicsOfCheck(t *testing.T) {
	const peers = 50
	var lines lockedBuffer
	check := func(*http.Request) int { panic("of Check") }
	s := start(t, tcpio.ListenerOptions{Logger: slog.New(slog.NewTextHandler(&lines, nil))},
		Options{NewActor: echoActor, Check: check}, nil)
	for range peers {
		p := dialRaw(t, s.Listener().Addr())
		p.send([]byte(handshakeOf + "\r\n"))
		if got := p.response().StatusCode; got != http.StatusInternalServerError {
			t.Fatalf("status %d", got)
		}
	}
	if n := s.Listener().Stats().Panics; n != peers {
		t.Errorf("Stats has %d panics, want %d", n, peers)
	}
	if n := strings.Count(lines.String(), "of Check"); n == peers {
		t.Errorf("%d lines of %d panics", n, peers)
	}

	r := httptest.NewRequest("GET", "/", nil)
	for k, v := range map[string]string{"Upgrade": "websocket", "Connection": "Upgrade",
		"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} {
		r.Header.Set(k, v)
	}
	defer func() {
		if v := recover(); v != "of Check" {
			t.Errorf("Upgrade: recovered %v", v)
		}
	}()
	_, _ = Upgrade(httptest.NewRecorder(), r, &Options{Check: check})
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// Shutdown sends 1001 to every peer, on every route, and its DrainTimeout leaves time before that.
func TestDrain(t *testing.T) {
	for _, route := range allRoutes {
		for _, drain := range []time.Duration{0, 50 * time.Millisecond} {
			t.Run(fmt.Sprint(route, drain), func(t *testing.T) {
				for !drained(t, route, drain) {
				}
			})
		}
	}
}

// drained reports false if the receiver of a claim was later than its 250 ms: then this machine
// stood still meanwhile, and it says nothing.
func drained(t *testing.T, route string, drain time.Duration) bool {
	begin := make(chan time.Time, 1)
	late := make(chan bool, 1)
	s, r := watched(t, route, tcpio.ListenerOptions{DrainTimeout: drain}, Options{}, func(ev Event) error {
		if ev, ok := ev.(Draining); ok {
			err := ev.Conn.TryWriteText([]byte("soon over"))
			late <- err != nil && route == "mailbox" && time.Since(<-begin) > claimDrain
			return err
		}
		return nil
	})
	p := dialPeer(t, s, "")
	silent := dialRaw(t, s.Listener().Addr())
	r.wait(t, "opened")
	done := make(chan error, 1)
	begin <- time.Now()
	go func() { done <- s.Listener().Shutdown(context.Background()) }()
	if <-late {
		p.Close()
		silent.Close()
		<-done
		return false
	}
	p.expect("text soon over")
	p.expect("close 1001")
	p.send(fr(opClose, closeOf(1001, "")))
	p.expect("eof")
	silent.expect("eof")
	p.Close()
	silent.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	r.wait(t, "closed 1001  Local")
	return true
}

func TestPings(t *testing.T) {
	s, r := watched(t, "actor", tcpio.ListenerOptions{},
		Options{PingInterval: 20 * time.Millisecond, PongTimeout: 3 * time.Second}, nothing)
	alive, dead := dialPeer(t, s, ""), dialPeer(t, s, "")
	gone, over := make(chan bool), make(chan bool)
	go func() {
		defer close(over)
		for { // for longer than dead lives
			if line := alive.next(); line != "ping" {
				t.Error(line)
				return
			}
			select {
			case <-gone:
				alive.Write(bye)
				for line := "ping"; line == "ping"; line = alive.next() {
				}
				return
			default:
				alive.Write(fr(opPong, ""))
			}
		}
	}()
	dead.expect("ping", "close 1008 no pong", "eof")
	r.wait(t, "closed 1008 no pong Local: websocket: the peer did not answer a ping")
	close(gone)
	<-over
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		name string
		opts Options
		send []byte
		want []string
	}{
		{"message fits", Options{MaxMessage: 70}, fr(opText, long[:70]), []string{"text " + long[:70]}},
		{"message too big", Options{MaxMessage: 70}, fr(opText, long[:71]), []string{"close 1009 message over 70 bytes"}},
		{"fragments fit", Options{MaxMessage: 70}, join(fr(opText, long[:35], "-"), fr(opMore, long[:35])), []string{"text " + long[:70]}},
		{"fragments too big", Options{MaxMessage: 70}, join(fr(opText, "x"), fr(opText, long[:35], "-"), fr(opMore, long[:36])),
			[]string{"text x", "close 1009 message over 70 bytes"}},
		{"many small", Options{MaxMessage: 70}, slices.Repeat(fr(opBinary, long[:60]), 3), slices.Repeat([]string{"binary " + long[:60]}, 3)},
		{"frame too big", Options{MaxMessage: 70, MaxFrame: 10}, fr(opText, long[:11]), []string{"close 1009 frame over 10 bytes"}},
		{"frames fit", Options{MaxMessage: 70, MaxFrame: 10}, join(fr(opText, long[:10], "-"), fr(opMore, long[:10])), []string{"text " + long[:20]}},
		{"no text", Options{NoText: true}, join(fr(opBinary, "b"), fr(opText, "t")), []string{"binary b", "close 1003 text is not accepted"}},
		{"no binary", Options{NoBinary: true}, join(fr(opText, "t"), fr(opBinary, "b")), []string{"text t", "close 1003 binary is not accepted"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for route, s := range routes(t, c.opts) {
				p := dialPeer(t, s, "")
				p.send(join(c.send, bye))
				want := append([]string(nil), c.want...)
				if !strings.HasPrefix(want[len(want)-1], "close") {
					want = append(want, "close 1000")
				}
				for _, w := range append(want, "eof") {
					if got := p.next(); got != w {
						t.Fatalf("%s: %q, want %q", route, got, w)
					}
				}
			}
		})
	}
}

// A peer may send MaxRate frames at once, and so many a second: those beyond end the connection.
func TestMaxRate(t *testing.T) {
	const rate, sent = 5, 500 // which would take longer than testLimit
	for route, s := range routes(t, Options{MaxRate: rate}) {
		t.Run(route, func(t *testing.T) {
			begin := time.Now()
			p := dialPeer(t, s, "")
			p.send(slices.Repeat(fr(opPing, ""), sent))
			n := 0
			line := p.next()
			for ; line == "pong"; line = p.next() {
				n++
			}
			if most := rate + rate*time.Since(begin).Seconds(); n < rate || float64(n) > most {
				t.Errorf("%d frames are taken, want %d to %.2f", n, rate, most)
			}
			if want := "close 1008 more than 5 frames a second"; line != want {
				t.Errorf("%q, want %q", line, want)
			}
			p.expect("eof")
		})
	}
}

// A message that never ends is not waited for longer than MessageTimeout, whatever else comes.
func TestMessageTimeout(t *testing.T) {
	for name, drip := range map[string][]byte{"fragments": fr(opMore, "x", "-"), "pings": fr(opPing, "")} {
		t.Run(name, func(t *testing.T) {
			s, r := watched(t, "actor", tcpio.ListenerOptions{}, Options{MessageTimeout: 50 * time.Millisecond}, nothing)
			p := dialPeer(t, s, "")
			p.send(join(fr(opText, "whole"), fr(opText, "", "-")))
			go func() {
				for {
					if _, err := p.Write(drip); err != nil {
						return
					}
					time.Sleep(time.Millisecond) // the rate of the drip
				}
			}()
			line := "pong"
			for line == "pong" {
				line = p.next()
			}
			if line != "close 1008 a message took longer than MessageTimeout" {
				t.Error(line)
			}
			p.Close()
			if lines := r.wait(t, "closed 1008"); lines[1] != "text whole" {
				t.Errorf("%q", lines)
			}
		})
	}
}

func TestPieces(t *testing.T) {
	for _, route := range allRoutes {
		t.Run(route, func(t *testing.T) {
			s, r := watched(t, route, tcpio.ListenerOptions{}, Options{PieceSize: 4}, nothing)
			p := dialPeer(t, s, "")
			p.send(join(fr(opText, "1234"), fr(opText, "12345"), fr(opBinary, "12345678"),
				fr(opText, "12", "-"), fr(opPing, ""), fr(opMore, "3456", "-"), fr(opMore, "789"),
				fr(opText, "a", "-"), fr(opMore, "b"), bye))
			p.expect("pong", "close 1000", "eof")
			want := []string{"opened /x?y=z", "text 1234", "piece 1234 false", "piece 5 true", "piece 1234 false", "piece 5678 true",
				"piece 1234 false", "piece 5678 false", "piece 9 true", "text ab", "closed 1000  Peer"}
			if got := r.wait(t, "closed"); !slices.Equal(got, want) {
				t.Errorf("events %q, want %q", got, want)
			}
		})
	}
}

// A message larger than any window arrives whole, whatever comes around it.
func TestLargeMessages(t *testing.T) {
	for route, s := range routes(t, Options{MaxMessage: 16 << 20}) {
		t.Run(route, func(t *testing.T) {
			p := dialPeer(t, s, "")
			size := 3<<20 + 17
			if route == "stream" {
				size = 300 << 10 // TryWrite has to find room
			}
			big := strings.Repeat("0123456789", size/10)
			go p.Write(join(fr(opText, "a"), fr(opText, big), fr(opBinary, big[:100000], "-"), fr(opPing, "p"), fr(opMore, big), bye))
			p.expect("text a")
			for _, want := range []int{len(big), 100000 + len(big)} {
				line := p.next()
				if line == "pong p" {
					line = p.next()
				}
				if !strings.HasSuffix(line, fmt.Sprintf(" (%d bytes)", want)) {
					t.Fatal(line, want)
				}
			}
		})
	}
}
