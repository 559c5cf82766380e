//go:build linux

package contract

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// established is a connection that the package net has made, and its peer.
func established(t *testing.T, network string) (nc, peer net.Conn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if peer, err = net.DialTimeout(network, ln.Addr().String(), testnet.Limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	if nc, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := peer.SetDeadline(time.Now().Add(testnet.Limit)); err != nil {
		t.Fatal(err)
	}
	return nc, peer
}

// fillKernel writes until the kernel takes nothing more, and returns how many bytes it took.
func fillKernel(t *testing.T, nc net.Conn) (took int) {
	t.Helper()
	onSocket(t, nc, func(fd int) error {
		p := make([]byte, 64<<10)
		for {
			n, err := unix.SendmsgN(fd, p, nil, nil, unix.MSG_DONTWAIT)
			switch {
			case err == nil:
				took += n
				continue
			case err == unix.EINTR:
				continue
			case err != unix.EAGAIN:
				return err
			}
			// What was under way may still make room.
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 50)
			if n == 0 || err != nil && err != unix.EINTR {
				return err
			}
		}
	})
	return took
}

func onSocket(t *testing.T, nc net.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	ctlErr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	if err = errors.Join(ctlErr, err); err != nil {
		t.Fatal(err)
	}
}

// To see it fail: let register leave every Opened to the first edge.
func TestOpenedOfAnAdoptedConnectionComesWhateverItsSocketSays(t *testing.T) {
	kinds := map[string]struct {
		network string
		make    func(t *testing.T, nc, peer net.Conn) (unread int)
	}{
		"fresh":      {"tcp", func(*testing.T, net.Conn, net.Conn) int { return 0 }},
		"fresh unix": {"unix", func(*testing.T, net.Conn, net.Conn) int { return 0 }},
		"full":       {"tcp", func(t *testing.T, nc, _ net.Conn) int { return fillKernel(t, nc) }},
		"full unix":  {"unix", func(t *testing.T, nc, _ net.Conn) int { return fillKernel(t, nc) }},
		"full, with input": {"tcp", func(t *testing.T, nc, peer net.Conn) int {
			testnet.Send(t, peer, "x")
			return fillKernel(t, nc)
		}},
		"full, half-closed": {"tcp", func(t *testing.T, nc, peer net.Conn) int {
			testnet.FIN(t, peer)
			testnet.ExpectEOF(t, nc)
			return fillKernel(t, nc)
		}},
		"full, half-closed by us": {"tcp", func(t *testing.T, nc, peer net.Conn) int {
			n := fillKernel(t, nc)
			testnet.FIN(t, nc)
			return n
		}},
		"full, urgent data": {"tcp", func(t *testing.T, nc, peer net.Conn) int {
			onSocket(t, peer, func(fd int) error { return unix.Sendto(fd, []byte("!"), unix.MSG_OOB, nil) })
			return fillKernel(t, nc)
		}},
		"reset": {"tcp", func(t *testing.T, nc, peer net.Conn) int { testnet.RST(t, peer); return -1 }},
		"reset and seen": {"tcp", func(t *testing.T, nc, peer net.Conn) int {
			testnet.RST(t, peer)
			if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatal(err)
			}
			return -1
		}},
		"without a peer, unix": {"unix", func(t *testing.T, nc, peer net.Conn) int { peer.Close(); return -1 }},
		"full, without a peer, unix": {"unix", func(t *testing.T, nc, peer net.Conn) int {
			fillKernel(t, nc)
			peer.Close()
			return -1
		}},
	}
	actorEvents := make(chan tcpio.Event, 64)
	routes := map[string]struct {
		opts   tcpio.ListenerOptions
		opened func(t *testing.T, l *tcpio.Listener) func() *tcpio.Conn
	}{
		"stream": {tcpio.ListenerOptions{}, func(t *testing.T, l *tcpio.Listener) func() *tcpio.Conn {
			events := l.Events()
			return func() *tcpio.Conn { return harness.Expect[tcpio.Opened](t, events).Conn }
		}},
		"actor": {tcpio.ListenerOptions{Loops: 2, Actor: func(*tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error { actorEvents <- ev; return nil })
		}}, func(t *testing.T, l *tcpio.Listener) func() *tcpio.Conn {
			return func() *tcpio.Conn { return harness.Expect[tcpio.Opened](t, actorEvents).Conn }
		}},
		"NetListener": {tcpio.ListenerOptions{DeferAccept: true}, func(t *testing.T, l *tcpio.Listener) func() *tcpio.Conn {
			ln := l.NetListener()
			return func() *tcpio.Conn {
				accepted := make(chan net.Conn, 1)
				go func() {
					c, _ := ln.Accept()
					accepted <- c
				}()
				return testnet.Await(t, "the adopted connection", accepted).(*tcpio.Conn)
			}
		}},
	}
	for kind, k := range kinds {
		for route, r := range routes {
			t.Run(kind+" "+route, func(t *testing.T) {
				l := harness.Listen(t, r.opts)
				opened := r.opened(t, l)
				served := harness.Go(t.Context(), l)
				defer func() {
					l.Close()
					testnet.Await(t, "the end of Serve", served)
					for len(actorEvents) > 0 {
						<-actorEvents
					}
				}()
				nc, peer := established(t, k.network)
				unread := k.make(t, nc, peer)
				var c *tcpio.Conn
				testnet.WaitFor(t, "Adopt", func() bool {
					var err error
					c, err = l.Adopt(nc)
					return err == nil
				})
				if got := opened(); got != c {
					t.Fatalf("Opened of connection %d, want %d", got.ID(), c.ID())
				}
				if unread >= 0 { // it works
					if n, err := io.CopyN(io.Discard, peer, int64(unread)); err != nil {
						t.Errorf("the peer read %d of %d: %v", n, unread, err)
					}
				}
				c.Abort()
			})
		}
	}
}
