//go:build linux

package contract

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// ledger takes in everything that a connection delivers, on whichever route, and finds what is lost
// or doubled.
type ledger struct {
	t      testing.TB
	closed chan struct{} // closed at Closed

	mu     sync.Mutex
	opened int
	ended  int
	next   byte // of the client's bytes, which count up modulo 251
	bytes  int
	seen   map[int]int // messages, by value
}

func newLedger(t testing.TB) *ledger {
	return &ledger{t: t, closed: make(chan struct{}), seen: map[int]int{}}
}

// route is a part of the ledger: order is promised per route.
type route struct {
	ledger *ledger
	last   int // message
	done   bool
}

func (l *ledger) route() *route { return &route{ledger: l, last: -1} }

func (r *route) Receive(ev tcpio.Event) error {
	l := r.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.done {
		l.t.Errorf("%T behind Closed", ev)
	}
	switch ev := ev.(type) {
	case tcpio.Opened:
		if l.opened++; l.opened > 1 {
			l.t.Error("Opened twice")
		}
	case tcpio.Readable:
		var p [700]byte
		n, err := ev.Conn.TryRead(p[:])
		for _, b := range p[:n] {
			if b != l.next {
				l.t.Errorf("byte %d: %d, want %d", l.bytes, b, l.next)
				l.next = b
			}
			l.next = (l.next + 1) % 251
			l.bytes++
		}
		if err == io.EOF {
			ev.Conn.Close()
		}
	case tcpio.Message:
		v := ev.Value.(int)
		l.seen[v]++
		if v <= r.last {
			l.t.Errorf("message %d behind %d on one route", v, r.last)
		}
		r.last = v
	case tcpio.Closed:
		r.done = true
		if l.ended++; l.ended > 1 {
			l.t.Error("Closed twice")
		} else {
			close(l.closed)
		}
	}
	return nil
}

// drain receives from a claimed channel until it is closed.
func (l *ledger) drain(ch <-chan tcpio.Event) {
	r := l.route()
	for ev := range ch {
		_ = r.Receive(ev)
	}
}

// check is called behind Closed, when every claimed channel is drained.
func (l *ledger) check(bytes, posts int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened != 1 || l.ended != 1 || l.bytes != bytes {
		l.t.Errorf("%d Opened, %d Closed, %d of %d bytes", l.opened, l.ended, l.bytes, bytes)
	}
	for v := range posts {
		if l.seen[v] != 1 {
			l.t.Errorf("message %d came %d times", v, l.seen[v])
		}
	}
}

// counting returns n bytes that count up modulo 251.
func counting(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i % 251)
	}
	return p
}

// Movers on other goroutines change the route all the time while bytes, posts and the end arrive.
func TestSwitchingRoutesLosesAndDoublesNothing(t *testing.T) {
	const size, posts = 100_000, 300
	conns := 8
	for _, start := range []string{"stream", "actor"} {
		t.Run(start, func(t *testing.T) {
			var mu sync.Mutex
			ledgers := map[*tcpio.Conn]*ledger{}
			of := func(c *tcpio.Conn) *ledger {
				mu.Lock()
				defer mu.Unlock()
				if ledgers[c] == nil {
					ledgers[c] = newLedger(t)
				}
				return ledgers[c]
			}
			o := tcpio.ListenerOptions{Loops: 2, EventBuffer: 4}
			if start == "actor" {
				o.NewActor = func(c *tcpio.Conn) tcpio.Actor { return of(c).route() }
			} else {
				o.Loops = 1
			}
			srv := harness.Listen(t, o)
			stop := harness.Start(t, srv)
			var consumers sync.WaitGroup
			if start == "stream" {
				events := srv.Events()
				consumers.Go(func() {
					routes := map[*tcpio.Conn]*route{}
					for ev := range events {
						c := tcpio.ConnOf(ev)
						if c == nil {
							continue
						}
						if routes[c] == nil {
							routes[c] = of(c).route()
						}
						_ = routes[c].Receive(ev)
					}
				})
			}
			clients := make([]*net.TCPConn, conns)
			for i := range clients {
				clients[i] = testnet.DialTCP(t, srv)
			}
			var work, claimed sync.WaitGroup
			for _, c := range harness.Conns(t, srv, conns) {
				work.Go(func() {
					for i := 0; i < posts; {
						switch err := c.Post(i); err {
						case nil:
							i++
						case tcpio.ErrMailboxFull:
							time.Sleep(50 * time.Microsecond)
						default:
							t.Errorf("post: %v", err)
							return
						}
					}
				})
				claimed.Go(func() {
					l := of(c)
					rng := rand.New(rand.NewPCG(c.ID(), 1))
					for {
						if rng.IntN(2) == 0 {
							if err := c.Attach(l.route()); err != nil && !errors.Is(err, net.ErrClosed) {
								t.Errorf("Attach: %v", err)
							}
						} else {
							ch := c.Events()
							claimed.Go(func() { l.drain(ch) })
						}
						select {
						case <-l.closed:
							return
						case <-time.After(time.Duration(rng.IntN(1000)) * time.Microsecond):
						}
					}
				})
			}
			for _, c := range clients {
				work.Go(func() {
					for p := counting(size); len(p) > 0; {
						n := min(len(p), 1+rand.IntN(3000))
						if _, err := c.Write(p[:n]); err != nil {
							t.Errorf("client: %v", err)
							return
						}
						p = p[n:]
					}
				})
			}
			work.Wait()
			for _, c := range clients {
				c.CloseWrite()
			}
			for _, l := range ledgers {
				testnet.Await(t, "Closed", l.closed)
			}
			claimed.Wait()
			stop()
			consumers.Wait()
			for _, l := range ledgers {
				l.check(size, posts)
			}
		})
	}
}

