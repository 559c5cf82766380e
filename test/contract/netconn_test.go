//go:build linux

package contract

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/net/nettest"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// pipe makes a connection whose one end is a *tcpio.Conn and whose other end is the package net's.
func pipe(t *testing.T, network, addr string) nettest.MakePipe {
	return func() (c1, c2 net.Conn, stop func(), err error) {
		l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: network, Addr: addr})
		if err != nil {
			return nil, nil, nil, err
		}
		ln := l.NetListener()
		served := harness.Go(context.Background(), l)
		end := func() {
			l.Close()
			if err := <-served; err != nil {
				t.Errorf("Serve: %v", err)
			}
		}
		if c2, err = net.Dial(network, l.Addr().String()); err != nil {
			end()
			return nil, nil, nil, err
		}
		if c1, err = ln.Accept(); err != nil {
			c2.Close()
			end()
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close(); end() }, nil
	}
}

func TestConnIsANetConn(t *testing.T) {
	t.Parallel()
	t.Run("tcp", func(t *testing.T) { nettest.TestConn(t, pipe(t, "tcp", "127.0.0.1:0")) })
	t.Run("tcp peer", func(t *testing.T) { nettest.TestConn(t, testnet.Swapped(pipe(t, "tcp", "127.0.0.1:0"))) })
	path := filepath.Join(t.TempDir(), "s")
	t.Run("unix", func(t *testing.T) { nettest.TestConn(t, pipe(t, "unix", path)) })
	t.Run("unix peer", func(t *testing.T) { nettest.TestConn(t, testnet.Swapped(pipe(t, "unix", path))) })
}
