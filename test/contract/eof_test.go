//go:build linux

package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// The peer's end of stream closes nothing.

func TestAnswerHasTheTimeThatItTakes(t *testing.T) {
	t.Parallel()
	const late = 400 * time.Millisecond
	answer := testnet.Pattern(300 << 10)
	ways := map[string]func(c *tcpio.Conn){
		"a worker": func(c *tcpio.Conn) {
			time.AfterFunc(late, func() {
				_, _ = c.TryWrite(answer)
				c.Close()
			})
		},
		"a blocking Write": func(c *tcpio.Conn) {
			go func() {
				_, _ = c.Write(answer)
				c.Close()
			}()
		},
		"a copy": func(c *tcpio.Conn) {
			go func() {
				r, w := io.Pipe()
				go func() {
					time.Sleep(late) // the source is slow
					_, _ = w.Write(answer)
					w.Close()
				}()
				_, _ = io.Copy(c, r)
				c.Close()
			}()
		},
	}
	atEnd := func(then func(*tcpio.Conn)) func(ev tcpio.Event) {
		return func(ev tcpio.Event) {
			if r, ok := ev.(tcpio.Readable); ok {
				for {
					_, err := r.Conn.TryRead(make([]byte, 100))
					if err == io.EOF && r.Conn.Data() == nil {
						r.Conn.SetData(true)
						then(r.Conn)
					}
					if err != nil {
						return
					}
				}
			}
		}
	}
	for name, then := range ways {
		handle := atEnd(then)
		for route, l := range map[string]*tcpio.Listener{
			"stream": harness.Stream(t, tcpio.ListenerOptions{WriteBuffer: 64 << 10}, handle),
			"actor": harness.Serve(t, tcpio.ListenerOptions{WriteBuffer: 64 << 10, NewActor: func(*tcpio.Conn) tcpio.Actor {
				return tcpio.ActorFunc(func(ev tcpio.Event) error { handle(ev); return nil })
			}}),
		} {
			t.Run(name+" on "+route, func(t *testing.T) {
				peer := testnet.Dial(t, l)
				testnet.Send(t, peer, "question")
				testnet.FIN(t, peer)
				testnet.ExpectBytes(t, peer, answer)
				testnet.ExpectEOF(t, peer)
			})
		}
	}
}

func TestEOFTimeoutClosesWhatNobodyCloses(t *testing.T) {
	for _, route := range []string{"stream", "actor"} {
		t.Run(route, func(t *testing.T) {
			closed := make(chan error, 1)
			handle := func(ev tcpio.Event) {
				switch ev := ev.(type) {
				case tcpio.Readable:
					_, _ = ev.Conn.TryRead(make([]byte, 100))
				case tcpio.Closed:
					closed <- ev.Conn.Err()
				}
			}
			o := tcpio.ListenerOptions{EOFTimeout: 50 * time.Millisecond}
			var l *tcpio.Listener
			if route == "stream" {
				l = harness.Stream(t, o, handle)
			} else {
				o.NewActor = func(*tcpio.Conn) tcpio.Actor {
					return tcpio.ActorFunc(func(ev tcpio.Event) error { handle(ev); return nil })
				}
				l = harness.Serve(t, o)
			}
			peer := testnet.Dial(t, l)
			testnet.FIN(t, peer)
			testnet.ExpectEOF(t, peer)
			if err := testnet.Await(t, "Closed", closed); err != nil {
				t.Errorf("Err: %v", err)
			}
			if n := l.Stats().Timeouts.EOF; n != 1 {
				t.Errorf("%d counted", n)
			}
		})
	}
}

// What is under way holds EOFTimeout up.
func TestEOFTimeoutWaitsForWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	const limit = 500 * time.Millisecond
	answer := testnet.Pattern(16 << 20) // more than the sockets take
	l, events := harness.Manual(t, tcpio.ListenerOptions{EOFTimeout: limit, WriteBuffer: 1 << 20})
	c, peer := harness.Open(t, l, events)
	if _, err := c.TryWrite(answer); err != nil {
		t.Fatal(err)
	}
	testnet.FIN(t, peer)
	if _, err := harness.ReadStream(t, events, c, -1, 100); err != io.EOF {
		t.Fatal(err)
	}
	harness.ExpectSilence(t, events, 2*limit)
	if err := c.Context().Err(); err != nil {
		t.Errorf("it is closed while output is queued: %v", err)
	}
	testnet.ExpectBytes(t, peer, answer)
	testnet.ExpectEOF(t, peer)
	harness.Expect[tcpio.Closed](t, events)
}