// The new route takes everything from the point on at which it was chosen.
func TestRouteCanBeChosenAtEveryPointOfAConnectionsLife(t *testing.T) {
	const size, posts = 5000, 20
	type choose func(l *ledger, c *tcpio.Conn)
	var drains sync.WaitGroup
	ways := map[string]choose{
		"Attach": func(l *ledger, c *tcpio.Conn) { _ = c.Attach(l.route()) },
		"Events": func(l *ledger, c *tcpio.Conn) {
			ch := c.Events()
			drains.Go(func() { l.drain(ch) })
		},
	}
	points := map[string]func(ev tcpio.Event, n int) bool{
		"at Opened":           func(ev tcpio.Event, n int) bool { _, ok := ev.(tcpio.Opened); return ok },
		"at a Readable":       func(ev tcpio.Event, n int) bool { _, ok := ev.(tcpio.Readable); return ok },
		"at a Message":        func(ev tcpio.Event, n int) bool { _, ok := ev.(tcpio.Message); return ok },
		"at the tenth event":  func(ev tcpio.Event, n int) bool { return n == 10 },
		"at Closed, too late": func(ev tcpio.Event, n int) bool { _, ok := ev.(tcpio.Closed); return ok },
	}
	for way, take := range ways {
		for point, now := range points {
			for _, from := range []string{"actor", "stream"} {
				t.Run(way+" "+point+" of "+from, func(t *testing.T) {
					l := newLedger(t)
					first := l.route()
					moved, n := false, 0
					handle := func(ev tcpio.Event) error {
						n++
						c := tcpio.ConnOf(ev)
						if _, ok := ev.(tcpio.Opened); ok {
							for i := range posts {
								if err := c.Post(i); err != nil {
									t.Error(err)
								}
							}
						}
						move := !moved && now(ev, n)
						if _, ok := ev.(tcpio.Readable); !ok || !move {
							_ = first.Receive(ev) // a Readable is left for the new route
						}
						if move {
							moved = true
							take(l, c)
						}
						return nil
					}
					o := tcpio.ListenerOptions{Loops: 1}
					if from == "actor" {
						o.NewActor = func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(handle) }
					}
					srv := harness.Listen(t, o)
					stop := harness.Start(t, srv)
					if from == "stream" {
						events := srv.Events()
						drains.Go(func() {
							for ev := range events {
								_ = handle(ev)
							}
						})
					}
					c := testnet.DialTCP(t, srv)
					p := counting(size)
					testnet.Send(t, c, string(p[:size/2]))
					testnet.Send(t, c, string(p[size/2:]))
					c.CloseWrite()
					testnet.Await(t, "Closed", l.closed)
					stop()
					drains.Wait()
					l.check(size, posts)
					if !moved {
						t.Error("the route was never changed: the test shows nothing")
					}
				})
			}
		}
	}
}

func TestRouteChosenBeforeOpenedGetsOpened(t *testing.T) {
	for _, way := range []string{"Attach", "Events"} {
		t.Run(way, func(t *testing.T) {
			l := newLedger(t)
			var drains sync.WaitGroup
			srv := harness.Serve(t, tcpio.ListenerOptions{NewActor: func(c *tcpio.Conn) tcpio.Actor {
				if way == "Attach" {
					return l.route()
				}
				ch := c.Events()
				drains.Go(func() { l.drain(ch) })
				return tcpio.ActorFunc(func(ev tcpio.Event) error {
					t.Errorf("%T for the actor of a claimed connection", ev)
					return nil
				})
			}})
			c := testnet.DialTCP(t, srv)
			testnet.Send(t, c, string(counting(1000)))
			c.CloseWrite()
			testnet.Await(t, "Closed", l.closed)
			drains.Wait()
			l.check(1000, 0)
		})
	}
}

