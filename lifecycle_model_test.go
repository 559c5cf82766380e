//go:build linux

package tcpio

import (
	"bytes"
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

// grammar checks one connection's events on one route: Opened (Readable|Writable|Message)* Closed.
type grammar struct {
	opened, closed int
	next           int // the message that comes next
	bad            []string
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
	if g.opened == 0 {
		g.bad = append(g.bad, fmt.Sprintf("%T before Opened", ev))
	}
}

// A life is what the model knows of a connection.
type life struct {
	closed, aborted, shut bool // Close or Abort, Abort, CloseWrite was called
	peerShut, peerGone    bool // the peer sent its end, or closed or reset
	written               bool // something was written
	posted                int
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
	gone := make(chan *Conn, 100)
	onActor := ActorFunc(func(ev Event) error {
		mu.Lock()
		defer mu.Unlock()
		switch e := ev.(type) {
		case Opened:
			actors[e.Conn] = new(grammar)
			actors[e.Conn].take(ev)
		case Readable:
			actors[e.Conn].take(ev)
		case Writable:
			actors[e.Conn].take(ev)
		case Message:
			actors[e.Conn].take(ev)
		case Closed:
			actors[e.Conn].take(ev)
			gone <- e.Conn
		}
		return nil
	})
	plain := listen(t, ListenerOptions{WriteBuffer: 1 << 16})
	events := plain.Events()
	plain.serve()
	acting := listen(t, ListenerOptions{WriteBuffer: 1 << 16, NewActor: func(*Conn) Actor { return onActor }})
	acting.serve()

	rapid.Check(t, func(t *rapid.T) {
		var g grammar
		var c *Conn
		ch := events
		route := rapid.SampledFrom([]string{"stream", "claimed", "actor"}).Draw(t, "route")
		r := plain
		if route == "actor" {
			r = acting
		}
		peer := testnet.Connect(t, r.Listener).(*net.TCPConn)
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

		var m life
		buf := make([]byte, 4096)
		act := map[string]func(*rapid.T){
			"TryRead": func(t *rapid.T) {
				_, err := c.TryRead(buf[:rapid.SampledFrom([]int{0, 1, 4096}).Draw(t, "size")])
				if m.closed && !errors.Is(err, net.ErrClosed) {
					t.Fatalf("TryRead after Close: %v", err)
				}
			},
			"TryWrite": func(t *rapid.T) {
				n, err := c.TryWrite(make([]byte, rapid.SampledFrom([]int{0, 1, 5000, 200000}).Draw(t, "size")))
				m.written = m.written || n > 0
				switch {
				case m.closed && !errors.Is(err, net.ErrClosed):
					t.Fatalf("TryWrite after Close: %v", err)
				case m.closed || err == nil || err == ErrWouldBlock:
				case m.shut && errors.Is(err, syscall.EPIPE):
				case !m.peerGone:
					t.Fatalf("TryWrite: %v", err)
				}
			},
			"CloseWrite": func(t *rapid.T) {
				err := c.CloseWrite()
				if m.closed != errors.Is(err, net.ErrClosed) && !m.peerGone {
					t.Fatalf("CloseWrite: %v, closed is %v", err, m.closed)
				}
				m.shut = true
			},
			"Post": func(t *rapid.T) {
				switch err := c.Post(m.posted); {
				case err == nil && !m.closed:
					m.posted++
				case m.closed && errors.Is(err, net.ErrClosed), err == ErrMailboxFull, m.peerGone:
				default:
					t.Fatalf("Post: %v, closed is %v", err, m.closed)
				}
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
		orderly := !m.aborted && !m.peerGone
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
		err := c.Err()
		switch {
		case orderly && err != nil:
			t.Fatalf("Err after an orderly end: %v", err)
		case err == nil, errors.Is(err, net.ErrClosed) && m.aborted, m.peerGone && errors.Is(err, syscall.ECONNRESET),
			m.peerGone && errors.Is(err, syscall.EPIPE):
		default:
			t.Fatalf("Err: %v after %+v", err, m)
		}
		checkAfterClose(t, c)
		if p := phaseOf(c); p != phaseGone || c.Buffered() != 0 {
			t.Fatalf("%v, %d bytes buffered after Closed", p, c.Buffered())
		}
	})
}

// state names the phase, and in it whether our FIN is out.
func state(c *Conn) string {
	return locked(c, func() string {
		if c.phase == phaseClosing && c.sendEnd == sendFin {
			return "FIN sent"
		}
		return c.phase.String()
	})
}

// inState brings a fresh connection into one of the states that an event can end.
func inState(t *testing.T, r *rig, want string) (*net.TCPConn, *Conn) {
	t.Helper()
	peer := r.dial()
	var c *Conn
	for c == nil {
		if o, ok := testnet.Receive(t, "Opened", r.Events()).(Opened); ok {
			c = o.Conn
		}
	}
	switch want {
	case "closing": // output is left: the peer does not read
		setSendBuffer(t, c, 1)
		if _, err := c.TryWrite(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		c.Close()
	case "FIN sent":
		c.Close()
	}
	if got := state(c); got != want {
		t.Fatalf("state %q, want %q", got, want)
	}
	return peer, c
}

// Every way to the end, from every state that it begins in.
func TestStatesFollowTheTable(t *testing.T) {
	t.Parallel()
	own := errors.New("the actor's own")
	read := func(c *Conn) { _, _ = c.TryRead(make([]byte, 64)) }
	drainPeer := func(peer *net.TCPConn) { go func() { _, _ = io.Copy(io.Discard, peer); peer.Close() }() }
	for _, tc := range []struct {
		name    string
		from    []string
		do      func(t *testing.T, r *rig, peer *net.TCPConn, c *Conn)
		err     error // Err at the end, nil for an orderly one
		timeout time.Duration
	}{
		{"Close, and the peer reads and ends", []string{"open", "closing", "FIN sent"},
			func(_ *testing.T, _ *rig, peer *net.TCPConn, c *Conn) { c.Close(); drainPeer(peer) }, nil, 0},
		{"EOF read and EOFTimeout", []string{"open"},
			func(t *testing.T, _ *rig, peer *net.TCPConn, c *Conn) {
				if err := peer.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				testnet.WaitFor(t, "EOF is read", func() bool { read(c); return locked(c, func() bool { return c.peerEnd != peerOpen || c.released() }) })
			}, nil, 0},
		{"the actor's error", []string{"open"},
			func(t *testing.T, r *rig, peer *net.TCPConn, c *Conn) {
				done := make(chan struct{})
				a := ActorFunc(func(ev Event) error {
					switch ev.(type) {
					case Message:
						return own
					case Closed:
						close(done)
					}
					return nil
				})
				if err := errors.Join(c.Attach(a), c.Post("go")); err != nil {
					t.Fatal(err)
				}
				drainPeer(peer)
				receive0(t, "the actor's Closed", done)
			}, own, 0},
		{"Abort", []string{"open", "closing", "FIN sent"},
			func(_ *testing.T, _ *rig, _ *net.TCPConn, c *Conn) { c.Abort() }, net.ErrClosed, 0},
		{"a read error", []string{"open", "FIN sent"},
			func(t *testing.T, _ *rig, peer *net.TCPConn, c *Conn) {
				_ = peer.SetLinger(0)
				peer.Close()
				testnet.WaitFor(t, "the error is read", func() bool { read(c); return state(c) == "gone" })
			}, syscall.ECONNRESET, 0},
		{"CloseTimeout with output left", []string{"closing"},
			func(*testing.T, *rig, *net.TCPConn, *Conn) {}, ErrCloseTimeout, 500 * time.Millisecond},
		{"CloseTimeout without", []string{"FIN sent"},
			func(*testing.T, *rig, *net.TCPConn, *Conn) {}, nil, 500 * time.Millisecond},
		{"Listener.Close", []string{"open", "closing", "FIN sent"},
			func(_ *testing.T, r *rig, _ *net.TCPConn, _ *Conn) { r.Close() }, net.ErrClosed, 0},
	} {
		for _, from := range tc.from {
			t.Run(tc.name+" from "+from, func(t *testing.T) {
				r := listen(t, ListenerOptions{CloseTimeout: tc.timeout, EOFTimeout: 50 * time.Millisecond})
				events := r.Events()
				r.serve()
				peer, c := inState(t, r, from)
				if c.Err() != nil {
					t.Errorf("Err before the end: %v", c.Err())
				}
				tc.do(t, r, peer, c)
				if !errors.Is(tc.err, own) {
					receiveEnd(t, events)
				}
				testnet.WaitFor(t, "the connection is gone", func() bool { return state(c) == "gone" })
				if err := c.Err(); tc.err == nil && err != nil || !errors.Is(err, tc.err) {
					t.Errorf("Err is %v, want %v", err, tc.err)
				}
			})
		}
	}
}

// receive0 waits until ch is closed.
func receive0(t testnet.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(testnet.Limit):
		t.Fatalf("after %v still not: %s", testnet.Limit, what)
	}
}

// A released connection keeps its descriptor, and is not Closed, while somebody uses it.
func TestDescriptorGoesWithItsLastUser(t *testing.T) {
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Control(func(fd uintptr) {
		c.Abort()
		if got := state(c); got != "released" {
			t.Errorf("state %q with a user of the descriptor, want released", got)
		}
		if err := syscall.SetNonblock(int(fd), true); err != nil {
			t.Errorf("the descriptor is gone already: %v", err)
		}
		if len(events) != 0 || c.Err() != nil {
			t.Errorf("%d events, Err %v, before the descriptor is gone", len(events), c.Err())
		}
	}); err != nil {
		t.Fatal(err)
	}
	receiveAs[Closed](t, events)
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer's read: %v, want a reset", err)
	}
}

// What is queued at Close reaches a peer that takes its time, and FIN is behind it.
func TestCloseFlushesThenSendsFin(t *testing.T) {
	t.Parallel()
	r := listen(t, ListenerOptions{CloseTimeout: time.Hour}) // a slow machine is not the subject
	r.Events()
	r.serve()
	peer, c := inState(t, r, "open")
	setSendBuffer(t, c, 1)
	want := numbered(0, 1<<20)
	if _, err := c.TryWrite(want); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if got := state(c); got != "closing" {
		t.Fatalf("state %q with output queued, want closing", got)
	}
	got, err := io.ReadAll(peer)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if got := state(c); got != "FIN sent" {
		t.Errorf("state %q after the peer has everything, want FIN sent", got)
	}
	peer.Close()
	receiveEnd(t, r.Events())
	if err := c.Err(); err != nil {
		t.Errorf("Err: %v", err)
	}
}
