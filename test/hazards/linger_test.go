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
// loop. The option can come with an adopted socket, be inherited, or be set by the user. To see it
// fail: leave out the setsockopt of sys.Close.
func TestLingeringSocketDoesNotHoldUpTheLoop(t *testing.T) {
	const linger = 60 // seconds: longer than anything here is waited for
	check := func(t *testing.T, l *tcpio.Listener, events <-chan tcpio.Event, c *tcpio.Conn) {
		t.Helper()
		// Nothing is queued, but much in the kernel's hands: the peer does not read.
		testnet.Control(t, c, func(fd int) error {
			for {
				if _, err := unix.Write(fd, make([]byte, 64<<10)); err == unix.EAGAIN {
					return nil
				} else if err != nil {
					return err
				}
			}
		})
		otherPeer := testnet.Dial(t, l)
		for {
			if _, ok := testnet.Await(t, "Opened", events).(tcpio.Opened); ok {
				break
			}
		}
		c.Close() // the peer neither reads nor ends, so CloseTimeout does
		testnet.Send(t, otherPeer, "x")
		for closed, readable := false, false; !closed || !readable; {
			switch testnet.Await(t, "the other's Readable, and Closed", events).(type) {
			case tcpio.Closed:
				closed = true
			case tcpio.Readable:
				readable = true
			}
		}
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
		check(t, l, events, c)
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
		check(t, l, events, c)
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
		check(t, l, events, c)
	})
	t.Run("set by the user", func(t *testing.T) {
		l, events := harness.Manual(t, opts)
		c, _ := harness.Open(t, l, events)
		testnet.Control(t, c, lingers)
		check(t, l, events, c)
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
		check(t, l, events, c)
	})
}
