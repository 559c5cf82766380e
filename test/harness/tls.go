//go:build linux

package harness

import (
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// TLS serves TLS, with testnet.ServerTLS unless opts have a configuration. Each connection has
// handle as its actor, and comes out of ended with its Closed.
func TLS(t testing.TB, opts tcpio.ListenerOptions, handle func(tcpio.Event) error) (
	l *tcpio.Listener, ended chan *tcpio.Conn) {
	t.Helper()
	if opts.TLSConfig == nil {
		opts.TLSConfig = testnet.ServerTLS()
	}
	ended = make(chan *tcpio.Conn, 10000)
	return Actor(t, opts, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if c, ok := ev.(tcpio.Closed); ok {
			ended <- c.Conn
		}
		return handle(ev)
	})), ended
}