// A copy is under way also while its source has nothing to say.
func TestEOFTimeoutWaitsForACopyWhoseSourceIsSilent(t *testing.T) {
	t.Parallel()
	const limit = 500 * time.Millisecond
	l, events := harness.Manual(t, tcpio.ListenerOptions{EOFTimeout: limit})
	c, peer := harness.Open(t, l, events)
	r, w := io.Pipe()
	copied, begun := make(chan error, 1), make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) })
	go func() {
		_, err := io.Copy(c, readerFunc(func(p []byte) (int, error) {
			begin()
			return r.Read(p)
		}))
		copied <- err
	}()
	testnet.AwaitClosed(t, "the copy's first read", begun)
	testnet.FIN(t, peer)
	if _, err := harness.ReadStream(t, events, c, -1, 100); err != io.EOF {
		t.Fatal(err)
	}
	harness.ExpectSilence(t, events, 2*limit)
	if _, err := w.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, peer, "late")
	harness.ExpectSilence(t, events, 2*limit)
	w.Close()
	if err := testnet.Await(t, "the end of the copy", copied); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectEOF(t, peer) // its user has had the time
	harness.Expect[tcpio.Closed](t, events)
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestConnectionsThatWaitForTheirUserMakeRoomOldestFirst(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{MaxConns: 3})
	var conns []*tcpio.Conn
	for range 3 {
		c, peer := harness.Open(t, l, events)
		conns = append(conns, c)
		if len(conns) > 1 { // the first stays open
			testnet.FIN(t, peer)
			if _, err := harness.ReadStream(t, events, c, -1, 100); err != io.EOF {
				t.Fatal(err)
			}
		}
	}
	for i := range 2 {
		testnet.Dial(t, l)
		if c := harness.Expect[tcpio.Closed](t, events).Conn; c != conns[i+1] || c.Err() != nil {
			t.Fatalf("closed connection %d with %v, want %d", c.ID(), c.Err(), conns[i+1].ID())
		}
		harness.Expect[tcpio.Opened](t, events)
	}
	testnet.ExpectEOF(t, testnet.Dial(t, l)) // nobody else waits
	if got := l.Stats(); got.Refused.Conns != 1 || got.Timeouts.EOF != 2 {
		t.Errorf("refused %d, made room %d times", got.Refused.Conns, got.Timeouts.EOF)
	}
}

func TestPlainConnectionsHaveNoEOFTimeout(t *testing.T) {
	const limit = 20 * time.Millisecond
	c, peer := blockingPair(t, tcpio.ListenerOptions{EOFTimeout: limit})
	testnet.FIN(t, peer)
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	time.Sleep(5 * limit) // nothing to wait for: it must not happen
	if _, err := c.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, peer, "late")
	// With a route it is as any other.
	var closed atomic.Bool
	if err := c.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error {
		if _, ok := ev.(tcpio.Closed); ok {
			closed.Store(true)
		}
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectEOF(t, peer)
	testnet.WaitFor(t, "Closed", closed.Load)
}

func TestEOFReturnedFromReceiveIsAnOrderlyClose(t *testing.T) {
	closed := make(chan error, 1)
	l := harness.Serve(t, tcpio.ListenerOptions{NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Readable:
				_, err := ev.Conn.TryRead(make([]byte, 100))
				if err == io.EOF {
					_, _ = ev.Conn.TryWrite([]byte("bye"))
				}
				return err
			case tcpio.Closed:
				closed <- ev.Conn.Err()
			}
			return nil
		})
	}})
	peer := testnet.Dial(t, l)
	testnet.FIN(t, peer)
	testnet.ExpectBytes(t, peer, "bye")
	testnet.ExpectEOF(t, peer)
	if err := testnet.Await(t, "Closed", closed); err != nil {
		t.Errorf("Err: %v", err)
	}
}

// A connection that was handed out as a net.Conn begins its first route with Opened.
func TestPlainConnectionsFirstRouteBeginsWithOpened(t *testing.T) {
	for _, route := range []string{"claimed", "actor"} {
		t.Run(route, func(t *testing.T) {
			c, peer := blockingPair(t, tcpio.ListenerOptions{})
			testnet.Send(t, peer, "x")
			got := make(chan tcpio.Event, 10)
			if route == "actor" {
				if err := c.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error { got <- ev; return nil })); err != nil {
					t.Fatal(err)
				}
			} else {
				go func() {
					for ev := range c.Events() {
						got <- ev
					}
				}()
			}
			harness.Expect[tcpio.Opened](t, got)
			harness.Expect[tcpio.Readable](t, got)
			c.Close()
			peer.Close()
			harness.Expect[tcpio.Closed](t, got)
		})
	}
}

