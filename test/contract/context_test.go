//go:build linux

package contract

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestContextEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	errOwn := errors.New("the handler's")
	for name, tc := range map[string]struct {
		end   func(c *tcpio.Conn, peer net.Conn) error // returned by Receive
		cause func(error) bool
	}{
		"Close":    {func(c *tcpio.Conn, _ net.Conn) error { return c.Close() }, func(err error) bool { return err == net.ErrClosed }},
		"Abort":    {func(c *tcpio.Conn, _ net.Conn) error { return c.Abort() }, func(err error) bool { return err == net.ErrClosed }},
		"an error": {func(*tcpio.Conn, net.Conn) error { return errOwn }, func(err error) bool { return err == errOwn }},
		"a time limit": {func(c *tcpio.Conn, _ net.Conn) error { return c.SetIdleTimeout(time.Millisecond) }, func(err error) bool {
			return errors.As(err, new(*tcpio.TimeoutError))
		}},
		// The next Readable reads the reset, or the edge ended the context before.
		"a reset": {func(_ *tcpio.Conn, peer net.Conn) error { testnet.RST(t, peer); return nil }, func(err error) bool {
			return errors.Is(err, syscall.ECONNRESET) || err == net.ErrClosed
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l, events := harness.Manual(t, tcpio.ListenerOptions{})
			c, peer := harness.Open(t, l, events)
			ctx := c.Context()
			if c.Context() != ctx {
				t.Error("another context at the second call")
			}
			if ctx.Err() != nil {
				t.Fatalf("it begins with %v", ctx.Err())
			}
			derived, cancel := context.WithCancel(ctx)
			defer cancel()
			done := make(chan struct{})
			if err := c.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error {
				if _, ok := ev.(tcpio.Message); ok {
					return tc.end(c, peer)
				}
				if _, ok := ev.(tcpio.Closed); ok {
					close(done)
				}
				return nil
			})); err != nil {
				t.Fatal(err)
			}
			if err := c.Post("end"); err != nil {
				t.Fatal(err)
			}
			testnet.AwaitClosed(t, "the derived context", derived.Done())
			if ctx.Err() != context.Canceled || !tc.cause(context.Cause(ctx)) {
				t.Errorf("Err %v, Cause %v", ctx.Err(), context.Cause(ctx))
			}
			c.Abort()
			testnet.AwaitClosed(t, "Closed", done)
			if c.Context().Err() == nil {
				t.Error("it has not ended after Closed")
			}
		})
	}
}

// To see it fail: leave out endContextLocked in readyLocked.
func TestContextEndsAtAResetWhileTheHandlerBlocks(t *testing.T) {
	t.Parallel()
	for _, unread := range []string{"", "input that nobody has read"} {
		inside, outside := make(chan struct{}), make(chan string, 1)
		l := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
			r, ok := ev.(tcpio.Readable)
			if !ok {
				return nil
			}
			var p [100]byte
			n, err := r.Conn.TryRead(p[:5])
			if err != nil || string(p[:n]) != "query" {
				return err
			}
			ctx := r.Conn.Context()
			close(inside)
			<-ctx.Done()
			n, _ = r.Conn.TryRead(p[:]) // what came before the reset is still there
			outside <- string(p[:n])
			return nil
		}))
		peer := testnet.Dial(t, l)
		testnet.Send(t, peer, "query"+unread)
		testnet.AwaitClosed(t, "the handler", inside)
		testnet.RST(t, peer)
		if got := testnet.Receive(t, "the end of the handler", outside); got != unread {
			t.Errorf("read %q, want %q", got, unread)
		}
	}
}

func TestContextOfAConnectionThatWasResetHasEnded(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.RST(t, peer)
	harness.Expect[tcpio.Readable](t, events) // not answered by a read
	testnet.AwaitClosed(t, "the end", c.Context().Done())
}

func TestContextOutlivesThePeersEndOfStream(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	ctx := c.Context()
	testnet.FIN(t, peer)
	if _, err := harness.ReadStream(t, events, c, 1, 10); err == nil {
		t.Error("no end of stream")
	}
	if ctx.Err() != nil || c.Context().Err() != nil {
		t.Errorf("a half-close ended it: %v", context.Cause(ctx))
	}
	c.Close()
	testnet.AwaitClosed(t, "the end", ctx.Done())
}

func TestContextIsOneForAllGoroutines(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { <-c.Context().Done() })
	}
	c.Abort()
	wg.Wait()
}

func TestListenerOfAConnection(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	if c.Listener() != l {
		t.Error("another listener")
	}
	c.Abort()
	harness.Expect[tcpio.Closed](t, events)
	if c.Listener() != l {
		t.Error("another listener after Closed")
	}
}
