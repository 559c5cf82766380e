//go:build linux

package tcpio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// grammar checks one connection's events on one route: Dialed? Opened
// (Readable|Writable|Message|Dialed)* RelayEnded? Closed.
type grammar struct {
	dialed, opened, relayEnded, closed int

	next     int          // the message that comes next
	answers  map[int]bool // to dials of the connection's own
	relayed  bool         // Relay was called: what is in the channel is the last
	readable int          // since then
	writable int          // likewise
	bad      []string
}

func (g *grammar) take(ev Event) {
	if g.closed > 0 {
		g.bad = append(g.bad, fmt.Sprintf("%T behind Closed", ev))
	}
	switch ev := ev.(type) {
	case Opened:
		if g.opened++; g.opened > 1 {
			g.bad = append(g.bad, "a second Opened")
		}
		return
	case Dialed:
		if ev.To == nil {
			if g.dialed++; g.dialed > 1 || g.opened > 0 || ev.Conn == nil {
				g.bad = append(g.bad, fmt.Sprintf("%v behind %d Opened", ev, g.opened))
			}
			return
		}
		if ev.Conn != nil {
			ev.Conn.Abort()
		}
		if n := ev.Value.(int); g.answers[n] {
			g.bad = append(g.bad, fmt.Sprintf("a second answer to dial %d", n))
		} else if g.answers == nil {
			g.answers = map[int]bool{n: true}
		} else {
			g.answers[n] = true
		}
	case Readable:
		if g.relayed {
			g.readable++
		}
	case Writable:
		if g.relayed {
			g.writable++
		}
	case RelayEnded:
		g.relayEnded++
	case Closed:
		g.closed++
	case Message:
		if ev.Value != g.next {
			g.bad = append(g.bad, fmt.Sprintf("message %v, want %d", ev.Value, g.next))
		}
		g.next++
	case Failed:
		g.bad = append(g.bad, fmt.Sprint("Failed: ", ev.Err))
	}
	if g.opened == 0 || g.readable > 1 || g.writable > 1 || g.relayEnded > 1 {
		g.bad = append(g.bad, fmt.Sprintf("%T with %+v", ev, *g))
	}
}

// A life is what the model knows of a connection.
type life struct {
	closed, aborted, shut bool // Close or Abort, Abort, CloseWrite was called
	peerShut, peerGone    bool // the peer sent its end, or closed or reset
	written               bool // something was written
	posted                int
	asked                 int          // dials whose answer comes to the connection
	stopped               map[int]bool // of them
	relay                 *Relay
}

// mayEnd reports whether the connection may have ended by itself.
func (m *life) mayEnd() bool { return m.peerGone || m.relay != nil }

// refusedByRelay reports whether err is what the relay's connection answers.
func (m *life) refusedByRelay(err error) bool {
	return m.relay != nil && (errors.Is(err, ErrRelayed) || errors.Is(err, net.ErrClosed))
}