func TestDialedAndARelayedAnswerArrives(t *testing.T) {
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer upstream.Close()
	go func() {
		c, err := upstream.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		q, _ := io.ReadAll(c)
		time.Sleep(300 * time.Millisecond) // a slow upstream
		_, _ = c.Write(append([]byte("answer to "), q...))
	}()
	l := harness.Listen(t, tcpio.ListenerOptions{})
	ln := serveNetListener(t, l)
	client, peer := acceptPair(t, l, ln)
	up, err := l.Dial(context.Background(), "tcp", upstream.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	relay := func(to *tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			r, ok := ev.(tcpio.Readable)
			if !ok {
				return nil
			}
			buf := make([]byte, 100)
			n, err := r.Conn.TryRead(buf)
			switch err {
			case nil:
				_, err = to.TryWrite(buf[:n])
			case io.EOF:
				return to.CloseWrite()
			case tcpio.ErrWouldBlock:
				return nil
			}
			return err
		})
	}
	if err := errors.Join(client.Attach(relay(up)), up.Attach(relay(client))); err != nil {
		t.Fatal(err)
	}
	testnet.Send(t, peer, "question")
	testnet.FIN(t, peer)
	testnet.ExpectBytes(t, peer, "answer to question")
	testnet.ExpectEOF(t, peer)
	client.Close()
	up.Close()
}

// ReadStallTimeout is for bytes that may still come: behind the end of stream there are none.
func TestReadStallTimeoutEndsWithTheInput(t *testing.T) {
	t.Parallel()
	for name, input := range map[string]string{"nothing": "", "a cut frame": "cut"} {
		t.Run(name, func(t *testing.T) {
			withSomeLimit(t, 500*time.Millisecond, func(t *testing.T, limit time.Duration) error {
				return stallBehindTheEnd(t, limit, input)
			})
		})
	}
}

// stallBehindTheEnd has limit for the input to come, with its end.
func stallBehindTheEnd(t *testing.T, limit time.Duration, input string) error {
	l, events := harness.Manual(t, tcpio.ListenerOptions{ReadStallTimeout: limit})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, []byte(input))
	testnet.FIN(t, peer)
	for ended := false; !ended; {
		ev := testnet.Receive(t, "Readable", events)
		if _, ok := ev.(tcpio.Readable); !ok {
			return fmt.Errorf("%v: %v", ev, c.Err())
		}
		for _, err := range c.Frames(testnet.SplitRawLines) {
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				return err
			}
			ended = true
		}
	}
	harness.ExpectSilence(t, events, 2*limit)
	if _, err := c.TryWrite([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, peer, "answer")
	c.Close()
	return nil
}

func TestConnectionCanBeWrittenToAfterEOF(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "question")
	testnet.FIN(t, peer)
	buf := make([]byte, 100)
	if got, err := harness.ReadStream(t, events, c, -1, 100); string(got) != "question" || err != io.EOF {
		t.Fatalf("read %q, %v", got, err)
	}
	for range 3 {
		if n, err := c.TryRead(buf); n != 0 || err != io.EOF {
			t.Fatalf("TryRead = %d, %v, want io.EOF again", n, err)
		}
	}
	if n, err := c.TryWrite([]byte("answer")); n != 6 || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	c.Close()
	testnet.ExpectBytes(t, peer, "answer")
	testnet.ExpectEOF(t, peer)
	if ev := harness.Expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
		t.Errorf("Err = %v, want nil", ev.Conn.Err())
	}
}

func TestEndOfStreamLeavesTheCloseToTheUser(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.FIN(t, peer)
	if _, err := harness.ReadStream(t, events, c, -1, 100); err != io.EOF {
		t.Fatalf("TryRead: %v, want io.EOF", err)
	}
	harness.ExpectSilence(t, events, 300*time.Millisecond)
	if n, err := c.TryRead(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("TryRead = %d, %v, want io.EOF", n, err)
	}
	if n, err := c.TryWrite([]byte("late")); n != 4 || err != nil {
		t.Fatalf("TryWrite = %d, %v", n, err)
	}
	testnet.ExpectBytes(t, peer, "late")
	c.Close()
	testnet.ExpectEOF(t, peer)
	if ev := harness.Expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
		t.Errorf("Err = %v, want nil", ev.Conn.Err())
	}
}
