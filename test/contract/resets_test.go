//go:build linux

package contract

import (
	"errors"
	"io"
	"syscall"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A connection whose peer has ended, and then resets while output waits, has nothing more to come in either direction.
// To see it fail: let failSendLocked look at c.ended only.
func TestAResetBehindTheEndWithOutputQueuedClosesTheConnection(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 1})
	c, peer := harness.Open(t, l, events)
	if _, err := c.TryWrite(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	testnet.FIN(t, peer)
	harness.Expect[tcpio.Readable](t, events)
	if _, err := c.TryRead(make([]byte, 1)); err != io.EOF {
		t.Fatalf("got %v, want EOF", err)
	}
	if c.Buffered() == 0 {
		t.Fatal("the socket took everything")
	}
	testnet.RST(t, peer)
	harness.Expect[tcpio.Closed](t, events)
	if err := c.Err(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Err: %v, want the reset", err)
	}
}
