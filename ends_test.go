//go:build linux

package tcpio_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
)

// A reset is never an end of stream, whichever call the kernel told it to first, and it is the connection's Err.

func wantReset(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) {
		t.Errorf("%s: %v, want the reset", what, err)
	}
}

// waitState waits until the kernel has the socket of c in a state.
func waitState(t *testing.T, c *tcpio.Conn, state byte) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the state of the socket", func() bool {
		var info *unix.TCPInfo
		_ = rc.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
		return info != nil && info.State == state
	})
}

func waitErr(t *testing.T, c *tcpio.Conn) error {
	t.Helper()
	c.Close()
	waitFor(t, "Err", func() bool { return c.Err() != nil })
	return c.Err()
}

func TestACopyFromAConnectionThatIsResetFails(t *testing.T) {
	for name, size := range map[string]int{"nothing": 0, "a little": 100, "bulk": 3 << 20} {
		t.Run(name, func(t *testing.T) {
			src, feed := blockingPair(t, tcpio.ListenerOptions{})
			dst, peer := blockingPair(t, tcpio.ListenerOptions{})
			done := make(chan error, 1)
			go func() {
				_, err := io.Copy(dst, src)
				done <- err
			}()
			want := pattern(size)
			go func() { _, _ = feed.Write(want) }()
			expectBytes(t, peer, want)
			sendRST(t, feed)
			wantReset(t, "Copy", receive(t, "the end of Copy", done))
			_, err := src.Read(make([]byte, 1))
			wantReset(t, "the next Read", err)
			wantReset(t, "Err", waitErr(t, src))
		})
	}
}

