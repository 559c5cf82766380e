//go:build linux

package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestHTTPServerRunsOnANetListener(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			opts := tcpio.ListenerOptions{DeferAccept: true}
			if network == "unix" {
				opts.Network, opts.Addr = "unix", t.TempDir()+"/s"
			}
			l := harness.Listen(t, opts)
			ln := serveNetListener(t, l)
			release := make(chan struct{})
			entered := make(chan struct{}, 1)
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					entered <- struct{}{}
					<-release
				}
				body, err := io.ReadAll(r.Body)
				if err != nil || int64(len(body)) != r.ContentLength {
					t.Errorf("the body: %d of %d, %v", len(body), r.ContentLength, err)
				}
				w.Write(body)
			})}
			stopped := make(chan error, 1)
			go func() { stopped <- srv.Serve(ln) }()
			transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, l.Addr().Network(), l.Addr().String())
			}}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: testnet.Limit}
			post := func(path string, size int) error {
				body := testnet.Pattern(size)
				resp, err := client.Post("http://server"+path, "", strings.NewReader(string(body)))
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(resp.Body)
				if i := testnet.FirstDifference(got, body); i >= 0 {
					return fmt.Errorf("byte %d of %d differs", i, len(got))
				}
				return err
			}
			for range 3 {
				if err := post("/", 200<<10); err != nil {
					t.Fatal(err)
				}
			}
			// net/http takes another one if the goroutine that has sent a request is 50 ms late.
			if n := l.Stats().Accepted; n >= 3 {
				t.Errorf("%d connections for three requests one after the other", n)
			}
			// http.Server.Shutdown lets the request end that is under way, and no other begin.
			slow := make(chan error, 1)
			go func() { slow <- post("/slow", 1000) }()
			testnet.Await(t, "the request", entered)
			down := make(chan error, 1)
			go func() { down <- srv.Shutdown(testnet.Context(t)) }()
			if err := testnet.Await(t, "the end of http.Server.Serve", stopped); err != http.ErrServerClosed {
				t.Errorf("http.Server.Serve: %v", err)
			}
			select {
			case err := <-down:
				t.Fatalf("Shutdown did not wait: %v", err)
			default:
			}
			close(release)
			if err := testnet.Await(t, "the slow request", slow); err != nil {
				t.Errorf("the request under way: %v", err)
			}
			if err := testnet.Await(t, "the end of Shutdown", down); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			if err := post("/", 1); err == nil {
				t.Error("a request after Shutdown was served")
			}
		})
	}
}

func TestDeferAcceptHandsOutWhatHasSentSomething(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{DeferAccept: true})
	ln := serveNetListener(t, l)
	silent := testnet.Dial(t, l)
	testnet.WaitFor(t, "the silent peer to be accepted", func() bool { return l.Len() == 1 })
	talker := testnet.Dial(t, l)
	testnet.Send(t, talker, "x")
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if c.RemoteAddr().String() != talker.LocalAddr().String() {
		t.Fatalf("the connection of %v was handed out, want that of %v, which has sent something", c.RemoteAddr(), talker.LocalAddr())
	}
	testnet.ExpectBytes(t, c, "x")
	testnet.Send(t, silent, "y")
	if c, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, c, "y")
	// A peer that ends without a word is handed out too: its end is something to read.
	mute := testnet.Dial(t, l)
	testnet.FIN(t, mute)
	if c, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectEOF(t, c)
	c.Close()
}

