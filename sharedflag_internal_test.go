//go:build linux

package tcpio

import (
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The call that has lost its connection to somebody else, with O_NONBLOCK off. To see it fail: leave out limitCalls of
// takeListener, or the timer of acceptInterruptibly.
func TestAnAcceptThatFindsNothingEndsWhateverTheFlagSays(t *testing.T) {
	for name, tc := range map[string]struct {
		network   string
		multipath bool
		accept    func(int) (int, sockaddr, syscall.Errno)
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
			fd, err := takeListener(ln)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			for range 10 {
				if err := unix.SetNonblock(fd, false); err != nil {
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
				if errno := receive(t, "the end of accept", done); errno != unix.EAGAIN {
					t.Fatalf("accept: %v, want EAGAIN", errno)
				}
			}
		})
	}
}

func TestAConnectionThatIsNotAdoptedIsLeftAsItWas(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{})
	r.Events()
	r.serve()
	r.dial() // Serve is running
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
	defer nc.Close()
	if err := nc.(*net.TCPConn).SetLinger(7); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "Serve is running", func() bool { return r.mayAdd() == nil })
	f.set(func() { f.refuse = syscall.ENOSPC })
	if _, err := r.Adopt(nc); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Adopt: %v", err)
	}
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for name, opt := range map[string]int{"SO_RCVTIMEO": unix.SO_RCVTIMEO, "SO_SNDTIMEO": unix.SO_SNDTIMEO} {
			if tv, err := unix.GetsockoptTimeval(int(fd), unix.SOL_SOCKET, opt); err != nil || *tv != (unix.Timeval{}) {
				t.Errorf("%s is %v, %v", name, tv, err)
			}
		}
		if v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_LINGER); err != nil || v == 0 {
			t.Errorf("SO_LINGER is %d, %v", v, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	nc.(*net.TCPConn).SetLinger(0)
}
