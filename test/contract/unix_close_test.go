//go:build linux

package contract

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// reaches fails the test unless somebody listens at path.
func reaches(t *testing.T, path string) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("nobody is at the path any more: %v", err)
	}
	c.Close()
}

// To see it fail: close the socket before the removal.
func TestCloseNeverRemovesTheSocketOfASuccessor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	open := func() (*tcpio.Listener, error) {
		return tcpio.Listen(&tcpio.ListenerOptions{Network: "unix", Addr: path})
	}
	l, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { l.Close() }()
	for range 1500 {
		bound := make(chan error, 1)
		var next *tcpio.Listener
		go func() {
			for {
				// As soon as nobody answers: a file that was left behind is in the way, and goes.
				c, err := net.Dial("unix", path)
				switch {
				case err == nil:
					c.Close()
					continue
				case errors.Is(err, syscall.ECONNREFUSED):
					_ = os.Remove(path)
				}
				if next, err = open(); !errors.Is(err, syscall.EADDRINUSE) {
					bound <- err
					return
				}
			}
		}()
		l.Close()
		if err := testnet.Await(t, "the successor", bound); err != nil {
			t.Fatal(err)
		}
		l = next
		reaches(t, path)
	}
}

// A successor need not wait: it may put its own socket in our place while we serve. Ours then is anywhere but there.
func TestCloseLeavesAloneWhatHasTakenItsPath(t *testing.T) {
	takeOver := map[string]func(t *testing.T, path string){
		"remove and bind": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			testnet.Upstream(t, "unix", path)
		},
		"remove, bind, many times": func(t *testing.T, path string) { // an inode may be used again
			for range 50 {
				ln, err := net.Listen("unix", path)
				if err == nil {
					ln.(*net.UnixListener).SetUnlinkOnClose(false)
					ln.Close()
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
			testnet.Upstream(t, "unix", path)
		},
		"rename": func(t *testing.T, path string) {
			testnet.Upstream(t, "unix", path+".new")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, take := range takeOver {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l := harness.Listen(t, tcpio.ListenerOptions{Network: "unix", Addr: path})
			take(t, path)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			reaches(t, path)
		})
	}
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l := harness.Listen(t, tcpio.ListenerOptions{Network: "unix", Addr: path})
		if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("mine"), 0o600)); err != nil {
			t.Fatal(err)
		}
		l.Close()
		if b, err := os.ReadFile(path); string(b) != "mine" {
			t.Errorf("the file: %q, %v", b, err)
		}
	})
	t.Run("nothing has", func(t *testing.T) {
		dir := t.TempDir()
		l := harness.Listen(t, tcpio.ListenerOptions{Network: "unix", Addr: filepath.Join(dir, "s")})
		l.Close()
		if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

// To see it fail: unlink at once what was seen to be ours.
func TestASuccessorMayRenameItsSocketIntoPlaceDuringClose(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	for range 1000 {
		l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "unix", Addr: path})
		if err != nil {
			t.Fatal(err)
		}
		next, err := net.Listen("unix", path+".new")
		if err != nil {
			t.Fatal(err)
		}
		renamed := make(chan error, 1)
		go func() { renamed <- os.Rename(path+".new", path) }()
		l.Close()
		if err := testnet.Await(t, "the rename", renamed); err != nil {
			t.Fatal(err)
		}
		reaches(t, path)
		next.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