func TestClosingANetListenerLeavesWhatWasHandedOut(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{Addr: testnet.FreeAddr(t), DeferAccept: true}) // nobody else takes the port
	ln := serveNetListener(t, l)
	kept := testnet.Dial(t, l)
	testnet.Send(t, kept, "x")
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, c, "x")
	// One waits for its first bytes, one for Accept.
	silent, ready := testnet.Dial(t, l), testnet.Dial(t, l)
	testnet.Send(t, ready, "x")
	testnet.WaitFor(t, "three connections", func() bool { return l.Len() == 3 })
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
	for name, peer := range map[string]net.Conn{"waiting for bytes": silent, "waiting for Accept": ready} {
		if _, err := peer.Read(make([]byte, 1)); err == nil {
			t.Errorf("the peer %s got something", name)
		} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("the peer %s was not aborted", name)
		}
	}
	testnet.WaitFor(t, "one connection", func() bool { return l.Len() == 1 })
	for range 2 {
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v, want net.ErrClosed", err)
		}
	}
	if nc, err := net.DialTimeout("tcp", l.Addr().String(), testnet.Limit); err == nil {
		nc.Close()
		t.Error("a peer could connect after Close")
	}
	testnet.Send(t, kept, "ping")
	testnet.ExpectBytes(t, c, "ping")
	if _, err := c.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, kept, "pong")
	c.Close()
}

func TestAcceptEndsWithItsListener(t *testing.T) {
	for name, end := range map[string]func(*tcpio.Listener, net.Listener) error{
		"its own Close": func(_ *tcpio.Listener, ln net.Listener) error { return ln.Close() },
		"Close":         func(l *tcpio.Listener, _ net.Listener) error { return l.Close() },
		"Shutdown":      func(l *tcpio.Listener, _ net.Listener) error { return l.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			l := harness.Listen(t, tcpio.ListenerOptions{})
			ln := serveNetListener(t, l)
			c, peer := acceptPair(t, l, ln) // Serve is there
			peer.Close()
			c.Close()
			accepted := make(chan error, 1)
			go func() {
				_, err := ln.Accept()
				accepted <- err
			}()
			if err := end(l, ln); err != nil {
				t.Fatal(err)
			}
			err := testnet.Await(t, "the end of Accept", accepted)
			var oe *net.OpError
			if !errors.Is(err, net.ErrClosed) || !errors.As(err, &oe) || oe.Op != "accept" {
				t.Fatalf("Accept: %v, want net.ErrClosed", err)
			}
		})
	}
}

// Half-closed connections are usual for servers of the package net: they read the end and go on
// writing.
func TestHandedOutConnectionDoesNotCloseItself(t *testing.T) {
	t.Parallel()
	c, peer := blockingPair(t, tcpio.ListenerOptions{EOFTimeout: 50 * time.Millisecond})
	testnet.FIN(t, peer)
	for range 2 {
		testnet.ExpectEOF(t, c)
	}
	// Longer than a consumer of events would have.
	select {
	case <-time.After(400 * time.Millisecond):
	case <-t.Context().Done():
	}
	if _, err := c.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	testnet.ExpectBytes(t, peer, "still here")
	testnet.ExpectEOF(t, peer)
}

func TestHandedOutConnectionMayBeClaimed(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{})
	testnet.Send(t, peer, "x")
	events := c.Events()
	harness.Expect[tcpio.Opened](t, events)
	if got, err := harness.ReadStream(t, events, c, 1, 8); string(got) != "x" || err != nil {
		t.Fatalf("read %q, %v", got, err)
	}
	testnet.FIN(t, peer)
	if _, err := harness.ReadStream(t, events, c, 1, 8); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
	c.Close()
	harness.Expect[tcpio.Closed](t, events)
	testnet.AwaitClosed(t, "the stream", events)
}

func TestNetListenerExcludesTheOtherRoutes(t *testing.T) {
	panics := func(f func()) (did bool) {
		defer func() { did = recover() != nil }()
		f()
		return
	}
	l := harness.Listen(t, tcpio.ListenerOptions{})
	l.Events()
	if !panics(func() { l.NetListener() }) {
		t.Error("NetListener after Events did not panic")
	}
	l = harness.Listen(t, tcpio.ListenerOptions{OnConnEvent: func(net.Conn) error { return nil }})
	if !panics(func() { l.NetListener() }) {
		t.Error("NetListener with OnConnEvent did not panic")
	}
	l = harness.Listen(t, tcpio.ListenerOptions{})
	if l.NetListener() != l.NetListener() {
		t.Error("a second call gave another listener")
	}
	l.Close()
	l = harness.Listen(t, tcpio.ListenerOptions{})
	l.Close()
	if _, err := l.NetListener().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept of a closed listener: %v", err)
	}
}
