//go:build linux

package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// startLegacy runs a listener as programs of the first tcpio do.
func startLegacy(t testing.TB, opts tcpio.ListenerOptions) *tcpio.Listener {
	t.Helper()
	l := harness.Listen(t, opts)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.Start()
	}()
	t.Cleanup(func() {
		l.Close()
		testnet.Await(t, "the end of Start", ended)
	})
	return l
}

// answerOK is the handler of the first tcpio's README, with a buffer of size.
func answerOK(size int) func(net.Conn) error {
	return func(conn net.Conn) error {
		buf := make([]byte, size)
		if _, err := conn.Read(buf); err != nil {
			return err
		}
		_, err := conn.Write([]byte("OK\n"))
		return err
	}
}

func TestCallbackIsCalledWhileUnreadBytesRemain(t *testing.T) {
	// Each call reads one byte of what came at once.
	l := startLegacy(t, tcpio.ListenerOptions{OnConnEvent: answerOK(1)})
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "123456")
	for range 6 {
		testnet.ExpectBytes(t, peer, "OK\n")
	}
}

func TestCallbackIsNeverCalledWithNothingToRead(t *testing.T) {
	var calls atomic.Int64
	l := startLegacy(t, tcpio.ListenerOptions{OnConnEvent: func(conn net.Conn) error {
		calls.Add(1)
		// A read that fills its buffer is followed by a Readable although there may be nothing
		// more.
		n, err := conn.(*tcpio.Conn).TryRead(make([]byte, 4))
		if err == tcpio.ErrWouldBlock {
			t.Error("the callback was called with nothing to read")
			return nil
		}
		if err != nil {
			return err
		}
		_, err = conn.Write(make([]byte, n))
		return err
	}})
	peers := make([]net.Conn, 8)
	for i := range peers {
		peers[i] = testnet.Dial(t, l)
	}
	for range 200 {
		for _, peer := range peers {
			testnet.Send(t, peer, "four")
			testnet.ExpectBytes(t, peer, make([]byte, 4))
		}
	}
	if n := calls.Load(); n < 200*8 {
		t.Errorf("%d calls for %d messages", n, 200*8)
	}
}

func TestErrorClosesTheConnectionAndGoesToOnErrorEvent(t *testing.T) {
	boom := errors.New("boom")
	errs := make(chan error, 8)
	var conn atomic.Pointer[tcpio.Conn]
	l := startLegacy(t, tcpio.ListenerOptions{
		OnConnEvent: func(c net.Conn) error {
			conn.Store(c.(*tcpio.Conn))
			buf := make([]byte, 8)
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			_, _ = c.Write([]byte("last words"))
			if n == 1 {
				return boom
			}
			return nil
		},
		OnErrorEvent: func(err error) { errs <- err },
	})
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "x")
	testnet.ExpectBytes(t, peer, "last words")
	testnet.ExpectEOF(t, peer)
	peer.Close()
	if err := testnet.Await(t, "the error", errs); err != boom {
		t.Fatalf("OnErrorEvent got %v", err)
	}
	testnet.WaitFor(t, "the connection's end", func() bool { return conn.Load().Err() != nil })
	if err := conn.Load().Err(); !errors.Is(err, boom) {
		t.Fatalf("Err = %v", err)
	}
	// An orderly end is io.EOF.
	peer = testnet.Dial(t, l)
	testnet.Send(t, peer, "xx")
	testnet.ExpectBytes(t, peer, "last words")
	testnet.FIN(t, peer)
	testnet.ExpectEOF(t, peer)
	if err := testnet.Await(t, "the end", errs); err != io.EOF {
		t.Fatalf("OnErrorEvent got %v, want io.EOF", err)
	}
	testnet.WaitFor(t, "no connection", func() bool { return l.Len() == 0 })
	if err := conn.Load().Err(); err != nil {
		t.Fatalf("Err of an orderly end = %v", err)
	}
}

