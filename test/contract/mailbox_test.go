//go:build linux

package contract

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// The model is a slice; the actor, or the goroutine of a claimed channel, receives one value each
// time the model does.
func TestMailboxIsABoundedQueue(t *testing.T) {
	t.Parallel()
	const size = 5
	for _, route := range []string{"actor", "claimed"} {
		t.Run(route, func(t *testing.T) {
			l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1, MailboxSize: size}, tcpio.ActorFunc(func(tcpio.Event) error { return nil }))
			rapid.Check(t, func(rt *rapid.T) {
				cl := testnet.DialTCP(t, l)
				defer cl.Close()
				conn := harness.Conns(t, l, 1)[0]
				entered := make(chan int)
				step := make(chan struct{})
				if route == "actor" {
					// Each Receive hands its value over and then waits, so that the mailbox is the
					// test's alone.
					if err := conn.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error {
						if m, ok := ev.(tcpio.Message); ok {
							entered <- m.Value.(int)
							<-step
						}
						return nil
					})); err != nil {
						rt.Fatal(err)
					}
				} else {
					ch := conn.Events()
					go func() {
						for ev := range ch {
							if m, ok := ev.(tcpio.Message); ok {
								entered <- m.Value.(int)
								<-step
							}
						}
					}()
				}
				var queue []int // accepted and not received
				inside := false // a Receive waits for step
				next := 0
				receive := func() {
					if v := testnet.Await(t, "a value", entered); v != queue[0] {
						rt.Fatalf("received %d, want %d", v, queue[0])
					}
					queue, inside = queue[1:], true
				}
				rt.Repeat(map[string]func(*rapid.T){
					"post": func(rt *rapid.T) {
						err := conn.Post(next)
						if route == "actor" && inside {
							want := error(nil)
							if len(queue) >= size {
								want = tcpio.ErrMailboxFull
							}
							if err != want {
								rt.Fatalf("Post with %d waiting: %v, want %v", len(queue), err, want)
							}
						} else if err != nil && (err != tcpio.ErrMailboxFull || len(queue) < size) {
							// A channel holds some more, as many as find room.
							rt.Fatalf("Post with %d waiting: %v", len(queue), err)
						}
						if err == nil {
							queue = append(queue, next)
							next++
						}
						if !inside && len(queue) > 0 {
							receive()
						}
					},
					"receive": func(rt *rapid.T) {
						if !inside {
							return
						}
						step <- struct{}{}
						inside = false
						if len(queue) > 0 {
							receive()
						}
					},
				})
				// What was accepted is delivered although the connection is closed, and then
				// nothing more.
				conn.Close()
				if err := conn.Post(-1); !errors.Is(err, net.ErrClosed) {
					rt.Fatalf("Post after Close: %v", err)
				}
				cl.Close()
				for inside || len(queue) > 0 {
					if inside {
						step <- struct{}{}
						inside = false
						continue
					}
					receive()
				}
				testnet.WaitFor(t, "the connection is gone", func() bool { return l.Len() == 0 })
			})
		})
	}
}

func TestMailboxIsFullAtExactlyMailboxSize(t *testing.T) {
	for _, size := range []int{1, 2, 128} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			entered, release := make(chan struct{}), make(chan struct{})
			var got atomic.Int64
			l := harness.Actor(t, tcpio.ListenerOptions{MailboxSize: size}, tcpio.ActorFunc(func(ev tcpio.Event) error {
				if m, ok := ev.(tcpio.Message); ok {
					if m.Value == "block" {
						close(entered)
						<-release
						return nil
					}
					got.Add(1)
				}
				return nil
			}))
			testnet.DialTCP(t, l)
			c := harness.Conns(t, l, 1)[0]
			if err := c.Post("block"); err != nil {
				t.Fatal(err)
			}
			testnet.Await(t, "a blocked handler", entered)
			for i := range size {
				if err := c.Post(i); err != nil {
					t.Fatalf("post %d of %d: %v", i+1, size, err)
				}
			}
			for range 3 {
				if err := c.Post("more"); err != tcpio.ErrMailboxFull {
					t.Errorf("post over MailboxSize: %v", err)
				}
			}
			close(release)
			testnet.WaitFor(t, "all values are received", func() bool { return got.Load() == int64(size) })
			if err := c.Post("again"); err != nil {
				t.Errorf("post into an empty mailbox: %v", err)
			}
		})
	}
}

// posted counts what one connection received, from several posters, each of which counts up.
type posted struct {
	t     testing.TB
	next  []int
	total *atomic.Int64
}

