//go:build linux

package contract

import (
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A range over Conns holds nothing while its body runs.
func TestTheBodyOfAConnsLoopMayPanic(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 1})
	harness.Open(t, l, events)
	testnet.Misbehave(t, func(misdeed func()) {
		for range l.Conns() {
			misdeed()
		}
	})
	harness.Open(t, l, events)
}
