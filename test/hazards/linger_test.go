//go:build linux

package hazards

import (
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// close(2) blocks for as long as SO_LINGER says, on a non-blocking socket too, and with it the
// loop, until a signal comes. The option can come with an adopted socket, be inherited, or be set by
// the user. tcpio takes it back before it closes the descriptor, which another descriptor of the
// socket shows. To see it fail: leave out the setsockopt of sys.Close.
func TestLingeringSocketDoesNotHoldUpTheLoop(t *testing.T) {
	const linger = 60 // seconds
	check := func(t *testing.T, events <-chan tcpio.Event, c *tcpio.Conn) {
		t.Helper()
		second := -1
		testnet.Control(t, c, func(fd int) error {
			second = testnet.Duplicate(t, fd)
			// Much is in the kernel's hands: the peer does not read.
			for {
				if _, err := unix.Write(fd, make([]byte, 64<<10)); err == unix.EAGAIN {
					return nil
				} else if err != nil {
					return err
				}
			}
		})
		lingers := func() bool {
			l, err := unix.GetsockoptLinger(second, unix.SOL_SOCKET, unix.SO_LINGER)
			if err != nil {
				t.Fatal(err)
			}
			return l.Onoff != 0 && l.Linger != 0
		}
		if !lingers() {
			t.Fatal("the socket does not linger")
		}
		c.Close() // the peer neither reads nor ends, so CloseTimeout does
		for closed := false; !closed; {
			_, closed = testnet.Await(t, "Closed", events).(tcpio.Closed)
		}
		testnet.WaitFor(t, "it does not linger any more", func() bool { return !lingers() })
	}
	opts := tcpio.ListenerOptions{CloseTimeout: 100 * time.Millisecond}
	t.Run("adopted", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		peer, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		nc, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.(*net.TCPConn).SetLinger(linger); err != nil {
			t.Fatal(err)
		}
		l, events := harness.Manual(t, opts)
		ping := testnet.Dial(t, l) // Serve is running
		harness.Expect[tcpio.Opened](t, events)
		ping.Close()
		c, err := l.Adopt(nc)
		if err != nil {
			t.Fatal(err)
		}
		check(t, events, c)
	})
	t.Run("inherited", func(t *testing.T) {
		var lc net.ListenConfig
		lc.Control = func(_, _ string, rc syscall.RawConn) (err error) {
			cerr := rc.Control(func(fd uintptr) {
				err = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: linger})
			})
			if cerr != nil {
				return cerr
			}
			return err
		}
		ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		o := opts
		o.Listener = ln
		l, events := harness.Manual(t, o)
		c, _ := harness.Open(t, l, events)
		check(t, events, c)
	})
	lingers := func(fd int) error {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: linger})
	}
	t.Run("set by another holder of the listening socket", func(t *testing.T) {
		l, events := harness.Manual(t, opts)
		if err := lingers(otherHolder(t, l)); err != nil {
			t.Fatal(err)
		}
		c, _ := harness.Open(t, l, events)
		check(t, events, c)
	})
	t.Run("set by the user", func(t *testing.T) {
		l, events := harness.Manual(t, opts)
		c, _ := harness.Open(t, l, events)
		testnet.Control(t, c, lingers)
		check(t, events, c)
	})
	t.Run("dialed", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		l, events := harness.Manual(t, opts)
		harness.Open(t, l, events) // Serve is running
		c, err := l.Dial(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		testnet.Control(t, c, lingers)
		check(t, events, c)
	})
}
