//go:build linux

package hazards

import (
	"bytes"
	"net"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestPausedConnectionIsResumedWithoutNewData(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	other, otherPeer := harness.Open(t, l, events)
	want := testnet.Pattern(5000)
	testnet.Send(t, peer, want[:100])
	harness.Expect[tcpio.Readable](t, events) // and now it is paused
	testnet.Send(t, peer, want[100:])         // an edge that nobody acts upon
	testnet.Send(t, otherPeer, "x")           // the loop has seen it by now
	if ev := harness.Expect[tcpio.Readable](t, events); ev.Conn != other {
		t.Fatal("Readable while paused")
	}
	buf := make([]byte, 60)
	n, err := c.TryRead(buf) // resumed: the rest must come without another byte from the peer
	if n != 60 || err != nil {
		t.Fatalf("TryRead = %d, %v", n, err)
	}
	got := slices.Clone(buf)
	rest, err := harness.ReadStream(t, events, c, len(want)-60, 4000)
	if got = append(got, rest...); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d of %d bytes, %v", len(got), len(want), err)
	}
}

func TestUrgentDataDoesNotStallTheStream(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	raw := func(f func(fd int) error) {
		t.Helper()
		rc, err := peer.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var ferr error
		if err := rc.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil || ferr != nil {
			t.Fatal(err, ferr)
		}
	}
	urgent := func(p string) {
		t.Helper()
		raw(func(fd int) error { return unix.Sendto(fd, []byte(p), unix.MSG_OOB, nil) })
	}
	// A read stops at the mark: what looks like a short read is none.
	var want []byte
	for i := range 20 {
		block := testnet.Pattern(100 + i)
		testnet.Send(t, peer, block)
		urgent("!")
		want = append(want, block...)
	}
	testnet.Send(t, peer, "the end")
	want = append(want, "the end"...)
	var got []byte
	buf := make([]byte, 4096)
	for len(got) < len(want) {
		harness.Expect[tcpio.Readable](t, events)
		n, err := c.TryRead(buf)
		if err != nil && err != tcpio.ErrWouldBlock {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
		// An urgent byte that the next one overtook becomes part of the stream, as tcp(7) has it.
		got = bytes.ReplaceAll(got, []byte("!"), nil)
		if len(got) >= len(bytes.ReplaceAll(want, []byte("!"), nil)) {
			break
		}
	}
	if want = bytes.ReplaceAll(want, []byte("!"), nil); !bytes.Equal(got, want) {
		t.Fatalf("read %d of %d bytes, they differ at %d", len(got), len(want), testnet.FirstDifference(got, want))
	}
	// Urgent data alone, and then a plain byte.
	urgent("?")
	testnet.Send(t, peer, "x")
	for {
		harness.Expect[tcpio.Readable](t, events)
		if n, _ := c.TryRead(buf); bytes.Contains(buf[:n], []byte("x")) {
			return
		}
	}
}

func TestPassedDescriptorsDoNotStallTheStream(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Network: "unix", Addr: filepath.Join(t.TempDir(), "s")})
	c, peer := harness.Open(t, l, events)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	rights := unix.UnixRights(pipe[1])
	var want []byte
	for i := range 20 { // a read of a unix stream stops at each
		block := testnet.Pattern(50 + i)
		if _, _, err := peer.(*net.UnixConn).WriteMsgUnix(block, rights, nil); err != nil {
			t.Fatal(err)
		}
		want = append(want, block...)
		testnet.Send(t, peer, block)
		want = append(want, block...)
	}
	unix.Close(pipe[1])
	got, err := harness.ReadStream(t, events, c, len(want), 64<<10)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d of %d bytes, %v; they differ at %d", len(got), len(want), err, testnet.FirstDifference(got, want))
	}
	// Nobody took the descriptors, so nobody holds them: the pipe has no writer any more.
	n, err := unix.Read(pipe[0], make([]byte, 1))
	if n != 0 || err != nil {
		t.Errorf("read of the pipe = %d, %v, want its end", n, err)
	}
}
