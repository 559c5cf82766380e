//go:build linux

package tcpio

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// splitPrefixed cuts frames of a length byte and that many bytes.
func splitPrefixed(data []byte, _ bool) (int, []byte, error) {
	if len(data) == 0 || len(data) < 1+int(data[0]) {
		return 0, nil, nil
	}
	n := 1 + int(data[0])
	return n, data[1:n], nil
}

// splitThrees cuts frames of three bytes.
func splitThrees(data []byte, _ bool) (int, []byte, error) {
	if len(data) < 3 {
		return 0, nil, nil
	}
	return 3, data[:3], nil
}

// splitRawLines cuts lines and leaves their ends on.
func splitRawLines(data []byte, _ bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i+1], nil
	}
	return 0, nil, nil
}

// scanned is what bufio.Scanner makes of all of data, and whether it leaves bytes that are no frame.
func scanned(data []byte, split bufio.SplitFunc) (frames [][]byte, rest bool) {
	used := 0
	s := bufio.NewScanner(bytes.NewReader(data))
	s.Buffer(nil, 1<<20)
	s.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		advance, token, err := split(data, atEOF)
		used += advance
		return advance, token, err
	})
	for s.Scan() {
		frames = append(frames, slices.Clone(s.Bytes()))
	}
	return frames, used < len(data)
}