func (p *posted) take(ev tcpio.Event) {
	m, ok := ev.(tcpio.Message)
	if !ok {
		return
	}
	v := m.Value.([2]int)
	if p.next[v[0]] != v[1] {
		p.t.Errorf("poster %d: value %d, want %d", v[0], v[1], p.next[v[0]])
	}
	p.next[v[0]] = v[1] + 1
	p.total.Add(1)
}

func TestPostsOfManyArriveOnceEachAndInOrder(t *testing.T) {
	const conns, posters = 20, 4
	all := 100_000
	if testnet.Long {
		all = 1_000_000
	}
	each := all / 3 / conns / posters // three routes
	for _, route := range []string{"actor", "claimed", "stream"} {
		t.Run(route, func(t *testing.T) {
			var total, claimed atomic.Int64
			o := tcpio.ListenerOptions{Loops: 2}
			var consumers sync.WaitGroup
			if route == "actor" {
				o.NewActor = func(*tcpio.Conn) tcpio.Actor {
					p := &posted{t, make([]int, posters), &total}
					return tcpio.ActorFunc(func(ev tcpio.Event) error { p.take(ev); return nil })
				}
			} else {
				o.Loops = 1
			}
			l := harness.Listen(t, o)
			stop := harness.Start(t, l)
			if route != "actor" {
				events := l.Events()
				consumers.Go(func() {
					box := map[*tcpio.Conn]*posted{}
					for ev := range events {
						c := tcpio.ConnOf(ev)
						if _, ok := ev.(tcpio.Opened); ok {
							p := &posted{t, make([]int, posters), &total}
							if route == "claimed" {
								ch := c.Events()
								claimed.Add(1)
								consumers.Go(func() {
									for ev := range ch {
										p.take(ev)
									}
								})
							}
							box[c] = p
							continue
						}
						box[c].take(ev)
					}
				})
			}
			for range conns {
				testnet.DialTCP(t, l)
			}
			if route == "claimed" { // what is posted before it comes out of the stream, to another goroutine
				testnet.WaitFor(t, "the claims", func() bool { return claimed.Load() == conns })
			}
			var wg sync.WaitGroup
			for _, c := range harness.Conns(t, l, conns) {
				for p := range posters {
					wg.Go(func() { postAll(t, c, p, each) })
				}
			}
			wg.Wait()
			testnet.WaitFor(t, "all values are received", func() bool { return total.Load() == int64(conns*posters*each) })
			stop()
			consumers.Wait()
			if got := total.Load(); got != int64(conns*posters*each) {
				t.Errorf("%d values received of %d", got, conns*posters*each)
			}
		})
	}
}

// A lost wake-up leaves the value where it is, and the game stops.
func TestTwoActorsOnTwoLoopsNeverMissAPost(t *testing.T) {
	rounds := 10_000
	if testnet.Long && !testnet.Race {
		rounds = 100_000
	}
	const pairs = 3
	var posts atomic.Int64
	done := make(chan struct{}, pairs)
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 2}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		m, ok := ev.(tcpio.Message)
		if !ok {
			return nil
		}
		if m.Value == rounds {
			done <- struct{}{}
			return nil
		}
		posts.Add(1)
		return m.Conn.Data().(*tcpio.Conn).Post(m.Value.(int) + 1)
	}))
	for range 2 * pairs {
		testnet.DialTCP(t, l)
	}
	conns := harness.Conns(t, l, 2*pairs) // those of the first loop, then those of the second
	for i := range pairs {
		a, b := conns[i], conns[i+pairs]
		a.SetData(b)
		b.SetData(a)
		if err := a.Post(0); err != nil {
			t.Fatal(err)
		}
	}
	for ended := 0; ended < pairs; { // a busy machine takes long, but does not stop
		before := posts.Load()
		select {
		case <-done:
			ended++
		case <-time.After(testnet.Limit):
			if posts.Load() == before {
				t.Fatalf("%d games have ended, and in the others nobody has the ball", ended)
			}
		}
	}
}

// The other way round: from goroutines to an actor, and back through a channel, so that the loop
// falls asleep often.
func TestPostToASleepingLoopWakesIt(t *testing.T) {
	t.Parallel()
	rounds := 3000
	if testnet.Long && !testnet.Race {
		rounds = 20_000
	}
	back := make(chan int)
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if m, ok := ev.(tcpio.Message); ok {
			back <- m.Value.(int)
		}
		return nil
	}))
	testnet.DialTCP(t, l)
	c := harness.Conns(t, l, 1)[0]
	for i := range rounds {
		if err := c.Post(i); err != nil {
			t.Fatal(err)
		}
		if v := testnet.Await(t, "an answer", back); v != i {
			t.Fatalf("received %d, want %d", v, i)
		}
		for range i % 50 {
			runtime.Gosched()
		}
	}
}

