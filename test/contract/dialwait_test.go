//go:build linux

package contract

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// dialLater dials in the background.
func dialLater(ctx context.Context, l *tcpio.Listener, addr string) (<-chan *tcpio.Conn, <-chan error) {
	conns, errs := make(chan *tcpio.Conn, 1), make(chan error, 1)
	go func() {
		c, err := l.Dial(ctx, "tcp", addr)
		conns <- c
		errs <- err
	}()
	return conns, errs
}

func TestDialWaitsForServe(t *testing.T) {
	t.Parallel()
	addr, accepted := testnet.Upstream(t, "tcp", "127.0.0.1:0")
	for name, network := range map[string]string{"with an address": "", "none": "none"} {
		t.Run(name, func(t *testing.T) {
			opts := tcpio.ListenerOptions{Network: network}
			if network == "" {
				opts.Addr = "127.0.0.1:0"
			}
			l, err := tcpio.Listen(&opts)
			if err != nil {
				t.Fatal(err)
			}
			conns, errs := dialLater(t.Context(), l, addr)
			select {
			case err := <-errs:
				t.Fatalf("before Serve: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			events := l.Events()
			stop := harness.Start(t, l)
			c := testnet.Receive(t, "the connection", conns)
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
			if o := harness.Expect[tcpio.Opened](t, events); o.Conn != c {
				t.Error("Opened of another connection")
			}
			peer := testnet.Receive(t, "the peer", accepted)
			testnet.Send(t, peer, "hello")
			if r := harness.Expect[tcpio.Readable](t, events); r.Conn != c {
				t.Error("Readable of another connection")
			}
			go func() {
				for range events {
				}
			}()
			stop()
		})
	}
}

func TestDialBeforeServeEndsWithTheListener(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(l *tcpio.Listener) error{
		"Close":    (*tcpio.Listener).Close,
		"Shutdown": func(l *tcpio.Listener) error { return l.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			l := harness.Listen(t, tcpio.ListenerOptions{})
			_, errs := dialLater(t.Context(), l, "127.0.0.1:1")
			if err := end(l); err != nil {
				t.Error(err)
			}
			if err := testnet.Receive(t, "the end of Dial", errs); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Dial: %v", err)
			}
			if _, err := l.Dial(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Dial afterwards: %v", err)
			}
		})
	}
}

func TestAListenerWithoutAnAddress(t *testing.T) {
	t.Parallel()
	if _, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "none", Addr: ":0"}); err == nil {
		t.Error("an Addr beside Network none is taken")
	}
	if _, err := tcpio.Listen(&tcpio.ListenerOptions{}); err == nil {
		t.Error("an empty Addr is taken without Network none")
	}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "none"})
	if err != nil {
		t.Fatal(err)
	}
	if a := l.Addr(); a.Network() != "none" || a.String() != "none" {
		t.Errorf("Addr: %v", a)
	}
	if _, err := l.File(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("File: %v", err)
	}
	if ln := l.GetListener(); ln != nil {
		t.Errorf("GetListener: %v", ln)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ln := l.NetListener()
	served := harness.Go(ctx, l)
	addr, accepted := testnet.Upstream(t, "tcp", "127.0.0.1:0")
	c, err := l.Dial(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	peer := testnet.Receive(t, "the peer", accepted)
	testnet.Send(t, c, "from the client")
	testnet.ExpectBytes(t, peer, "from the client")
	mine, other := testnet.TCPPair(t)
	testnet.Send(t, other, "x")
	if _, err := l.Adopt(mine); err != nil {
		t.Fatal(err)
	}
	if nc, err := ln.Accept(); err != nil || testnet.ReadString(t, nc, 1) != "x" {
		t.Errorf("Accept of an adopted connection: %v", err)
	}
	other.Close()
	peer.Close()
	cancel()
	if err := testnet.Receive(t, "the end of Serve", served); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept afterwards: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// routeless is a listener without an address. What it dials has no route.
func routeless(t testing.TB) *tcpio.Listener {
	t.Helper()
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "none", NewActor: func(*tcpio.Conn) tcpio.Actor { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	harness.Start(t, l)
	return l
}

// Whenever ctx ends, Dial returns a connection or the context's error, and nothing is left of it.
func TestDialEndsWithItsContextAtEveryMoment(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr := ln.Addr().String()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	l := routeless(t)
	n := 200
	if testnet.Long {
		n = 2000
	}
	control := func(string, string, syscall.RawConn) error { return nil }
	for i := range n {
		ctx, cancel := context.WithCancel(t.Context())
		conns, errs := make(chan *tcpio.Conn, 1), make(chan error, 1)
		go func() {
			d := new(net.Dialer)
			if i%2 == 0 {
				d.Control = control
			}
			c, err := l.DialWith(ctx, d, "tcp", addr)
			conns <- c
			errs <- err
		}()
		for start := time.Now(); time.Since(start) < time.Duration(i%50)*4*time.Microsecond; {
		}
		cancel()
		c, err := testnet.Receive(t, "the end of Dial", conns), <-errs
		var oe *net.OpError
		switch {
		case (c == nil) == (err == nil):
			t.Fatalf("%v, %v", c, err)
		case c != nil:
			c.Abort()
		case !errors.Is(err, context.Canceled) || !errors.As(err, &oe) || oe.Addr == nil || oe.Addr.String() != addr:
			t.Fatalf("%v, want context.Canceled and the address", err)
		}
	}
	noDials(t, l)
}

// More callers than DialAsync has goroutines for names: nobody's look-up waits for another's.
func TestLookUpsOfBlockedCallersDoNotWaitForEachOther(t *testing.T) {
	l := routeless(t)
	const n = 100
	asked := make(chan struct{}, 10*n)
	d := &net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case asked <- struct{}{}:
		default: // it asks again and again
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}}}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, n)
	for i := range n {
		go func() {
			_, err := l.DialWith(ctx, d, "tcp", fmt.Sprintf("name%d.invalid:1", i)) // one name is looked up once
			errs <- err
		}()
	}
	for range n {
		testnet.Receive(t, "a question to the resolver", asked)
	}
	// The questions may all be of some of the dials: each has two.
	testnet.WaitFor(t, "all dials are counted", func() bool { return l.Stats().Dialing == n })
	cancel()
	for range n {
		if err := testnet.Receive(t, "the end of Dial", errs); !errors.Is(err, context.Canceled) {
			t.Errorf("Dial: %v", err)
		}
	}
	noDials(t, l)
}

// Control runs on a goroutine that is not the caller's. A panic in it, or an exit, is the dial's
// error.
func TestAPanicInControlFailsTheDial(t *testing.T) {
	l := routeless(t)
	for name, control := range map[string]func(string, string, syscall.RawConn) error{
		"panic": func(string, string, syscall.RawConn) error { panic("in Control") },
		"exit":  func(string, string, syscall.RawConn) error { runtime.Goexit(); return nil },
	} {
		before := l.Stats().Panics
		var p *tcpio.PanicError
		c, err := l.DialWith(t.Context(), &net.Dialer{Control: control}, "tcp", "127.0.0.1:1")
		if c != nil || !errors.As(err, &p) || err.Error() != "dial tcp 127.0.0.1:1: tcpio: panic: "+fmt.Sprint(p.Value) {
			t.Errorf("%s: %v, %v, want a PanicError", name, c, err)
		}
		if n := l.Stats().Panics; n != before+1 {
			t.Errorf("%s: %d panics are counted", name, n-before)
		}
	}
	noDials(t, l)
}
