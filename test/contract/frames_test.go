//go:build linux

package contract

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// The sizes of the buffers that Frames reads into.
const blockSmall, blockLarge = 4 << 10, 64 << 10

// splitThrees cuts frames of three bytes.
func splitThrees(data []byte, _ bool) (int, []byte, error) {
	if len(data) < 3 {
		return 0, nil, nil
	}
	return 3, data[:3], nil
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
		// Each step is a read of so many bytes or, if negative, an iteration left after so many frames.
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

// receiveEnd receives up to Closed; a Readable that its read came before may be in the way.
func receiveEnd(t testnet.T, events <-chan tcpio.Event) {
	t.Helper()
	for {
		if _, ok := testnet.Receive(t, "Closed", events).(tcpio.Closed); ok {
			return
		}
	}
}

// frameRig opens a connection whose peer sends input; it returns the frames of the first iteration that
// ends in an error.
func frameRig(t *testing.T, o tcpio.ListenerOptions, split bufio.SplitFunc, input ...[]byte) (
	*tcpio.Conn, [][]byte, error, <-chan tcpio.Event) {
	t.Helper()
	l, events := harness.Manual(t, o)
	c, peer := harness.Open(t, l, events)
	go func() {
		for _, p := range input {
			_, _ = peer.Write(p)
		}
		_ = peer.(*net.TCPConn).CloseWrite()
	}()
	var got [][]byte
	for {
		harness.Expect[tcpio.Readable](t, events)
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
				c, got, err, events := frameRig(t, tcpio.ListenerOptions{MaxFrame: limit}, testnet.SplitRawLines, input...)
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
		c, _, err, events := frameRig(t, tcpio.ListenerOptions{}, tc.split, []byte("hello"))
		if err != tc.want {
			t.Errorf("%s: the end is %v, want %v", tc.name, err, tc.want)
		}
		receiveEnd(t, events)
		if c.Err() != tc.want {
			t.Errorf("%s: Err is %v, want %v", tc.name, c.Err(), tc.want)
		}
	}
}

func TestFinalTokenEndsTheIteration(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "headbody")
	harness.Expect[tcpio.Readable](t, events)
	final := func(d []byte, _ bool) (int, []byte, error) { return 4, d[:4], bufio.ErrFinalToken }
	var got []string
	for frame, err := range c.Frames(final) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(frame))
	}
	if !slices.Equal(got, []string{"head"}) {
		t.Errorf("frames %q", got)
	}
	harness.Expect[tcpio.Readable](t, events) // the rest is announced
	buf := make([]byte, 16)
	if n, err := c.TryRead(buf); string(buf[:n]) != "body" || err != nil {
		t.Errorf("TryRead: %q, %v", buf[:n], err)
	}
}

// A final token at the end of stream, which is how a split function may end its work, ends the connection as well.
func TestFinalTokenAtTheEndDoesNotSpin(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{EOFTimeout: 50 * time.Millisecond})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "all of it")
	testnet.FIN(t, peer)
	split := func(d []byte, atEOF bool) (int, []byte, error) {
		if !atEOF {
			return 0, nil, nil
		}
		return len(d), d, bufio.ErrFinalToken
	}
	frames := 0
	for turns := 0; ; turns++ {
		ev := testnet.Receive(t, "Readable or Closed", events)
		if _, ok := ev.(tcpio.Closed); ok {
			break
		}
		if turns == 20 {
			t.Fatal("Readable follows Readable: the consumer spins")
		}
		for frame, err := range c.Frames(split) {
			if err == nil && string(frame) == "all of it" {
				frames++
			}
		}
	}
	if frames != 1 {
		t.Errorf("the frame came %d times", frames)
	}
}

// What is still in the socket is announced although the frames read so far were all used.
func TestBreakAtTheEndOfTheBufferIsFollowedByReadable(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	line := []byte("0123456789abcde\n")
	const size = blockLarge + blockSmall // the buffer, and what fits into any receive buffer besides
	testnet.Send(t, peer, bytes.Repeat(line, size/len(line)))
	testnet.WaitFor(t, "everything has arrived", func() bool {
		n := 0
		testnet.Control(t, c, func(fd int) (err error) {
			n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
			return err
		})
		return n == size
	})
	for _, want := range []int{blockLarge, blockSmall} {
		harness.Expect[tcpio.Readable](t, events)
		n := 0
		for _, err := range c.Frames(testnet.SplitRawLines) {
			if err != nil {
				t.Fatal(err)
			}
			if n += len(line); n == want {
				break
			}
		}
	}
}

// A body that breaks behind the last buffered frame while the socket holds more owes another Readable: no edge will
// say it. To see it fail: let endFrames drop the buffer before it looks at more.
func TestFramesBrokenOffAtTheEndOfTheBufferAreContinued(t *testing.T) {
	const size, frames = 1 << 10, 3 * blockLarge / (1 << 10)
	frames1K := func(data []byte, _ bool) (int, []byte, error) {
		if len(data) < size {
			return 0, nil, nil
		}
		return size, data[:size], nil
	}
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 1})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, make([]byte, frames*size))
	for got := 0; got < frames; {
		harness.Expect[tcpio.Readable](t, events)
		n := 0
		for _, err := range c.Frames(frames1K) {
			if err != nil {
				t.Fatal(err)
			}
			got++
			if n++; n == blockLarge/size {
				break
			}
		}
	}
}