func TestUnreadReadableIsAnnouncedAgainOnTheNewRoute(t *testing.T) {
	unread := make(chan *tcpio.Conn, 1)
	srv := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if ev, ok := ev.(tcpio.Readable); ok {
			unread <- ev.Conn
		}
		return nil
	}))
	c := testnet.DialTCP(t, srv)
	testnet.Send(t, c, "x")
	conn := testnet.Await(t, "Readable at the first actor", unread)
	for range 3 {
		ch := conn.Events()
		if ev, ok := testnet.Await(t, "Readable at the claimed channel", ch).(tcpio.Readable); !ok {
			t.Errorf("%T, want Readable", ev)
		}
		again := make(chan tcpio.Event, 1)
		if err := conn.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error { again <- ev; return nil })); err != nil {
			t.Fatal(err)
		}
		if _, ok := testnet.Await(t, "Readable at the second actor", again).(tcpio.Readable); !ok {
			t.Errorf("%T, want Readable", again)
		}
		testnet.AwaitClosed(t, "a channel that the connection left", ch)
	}
}

func TestClaimingAfterClosedGivesAClosedChannelAndAttachAnError(t *testing.T) {
	closed := make(chan *tcpio.Conn, 1)
	srv := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Readable:
			ev.Conn.Close()
		case tcpio.Closed:
			closed <- ev.Conn
		}
		return nil
	}))
	testnet.DialTCP(t, srv).Close()
	c := testnet.Await(t, "Closed", closed)
	testnet.AwaitClosed(t, "nothing behind Closed", c.Events())
	if err := c.Attach(newLedger(t).route()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Attach: %v, want net.ErrClosed", err)
	}
	if err := c.Attach(nil); err == nil {
		t.Error("Attach(nil): no error")
	}
}

// The end was read, but the library's answer to it, to close, must not be lost with the move.
func TestConnectionClaimedInTheReceiveThatReadEOFStillCloses(t *testing.T) {
	t.Parallel()
	claimed := make(chan (<-chan tcpio.Event), 1)
	srv := harness.Actor(t, tcpio.ListenerOptions{EOFTimeout: 50 * time.Millisecond}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if ev, ok := ev.(tcpio.Readable); ok {
			var p [16]byte
			if _, err := ev.Conn.TryRead(p[:]); err == io.EOF {
				claimed <- ev.Conn.Events()
			}
		}
		return nil
	}))
	c := testnet.DialTCP(t, srv)
	c.CloseWrite()
	ch := testnet.Await(t, "the claim", claimed)
	harness.Expect[tcpio.Closed](t, ch)
}

// The loops have ended, and Serve waits for the consumer alone: no actor can be run any more, a
// channel can be fed.
func TestConnectionWhoseClosedWaitsIsToldOfItOnce(t *testing.T) {
	for _, way := range []string{"Attach", "Events"} {
		t.Run(way, func(t *testing.T) {
			srv := harness.Listen(t, tcpio.ListenerOptions{Loops: 1, EventBuffer: 1, CloseTimeout: testnet.Limit})
			served := harness.Go(t.Context(), srv)
			events := srv.Events()
			testnet.DialTCP(t, srv)
			conn := tcpio.ConnOf(testnet.Await(t, "Opened", events))
			const posts = 20
			for i := range posts {
				if err := conn.Post(i); err != nil {
					t.Fatal(err)
				}
			}
			srv.Close() // Closed finds no room
			testnet.WaitFor(t, "the loop has ended", func() bool {
				buf := make([]byte, 1<<20)
				return !bytes.Contains(buf[:runtime.Stack(buf, true)], []byte("(*loop).drive"))
			})
			l := newLedger(t)
			l.opened = 1
			var drains sync.WaitGroup
			if way == "Attach" {
				if err := conn.Attach(l.route()); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Attach: %v, want net.ErrClosed", err)
				}
			} else {
				ch := conn.Events()
				drains.Go(func() { l.drain(ch) })
			}
			l.drain(events)
			drains.Wait()
			l.check(0, posts)
			if err := testnet.Receive(t, "the end of Serve", served); err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}
