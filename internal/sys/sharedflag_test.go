//go:build linux

package sys

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

// pair returns a connected pair of unix sockets.
func pair(t testing.TB) (a, b int32) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	return int32(fds[0]), int32(fds[1])
}

// The accept that has lost its connection to another process, with O_NONBLOCK off. To see it fail:
// leave out LimitCalls of take, or the timer of acceptInterruptibly.
func TestAnAcceptThatFindsNothingEndsWhateverTheFlagSays(t *testing.T) {
	for name, tc := range map[string]struct {
		network   string
		multipath bool
		accept    AcceptFunc
	}{
		"tcp":       {"tcp", false, accept4},
		"unix":      {"unix", false, accept4},
		"multipath": {"tcp", true, acceptInterruptibly},
	} {
		t.Run(name, func(t *testing.T) {
			var lc net.ListenConfig
			lc.SetMultipathTCP(tc.multipath)
			addr := "127.0.0.1:0"
			if tc.network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			ln, err := lc.Listen(t.Context(), tc.network, addr)
			if err != nil {
				t.Fatal(err)
			}
			fd, err := TakeListener(ln)
			if err != nil {
				t.Fatal(err)
			}
			defer CloseFD(fd)
			for range 10 {
				if err := unix.SetNonblock(int(fd), false); err != nil {
					t.Fatal(err)
				}
				done := make(chan syscall.Errno, 1)
				go func() {
					for {
						_, _, errno := tc.accept(fd)
						if errno != unix.EINTR {
							done <- errno
							return
						}
					}
				}()
				if errno := testnet.Receive(t, "the end of accept", done); errno != unix.EAGAIN {
					t.Fatalf("accept: %v, want EAGAIN", errno)
				}
			}
		})
	}
}

// The calls on an empty, or a full, socket in blocking mode. To see it fail: leave out a
// MSG_DONTWAIT, or LimitCalls.
func TestNoCallBlocksWhateverTheFlagSays(t *testing.T) {
	a, b := pair(t)
	if nonblocking(a) {
		t.Fatal("the socket is non-blocking")
	}
	pipe, err := NewPipe(64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	p := make([]byte, 4<<10)
	full := func(send func() (int, syscall.Errno)) func() syscall.Errno {
		return func() syscall.Errno {
			for {
				if _, errno := send(); errno != 0 {
					return errno
				}
			}
		}
	}
	for _, call := range []struct {
		name string
		f    func() syscall.Errno
	}{
		{"Recv", func() syscall.Errno { _, errno := Recv(a, p); return errno }},
		{"Peek", func() syscall.Errno { _, errno := Peek(a, p); return errno }},
		{"Send", full(func() (int, syscall.Errno) { return Send(a, p) })},
		{"Sendv", full(func() (int, syscall.Errno) {
			var v Vec
			v.Add(p)
			v.Add(p)
			return Sendv(a, &v)
		})},
		{"LimitCalls", func() syscall.Errno { _ = LimitCalls(a); return unix.EAGAIN }}, // the others need none
		{"SpliceFrom", func() syscall.Errno { _, errno := pipe.SpliceFrom(a, len(p)); return errno }},
		{"SpliceTo", full(func() (int, syscall.Errno) {
			if n, _ := unix.Write(int(pipe.to), p); n < 0 {
				return 0, unix.EIO
			}
			return pipe.SpliceTo(a, len(p))
		})},
	} {
		done := make(chan syscall.Errno, 1)
		go func() { done <- call.f() }()
		if errno := testnet.Receive(t, call.name, done); errno != unix.EAGAIN {
			t.Errorf("%s: %v, want EAGAIN", call.name, errno)
		}
	}
	if Unread(b) == 0 {
		t.Error("nothing was sent")
	}
}
