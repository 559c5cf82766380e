//go:build linux

package hazards

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestNewcomerSeesNothingOfTheFormerOwnerOfItsDescriptor(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	reused := 0
	for range 50 {
		hole, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) // a number for the newcomer's own end
		if err != nil {
			t.Fatal(err)
		}
		a, peerA := harness.Open(t, l, events)
		b, peerB := harness.Open(t, l, events)
		number := 0
		testnet.Control(t, b, func(fd int) error { number = fd; return nil })
		// Both become ready; the newcomer waits in the backlog. Closing b frees its number for it.
		testnet.Send(t, peerA, "a")
		testnet.Send(t, peerB, "for b alone")
		first := harness.Expect[tcpio.Readable](t, events).Conn
		if first != a {
			t.Fatal("the first one ready is not the first one announced")
		}
		b.Abort()
		unix.Close(hole)
		newcomer := testnet.Dial(t, l)
		var c *tcpio.Conn
		for opened, closed := false, false; !opened || !closed; {
			switch ev := testnet.Await(t, "Opened and Closed", events).(type) {
			case tcpio.Opened:
				opened, c = true, ev.Conn
			case tcpio.Closed:
				closed = true
				if ev.Conn != b {
					t.Fatal("Closed of the wrong connection")
				}
			case tcpio.Readable:
				if ev.Conn != b || closed {
					t.Fatal("Readable of the wrong connection")
				}
			}
		}
		testnet.Control(t, c, func(fd int) error {
			if fd == number {
				reused++
			}
			return nil
		})
		if n, err := c.TryRead(make([]byte, 100)); n != 0 || err != tcpio.ErrWouldBlock {
			t.Fatalf("the newcomer read %d, %v", n, err)
		}
		if n, err := b.TryRead(make([]byte, 100)); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Fatalf("the closed one read %d, %v", n, err)
		}
		if n, err := b.TryWrite([]byte("to nobody")); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Fatalf("the closed one wrote %d, %v", n, err)
		}
		testnet.Send(t, newcomer, "mine")
		if got, err := harness.ReadStream(t, events, c, 4, 100); string(got) != "mine" || err != nil {
			t.Fatalf("the newcomer read %q, %v", got, err)
		}
		a.Abort()
		c.Abort()
		harness.Expect[tcpio.Closed](t, events)
		harness.Expect[tcpio.Closed](t, events)
		for _, peer := range []net.Conn{peerA, peerB, newcomer} {
			peer.Close()
		}
	}
	if reused < 25 {
		t.Errorf("only %d of 50 newcomers got the number of the connection before", reused)
	}
}

// To see it fail: leave out the removal in Conn.finish.
func TestHeldDuplicateKeepsNothingAliveInEpoll(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	other, otherPeer := harness.Open(t, l, events)
	dup, number := -1, -1
	testnet.Control(t, c, func(fd int) (err error) {
		number = fd
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	defer unix.Close(dup)
	watched := func() bool {
		for _, fd := range epollTargets(t) {
			if fd == number {
				return true
			}
		}
		return false
	}
	if !watched() {
		t.Fatalf("no epoll instance watches %d", number)
	}
	c.Close()
	testnet.FIN(t, peer) // the orderly end of both sides: the descriptor goes, the open file stays
	harness.Expect[tcpio.Closed](t, events)
	if watched() {
		t.Errorf("epoll still watches the file of %d", number)
	}
	// A third connection takes the slot; then the dead one's file is made ready for anything.
	newcomer, _ := harness.Open(t, l, events)
	if err := unix.Shutdown(dup, unix.SHUT_RDWR); err != nil && err != unix.ENOTCONN {
		t.Fatal(err)
	}
	peer.Close()
	testnet.Send(t, otherPeer, "x")
	if ev := harness.Expect[tcpio.Readable](t, events); ev.Conn != other {
		t.Fatalf("Readable of connection %d, want %d", ev.Conn.ID(), other.ID())
	}
	if _, err := newcomer.TryRead(make([]byte, 1)); err != tcpio.ErrWouldBlock {
		t.Errorf("the newcomer: %v", err)
	}
	const window = 300 * time.Millisecond
	harness.ExpectSilence(t, events, window)
	testnet.WaitIdle(t, "silence", window, window/2)
}

// epollTargets lists the descriptor numbers under which files are registered in this process's
// epoll instances (tfd in proc(5)'s fdinfo).
func epollTargets(t *testing.T) (targets []int) {
	t.Helper()
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil || len(infos) == 0 {
		t.Fatal("no /proc/self/fdinfo", err)
	}
	for _, name := range infos {
		info, err := os.ReadFile(name)
		if err != nil {
			continue // the one that Glob had open
		}
		for line := range strings.Lines(string(info)) {
			fd := 0
			if _, err := fmt.Sscanf(line, "tfd: %d ", &fd); err == nil {
				targets = append(targets, fd)
			}
		}
	}
	return targets
}
