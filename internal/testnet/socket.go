//go:build linux

package testnet

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Control runs f on c's descriptor.
func Control(t testing.TB, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ferr error
	if err := rc.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if ferr != nil {
		t.Fatal(ferr)
	}
}

// Sockopt reads an integer option of c's socket.
func Sockopt(t testing.TB, c syscall.Conn, level, opt int) (v int) {
	t.Helper()
	Control(t, c, func(fd int) (err error) {
		v, err = unix.GetsockoptInt(fd, level, opt)
		return err
	})
	return v
}

// ShrinkSendBuffer makes c's socket take little, so that output is queued soon.
func ShrinkSendBuffer(t testing.TB, c syscall.Conn) {
	t.Helper()
	Control(t, c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<10)
	})
}

// Duplicate is another descriptor of the same open file, until the test ends.
func Duplicate(t testing.TB, fd int) int {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(dup) })
	return dup
}
