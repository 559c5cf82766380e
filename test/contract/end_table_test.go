//go:build linux

package contract

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// The rows of doc.go's table "How a connection ends", each on every route.

// An endRow is one row of the table. do makes it happen, from the handler of Opened or of Readable,
// and returns what an actor's Receive would.
type endRow struct {
	name     string
	opts     tcpio.ListenerOptions
	actor    bool // it is about Receive
	opened   func(c *tcpio.Conn) error
	readable func(c *tcpio.Conn) error
	draining func(c *tcpio.Conn)
	peer     func(t *testing.T, l *tcpio.Listener, peer net.Conn) // nil: see reset
	err      func(err error) bool                                 // what Conn.Err must be
	reset    bool                                                 // the peer sends a byte and sees a reset; otherwise an end
}

var errOfTheUser = errors.New("the user's")

func limitIs(limit string) func(error) bool {
	return func(err error) bool {
		var le *tcpio.TimeoutError
		ok := errors.As(err, &le)
		return ok && le.Kind.String() == limit && errors.Is(err, os.ErrDeadlineExceeded)
	}
}

func TestConnectionEndsAsTheTableSays(t *testing.T) {
	t.Parallel()
	isNil := func(err error) bool { return err == nil }
	isClosed := func(err error) bool { return errors.Is(err, net.ErrClosed) }
	isUsers := func(err error) bool { return err == errOfTheUser }
	isPanic := func(err error) bool { return errors.As(err, new(*tcpio.PanicError)) }
	fillUp := func(c *tcpio.Conn) error {
		for chunk := make([]byte, 1<<20); c.Buffered() == 0; {
			if _, err := c.TryWrite(chunk); err != nil {
				return err
			}
		}
		return nil
	}
	readToEnd := func(c *tcpio.Conn) error { // ignores the end: reads once for each Readable
		if _, err := c.TryRead(make([]byte, 64)); err != nil && err != tcpio.ErrWouldBlock && err != io.EOF {
			return err
		}
		return nil
	}
	frames := func(split bufio.SplitFunc) func(*tcpio.Conn) error {
		return func(c *tcpio.Conn) error {
			for range c.Frames(split) { // the error is in Err, whether the user looks at it or not
			}
			return nil
		}
	}
	halfClose := func(t *testing.T, _ *tcpio.Listener, peer net.Conn) {
		testnet.FIN(t, peer)
		testnet.ExpectEOF(t, peer)
	}
	rows := []endRow{
		{name: "Close", opened: func(c *tcpio.Conn) error { return c.Close() }, err: isNil},
		{name: "Close, output left", opts: tcpio.ListenerOptions{CloseTimeout: 50 * time.Millisecond},
			readable: func(c *tcpio.Conn) error { _ = fillUp(c); return c.Close() },
			peer: func(t *testing.T, l *tcpio.Listener, peer net.Conn) {
				testnet.Send(t, peer, "x") // not before its dial is over, which a reset would fail
				testnet.WaitFor(t, "the cut", func() bool { return l.Len() == 0 })
				if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the peer read to %v, want a reset", err)
				}
			},
			err: func(err error) bool { return err == tcpio.ErrCloseTimeout }},
		{name: "Abort", readable: func(c *tcpio.Conn) error { return c.Abort() }, err: isClosed, reset: true},
		{name: "EOF is read and nobody closes", opts: tcpio.ListenerOptions{EOFTimeout: 50 * time.Millisecond},
			readable: readToEnd, peer: halfClose, err: isNil},
		{name: "Receive returns io.EOF", actor: true, opened: func(*tcpio.Conn) error { return io.EOF }, err: isNil},
		{name: "Receive returns an error", actor: true, opened: func(*tcpio.Conn) error { return errOfTheUser }, err: isUsers},
		{name: "Receive panics", actor: true, readable: func(*tcpio.Conn) error { panic("in Receive") }, err: isPanic, reset: true},
		{name: "a frame is too long", opts: tcpio.ListenerOptions{MaxFrame: 4}, readable: frames(bufio.ScanLines),
			peer: func(t *testing.T, _ *tcpio.Listener, peer net.Conn) {
				testnet.Send(t, peer, "1234\n") // with its end of line it has five bytes
				testnet.ExpectEOF(t, peer)
			}, err: func(err error) bool { return errors.Is(err, bufio.ErrTooLong) }},
		{name: "split fails", readable: frames(func([]byte, bool) (int, []byte, error) { return 0, nil, errOfTheUser }),
			peer: func(t *testing.T, _ *tcpio.Listener, peer net.Conn) {
				testnet.Send(t, peer, "x")
				testnet.ExpectEOF(t, peer)
			}, err: isUsers},
		{name: "a Group closes a slow member", opts: tcpio.ListenerOptions{WriteBuffer: 1 << 10, CloseTimeout: time.Minute},
			opened: func(c *tcpio.Conn) error {
				_ = fillUp(c)
				room := tcpio.Group{Slow: tcpio.CloseSlow}
				room.Join(c)
				room.Write(make([]byte, 2<<10))
				return nil
			},
			peer: func(t *testing.T, l *tcpio.Listener, peer net.Conn) {
				// It reads nothing before, else there may be room again.
				testnet.AwaitClosed(t, "the Close", harness.Conns(t, l, 1)[0].Context().Done())
				if _, err := io.Copy(io.Discard, peer); err != nil {
					t.Errorf("the peer read to %v, want the end", err)
				}
			}, err: func(err error) bool { return err == tcpio.ErrSlow }},
		{name: "StartTLS's handshake fails", opened: func(c *tcpio.Conn) error { return c.StartTLS(testnet.ServerTLS()) },
			peer: func(t *testing.T, _ *tcpio.Listener, peer net.Conn) {
				testnet.Send(t, peer, "this is no ClientHello\n")
				if _, err := io.Copy(io.Discard, peer); err != nil {
					t.Errorf("the peer read to %v, want the end", err)
				}
			}, err: func(err error) bool { oe, ok := err.(*net.OpError); return ok && oe.Op == "handshake" }},
		{name: "the idle limit", opts: tcpio.ListenerOptions{IdleTimeout: 50 * time.Millisecond}, err: limitIs("idle")},
		{name: "the read limit", opts: tcpio.ListenerOptions{ReadStallTimeout: 50 * time.Millisecond}, err: limitIs("read")},
		{name: "the write limit", opts: tcpio.ListenerOptions{WriteStallTimeout: 50 * time.Millisecond}, opened: fillUp,
			peer: func(t *testing.T, l *tcpio.Listener, peer net.Conn) {
				testnet.WaitFor(t, "the cut", func() bool { return l.Len() == 0 })
				if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the peer read to %v, want a reset", err)
				}
			},
			err: limitIs("write")},
		{name: "Hijack", opened: func(c *tcpio.Conn) error {
			nc, err := c.Hijack()
			if err == nil {
				nc.Close()
			}
			return err
		}, err: func(err error) bool { return err == tcpio.ErrHijacked }},
		{name: "Shutdown, and the user closes at Draining", opts: tcpio.ListenerOptions{DrainTimeout: testnet.Limit}, draining: func(c *tcpio.Conn) { c.Close() },
			peer: func(t *testing.T, l *tcpio.Listener, peer net.Conn) {
				go l.Shutdown(context.Background())
				testnet.ExpectEOF(t, peer)
			}, err: isNil},
		{name: "Shutdown, and the user ignores it", opts: tcpio.ListenerOptions{DrainTimeout: 20 * time.Millisecond},
			peer: func(t *testing.T, l *tcpio.Listener, peer net.Conn) {
				go l.Shutdown(context.Background())
				testnet.ExpectEOF(t, peer)
			}, err: func(err error) bool { return err == tcpio.ErrDrainTimeout && limitIs("drain")(err) }},
		{name: "Shutdown, and the actor has returned from Draining", actor: true,
			peer: func(t *testing.T, l *tcpio.Listener, peer net.Conn) {
				go l.Shutdown(context.Background())
				testnet.ExpectEOF(t, peer)
			}, err: isNil},
		{name: "Shutdown, and the user has read the end", opts: tcpio.ListenerOptions{DrainTimeout: 20 * time.Millisecond},
			readable: readToEnd, peer: func(t *testing.T, l *tcpio.Listener, peer net.Conn) {
				testnet.Send(t, peer, "all there is")
				testnet.FIN(t, peer)
				testnet.WaitFor(t, "the bytes", func() bool { return l.Stats().BytesIn == 12 })
				go l.Shutdown(context.Background())
				testnet.ExpectEOF(t, peer)
			}, err: isNil},
		{name: "Shutdown, and the user has read all but the end", opts: tcpio.ListenerOptions{DrainTimeout: 20 * time.Millisecond},
			peer: func(t *testing.T, l *tcpio.Listener, peer net.Conn) {
				testnet.FIN(t, peer)
				waitState(t, harness.Conns(t, l, 1)[0], unix.BPF_TCP_CLOSE_WAIT)
				go l.Shutdown(context.Background())
				testnet.ExpectEOF(t, peer)
			}, err: isNil},
		{name: "Shutdown, and the user has not read what came before the end",
			opts: tcpio.ListenerOptions{DrainTimeout: 20 * time.Millisecond},
			peer: func(t *testing.T, l *tcpio.Listener, peer net.Conn) {
				testnet.Send(t, peer, "unread")
				testnet.FIN(t, peer)
				waitState(t, harness.Conns(t, l, 1)[0], unix.BPF_TCP_CLOSE_WAIT)
				go l.Shutdown(context.Background())
				testnet.ExpectEOF(t, peer)
			}, err: func(err error) bool { return err == tcpio.ErrDrainTimeout }},
		{name: "Listener.Close", peer: func(t *testing.T, l *tcpio.Listener, peer net.Conn) {
			l.Close()
			if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the peer read %v, want a reset", err)
			}
		}, err: isClosed},
	}
	for _, route := range []string{"stream", "claimed", "actor"} {
		for _, row := range rows {
			if row.actor && route != "actor" {
				continue
			}
			t.Run(route+"/"+row.name, func(t *testing.T) {
				t.Parallel()
				endsAs(t, route, row)
			})
		}
	}
}