func TestWhatIsPostedBeforeOpenedIsReceivedBehindIt(t *testing.T) {
	const posts = 10
	for _, route := range []string{"actor", "stream", "claimed"} {
		t.Run(route, func(t *testing.T) {
			got := make(chan tcpio.Event, 2*posts)
			o := tcpio.ListenerOptions{Loops: 1}
			if route != "stream" {
				o.NewActor = func(c *tcpio.Conn) tcpio.Actor {
					for i := range posts { // before Opened: the connection is being made
						if err := c.Post(i); err != nil {
							t.Error(err)
						}
					}
					if route == "claimed" {
						ch := c.Events()
						go func() {
							for ev := range ch {
								got <- ev
							}
						}()
					}
					return tcpio.ActorFunc(func(ev tcpio.Event) error { got <- ev; return nil })
				}
			}
			l := harness.Serve(t, o)
			if route == "stream" {
				// A full stream keeps Opened back; the connection is found another way.
				testnet.DialTCP(t, l)
				var c *tcpio.Conn
				events := l.Events()
				testnet.WaitFor(t, "a connection", func() bool {
					for c = range l.Conns() {
					}
					return c != nil
				})
				for i := range posts {
					if err := c.Post(i); err != nil {
						t.Error(err)
					}
				}
				go func() {
					for ev := range events {
						got <- ev
					}
				}()
			} else {
				testnet.DialTCP(t, l)
			}
			if ev, ok := testnet.Await(t, "Opened", got).(tcpio.Opened); !ok {
				t.Fatalf("%T first", ev)
			}
			for i := range posts {
				if m, ok := testnet.Await(t, "a Message", got).(tcpio.Message); !ok || m.Value != i {
					t.Fatalf("%v, want Message %d", m, i)
				}
			}
		})
	}
}

func TestWhatIsAcceptedBeforeCloseIsReceivedBeforeClosedAndNothingAfter(t *testing.T) {
	t.Parallel()
	const posters = 3
	for _, route := range []string{"actor", "stream", "claimed"} {
		t.Run(route, func(t *testing.T) {
			for i := range 40 {
				got := make(chan int, 1)
				n := 0
				take := func(ev tcpio.Event) error {
					switch ev.(type) {
					case tcpio.Message:
						n++
					case tcpio.Closed:
						got <- n
					}
					return nil
				}
				o := tcpio.ListenerOptions{Loops: 1, EventBuffer: 2}
				if route == "actor" {
					o.NewActor = func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(take) }
				}
				l := harness.Listen(t, o)
				stop := harness.Start(t, l)
				claimed := make(chan struct{})
				if route != "actor" {
					ch := l.Events()
					go func() {
						for ev := range ch {
							if _, ok := ev.(tcpio.Opened); ok && route == "claimed" {
								ch := ev.(tcpio.Opened).Conn.Events()
								close(claimed)
								go func() {
									for ev := range ch {
										_ = take(ev)
									}
								}()
							} else {
								_ = take(ev)
							}
						}
					}()
				}
				cl := testnet.DialTCP(t, l)
				c := harness.Conns(t, l, 1)[0]
				if route == "claimed" {
					testnet.Await(t, "the claim", claimed) // what is posted before it comes out of the stream
				}
				var accepted atomic.Int64
				var wg sync.WaitGroup
				start := make(chan struct{})
				for range posters {
					wg.Go(func() {
						<-start
						for {
							switch err := c.Post(0); {
							case err == nil:
								accepted.Add(1)
							case errors.Is(err, net.ErrClosed):
								return
							case err == tcpio.ErrMailboxFull:
								runtime.Gosched()
							default:
								t.Error(err)
								return
							}
						}
					})
				}
				wg.Go(func() {
					<-start
					for accepted.Load() < int64(i*10) {
						runtime.Gosched()
					}
					if i%2 == 0 {
						c.Abort()
					} else {
						c.Close()
					}
				})
				close(start)
				wg.Wait()
				cl.Close()
				if n := testnet.Await(t, "Closed", got); int64(n) != accepted.Load() {
					t.Fatalf("%d values received, %d accepted", n, accepted.Load())
				}
				stop()
			}
		})
	}
}

// postAll posts n values, and waits for room in the mailbox.
func postAll(t testing.TB, c *tcpio.Conn, poster, n int) {
	for i := 0; i < n; {
		switch err := c.Post([2]int{poster, i}); {
		case err == nil:
			i++
		case errors.Is(err, tcpio.ErrMailboxFull):
			runtime.Gosched()
		default:
			t.Errorf("post %d of poster %d: %v", i, poster, err)
			return
		}
	}
}
