//go:build linux

package tcpio

import (
	"bufio"
	"bytes"
	"errors"
	"runtime/debug"
	"testing"

	"github.com/rabbit-backend/tcpio/internal/sys"
	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// hasMore waits until an iteration of Frames over c would find more.
func hasMore(t *testing.T, c *Conn) {
	t.Helper()
	waitFor(t, "more input", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.fd < 0 || sys.Unread(c.fd) > 0 && (c.announced() || !c.ext.frames.drained)
	})
}

// A split function that skips what it reads, as bufio.ScanWords does with blanks, keeps its consumer no longer than one that
// returns frames.
func TestAnIterationOfFramesEndsWhileAllIsSkipped(t *testing.T) {
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	go func() {
		blanks := bytes.Repeat([]byte{' '}, 1<<20)
		for {
			if _, err := peer.Write(blanks); err != nil {
				return
			}
		}
	}()
	receiveAs[Readable](t, events)
	seen, over := 0, errors.New("the iteration goes on")
	for word, err := range c.Frames(func(data []byte, atEOF bool) (int, []byte, error) {
		if seen += len(data); seen > 4*frameBytesMost {
			return 0, nil, over
		}
		hasMore(t, c)
		return bufio.ScanWords(data, atEOF)
	}) {
		t.Errorf("%q, %v", word, err)
	}
	c.Abort()
}

// One read takes 1 MiB at most also of what Frames has buffered, and a Readable announces the rest.
func TestAReadTakesABoundedPartOfAPartialFrame(t *testing.T) {
	const size = 3*recvMax + 7
	r := listen(t, ListenerOptions{MaxFrame: 2 * size})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	sent := bytes.Repeat([]byte("partial "), size/8+1)[:size]
	go func() { _, _ = peer.Write(sent) }()
	buffered := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.ext.frames.Len()
	}
	for had := 0; had < size; had = buffered() {
		receiveAs[Readable](t, events)
		for frame, err := range c.Frames(testnet.SplitRawLines) {
			t.Fatalf("%q, %v", frame, err)
		}
	}
	var got []byte
	buf := make([]byte, 2*size)
	for len(got) < size {
		n, err := c.TryRead(buf)
		if err != nil || n > recvMax {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if got = append(got, buf[:n]...); len(got) < size {
			receiveAs[Readable](t, events)
		}
	}
	if !bytes.Equal(got, sent) {
		t.Error("other bytes than were sent")
	}
	c.Abort()
}

// The copy that the members of a group share is made while no member is locked. Here it is seen to be made, by memory that
// cannot be read.
func TestALargeWriteToAGroupIsCopiedUnderNoLock(t *testing.T) {
	r := listen(t, ListenerOptions{})
	r.Events()
	r.serve()
	_, c := r.open()
	var g Group
	g.Join(c)
	p, err := unix.Mmap(-1, 0, 4*holdMax, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(p) }()
	if err := unix.Mprotect(p[2*holdMax:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	func() {
		defer func() {
			if recover() == nil {
				t.Error("nothing was copied")
			}
		}()
		_, _ = g.Write(p)
	}()
	if !c.mu.TryLock() {
		t.Error("a member is locked")
	}
	c.mu.Unlock()
	c.Abort()
}