// checkAfterClose: what fails once the user has closed.
func checkAfterClose(t *rapid.T, c *Conn) {
	buf := make([]byte, 8)
	errs := map[string]error{}
	_, errs["TryRead"] = c.TryRead(buf)
	_, errs["TryRead(nil)"] = c.TryRead(nil)
	_, errs["TryWrite"] = c.TryWrite(buf)
	_, errs["TryWrite(nil)"] = c.TryWrite(nil)
	_, errs["TryWritev"] = c.TryWritev(net.Buffers{buf})
	_, errs["Read"] = c.Read(buf)
	_, errs["Write"] = c.Write(buf)
	errs["Post"] = c.Post("late")
	errs["CloseWrite"] = c.CloseWrite()
	errs["SetNoDelay"] = c.SetNoDelay(true)
	errs["SetDeadline"] = c.SetDeadline(time.Time{})
	_, errs["SyscallConn"] = c.SyscallConn()
	for _, err := range c.Frames(testnet.SplitRawLines) {
		errs["Frames"] = err
	}
	for what, err := range errs {
		if !errors.Is(err, net.ErrClosed) {
			t.Fatalf("%s after Close: %v, want net.ErrClosed", what, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatalf("Close again: %v", err)
	}
}

// Random actions of the user and the peer, on every route: the events keep their grammar, and the
// methods their word.
func TestAnyLifeEndsInClosedOnce(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	actors := map[*Conn]*grammar{}
	of := func(c *Conn) *grammar { // with mu
		if actors[c] == nil {
			actors[c] = new(grammar)
		}
		return actors[c]
	}
	gone := make(chan *Conn, 100)
	onActor := ActorFunc(func(ev Event) error {
		mu.Lock()
		defer mu.Unlock()
		if e, ok := ev.(Closed); ok {
			defer func() { gone <- e.Conn }()
		}
		of(ConnOf(ev)).take(ev)
		return nil
	})
	plain := listen(t, ListenerOptions{WriteBuffer: 1 << 16})
	events := plain.Events()
	plain.serve()
	acting := listen(t, ListenerOptions{WriteBuffer: 1 << 16, NewActor: func(*Conn) Actor { return onActor }})
	acting.serve()
	// The other ends of relays, and of dials.
	others := listen(t, ListenerOptions{Network: "none", NewActor: func(*Conn) Actor { return nil }}).serve()
	up, ups := testnet.Upstream(t, "tcp", "127.0.0.1:0")
	asked, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer asked.Close()
	go func() {
		for {
			c, err := asked.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()

	rapid.Check(t, func(t *rapid.T) {
		var g grammar
		var c *Conn
		ch := events
		route := rapid.SampledFrom([]string{"stream", "claimed", "actor"}).Draw(t, "route")
		r := plain
		if route == "actor" {
			r = acting
		}
		var peer *net.TCPConn
		dials := rapid.Bool().Draw(t, "dials")
		if dials {
			d := DialRequest{Address: up}
			if route == "actor" {
				d.Actor = onActor
			}
			if _, err := r.DialAsync(d); err != nil {
				t.Fatal(err)
			}
			peer = testnet.Receive(t, "a dialed connection", ups).(*net.TCPConn)
			if route != "actor" {
				g.take(receiveAs[Dialed](t, events))
			}
		} else {
			peer = testnet.Connect(t, r.Listener).(*net.TCPConn)
		}
		defer peer.Close()
		if route == "actor" {
			testnet.WaitFor(t, "the connection is there", func() bool {
				for c = range acting.Conns() {
					return markedRoute(c, routeOpened)
				}
				return false
			})
		} else {
			o := receiveAs[Opened](t, events)
			g.take(o)
			c = o.Conn
			if route == "claimed" {
				ch = c.Events()
			}
		}
		// Whatever fails, the next life begins with nothing left of this one.
		ended := false
		defer func() {
			if ended {
				return
			}
			c.Abort()
			if route == "stream" {
				receiveEnd(t, events)
			} else if route == "actor" {
				testnet.Receive(t, "Closed", gone)
			}
		}()

		m := life{stopped: map[int]bool{}}
		stop := func() bool { return false }
		buf := make([]byte, 4096)
		act := map[string]func(*rapid.T){
			"TryRead": func(t *rapid.T) {
				_, err := c.TryRead(buf[:rapid.SampledFrom([]int{0, 1, 4096}).Draw(t, "size")])
				if m.closed && !errors.Is(err, net.ErrClosed) || m.relay != nil && !m.refusedByRelay(err) {
					t.Fatalf("TryRead: %v after %+v", err, m)
				}
			},
			"TryWrite": func(t *rapid.T) {
				n, err := c.TryWrite(make([]byte, rapid.SampledFrom([]int{0, 1, 5000, 200000}).Draw(t, "size")))
				m.written = m.written || n > 0
				switch {
				case m.closed && !errors.Is(err, net.ErrClosed):
					t.Fatalf("TryWrite after Close: %v", err)
				case m.relay != nil && m.refusedByRelay(err):
				case m.relay != nil:
					t.Fatalf("TryWrite in a relay: %v", err)
				case m.closed || err == nil || err == ErrWouldBlock:
				case m.shut && errors.Is(err, syscall.EPIPE):
				case !m.peerGone:
					t.Fatalf("TryWrite: %v", err)
				}
			},
			"CloseWrite": func(t *rapid.T) {
				err := c.CloseWrite()
				if m.relay != nil {
					if !m.refusedByRelay(err) {
						t.Fatalf("CloseWrite in a relay: %v", err)
					}
					return
				}
				if m.closed != errors.Is(err, net.ErrClosed) && !m.peerGone {
					t.Fatalf("CloseWrite: %v, closed is %v", err, m.closed)
				}
				m.shut = true
			},
			"Post": func(t *rapid.T) {
				switch err := c.Post(m.posted); {
				case err == nil && !m.closed:
					m.posted++
				case m.closed && errors.Is(err, net.ErrClosed), err == ErrMailboxFull, m.mayEnd():
				default:
					t.Fatalf("Post: %v, closed is %v", err, m.closed)
				}
			},
			"DialAsync": func(t *rapid.T) {
				f, err := c.Listener().DialAsync(DialRequest{Address: asked.Addr().String(), To: c, Value: m.asked})
				switch {
				case err == nil && !m.closed:
					stop = f
					m.asked++
				case m.closed && errors.Is(err, net.ErrClosed), err == ErrMailboxFull, m.mayEnd() && err != nil:
				default:
					t.Fatalf("DialAsync: %v, closed is %v", err, m.closed)
				}
			},
			"stop": func(*rapid.T) {
				if stop() {
					m.stopped[m.asked-1] = true
				}
			},
			"Relay": func(t *rapid.T) {
				if m.relay != nil {
					return
				}
				other, err := others.Dial(context.Background(), "tcp", up)
				if err != nil {
					t.Fatal(err)
				}
				far := testnet.Receive(t, "a dialed connection", ups).(*net.TCPConn)
				relay, err := c.Relay(other, nil)
				switch {
				case err != nil:
					other.Abort()
					far.Close()
					if !m.peerGone && !(m.closed && errors.Is(err, net.ErrClosed)) && !(m.shut && errors.Is(err, syscall.EPIPE)) {
						t.Fatalf("Relay: %v after %+v", err, m)
					}
					return
				case m.closed || m.shut:
					t.Fatalf("Relay after %+v", m)
				}
				m.relay = relay
				if route == "actor" {
					mu.Lock()
					of(c).relayed = true
					mu.Unlock()
				} else {
					g.relayed = true
				}
				end := rapid.SampledFrom([]string{"echoes", "ends", "resets"}).Draw(t, "the far peer")
				go func() {
					defer far.Close()
					if end == "echoes" {
						_, _ = io.Copy(far, far)
					}
					if end == "resets" {
						_ = far.SetLinger(0)
					}
				}()
			},
			"Close": func(t *rapid.T) {
				if err := c.Close(); err != nil {
					t.Fatalf("Close: %v", err)
				}
				m.closed = true
			},
			"Abort": func(t *rapid.T) {
				if err := c.Abort(); err != nil {
					t.Fatalf("Abort: %v", err)
				}
				m.closed, m.aborted = true, true
			},
			"peer sends": func(t *rapid.T) {
				if !m.peerShut && !m.peerGone {
					_, _ = peer.Write(buf[:rapid.SampledFrom([]int{1, 4096}).Draw(t, "size")])
				}
			},
			"peer shuts": func(*rapid.T) {
				if !m.peerGone {
					_ = peer.CloseWrite()
					m.peerShut = true
				}
			},
			"peer closes": func(*rapid.T) {
				peer.Close()
				m.peerGone = true
			},
			"peer resets": func(*rapid.T) {
				if !m.peerGone {
					_ = peer.SetLinger(0)
					peer.Close()
					m.peerGone = true
				}
			},
			"consume": func(t *rapid.T) {
				if route == "actor" {
					return
				}
				select {
				case ev, ok := <-ch:
					if ok {
						g.take(ev)
						_, end := ev.(Closed)
						ended = ended || end
					}
				default:
				}
			},
			"": func(t *rapid.T) {
				if m.closed {
					checkAfterClose(t, c)
				}
				before := phaseOf(c)
				if err := c.Err(); err != nil && phaseOf(c) != phaseGone {
					t.Fatalf("Err before the end, %v: %v", before, err)
				}
				if bad := locked(c, c.contradiction); bad != "" {
					t.Fatal(bad)
				}
			},
		}
		t.Repeat(act)

		// The end: in order, with a peer that reads everything and then ends.
		orderly := !m.aborted && !m.mayEnd()
		if !m.peerGone {
			go func() {
				_, _ = io.Copy(io.Discard, peer)
				peer.Close()
			}()
		}
		_ = c.Close()
		switch {
		case route == "actor":
			if got := testnet.Receive(t, "Closed", gone); got != c {
				t.Fatalf("another connection's Closed")
			}
			mu.Lock()
			g = *actors[c]
			delete(actors, c)
			mu.Unlock()
		case !ended:
			for g.closed == 0 {
				g.take(testnet.Receive(t, "the next event", ch))
			}
		}
		ended = true
		if route == "claimed" {
			testnet.AwaitClosed(t, "the channel", ch)
		}
		if g.bad != nil || g.opened != 1 || g.closed != 1 {
			t.Fatalf("events out of order: %q, %d Opened, %d Closed", g.bad, g.opened, g.closed)
		}
		if g.next != m.posted {
			t.Fatalf("%d messages arrived, %d were posted", g.next, m.posted)
		}
		if (g.dialed == 1) != dials || (g.relayEnded == 1) != (m.relay != nil) {
			t.Fatalf("%d Dialed, %d RelayEnded after %+v", g.dialed, g.relayEnded, m)
		}
		for n := range g.answers {
			if n >= m.asked || m.stopped[n] {
				t.Fatalf("an answer to dial %d of %d, stopped: %v", n, m.asked, m.stopped)
			}
		}
		if m.relay != nil {
			receive0(t, "the end of the relay", m.relay.Done())
			testnet.WaitFor(t, "the end of its other connection", func() bool { return others.Len() == 0 })
		}
		err := c.Err()
		switch {
		case orderly && err != nil:
			t.Fatalf("Err after an orderly end: %v", err)
		case err == nil, errors.Is(err, net.ErrClosed) && m.aborted, m.peerGone && errors.Is(err, syscall.ECONNRESET),
			m.peerGone && errors.Is(err, syscall.EPIPE):
		case m.relay != nil && (errors.Is(err, ErrRelayEnded) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET)):
		default:
			t.Fatalf("Err: %v after %+v", err, m)
		}
		checkAfterClose(t, c)
		if p := phaseOf(c); p != phaseGone || c.Buffered() != 0 {
			t.Fatalf("%v, %d bytes buffered after Closed", p, c.Buffered())
		}
	})
}
