//go:build linux

package contract

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// splitThrees cuts frames of three bytes.
func splitThrees(data []byte, _ bool) (int, []byte, error) {
	if len(data) < 3 {
		return 0, nil, nil
	}
	return 3, data[:3], nil
}

// FuzzFrames sends data in arbitrary pieces over a real connection: the frames are those of
// bufio.Scanner, however often the iteration is left and taken up again.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("one\ntwo\r\n\nthree"), []byte{1, 0, 7}, byte(0), byte(0))
	f.Add([]byte("one\nlast"), []byte{}, byte(0), byte(1))
	f.Add([]byte("one\ntwo\nlast"), []byte{}, byte(0), byte(1))
	f.Add([]byte("  some words\tand   more "), []byte{0}, byte(1), byte(1))
	f.Add([]byte("gr\xc3\xbc\xc3\x9fe \xe2\x82\xac \xff\xc3"), []byte{0, 0}, byte(2), byte(3))
	f.Add([]byte("\x03abc\x00\x00\x05hello\x09cut"), []byte{2}, byte(3), byte(2))
	f.Add([]byte("abcdefgh"), []byte{}, byte(4), byte(1))
	f.Add(bytes.Repeat([]byte("line after line\n"), 1500), []byte{255, 3, 120}, byte(0), byte(9))
	splits := []bufio.SplitFunc{bufio.ScanLines, bufio.ScanWords, bufio.ScanRunes, testnet.SplitPrefixed, splitThrees}
	l, events := harness.Manual(f, tcpio.ListenerOptions{})
	f.Fuzz(func(t *testing.T, data, cuts []byte, kind, stop byte) {
		if len(data) > 32<<10 {
			t.Skip()
		}
		split := splits[int(kind)%len(splits)]
		want, rest := testnet.Scanned(data, split)
		peer := testnet.Connect(t, l)
		defer peer.Close()
		c := harness.Expect[tcpio.Opened](t, events).Conn
		defer endConn(t, c, events)
		sent := make(chan error, 1)
		go func() { sent <- sendInPieces(peer, data, cuts) }()
		var got [][]byte
		end := error(nil)
		for end == nil {
			harness.Expect[tcpio.Readable](t, events)
			n := 0
			for frame, err := range c.Frames(split) {
				if end = err; err != nil {
					break
				}
				got = append(got, slices.Clone(frame))
				if n++; n == int(stop) {
					break
				}
			}
		}
		if err := testnet.Receive(t, "everything is sent", sent); err != nil {
			t.Fatal(err)
		}
		wantEnd := io.EOF
		if rest {
			wantEnd = io.ErrUnexpectedEOF
		}
		if end != wantEnd {
			t.Errorf("the end is %v, want %v", end, wantEnd)
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("frames %q, want %q", got, want)
		}
	})
}

func sendInPieces(peer net.Conn, data, cuts []byte) error {
	for i := 0; len(data) > 0; i++ {
		n := len(data)
		if len(cuts) > 0 {
			n = min(n, 1+8*int(cuts[i%len(cuts)]))
		}
		if _, err := peer.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return peer.(*net.TCPConn).CloseWrite()
}

// endConn closes c and receives its events to the last.
func endConn(t testnet.T, c *tcpio.Conn, events <-chan tcpio.Event) {
	t.Helper()
	c.Abort()
	for {
		if e, ok := testnet.Receive(t, "Closed", events).(tcpio.Closed); ok && e.Conn == c {
			return
		}
	}
}

// Iterations that are left, and reads between them, lose and double nothing.
func TestFramesAndReadsTogetherLoseNothing(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{MaxFrame: 1 << 20})
	rapid.Check(t, func(t *rapid.T) {
		var data []byte
		for _, n := range rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 5, 80, 3000, 5000, 70000}), 0, 25).Draw(t, "lines") {
			line := testnet.Pattern(len(data) + n)[len(data):]
			for i := range line {
				line[i] |= 0x10 // no line end
			}
			data = append(append(data, line...), '\n')
		}
		data = append(data, bytes.Repeat([]byte("x"), rapid.IntRange(0, 3).Draw(t, "rest"))...)
		cuts := rapid.SliceOfN(rapid.Byte(), 1, 5).Draw(t, "cuts")
		// Each step is a read of so many bytes or, if negative, an iteration left after so many
		// frames.
		steps := rapid.SliceOfN(rapid.SampledFrom([]int{1, 2, 7, 4096, 100000, -1, -2, -5, -1000}), 1, 10).Draw(t, "steps")

		peer := testnet.Connect(t, l)
		defer peer.Close()
		c := harness.Expect[tcpio.Opened](t, events).Conn
		defer endConn(t, c, events)
		sent := make(chan error, 1)
		go func() { sent <- sendInPieces(peer, data, cuts) }()
		var got []byte
		buf := make([]byte, 100000)
		for i, over := 0, false; !over; i++ {
			harness.Expect[tcpio.Readable](t, events)
			step := steps[i%len(steps)]
			if step > 0 {
				n, err := c.TryRead(buf[:step])
				got = append(got, buf[:n]...)
				if err != nil && err != tcpio.ErrWouldBlock && err != io.EOF {
					t.Fatalf("TryRead: %v", err)
				}
				over = err == io.EOF
				continue
			}
			left := -step
			for frame, err := range c.Frames(testnet.SplitRawLines) {
				if err != nil {
					if err != io.EOF && err != io.ErrUnexpectedEOF {
						t.Fatalf("Frames: %v", err)
					}
					over = true
					break
				}
				got = append(got, frame...)
				if left--; left == 0 {
					break
				}
			}
		}
		for { // what is behind the last line end
			n, err := c.TryRead(buf)
			got = append(got, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("TryRead at the end: %v", err)
			}
		}
		if err := testnet.Receive(t, "everything is sent", sent); err != nil {
			t.Fatalf("send: %v", err)
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("%d bytes of %d, the same up to %d", len(got), len(data), testnet.FirstDifference(got, data))
		}
	})
}
