//go:build linux

package sys

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// limited reports whether SO_RCVTIMEO and SO_SNDTIMEO are set on fd.
func limited(t *testing.T, fd int32) bool {
	t.Helper()
	in, err := unix.GetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_RCVTIMEO)
	out, err2 := unix.GetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_SNDTIMEO)
	if err != nil || err2 != nil || (in.Nano() == 0) != (out.Nano() == 0) {
		t.Fatal(in, err, out, err2)
	}
	return in.Nano() != 0
}

func closesOnExec(t *testing.T, fd int32) bool {
	t.Helper()
	v, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	return v&unix.FD_CLOEXEC != 0
}

// To see it fail: leave out the setCallLimits of Disown or GiveAway.
func TestAConnectionMovesThereAndBack(t *testing.T) {
	nc, peer := testnet.TCPPair(t)
	fd, addr, err := Take(nc)
	if err != nil {
		t.Fatal(err)
	}
	if addr.AddrPort("") != peer.LocalAddr().(*net.TCPAddr).AddrPort() || !addr.IsIP {
		t.Errorf("the peer is %v, want %v", addr.AddrPort(""), peer.LocalAddr())
	}
	if !closesOnExec(t, fd) || !nonblocking(fd) || !limited(t, fd) {
		t.Error("the duplicate is not CLOEXEC, non-blocking and limited")
	}
	Disown(nc)
	if limited(t, fd) {
		t.Error("calls are limited after Disown")
	}
	if err := LimitCalls(fd); err != nil {
		t.Fatal(err)
	}
	nc.Close()
	again, err := GiveAway(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if limited(t, fd) {
		t.Error("calls are limited after GiveAway")
	}
	CloseFD(fd) // no end, and no reset
	testnet.Send(t, again, "still open")
	testnet.ExpectBytes(t, peer, "still open")
	if _, _, err := Take(nc); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Take of a closed connection: %v", err)
	}
}

func TestOnlyATCPSocketIsGivenAway(t *testing.T) {
	a, _ := pair(t)
	if _, err := GiveAway(a); err == nil {
		t.Error("a unix socket became a *net.TCPConn")
	}
	if _, err := DupListener(a); err == nil {
		t.Error("a unix socket became a *net.TCPListener")
	}
}

func TestAConnectionThatWasResetKeepsItsKind(t *testing.T) {
	nc, peer := testnet.TCPPair(t)
	testnet.RST(t, peer)
	if _, err := nc.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Fatal(err)
	}
	fd, addr, err := Take(nc)
	if err != nil {
		t.Fatal(err)
	}
	defer Close(fd, false)
	if !addr.IsIP || addr.Named() || !Disconnected(fd) {
		t.Errorf("IsIP %v, Named %v, Disconnected %v", addr.IsIP, addr.Named(), Disconnected(fd))
	}
}

func TestAListenerMovesAndKeepsItsPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := TakeListener(ln)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseFD(fd)
	if _, ok := FileAt(path); !ok {
		t.Error("the path is gone")
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener still accepts: %v", err)
	}
	if _, _, errno := Accepter(fd)(fd); errno != unix.EAGAIN {
		t.Errorf("an empty backlog: %v, want EAGAIN", errno)
	}
	f, err := DupFile(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if dup := int32(f.Fd()); !nonblocking(dup) || !closesOnExec(t, dup) {
		t.Error("the file's descriptor is not CLOEXEC and non-blocking")
	}
	peer, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	conn, addr, errno := Accept(fd)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer Close(conn, false)
	if addr.IsIP || addr.Named() || !closesOnExec(t, conn) || !nonblocking(conn) {
		t.Errorf("an accepted unix socket: %+v", addr)
	}
	remote, local := addr.Names(conn, Zone{})
	if remote.String() != "@" || local != nil || LocalAddr(conn, Zone{}).String() != path {
		t.Errorf("its addresses: %v, %v, %v", remote, local, LocalAddr(conn, Zone{}))
	}
}

func TestOptionsAreSetAndLeftAlone(t *testing.T) {
	names := []string{"NODELAY", "KEEPALIVE", "IDLE", "INTERVAL", "COUNT", "USER_TIMEOUT"}
	get := func(fd int32) (v [6]int) {
		t.Helper()
		for i, o := range [6][2]int{{unix.IPPROTO_TCP, unix.TCP_NODELAY}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT}, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}} {
			var err error
			if v[i], err = unix.GetsockoptInt(int(fd), o[0], o[1]); err != nil {
				t.Fatal(names[i], os.NewSyscallError("getsockopt", err))
			}
		}
		return v
	}
	socket := func() int32 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return int32(fd)
	}
	fresh := get(socket())
	on := net.KeepAliveConfig{Enable: true}
	for _, tt := range []struct {
		name string
		tune func(fd int32) error
		want [6]int
	}{
		{"defaults", func(fd int32) error { return TuneListener(fd, on, 0) }, [6]int{1, 1, 15, 15, 9, 0}},
		{"off", func(fd int32) error { return TuneListener(fd, net.KeepAliveConfig{}, 0) },
			[6]int{1, 0, fresh[2], fresh[3], fresh[4], 0}},
		{"rounded up", func(fd int32) error {
			ka := net.KeepAliveConfig{Enable: true, Idle: 1500 * time.Millisecond, Interval: 1, Count: 3}
			return TuneListener(fd, ka, 1500*time.Microsecond)
		}, [6]int{1, 1, 2, 1, 3, 2}},
		{"negative", func(fd int32) error {
			return TuneListener(fd, net.KeepAliveConfig{Enable: true, Idle: -1, Interval: -1, Count: -1}, 0)
		}, [6]int{1, 1, fresh[2], fresh[3], fresh[4], 0}},
		{"dialed", func(fd int32) error { return TuneDialed(fd, true, false, on, time.Second) },
			[6]int{1, 1, 15, 15, 9, 1000}},
		{"dialed with its own", func(fd int32) error {
			return errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 7),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77),
				TuneDialed(fd, false, false, on, time.Second))
		}, [6]int{1, 0, 77, fresh[3], fresh[4], 7}},
	} {
		fd := socket()
		if err := tt.tune(fd); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		} else if got := get(fd); got != tt.want {
			t.Errorf("%s: %v is %v, want %v", tt.name, names, got, tt.want)
		}
	}
	a, _ := pair(t)
	if err := TuneListener(a, on, 0); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("a unix socket has no TCP_NODELAY: %v", err)
	}
	if err := TuneDialed(a, false, true, on, 0); err != nil {
		t.Errorf("a socket that may lack options: %v", err)
	}
}