func TestNilCallbacksAreAllowed(t *testing.T) {
	t.Run("OnErrorEvent", func(t *testing.T) {
		l := startLegacy(t, tcpio.ListenerOptions{OnConnEvent: answerOK(8)})
		peer := testnet.Dial(t, l)
		testnet.Send(t, peer, "x")
		testnet.ExpectBytes(t, peer, "OK\n")
		testnet.FIN(t, peer)
		testnet.ExpectEOF(t, peer)
	})
	t.Run("OnConnEvent", func(t *testing.T) {
		errs := make(chan error, 8)
		l := startLegacy(t, tcpio.ListenerOptions{OnErrorEvent: func(err error) { errs <- err }})
		peer := testnet.Dial(t, l)
		testnet.Send(t, peer, make([]byte, 8<<20)) // more than the socket holds, so it is thrown away
		testnet.FIN(t, peer)
		testnet.ExpectEOF(t, peer)
		if err := testnet.Await(t, "the end", errs); err != io.EOF {
			t.Fatalf("OnErrorEvent got %v", err)
		}
	})
	t.Run("both", func(t *testing.T) {
		l := startLegacy(t, tcpio.ListenerOptions{})
		peer := testnet.Dial(t, l)
		testnet.Send(t, peer, "x")
		testnet.FIN(t, peer)
		testnet.ExpectEOF(t, peer)
	})
}

func TestStartBlocksUntilTheListenerEnds(t *testing.T) {
	for name, end := range map[string]func(*tcpio.Listener) error{
		"Close":    (*tcpio.Listener).Close,
		"Shutdown": func(l *tcpio.Listener) error { return l.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			l := harness.Listen(t, tcpio.ListenerOptions{OnConnEvent: answerOK(8), OnErrorEvent: func(err error) { t.Errorf("OnErrorEvent got %v", err) }})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				l.Start()
			}()
			peer := testnet.Dial(t, l)
			testnet.Send(t, peer, "x")
			testnet.ExpectBytes(t, peer, "OK\n")
			select {
			case <-ended:
				t.Fatal("Start has returned")
			default:
			}
			down := make(chan error, 1)
			go func() { down <- end(l) }()
			_, _ = peer.Read(make([]byte, 1))
			peer.Close()
			if err := testnet.Await(t, name, down); err != nil {
				t.Fatal(err)
			}
			testnet.Await(t, "the end of Start", ended)
		})
	}
	t.Run("started after Close", func(t *testing.T) {
		errs := make(chan error, 8)
		l := harness.Listen(t, tcpio.ListenerOptions{OnConnEvent: answerOK(8), OnErrorEvent: func(err error) { errs <- err }})
		l.Close()
		l.Start()
		if err := testnet.Await(t, "the error", errs); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("OnErrorEvent got %v", err)
		}
	})
}

func TestCallbackThatSwallowsTheEndDoesNotSpin(t *testing.T) {
	for name, handle := range map[string]func(conn net.Conn, call int64){
		"reads it": func(conn net.Conn, _ int64) { _, _ = conn.Read(make([]byte, 8)) },
		"does not read it": func(conn net.Conn, call int64) {
			if call == 1 {
				_, _ = conn.Read(make([]byte, 8))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			l := startLegacy(t, tcpio.ListenerOptions{OnConnEvent: func(conn net.Conn) error {
				handle(conn, calls.Add(1))
				return nil
			}})
			peer := testnet.Dial(t, l)
			testnet.Send(t, peer, "x")
			testnet.WaitFor(t, "the first call", func() bool { return calls.Load() > 0 })
			testnet.FIN(t, peer)
			testnet.ExpectEOF(t, peer) // the library closes
			testnet.WaitFor(t, "no connection", func() bool { return l.Len() == 0 })
			if n := calls.Load(); n > 3 {
				t.Errorf("%d calls", n)
			}
		})
	}
}

