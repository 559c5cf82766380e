//go:build linux

package contract

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// The sizes of the buffers that Frames reads into.
const blockSmall, blockLarge = 4 << 10, 64 << 10

// receiveEnd receives up to Closed; a Readable that its read came before may be in the way.
func receiveEnd(t testnet.T, events <-chan tcpio.Event) {
	t.Helper()
	for {
		if _, ok := testnet.Receive(t, "Closed", events).(tcpio.Closed); ok {
			return
		}
	}
}

// frameRig opens a connection whose peer sends input; it returns the frames of the first iteration
// that ends in an error.
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

// A final token at the end of stream, which is how a split function may end its work, ends the
// connection as well.
func TestFinalTokenAtTheEndDoesNotSpin(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{EOFTimeout: time.Second}) // from the look at the end to split
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

// A body that breaks behind the last buffered frame while the socket holds more owes another
// Readable: no edge will say it. To see it fail: let endFrames drop the buffer before it looks at
// more.
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

// A peer that never stops sending lines does not keep the consumer from the others.
func TestIterationOfFramesEndsWhileThePeerGoesOn(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		lines := bytes.Repeat([]byte("a line\n"), 10_000)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := peer.Write(lines); err != nil {
				return
			}
		}
	}()
	for range 100 {
		ev := harness.Expect[tcpio.Readable](t, events)
		frames := 0
		for line, err := range ev.Conn.Frames(bufio.ScanLines) {
			if err != nil || !bytes.HasPrefix([]byte("a line"), line) && string(line) != "a line" {
				t.Fatalf("%q, %v", line, err)
			}
			if frames++; frames > 1024 {
				t.Fatal("the iteration goes on")
			}
		}
	}
	c.Abort()
}

// A frame ends where its memory ends: what is appended to it goes elsewhere, and it may be changed
// in place.
func TestFrameDoesNotReachIntoTheNext(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "one\ntwo\nthree\n")
	var got []string
	for len(got) < 3 {
		ev := harness.Expect[tcpio.Readable](t, events)
		for line, err := range ev.Conn.Frames(bufio.ScanLines) {
			if err != nil {
				t.Fatal(err)
			}
			if cap(line) != len(line) {
				t.Errorf("frame %q has capacity %d", line, cap(line))
			}
			got = append(got, string(line))
			line[0] = 'X'
			_ = append(line, " and much more than there is room for"...)
		}
	}
	if fmt.Sprint(got) != "[one two three]" {
		t.Errorf("frames %q", got)
	}
	c.Abort()
}

// The body of a loop over Frames may tell the peer what is wrong before the connection closes.
func TestFrameErrorCanBeToldToThePeer(t *testing.T) {
	errBad := errors.New("bad request")
	for name, tc := range map[string]struct {
		input string
		split bufio.SplitFunc
		want  error
		said  string
	}{
		"split":    {"bad", func([]byte, bool) (int, []byte, error) { return 0, nil, errBad }, errBad, "bad request"},
		"too long": {strings.Repeat("x", 200), bufio.ScanLines, bufio.ErrTooLong, "tcpio: frame longer than MaxFrame (100 bytes)"},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			l := harness.Serve(t, tcpio.ListenerOptions{
				MaxFrame: 100,
				NewActor: func(*tcpio.Conn) tcpio.Actor {
					return tcpio.ActorFunc(func(ev tcpio.Event) error {
						switch ev := ev.(type) {
						case tcpio.Readable:
							for _, err := range ev.Conn.Frames(tc.split) {
								if err != nil {
									_, _ = io.WriteString(ev.Conn, "ERR "+err.Error()+"\n")
								}
							}
						case tcpio.Closed:
							ended <- ev.Conn.Err()
						}
						return nil
					})
				},
			})
			c := testnet.Dial(t, l)
			if _, err := io.WriteString(c, tc.input); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if want := "ERR " + tc.said + "\n"; err != nil || string(got) != want {
				t.Errorf("the peer got %q, %v; want %q", got, err, want)
			}
			c.Close()
			if err := <-ended; !errors.Is(err, tc.want) {
				t.Errorf("Err is %v, want %v", err, tc.want)
			}
		})
	}
}

// An iteration reads on behind a large partial frame. An error that it meets there is the last
// pair, as any other: to go on behind it would call a body that has returned, which panics.
func TestErrorBehindALargePartialFrameIsTheLastPair(t *testing.T) {
	const mib = 1 << 20
	roomy := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) { // accepted sockets inherit it
		if cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8*mib)
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	for name, fail := range map[string]func(net.Conn, *tcpio.Conn){
		"reset": func(peer net.Conn, c *tcpio.Conn) { testnet.RST(t, peer); waitState(t, c, unix.BPF_TCP_CLOSE) },
		"abort": func(_ net.Conn, c *tcpio.Conn) { c.Abort() },
	} {
		ln, err := roomy.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if errors.Is(err, syscall.EPERM) {
			t.Skip("a receive buffer of 8 MiB needs CAP_NET_ADMIN")
		}
		if err != nil {
			t.Fatal(err)
		}
		l, events := harness.Manual(t, tcpio.ListenerOptions{Listener: ln, MaxFrame: 8 * mib})
		c, peer := harness.Open(t, l, events)
		go func() { _, _ = peer.Write(make([]byte, 3*mib)) }()
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		unread := func() (n int) {
			_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
			return n
		}
		failed, pairs := false, 0
		split := func(data []byte, _ bool) (int, []byte, error) {
			if len(data) == 2*mib && !failed { // the next two reads are for one call of split
				testnet.WaitFor(t, "the rest", func() bool { return unread() == mib })
				fail(peer, c)
				failed = true
			}
			return 0, nil, nil
		}
		for err := error(nil); err == nil; {
			harness.Expect[tcpio.Readable](t, events)
			for _, err = range c.Frames(split) {
				pairs++
				break
			}
		}
		if !failed || pairs != 1 {
			t.Errorf("%s: failed %v, %d pairs", name, failed, pairs)
		}
		c.Abort()
	}
}