func endsAs(t *testing.T, route string, row endRow) {
	dialed := make(chan struct{}) // Dial fails if a limit resets the connection before it returns
	l, opened, closed := harness.Route(t, route, row.opts, func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			if row.opened != nil {
				<-dialed
				return row.opened(ev.Conn)
			}
		case tcpio.Readable:
			if row.readable != nil {
				return row.readable(ev.Conn)
			}
		case tcpio.Draining:
			if row.draining != nil {
				row.draining(ev.Conn)
			}
		}
		return nil
	})
	peer := testnet.Dial(t, l)
	close(dialed)
	c := testnet.Await(t, "Opened", opened)
	switch {
	case row.peer != nil:
		row.peer(t, l, peer)
	case row.reset:
		testnet.Send(t, peer, "x")
		if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the peer read %v, want a reset", err)
		}
	default:
		testnet.ExpectEOF(t, peer)
	}
	peer.Close()
	if got := testnet.Await(t, "Closed", closed); got != c {
		t.Errorf("Closed of %v, want %v", got, c)
	}
	if !row.err(c.Err()) {
		t.Errorf("Err = %v (%T)", c.Err(), c.Err())
	}
	if _, err := c.TryRead(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("TryRead after the end: %v, want net.ErrClosed", err)
	}
	if _, err := c.TryWrite([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("TryWrite after the end: %v, want net.ErrClosed", err)
	}
}

