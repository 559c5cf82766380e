//go:build linux

package contract

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestSyscallConnReadsAndWrites(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n := 0
	read := make(chan error, 1)
	waiting := make(chan struct{}, 100)
	go func() {
		read <- rc.Read(func(fd uintptr) bool {
			var err error
			if n, err = unix.Read(int(fd), buf); err == unix.EAGAIN {
				waiting <- struct{}{}
				return false
			}
			return true
		})
	}()
	testnet.Await(t, "the attempt that finds nothing", waiting)
	testnet.Send(t, peer, "raw")
	if err := testnet.Await(t, "the raw read", read); err != nil || string(buf[:n]) != "raw" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	// What the raw read left is announced; a stale Readable costs one ErrWouldBlock.
	ev := harness.Expect[tcpio.Readable](t, events)
	if n, err := ev.Conn.TryRead(buf); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryRead = %d, %v", n, err)
	}

	// A raw write into a full socket waits until the peer has read.
	p := make([]byte, 64<<10)
	total := 0
	written := make(chan error, 1)
	full := make(chan struct{}, 1)
	go func() {
		blocked := false
		written <- rc.Write(func(fd uintptr) bool {
			for {
				n, err := unix.Write(int(fd), p)
				if err == unix.EAGAIN {
					if !blocked {
						blocked = true
						full <- struct{}{}
					}
					return false
				}
				total += n
				if blocked {
					return true
				}
			}
		})
	}()
	testnet.Await(t, "the full socket", full)
	done := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, peer)
		done <- n
	}()
	if err := testnet.Await(t, "the raw write", written); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if n := testnet.Await(t, "the end at the peer", done); n != int64(total) {
		t.Errorf("the peer got %d bytes, %d were written", n, total)
	}
}

func TestRawReadEndsWithTheConnection(t *testing.T) {
	for name, end := range map[string]func(c *tcpio.Conn){
		"Close": func(c *tcpio.Conn) { c.Close() },
		"Abort": func(c *tcpio.Conn) { c.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			l, events := harness.Manual(t, tcpio.ListenerOptions{})
			c, _ := harness.Open(t, l, events)
			rc, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			read := make(chan error, 1)
			waiting := make(chan struct{}, 100)
			go func() {
				read <- rc.Read(func(uintptr) bool { waiting <- struct{}{}; return false })
			}()
			testnet.Await(t, "an attempt", waiting)
			end(c)
			if err := testnet.Await(t, "the end of the raw read", read); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read: %v, want net.ErrClosed", err)
			}
		})
	}
}

func TestDescriptorLivesAsLongAsAControlCall(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	inode := func(fd uintptr) uint64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(fd), &st); err != nil {
			t.Errorf("fstat inside Control: %v", err)
		}
		return st.Ino
	}
	if err := rc.Control(func(fd uintptr) {
		before := inode(fd)
		c.Abort()
		harness.Open(t, l, events) // would take the number, were it free
		if inode(fd) != before {
			t.Error("the descriptor went while Control was using it")
		}
	}); err != nil {
		t.Fatal(err)
	}
	harness.Expect[tcpio.Closed](t, events)
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer read: %v, want a reset", err)
	}
}

// A Readable answered by a raw read is answered.
func TestRawReadsDoNotSpin(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	read := func() (n int) {
		harness.Expect[tcpio.Readable](t, events)
		err := rc.Read(func(fd uintptr) bool { n, _ = unix.Read(int(fd), make([]byte, 2)); return true })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range 3 {
		testnet.Send(t, peer, "abc")
		if a, b := read(), read(); a+b != 3 {
			t.Fatalf("%d and %d bytes", a, b)
		}
		harness.ExpectSilence(t, events, 10*time.Millisecond)
	}
}

func TestRawReadHonoursTheDeadline(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{})
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := raw.Read(func(uintptr) bool { return false }); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a raw read with nothing there: %v", err)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	testnet.Send(t, peer, "x")
	var p [8]byte
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		m, err := unix.Read(int(fd), p[:])
		n = m
		return err != unix.EAGAIN
	})
	if n != 1 || err != nil {
		t.Fatalf("a raw read = %d, %v", n, err)
	}
}
