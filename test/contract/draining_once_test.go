//go:build linux

package contract

import (
	"context"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// To see it fail: leave c.phase out of tellDrainingLocked, and of its default.
func TestDrainingComesOnceHoweverOftenShutdownIsCalled(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 1, DrainTimeout: 2 * testnet.Limit})
	harness.Open(t, l, events)
	done := make(chan error, 2)
	go func() { done <- l.Shutdown(context.Background()) }()
	harness.Expect[tcpio.Draining](t, events)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- l.Shutdown(ctx) }()
	cancel() // by then every connection has got it
	testnet.Receive(t, "the end of Shutdown", done)
	harness.Expect[tcpio.Closed](t, events)
	testnet.Receive(t, "the end of Shutdown", done)
}