// The row "a read fails": Err is the very error that the read returned.
func TestErrIsTheErrorThatTheReadReturned(t *testing.T) {
	t.Parallel()
	for _, route := range []string{"stream", "claimed", "actor"} {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			failed := make(chan error, 1)
			l, opened, closed := harness.Route(t, route, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
				if ev, ok := ev.(tcpio.Readable); ok {
					if _, err := ev.Conn.TryRead(make([]byte, 64)); err != nil && err != tcpio.ErrWouldBlock {
						failed <- err
						return err
					}
				}
				return nil
			})
			peer := testnet.Dial(t, l)
			c := testnet.Await(t, "Opened", opened)
			testnet.RST(t, peer)
			err := testnet.Await(t, "the read's error", failed)
			testnet.Await(t, "Closed", closed)
			if _, ok := err.(*net.OpError); !ok || !errors.Is(err, syscall.ECONNRESET) || c.Err() != err {
				t.Errorf("the read returned %v, Err is %v", err, c.Err())
			}
		})
	}
}

// The row "a write fails": what came before can still be read, and Err is the error that the write
// returned.
func TestWriteThatFailsLeavesTheInput(t *testing.T) {
	t.Parallel()
	for _, route := range []string{"stream", "claimed", "actor"} {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			l, opened, closed := harness.Route(t, route, tcpio.ListenerOptions{}, func(tcpio.Event) error { return nil })
			peer := testnet.Dial(t, l)
			c := testnet.Await(t, "Opened", opened)
			testnet.Send(t, peer, "last words")
			got := make([]byte, 64)
			if n, err := c.Read(got[:4]); err != nil || n != 4 {
				t.Fatalf("Read = %d, %v", n, err)
			}
			testnet.RST(t, peer)
			var failure error
			testnet.WaitFor(t, "a write that fails", func() bool {
				_, failure = c.TryWrite([]byte("x"))
				return failure != nil && failure != tcpio.ErrWouldBlock
			})
			if _, ok := failure.(*net.OpError); !ok {
				t.Errorf("the write returned %v (%T)", failure, failure)
			}
			n, err := c.TryRead(got)
			if string(got[:n]) != " words" || err != nil {
				t.Errorf("TryRead = %q, %v behind the write's failure", got[:n], err)
			}
			if n, err := c.TryRead(got); n != 0 || err == nil || err == io.EOF || err == tcpio.ErrWouldBlock {
				t.Errorf("the read behind it = %d, %v, want the reset", n, err)
			}
			testnet.Await(t, "Closed", closed)
			if c.Err() != failure {
				t.Errorf("Err = %v, the write returned %v", c.Err(), failure)
			}
		})
	}
}

