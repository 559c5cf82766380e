//go:build linux

package tcpio_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// orderActor checks everything that is promised about the order of one connection's events.
type orderActor struct {
	t      *testing.T
	alone  harness.Alone
	opened int
	bytes  uint32        // the next number that the client sends
	rest   []byte        // a number cut in two
	last   map[int]int   // by poster
	closed chan<- [2]int // numbers read and messages received, at Closed
	msgs   int
}

func (a *orderActor) Receive(ev tcpio.Event) error {
	defer a.alone.Enter(a.t)()
	if _, ok := ev.(tcpio.Opened); ok != (a.opened == 0) {
		a.t.Errorf("%T after %d Opened", ev, a.opened)
	}
	switch ev := ev.(type) {
	case tcpio.Opened:
		a.opened++
	case tcpio.Readable:
		var p [509]byte // no multiple of four
		n, err := ev.Conn.TryRead(p[:])
		if err != nil && err != io.EOF && err != tcpio.ErrWouldBlock {
			return err
		}
		for a.rest = append(a.rest, p[:n]...); len(a.rest) >= 4; a.rest = a.rest[4:] {
			if got := binary.BigEndian.Uint32(a.rest); got != a.bytes {
				a.t.Errorf("read %d, want %d", got, a.bytes)
			}
			a.bytes++
		}
		if err == io.EOF {
			return err
		}
	case tcpio.Message:
		v := ev.Value.([2]int)
		if v[1] != a.last[v[0]] {
			a.t.Errorf("poster %d: value %d, want %d", v[0], v[1], a.last[v[0]])
		}
		a.last[v[0]] = v[1] + 1
		a.msgs++
	case tcpio.Closed:
		a.closed <- [2]int{int(a.bytes), a.msgs}
	}
	return nil
}

func TestAnActorGetsOneEventAtATimeInOrderWithAnyNumberOfLoops(t *testing.T) {
	const posters, posts, numbers = 3, 50, 2000
	for _, loops := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(loops), func(t *testing.T) {
			closed := make(chan [2]int, 100)
			conns := 12
			l := harness.Serve(t, tcpio.ListenerOptions{Loops: loops, NewActor: func(*tcpio.Conn) tcpio.Actor {
				return &orderActor{t: t, last: map[int]int{}, closed: closed}
			}})
			clients := make([]*net.TCPConn, conns)
			for i := range clients {
				clients[i] = testnet.DialTCP(t, l)
			}
			var wg sync.WaitGroup
			for _, c := range harness.Conns(t, l, conns) {
				for p := range posters {
					wg.Go(func() { postAll(t, c, p, posts) })
				}
			}
			for _, c := range clients {
				wg.Go(func() {
					var p []byte
					for i := range numbers {
						p = binary.BigEndian.AppendUint32(p, uint32(i))
						if i%37 == 0 || i == numbers-1 {
							if _, err := c.Write(p); err != nil {
								t.Error(err)
							}
							p = p[:0]
						}
					}
				})
			}
			wg.Wait()
			for _, c := range clients {
				c.CloseWrite()
			}
			for range clients {
				if got, want := testnet.Await(t, "Closed", closed), [2]int{numbers, posters * posts}; got != want {
					t.Errorf("numbers read and messages received: %v, want %v", got, want)
				}
			}
		})
	}
}

// postAll posts [poster, 0], [poster, 1] …, and waits when the mailbox is full.
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

