//go:build linux

package tcpio

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

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