func TestACopyToAConnectionThatIsResetFails(t *testing.T) {
	for _, kind := range []string{"Conn", "file", "reader"} {
		t.Run(kind, func(t *testing.T) {
			dst, peer := blockingPair(t, tcpio.ListenerOptions{})
			var r io.Reader = neverEnding{}
			switch kind {
			case "Conn":
				src, feed := blockingPair(t, tcpio.ListenerOptions{})
				go func() { _, _ = io.Copy(feed, neverEnding{}) }()
				t.Cleanup(func() { src.Abort() })
				r = src
			case "file":
				f := tempFile(t, nil, os.O_RDWR)
				if err := f.Truncate(1 << 30); err != nil {
					t.Fatal(err)
				}
				r = f
			}
			done := make(chan error, 1)
			go func() {
				_, err := io.Copy(dst, r)
				done <- err
			}()
			expectBytes(t, peer, make([]byte, 1<<20))
			sendRST(t, peer)
			wantReset(t, "Copy", receive(t, "the end of Copy", done))
			_, err := dst.Write([]byte("x"))
			wantReset(t, "the next Write", err)
			_, err = dst.Read(make([]byte, 1))
			wantReset(t, "the next Read", err)
			wantReset(t, "Err", waitErr(t, dst))
		})
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestACopyToAResetPeerRaisesNoSignal(t *testing.T) {
	signals := make(chan os.Signal, 100)
	signal.Notify(signals, syscall.SIGPIPE)
	defer signal.Stop(signals)
	for range 20 {
		dst, peer := blockingPair(t, tcpio.ListenerOptions{})
		src, feed := blockingPair(t, tcpio.ListenerOptions{})
		go func() { _, _ = io.Copy(feed, neverEnding{}) }()
		go func() {
			_, _ = io.CopyN(io.Discard, peer, 1<<20)
			_ = peer.(*net.TCPConn).SetLinger(0)
			peer.Close()
		}()
		if _, err := io.Copy(dst, src); err == nil {
			t.Fatal("Copy ended without an error")
		}
		_, _ = io.Copy(dst, src) // and again
		src.Abort()
	}
	select {
	case s := <-signals:
		t.Errorf("a signal: %v", s)
	default:
	}
}

func TestCallbacksMeetTheReset(t *testing.T) {
	met, failed := make(chan error, 10), make(chan error, 10)
	l := listen(t, tcpio.ListenerOptions{
		OnConnEvent: func(c net.Conn) error {
			_, err := c.Read(make([]byte, 10))
			if err != nil {
				met <- err
			}
			return err
		},
		OnErrorEvent: func(err error) { failed <- err },
	})
	served := goServe(t.Context(), l)
	peer := dial(t, l)
	send(t, peer, []byte("x"))
	waitFor(t, "the connection", func() bool { return l.Stats().BytesIn == 1 })
	sendRST(t, peer)
	wantReset(t, "OnConnEvent", receive(t, "the call", met))
	wantReset(t, "OnErrorEvent", receive(t, "the error", failed))
	l.Close()
	receive(t, "the end of Serve", served)
}

func TestAResetThatARawReadWasToldIsNoEndOfStream(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	sendRST(t, peer)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var told error
	waitFor(t, "the raw read to meet the reset", func() bool {
		_ = rc.Control(func(fd uintptr) { _, told = unix.Read(int(fd), make([]byte, 1)) })
		return told == unix.ECONNRESET
	})
	_, err = c.TryRead(make([]byte, 1))
	wantReset(t, "TryRead", err)
	for {
		if ev, ok := receive(t, "Closed", events).(tcpio.Closed); ok {
			wantReset(t, "Err", ev.Conn.Err())
			return
		}
	}
}

// The peer's stream was whole, whatever it did afterwards.
func TestAResetBehindTheEndOfStreamLeavesItAnEnd(t *testing.T) {
	for range 20 {
		c, peer := blockingPair(t, tcpio.ListenerOptions{})
		send(t, peer, []byte("all"))
		sendFIN(t, peer)
		sendRST(t, peer)
		waitState(t, c, unix.BPF_TCP_CLOSE)
		got, err := io.ReadAll(c)
		if string(got) != "all" || err != nil {
			t.Fatalf("ReadAll: %q, %v", got, err)
		}
	}
}

func TestHijackOfAResetConnectionFails(t *testing.T) {
	l := listen(t, tcpio.ListenerOptions{})
	events := l.Events()
	served := goServe(t.Context(), l)
	c, peer := open(t, l, events)
	send(t, peer, []byte("frame"))
	expect[tcpio.Readable](t, events)
	sendRST(t, peer)
	waitState(t, c, unix.BPF_TCP_CLOSE)
	buf := make([]byte, 100)
	if n, err := c.TryRead(buf[:3]); n != 3 || err != nil {
		t.Fatalf("TryRead = %d, %v", n, err)
	}
	if n, err := c.TryRead(buf); n != 2 || err != nil {
		t.Fatalf("TryRead = %d, %v", n, err)
	}
	if nc, err := c.Hijack(); err == nil { // then the socket has yet to tell it
		defer nc.Close()
		_, err := nc.Read(buf)
		wantReset(t, "Read of what Hijack gave", err)
	} else {
		wantReset(t, "Hijack", err)
	}
	go l.Close()
	for range events {
	}
	receive(t, "the end of Serve", served)
}

// Close behind a failed copy says so too.
func TestErrIsTheCauseThoughTheUserCloses(t *testing.T) {
	dst, peer := blockingPair(t, tcpio.ListenerOptions{})
	src, feed := blockingPair(t, tcpio.ListenerOptions{})
	go func() { _, _ = io.Copy(feed, neverEnding{}) }()
	defer src.Abort()
	sendRST(t, peer)
	if _, err := io.Copy(dst, src); err == nil {
		t.Fatal("Copy ended without an error")
	}
	wantReset(t, "Err", waitErr(t, dst))
}

func TestAnErrorAfterTheEndMatchesErrClosedAndItsCause(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	sendRST(t, peer)
	waitFor(t, "the end", func() bool { _, err := c.TryRead(make([]byte, 1)); return errors.Is(err, net.ErrClosed) })
	_, err := c.TryWrite([]byte("x"))
	if !errors.Is(err, net.ErrClosed) || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("TryWrite: %v, want net.ErrClosed and the reset", err)
	}
	// What the user did has no other cause.
	c, _ = openNext(t, l, events)
	c.Close()
	if _, err := c.TryWrite([]byte("x")); !errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("TryWrite: %v, want net.ErrClosed", err)
	}
}

// openNext is open where other events may come first.
func openNext(t *testing.T, l *tcpio.Listener, events <-chan tcpio.Event) (*tcpio.Conn, net.Conn) {
	t.Helper()
	peer := dial(t, l)
	for {
		if ev, ok := receive(t, "Opened", events).(tcpio.Opened); ok {
			return ev.Conn, peer
		}
	}
}

// The peer's end of stream closes nothing.