func TestAnActorChangesBehaviourInsideReceiveAndLosesNothing(t *testing.T) {
	closed := make(chan error, 1)
	var upgraded tcpio.ActorFunc = func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			t.Error("Opened was repeated")
		case tcpio.Readable:
			return harness.EchoConn(ev.Conn)
		case tcpio.Closed:
			closed <- ev.Conn.Err()
		}
		return nil
	}
	const hello = "UPGRADE\n"
	l := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if ev, ok := ev.(tcpio.Readable); ok {
			p := make([]byte, len(hello))
			if n, err := ev.Conn.TryRead(p); err != nil || string(p[:n]) != hello {
				t.Errorf("first read: %q, %v", p[:n], err)
			}
			return ev.Conn.Attach(upgraded)
		}
		return nil
	}))
	c := testnet.DialTCP(t, l)
	testnet.Send(t, c, hello+"and the rest of the same segment")
	if got, want := testnet.ReadString(t, c, 32), "and the rest of the same segment"; got != want {
		t.Errorf("the new actor read %q, want %q", got, want)
	}
	c.CloseWrite()
	if err := testnet.Await(t, "Closed at the new actor", closed); err != nil {
		t.Error(err)
	}
}

func TestAReturnedErrorFlushesAndThenClosesWithThatError(t *testing.T) {
	t.Parallel()
	cause := errors.New("enough")
	closed, written := make(chan error, 1), make(chan struct{})
	big := make([]byte, 32<<20) // more than the kernel takes
	for i := range big {
		big[i] = byte(i % 251)
	}
	l := harness.Actor(t, tcpio.ListenerOptions{CloseTimeout: testnet.Limit}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Readable:
			if _, err := ev.Conn.TryWrite(big); err != nil {
				t.Error(err)
			}
			if ev.Conn.Buffered() == 0 {
				t.Error("nothing is queued: the test shows nothing")
			}
			close(written)
			return cause
		case tcpio.Closed:
			closed <- ev.Conn.Err()
		}
		return nil
	}))
	c := testnet.DialTCP(t, l)
	testnet.Send(t, c, "go")
	testnet.AwaitClosed(t, "the write", written) // a peer that reads meanwhile might leave nothing queued
	got, err := io.ReadAll(c)
	if err != nil || string(got) != string(big) {
		t.Errorf("read %d bytes of %d, %v", len(got), len(big), err)
	}
	c.Close()
	if err := testnet.Await(t, "Closed", closed); err != cause {
		t.Errorf("Err: %v, want %v", err, cause)
	}
}

// trouble makes every connection do what the first byte it sends says.
func trouble(closed chan<- *tcpio.Conn) tcpio.Actor {
	return tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Readable:
			var p [64]byte
			n, err := ev.Conn.TryRead(p[:])
			if err != nil {
				return nil
			}
			switch p[0] {
			case 'p':
				panic(io.ErrNoProgress)
			case 'g':
				runtime.Goexit()
			case 'c': // Closed goes wrong
				ev.Conn.SetData(string(p[1:2]))
				ev.Conn.Close()
				return nil
			}
			_, err = ev.Conn.TryWrite(p[:n])
			return err
		case tcpio.Closed:
			closed <- ev.Conn
			switch ev.Conn.Data() {
			case "e":
				return errors.New("too late")
			case "p":
				panic("too late")
			case "g":
				runtime.Goexit()
			}
		}
		return nil
	})
}

func TestAPanicAbortsThatConnectionIsLoggedOnceAndTouchesNobodyElse(t *testing.T) {
	for how, want := range map[string]string{"p": io.ErrNoProgress.Error(), "g": "runtime.Goexit called in Receive"} {
		t.Run(how, func(t *testing.T) {
			log := new(testnet.Log)
			closed := make(chan *tcpio.Conn, 10)
			l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1, Logger: slog.New(log)}, trouble(closed))
			other := testnet.DialTCP(t, l)
			testnet.Ping(t, other, "x before")
			for i := range 3 {
				c := testnet.DialTCP(t, l)
				testnet.Send(t, c, how)
				if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("the peer of a panic read %v, want a reset", err)
				}
				conn := testnet.Await(t, "Closed", closed)
				var p *tcpio.PanicError
				if err := conn.Err(); !errors.As(err, &p) || fmt.Sprint(p.Value) != want || len(p.Stack) == 0 {
					t.Errorf("Err: %v, want a *PanicError with %q and a stack", err, want)
				}
				if how == "p" && !errors.Is(conn.Err(), io.ErrNoProgress) {
					t.Errorf("%v does not unwrap to the panic's value", conn.Err())
				}
				testnet.Ping(t, other, "x after")
				log.Await(t, "", i+1)
			}
		})
	}
}

