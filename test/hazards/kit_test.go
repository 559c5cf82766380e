//go:build linux

package hazards

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// otherHolder is a duplicate of l's listening socket, as a successor has it.
func otherHolder(t testing.TB, l *tcpio.Listener) int {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return testnet.Duplicate(t, int(f.Fd()))
}

func setNonblock(t testing.TB, fd int, on bool) {
	t.Helper()
	if err := unix.SetNonblock(fd, on); err != nil {
		t.Fatal(err)
	}
}

// collects fails the test if the collector cannot run, because a goroutine is in a raw call that
// blocks.
func collects(t testing.TB) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		runtime.GC()
		close(done)
	}()
	testnet.Await(t, "a garbage collection", done)
}