func TestAnAnswerHasTheTimeThatItTakes(t *testing.T) {
	t.Parallel()
	const late = 400 * time.Millisecond
	answer := pattern(300 << 10)
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
			"stream": startStream(t, tcpio.ListenerOptions{WriteBuffer: 64 << 10}, handle),
			"actor": hookServe(t, tcpio.ListenerOptions{WriteBuffer: 64 << 10, Actor: func(*tcpio.Conn) tcpio.Actor {
				return tcpio.ActorFunc(func(ev tcpio.Event) error { handle(ev); return nil })
			}}),
		} {
			t.Run(name+" on "+route, func(t *testing.T) {
				peer := dial(t, l)
				send(t, peer, []byte("question"))
				sendFIN(t, peer)
				expectBytes(t, peer, answer)
				expectEOF(t, peer)
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
				l = startStream(t, o, handle)
			} else {
				o.Actor = func(*tcpio.Conn) tcpio.Actor {
					return tcpio.ActorFunc(func(ev tcpio.Event) error { handle(ev); return nil })
				}
				l = hookServe(t, o)
			}
			peer := dial(t, l)
			sendFIN(t, peer)
			expectEOF(t, peer)
			if err := receive(t, "Closed", closed); err != nil {
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
	const limit = 200 * time.Millisecond
	answer := pattern(16 << 20) // more than the sockets take
	l, events := startManual(t, tcpio.ListenerOptions{EOFTimeout: limit, WriteBuffer: 1 << 20})
	c, peer := open(t, l, events)
	sendFIN(t, peer)
	if _, err := readStream(t, events, c, -1, 100); err != io.EOF {
		t.Fatal(err)
	}
	if _, err := c.TryWrite(answer); err != nil {
		t.Fatal(err)
	}
	expectSilence(t, events, 2*limit)
	expectBytes(t, peer, answer)
	expectEOF(t, peer)
	expect[tcpio.Closed](t, events)
}

// A copy is under way also while its source has nothing to say.
func TestEOFTimeoutWaitsForACopyWhoseSourceIsSilent(t *testing.T) {
	t.Parallel()
	const limit = 200 * time.Millisecond
	l, events := startManual(t, tcpio.ListenerOptions{EOFTimeout: limit})
	c, peer := open(t, l, events)
	sendFIN(t, peer)
	if _, err := readStream(t, events, c, -1, 100); err != io.EOF {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, r)
		copied <- err
	}()
	expectSilence(t, events, 2*limit)
	if _, err := w.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	expectBytes(t, peer, []byte("late"))
	expectSilence(t, events, 2*limit)
	w.Close()
	if err := receive(t, "the end of the copy", copied); err != nil {
		t.Fatal(err)
	}
	expectEOF(t, peer) // its user has had the time
	expect[tcpio.Closed](t, events)
}

func TestConnectionsThatWaitForTheirUserMakeRoomOldestFirst(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{MaxConns: 3})
	var conns []*tcpio.Conn
	for range 3 {
		c, peer := open(t, l, events)
		conns = append(conns, c)
		if len(conns) > 1 { // the first stays open
			sendFIN(t, peer)
			if _, err := readStream(t, events, c, -1, 100); err != io.EOF {
				t.Fatal(err)
			}
		}
	}
	for i := range 2 {
		dial(t, l)
		if c := expect[tcpio.Closed](t, events).Conn; c != conns[i+1] || c.Err() != nil {
			t.Fatalf("closed connection %d with %v, want %d", c.ID(), c.Err(), conns[i+1].ID())
		}
		expect[tcpio.Opened](t, events)
	}
	expectEOF(t, dial(t, l)) // nobody else waits
	if got := l.Stats(); got.Refused.Conns != 1 || got.Timeouts.EOF != 2 {
		t.Errorf("refused %d, made room %d times", got.Refused.Conns, got.Timeouts.EOF)
	}
}

func TestPlainConnectionsHaveNoEOFTimeout(t *testing.T) {
	const limit = 20 * time.Millisecond
	c, peer := blockingPair(t, tcpio.ListenerOptions{EOFTimeout: limit})
	sendFIN(t, peer)
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	time.Sleep(5 * limit) // nothing to wait for: it must not happen
	if _, err := c.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	expectBytes(t, peer, []byte("late"))
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
	expectEOF(t, peer)
	waitFor(t, "Closed", closed.Load)
}

func TestEOFReturnedFromReceiveIsAnOrderlyClose(t *testing.T) {
	closed := make(chan error, 1)
	l := hookServe(t, tcpio.ListenerOptions{Actor: func(*tcpio.Conn) tcpio.Actor {
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
	peer := dial(t, l)
	sendFIN(t, peer)
	expectBytes(t, peer, []byte("bye"))
	expectEOF(t, peer)
	if err := receive(t, "Closed", closed); err != nil {
		t.Errorf("Err: %v", err)
	}
}

// A connection that was handed out as a net.Conn begins its first route with Opened.
func TestAPlainConnectionsFirstRouteBeginsWithOpened(t *testing.T) {
	for _, route := range []string{"claimed", "actor"} {
		t.Run(route, func(t *testing.T) {
			c, peer := blockingPair(t, tcpio.ListenerOptions{})
			send(t, peer, []byte("x"))
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
			expect[tcpio.Opened](t, got)
			expect[tcpio.Readable](t, got)
			c.Close()
			peer.Close()
			expect[tcpio.Closed](t, got)
		})
	}
}

func TestADialledAndARelayedAnswerArrives(t *testing.T) {
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
	l := listen(t, tcpio.ListenerOptions{})
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
	send(t, peer, []byte("question"))
	sendFIN(t, peer)
	expectBytes(t, peer, []byte("answer to question"))
	expectEOF(t, peer)
	client.Close()
	up.Close()
}