// With GODEBUG=panicnil=1 recover returns nil for panic(nil), as it does for runtime.Goexit, which
// ends the goroutine.
func TestAPanicWithNilIsAPanic(t *testing.T) {
	t.Setenv("GODEBUG", "panicnil=1")
	closed := make(chan *tcpio.Conn, 1)
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Readable:
			var none any
			panic(none)
		case tcpio.Closed:
			closed <- ev.Conn
		}
		return nil
	}))
	testnet.Send(t, testnet.DialTCP(t, l), "x")
	var p *tcpio.PanicError
	if err := testnet.Await(t, "Closed", closed).Err(); !errors.As(err, &p) || p.Value != nil || len(p.Stack) == 0 {
		t.Errorf("Err: %v, want a *PanicError with nil and a stack", err)
	}
}

func TestWhatGoesWrongAtClosedIsOnlyLogged(t *testing.T) {
	for how, want := range map[string]string{"e": "too late", "p": "too late", "g": "Goexit"} {
		t.Run(how, func(t *testing.T) {
			log := new(testnet.Log)
			closed := make(chan *tcpio.Conn, 10)
			// With a CloseTimeout beyond the test's patience, an end of Serve that waits for the handler
			// shows.
			o := tcpio.ListenerOptions{Loops: 1, Logger: slog.New(log), CloseTimeout: 2 * testnet.Limit}
			l := harness.Actor(t, o, trouble(closed))
			other := testnet.DialTCP(t, l)
			c := testnet.DialTCP(t, l)
			testnet.Send(t, c, "c"+how)
			c.CloseWrite()
			conn := testnet.Await(t, "Closed", closed)
			testnet.Ping(t, other, "x") // the same loop: it has dealt with the end of Closed
			if err := conn.Err(); err != nil {
				t.Errorf("Err: %v, want nil: it was an orderly close", err)
			}
			log.Await(t, "", 1)
			if log.Count(want) != 1 {
				t.Errorf("want %q: %s", want, log)
			}
			l.Close() // Serve returns although the handler of Closed never did
		})
	}
}

func TestACloseInsideReceiveDoesNotReenterIt(t *testing.T) {
	for _, how := range []string{"Close", "Abort"} {
		t.Run(how, func(t *testing.T) {
			var alone harness.Alone
			closed := make(chan struct{})
			l := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
				defer alone.Enter(t)()
				switch ev := ev.(type) {
				case tcpio.Readable:
					if how == "Close" {
						ev.Conn.Close()
					} else {
						ev.Conn.Abort()
					}
				case tcpio.Closed:
					close(closed)
				}
				return nil
			}))
			c := testnet.DialTCP(t, l)
			testnet.Send(t, c, "x")
			c.CloseWrite()
			testnet.Await(t, "Closed", closed)
		})
	}
}

func TestAReadableDeliveredToAnActorAllocatesNothing(t *testing.T) {
	if testnet.Race {
		t.Skip("the race detector allocates")
	}
	var count atomic.Int64
	buf := make([]byte, 64)
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if ev, ok := ev.(tcpio.Readable); ok {
			count.Add(1)
			if n, err := ev.Conn.TryRead(buf); err == nil {
				_, err = ev.Conn.TryWrite(buf[:n])
				return err
			}
		}
		return nil
	}))
	c := testnet.DialTCP(t, l)
	p := []byte("0123456789")
	round := func() {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, p); err != nil {
			t.Fatal(err)
		}
	}
	round()
	if got := testing.AllocsPerRun(1000, round); got >= 1 {
		t.Errorf("%v allocations a request, want 0", got)
	}
	if count.Load() < 1000 {
		t.Errorf("%d Readables: the test shows nothing", count.Load())
	}
}