// FuzzFrames sends data in arbitrary pieces over a real connection: the frames are those of bufio.Scanner, however often
// the iteration is left and taken up again.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("one\ntwo\r\n\nthree"), []byte{1, 0, 7}, byte(0), byte(0))
	f.Add([]byte("one\nlast"), []byte{}, byte(0), byte(1))
	f.Add([]byte("one\ntwo\nlast"), []byte{}, byte(0), byte(1))
	f.Add([]byte("  some words\tand   more "), []byte{0}, byte(1), byte(1))
	f.Add([]byte("gr\xc3\xbc\xc3\x9fe \xe2\x82\xac \xff\xc3"), []byte{0, 0}, byte(2), byte(3))
	f.Add([]byte("\x03abc\x00\x00\x05hello\x09cut"), []byte{2}, byte(3), byte(2))
	f.Add([]byte("abcdefgh"), []byte{}, byte(4), byte(1))
	f.Add(bytes.Repeat([]byte("line after line\n"), 1500), []byte{255, 3, 120}, byte(0), byte(9))
	splits := []bufio.SplitFunc{bufio.ScanLines, bufio.ScanWords, bufio.ScanRunes, splitPrefixed, splitThrees}
	r := listen(f, ListenerOptions{})
	events := r.Events()
	r.serve()
	f.Fuzz(func(t *testing.T, data, cuts []byte, kind, stop byte) {
		if len(data) > 32<<10 {
			t.Skip()
		}
		split := splits[int(kind)%len(splits)]
		want, rest := scanned(data, split)
		peer := dialTo(t, r.Listener)
		defer peer.Close()
		c := receiveAs[Opened](t, events).Conn
		defer endConn(t, c, events)
		sent := make(chan error, 1)
		go func() { sent <- sendInPieces(peer, data, cuts) }()
		var got [][]byte
		end := error(nil)
		for end == nil {
			receiveAs[Readable](t, events)
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
		if err := receive(t, "everything is sent", sent); err != nil {
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

func sendInPieces(peer *net.TCPConn, data, cuts []byte) error {
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
	return peer.CloseWrite()
}

// endConn closes c and receives its events to the last.
func endConn(t tester, c *Conn, events <-chan Event) {
	t.Helper()
	c.Abort()
	for {
		if e, ok := receive(t, "Closed", events).(Closed); ok && e.Conn == c {
			return
		}
	}
}

// Iterations that are left, and reads between them, lose and double nothing.
func TestFramesAndReadsTogetherLoseNothing(t *testing.T) {
	t.Parallel()
	r := listen(t, ListenerOptions{MaxFrame: 1 << 20})
	events := r.Events()
	r.serve()
	rapid.Check(t, func(t *rapid.T) {
		var data []byte
		for _, n := range rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 5, 80, 3000, 5000, 70000}), 0, 25).Draw(t, "lines") {
			line := numbered(len(data), n)
			for i := range line {
				line[i] |= 0x10 // no line end
			}
			data = append(append(data, line...), '\n')
		}
		data = append(data, bytes.Repeat([]byte("x"), rapid.IntRange(0, 3).Draw(t, "rest"))...)
		cuts := rapid.SliceOfN(rapid.Byte(), 1, 5).Draw(t, "cuts")
		// Each step is a read of so many bytes or, if negative, an iteration left after so many frames.
		steps := rapid.SliceOfN(rapid.SampledFrom([]int{1, 2, 7, 4096, 100000, -1, -2, -5, -1000}), 1, 10).Draw(t, "steps")

		peer := dialTo(t, r.Listener)
		defer peer.Close()
		c := receiveAs[Opened](t, events).Conn
		defer endConn(t, c, events)
		sent := make(chan error, 1)
		go func() { sent <- sendInPieces(peer, data, cuts) }()
		var got []byte
		buf := make([]byte, 100000)
		for i, over := 0, false; !over; i++ {
			receiveAs[Readable](t, events)
			step := steps[i%len(steps)]
			if step > 0 {
				n, err := c.TryRead(buf[:step])
				got = append(got, buf[:n]...)
				if err != nil && err != ErrWouldBlock && err != io.EOF {
					t.Fatalf("TryRead: %v", err)
				}
				over = err == io.EOF
				continue
			}
			left := -step
			for frame, err := range c.Frames(splitRawLines) {
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
		if err := receive(t, "everything is sent", sent); err != nil {
			t.Fatalf("send: %v", err)
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("%d bytes of %d, the same up to %d", len(got), len(data), commonPrefix(got, data))
		}
	})
}

// receiveEnd receives up to Closed; a Readable that its read came before may be in the way.
func receiveEnd(t tester, events <-chan Event) {
	t.Helper()
	for {
		if _, ok := receive(t, "Closed", events).(Closed); ok {
			return
		}
	}
}

// frameRig opens a connection whose peer sends input; it returns the frames of the first iteration that ends in an error.
func frameRig(t *testing.T, o ListenerOptions, split bufio.SplitFunc, input ...[]byte) (*Conn, [][]byte, error, <-chan Event) {
	t.Helper()
	r := listen(t, o)
	events := r.Events()
	r.serve()
	peer, c := r.open()
	go func() {
		for _, p := range input {
			_, _ = peer.Write(p)
		}
		_ = peer.CloseWrite()
	}()
	var got [][]byte
	for {
		receiveAs[Readable](t, events)
		for frame, err := range c.Frames(split) {
			if err != nil {
				return c, got, err, events
			}
			got = append(got, slices.Clone(frame))
		}
	}
}

func TestMaxFrameIsExact(t *testing.T) {
	for _, limit := range []int{1, 1000, blockSmall, blockLarge, 100000} {
		for _, extra := range []int{0, 1} {
			frame := append(bytes.Repeat([]byte("f"), limit-1+extra), '\n')
			for _, whole := range []bool{true, false} {
				input := [][]byte{frame}
				if !whole {
					input = [][]byte{frame[:limit/2], frame[limit/2:]}
				}
				c, got, err, events := frameRig(t, ListenerOptions{MaxFrame: limit}, splitRawLines, input...)
				if extra == 0 {
					if err != io.EOF || len(got) != 1 || !bytes.Equal(got[0], frame) {
						t.Errorf("MaxFrame %d, a frame of just that: %d frames, %v", limit, len(got), err)
					}
					continue
				}
				if !errors.Is(err, bufio.ErrTooLong) || len(got) != 0 {
					t.Errorf("MaxFrame %d, a frame of one byte more: %d frames, %v, want ErrTooLong", limit, len(got), err)
				}
				receiveEnd(t, events)
				if !errors.Is(c.Err(), bufio.ErrTooLong) {
					t.Errorf("MaxFrame %d: Err is %v, want ErrTooLong", limit, c.Err())
				}
			}
		}
	}
}

func TestEndlessFrameIsTooLong(t *testing.T) {
	c, _, err, events := frameRig(t, ListenerOptions{MaxFrame: 1000}, splitRawLines, bytes.Repeat([]byte("x"), 200000))
	if !errors.Is(err, bufio.ErrTooLong) {
		t.Fatalf("the end is %v, want ErrTooLong", err)
	}
	receiveEnd(t, events)
	if !errors.Is(c.Err(), bufio.ErrTooLong) {
		t.Errorf("Err is %v", c.Err())
	}
	if b := locked(c, func() *block { return c.ext.frames.b }); b != nil {
		t.Errorf("%d bytes are still held", len(b.buf))
	}
}

func TestSplitErrorsCloseTheConnection(t *testing.T) {
	custom := errors.New("not my protocol")
	for _, tc := range []struct {
		name  string
		split bufio.SplitFunc
		want  error
	}{
		{"own error", func([]byte, bool) (int, []byte, error) { return 0, nil, custom }, custom},
		{"advance too far", func(d []byte, _ bool) (int, []byte, error) { return len(d) + 1, d, nil }, bufio.ErrAdvanceTooFar},
		{"huge advance", func(d []byte, _ bool) (int, []byte, error) { return math.MaxInt, nil, nil }, bufio.ErrAdvanceTooFar},
		{"negative advance", func(d []byte, _ bool) (int, []byte, error) { return -1, d, nil }, bufio.ErrNegativeAdvance},
		{"empty tokens for ever", func([]byte, bool) (int, []byte, error) { return 0, []byte{}, nil }, io.ErrNoProgress},
	} {
		c, _, err, events := frameRig(t, ListenerOptions{}, tc.split, []byte("hello"))
		if err != tc.want {
			t.Errorf("%s: the end is %v, want %v", tc.name, err, tc.want)
		}
		receiveEnd(t, events)
		if c.Err() != tc.want {
			t.Errorf("%s: Err is %v, want %v", tc.name, c.Err(), tc.want)
		}
	}
}