func TestCallbackThatReadsNothingDoesNotSpin(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	l := startLegacy(t, tcpio.ListenerOptions{OnConnEvent: func(net.Conn) error {
		calls.Add(1)
		return nil
	}})
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "x")
	testnet.WaitFor(t, "calls", func() bool { return calls.Load() > 2 }) // it is called again, the byte is still there
	start := time.Now()                                                  // before the first of them
	first := calls.Load()
	testnet.WaitFor(t, "more calls", func() bool { return calls.Load() >= first+20 })
	if took := time.Since(start); took < 60*time.Millisecond { // a slow machine takes longer, never less
		t.Errorf("20 calls in %v", took)
	}
	testnet.FIN(t, peer)
}

func TestGetListenerIsTheListeningSocket(t *testing.T) {
	l := startLegacy(t, tcpio.ListenerOptions{OnConnEvent: answerOK(8)})
	var tl *net.TCPListener = l.GetListener()
	if tl == nil || tl != l.GetListener() {
		t.Fatalf("GetListener = %v, then %v", tl, l.GetListener())
	}
	if tl.Addr().String() != l.Addr().String() {
		t.Errorf("its address is %v, want %v", tl.Addr(), l.Addr())
	}
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "x")
	testnet.ExpectBytes(t, peer, "OK\n")
	peer.Close()
	l.Close()
	if _, err := tl.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("its Accept after Close: %v", err)
	}
	if tl := l.GetListener(); tl != nil {
		t.Errorf("GetListener after Close = %v", tl)
	}
	u := harness.Listen(t, tcpio.ListenerOptions{Network: "unix", Addr: t.TempDir() + "/s"})
	if tl := u.GetListener(); tl != nil {
		t.Errorf("GetListener of a unix socket = %v", tl)
	}
}

func TestPanicInACallbackEndsItsConnectionOnly(t *testing.T) {
	for _, concurrent := range []bool{false, true} {
		t.Run(fmt.Sprint("concurrent=", concurrent), func(t *testing.T) {
			errs := make(chan error, 8)
			l := startLegacy(t, tcpio.ListenerOptions{
				ConcurrentCallbacks: concurrent,
				OnConnEvent: func(conn net.Conn) error {
					buf := make([]byte, 8)
					n, err := conn.Read(buf)
					if err != nil {
						return err
					}
					if n == 5 {
						panic(errors.New("boom"))
					}
					_, err = conn.Write([]byte("OK\n"))
					return err
				},
				OnErrorEvent: func(err error) { errs <- err },
			})
			good, bad := testnet.Dial(t, l), testnet.Dial(t, l)
			testnet.Send(t, bad, "panic")
			if n, err := bad.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("the panicking connection's peer read %d, %v, want a reset", n, err)
			}
			var p *tcpio.PanicError
			if err := testnet.Await(t, "the panic", errs); !errors.As(err, &p) || p.Value.(error).Error() != "boom" || len(p.Stack) == 0 {
				t.Errorf("OnErrorEvent got %v", err)
			}
			testnet.Send(t, good, "x")
			testnet.ExpectBytes(t, good, "OK\n")
		})
	}
}

// Callback by itself is an actor like any other, also for a connection that had another route
// before.
func TestCallbackIsAnActor(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "early")
	harness.Expect[tcpio.Readable](t, events) // and not read: it is announced again
	errs := make(chan error, 1)
	if err := c.Attach(tcpio.Callback(answerOK(64), func(err error) { errs <- err })); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, peer, "OK\n")
	testnet.Send(t, peer, "x")
	testnet.ExpectBytes(t, peer, "OK\n")
	testnet.FIN(t, peer)
	testnet.ExpectEOF(t, peer)
	if err := testnet.Await(t, "the end", errs); err != io.EOF {
		t.Fatalf("onErr got %v", err)
	}
	c, peer = harness.Open(t, l, events)
	if err := c.Attach(tcpio.Callback(nil, nil)); err != nil {
		t.Fatal(err)
	}
	testnet.Send(t, peer, "x")
	testnet.FIN(t, peer)
	testnet.ExpectEOF(t, peer)
}
