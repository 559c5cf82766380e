//go:build linux

package contract

import (
	"context"
	"errors"
	"net"
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
	addr, accepted := upstream(t, "tcp", "127.0.0.1:0")
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
	addr, accepted := upstream(t, "tcp", "127.0.0.1:0")
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
