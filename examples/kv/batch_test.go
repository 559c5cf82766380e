//go:build linux

package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The replies to a pipeline that arrives at once are one write, and so one segment. A batch ends
// early where the machine stands still within it; it does not each time. Of several writes the
// first is a segment of its own. To see it fail: write in call.
func TestRepliesOfABatchAreOneWrite(t *testing.T) {
	addr := start(t)
	eventually(t, "one segment has all replies", func() bool {
		const n = 200
		p := dial(t, addr)
		defer p.Close()
		p.send(bytes.Repeat([]byte("PING\r\n"), n))
		want := strings.Repeat("+PONG\r\n", n)
		got := make([]byte, len(want))
		if m, err := io.ReadFull(p.r, got); err != nil || string(got) != want {
			t.Fatalf("%d of %d bytes, %v", m, len(want), err)
		}
		return p.segments() == 1
	})
}

// segments is how many with data have come.
func (p *peer) segments() (n uint32) {
	p.t.Helper()
	raw, err := p.SyscallConn()
	if err != nil {
		p.t.Fatal(err)
	}
	cerr := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Data_segs_in
		}
	})
	if cerr != nil || err != nil {
		p.t.Fatal(cerr, err)
	}
	return n
}
