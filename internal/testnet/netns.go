//go:build linux

package testnet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A Netns is a network namespace without a name. Sockets stay in the one that they were made in.
type Netns struct{ file *os.File }

const threadNS = "/proc/thread-self/ns/net"

// NewNetns makes a network namespace that goes with the test, and its sockets. The test is skipped
// without the right to.
func NewNetns(t testing.TB) Netns {
	t.Helper()
	var n Netns
	inThread(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err := os.Open(threadNS)
		n.file = f
		return err
	})
	t.Cleanup(func() { n.file.Close() })
	return n
}

// inThread runs f on a thread of its own, whose namespace f may change. EPERM skips the test.
func inThread(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			home, err := os.Open(threadNS)
			if err != nil {
				return err
			}
			defer home.Close()
			err = f()
			if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
				return back // the goroutine ends locked, and its thread with it
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	switch err := <-done; {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
		t.Skipf("SKIPPED, network namespaces need root: %v", err)
	case err != nil:
		t.Fatal(err)
	}
}

// Do runs f inside the namespace.
func (n Netns) Do(t testing.TB, f func() error) {
	t.Helper()
	inThread(t, func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// IP runs ip(8) inside the namespace; in its arguments /peer stands for the other namespace.
func (n Netns) IP(t testing.TB, peer Netns, line string) {
	t.Helper()
	n.Do(t, func() error {
		cmd := exec.Command("ip", strings.Fields(strings.ReplaceAll(line, "/peer", "/proc/self/fd/3"))...)
		cmd.ExtraFiles = []*os.File{peer.file}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %v: %s", line, err, out)
		}
		return nil
	})
}
