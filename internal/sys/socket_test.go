//go:build linux

package sys

import (
	"bytes"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestBytesArriveInOrderAndPeekLeavesThem(t *testing.T) {
	a, b := pair(t)
	if n, errno := Send(a, []byte("one ")); n != 4 || errno != 0 {
		t.Fatal(n, errno)
	}
	var v Vec
	for range VecMax + 1 {
		if !v.Add(nil) {
			t.Fatal("an empty segment takes a place")
		}
	}
	for i := range VecMax {
		if !v.Add([]byte{byte('a' + i%26)}) {
			t.Fatalf("no place for segment %d", i)
		}
	}
	if v.Add([]byte("x")) {
		t.Fatal("a full Vec took another segment")
	}
	if n, errno := Sendv(a, &v); n != VecMax || errno != 0 {
		t.Fatal(n, errno)
	}
	if n := Unread(b); n != 4+VecMax {
		t.Errorf("%d bytes to read, want %d", n, 4+VecMax)
	}
	p, q := make([]byte, 100), make([]byte, 100)
	n, errno := Peek(b, p)
	m, errno2 := Recv(b, q)
	if errno != 0 || errno2 != 0 || n != 4+VecMax || !bytes.Equal(p[:n], q[:m]) || string(p[:6]) != "one ab" {
		t.Errorf("%q (%v), then %q (%v)", p[:n], errno, q[:m], errno2)
	}
	if HungUp(b) {
		t.Error("hung up before the end")
	}
	if err := ShutdownWrite(a); err != nil {
		t.Fatal(err)
	}
	if n, errno := Recv(b, p); n != 0 || errno != 0 || !HungUp(b) || HasError(b) || TakeError(b) != 0 {
		t.Errorf("after the end: %d, %v", n, errno)
	}
}

// To see it fail: let p, or v, or Local's address, escape.
func TestHotCallsDoNotAllocate(t *testing.T) {
	a, b := pair(t)
	p := make([]byte, 64)
	if n := testing.AllocsPerRun(100, func() {
		var v Vec
		v.Add(p[:32])
		v.Add(p[32:])
		_, e1 := Send(a, p)
		_, e2 := Sendv(a, &v)
		_, e3 := Peek(b, p)
		_, e4 := Recv(b, p)
		_, e5 := Recv(b, p)
		if e1|e2|e3|e4|e5 != 0 {
			t.Fatal(e1, e2, e3, e4, e5)
		}
		if local := Local(a); local.IsIP {
			t.Fatal("a unix socket with an IP address")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// To see it fail: leave out the sigmask, or the RT_SIGTIMEDWAIT, of SpliceTo.
func TestWritingToAClosedPeerSendsNoSignal(t *testing.T) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGPIPE, syscall.SIGWINCH)
	defer signal.Stop(signals)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a := int32(fds[0])
	defer CloseFD(a)
	Close(int32(fds[1]), false)
	pipe, err := NewPipe(4 << 10)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if _, err := unix.Write(int(pipe.to), []byte("x")); err != nil {
		t.Fatal(err)
	}
	var v Vec
	v.Add([]byte("x"))
	_, e1 := Send(a, []byte("x"))
	_, e2 := Sendv(a, &v)
	_, e3 := pipe.SpliceTo(a, 1)
	if e1 != unix.EPIPE || e2 != unix.EPIPE || e3 != unix.EPIPE {
		t.Errorf("%v, %v, %v, want EPIPE", e1, e2, e3)
	}
	if Unspliceable(e3) || !Unspliceable(unix.EINVAL) {
		t.Error("EPIPE is the connection's, EINVAL is splice's")
	}
	// The runtime delivers signals in the order of their numbers, and SIGWINCH is the higher one.
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	if s := testnet.Receive(t, "a signal", signals); s != syscall.SIGWINCH {
		t.Errorf("got %v", s)
	}
}

func TestRemoveFileLeavesTheFileOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	write := func() FileID {
		t.Helper()
		if err := os.WriteFile(path+".new", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		id, ok := FileAt(path)
		if !ok {
			t.Fatal("no file")
		}
		return id
	}
	first := write()
	second := write() // made while the first existed: another inode
	RemoveFile(path, first)
	if id, ok := FileAt(path); !ok || id != second {
		t.Error("the file of another is gone")
	}
	RemoveFile(path, second)
	if _, ok := FileAt(path); ok {
		t.Error("the file is still there")
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