// The row "io.EOF is read": reading returns it again, no Readable follows, and writing works.
func TestEndOfStreamIsReadAgainAndAnswered(t *testing.T) {
	t.Parallel()
	for _, route := range []string{"stream", "claimed", "actor"} {
		t.Run(route, func(t *testing.T) {
			t.Parallel()
			readables := make(chan error, 100)
			l, opened, closed := harness.Route(t, route, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
				if ev, ok := ev.(tcpio.Readable); ok {
					_, err := ev.Conn.TryRead(make([]byte, 64))
					readables <- err
				}
				return nil
			})
			peer := testnet.Dial(t, l)
			c := testnet.Await(t, "Opened", opened)
			testnet.FIN(t, peer)
			for err := error(nil); err != io.EOF; {
				if err = testnet.Await(t, "Readable", readables); err != io.EOF && err != tcpio.ErrWouldBlock {
					t.Fatal(err)
				}
			}
			for range 3 {
				if n, err := c.TryRead(make([]byte, 64)); n != 0 || err != io.EOF {
					t.Errorf("TryRead again = %d, %v", n, err)
				}
				if n, err := c.Read(make([]byte, 64)); n != 0 || err != io.EOF {
					t.Errorf("Read again = %d, %v", n, err)
				}
			}
			ping := []byte("answer")
			if _, err := c.TryWrite(ping); err != nil {
				t.Error(err)
			}
			testnet.ExpectBytes(t, peer, ping)
			if c.Err() != nil {
				t.Errorf("Err = %v before Closed", c.Err())
			}
			c.Close()
			testnet.ExpectEOF(t, peer)
			testnet.Await(t, "Closed", closed)
			if len(readables) != 0 || c.Err() != nil {
				t.Errorf("%d Readables behind io.EOF, Err = %v", len(readables), c.Err())
			}
		})
	}
}

// A consumer may read once for each Readable or until ErrWouldBlock; it gets every byte and the end
// either way.
func TestOneReadForEachReadableGetsEverything(t *testing.T) {
	t.Parallel()
	for _, route := range []string{"stream", "claimed", "actor"} {
		for _, untilBlocked := range []bool{false, true} {
			name := route + "/once"
			if untilBlocked {
				name = route + "/until ErrWouldBlock"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				total, buf := 0, make([]byte, 777)
				ended := make(chan int, 2)
				l, _, closed := harness.Route(t, route, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
					r, ok := ev.(tcpio.Readable)
					for ok {
						n, err := r.Conn.TryRead(buf)
						total += n
						if err == io.EOF {
							ended <- total
							return r.Conn.Close()
						}
						ok = untilBlocked && err == nil
					}
					return nil
				})
				peer := testnet.Dial(t, l)
				const size = 777 * 200 // the last read fills its buffer too
				testnet.Send(t, peer, testnet.Pattern(size))
				testnet.FIN(t, peer)
				testnet.ExpectEOF(t, peer)
				testnet.Await(t, "Closed", closed)
				if n := testnet.Await(t, "the end", ended); n != size || len(ended) != 0 {
					t.Errorf("%d of %d bytes, %d more ends", n, size, len(ended))
				}
			})
		}
	}
}
