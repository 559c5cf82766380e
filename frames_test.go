//go:build linux

package tcpio

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/sys"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// receiveEnd receives up to Closed.
func receiveEnd(t testnet.T, events <-chan Event) {
	t.Helper()
	receiveUntil[Closed](t, events)
}

// frameRig opens a connection whose peer sends input; it returns the frames of the first iteration
// that ends in an error.
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

func TestEndlessFrameIsTooLong(t *testing.T) {
	c, _, err, events := frameRig(t, ListenerOptions{MaxFrame: 1000}, testnet.SplitRawLines, bytes.Repeat([]byte("x"), 200000))
	if !errors.Is(err, bufio.ErrTooLong) {
		t.Fatalf("the end is %v, want ErrTooLong", err)
	}
	receiveEnd(t, events)
	if !errors.Is(c.Err(), bufio.ErrTooLong) {
		t.Errorf("Err is %v", c.Err())
	}
	if n := locked(c, func() int { return c.ext.frames.Size() }); n != 0 {
		t.Errorf("%d bytes are still held", n)
	}
}

// The end of stream inside a frame is told once, also to a consumer that goes on as if nothing
// were.
func TestCutFrameAtTheEndDoesNotSpin(t *testing.T) {
	c, got, err, events := frameRig(t, ListenerOptions{}, testnet.SplitRawLines, []byte("whole\ncut"))
	if err != io.ErrUnexpectedEOF || len(got) != 1 {
		t.Fatalf("%d frames, %v, want one and io.ErrUnexpectedEOF", len(got), err)
	}
	// The consumer goes on. A Readable that was on its way already may bring the same end once more.
	for turns := 0; ; turns++ {
		testnet.WaitFor(t, "the loop sleeps", func() bool { return role(c.sh.state.Load()&roleMask) == sleeping })
		if len(events) == 0 {
			break
		}
		if turns == 10 {
			t.Fatal("Readable follows Readable: the consumer spins")
		}
		receiveAs[Readable](t, events)
		for frame, err := range c.Frames(testnet.SplitRawLines) {
			if err != io.ErrUnexpectedEOF {
				t.Errorf("frame %q, %v", frame, err)
			}
		}
	}
	buf := make([]byte, 16)
	if n, err := c.TryRead(buf); string(buf[:n]) != "cut" || err != nil {
		t.Errorf("TryRead: %q, %v, want the cut frame", buf[:n], err)
	}
}

// Frames that were in the buffer already answer a Readable only for the buffer; the end behind them
// is still told.
func TestBufferedFramesDoNotAnswerForTheSocket(t *testing.T) {
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	testnet.Send(t, peer, "one\ntwo\n")
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	testnet.WaitFor(t, "the end is signalled", func() bool { return markedSock(c, sockUnsure) })
	var got []string
	for end := error(nil); end == nil; {
		receiveAs[Readable](t, events)
		for frame, err := range c.Frames(testnet.SplitRawLines) {
			if end = err; err == nil {
				got = append(got, string(frame))
			}
			break
		}
	}
	if !slices.Equal(got, []string{"one\n", "two\n"}) {
		t.Errorf("frames %q", got)
	}
}

func TestPartialFrameHoldsASmallBlockAndAnIdleOneNone(t *testing.T) {
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	held := func() int {
		return locked(c, func() int {
			if c.ext == nil || !c.ext.frames.Held() {
				return 0
			}
			return c.ext.frames.Size()
		})
	}
	lines := bytes.Repeat([]byte("0123456789abcde\n"), 3000) // 48,000 bytes
	for range 3 {
		testnet.Send(t, peer, append(slices.Clone(lines), "partial"...))
		for n := 0; n < 3000; {
			receiveAs[Readable](t, events)
			for _, err := range c.Frames(testnet.SplitRawLines) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
		}
		testnet.WaitFor(t, "the partial frame is in", func() bool {
			for _, err := range c.Frames(testnet.SplitRawLines) {
				t.Fatalf("a frame too many, or %v", err)
			}
			return locked(c, func() bool { f := &c.ext.frames; return f.Len() == len("partial") })
		})
		if n := held(); n != buf.Small {
			t.Errorf("%d bytes held for a partial frame of 7, want %d", n, buf.Small)
		}
		testnet.Send(t, peer, "\n")
		for done := false; !done; {
			receiveAs[Readable](t, events)
			for frame, err := range c.Frames(testnet.SplitRawLines) {
				if err != nil || string(frame) != "partial\n" {
					t.Fatalf("frame %q, %v", frame, err)
				}
				done = true
			}
		}
		if n := held(); n != 0 {
			t.Errorf("%d bytes held for nothing", n)
		}
	}
}

func TestSecondIterationIsRefused(t *testing.T) {
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	testnet.Send(t, peer, "one\ntwo\n")
	receiveAs[Readable](t, events)
	var got []string
	for frame := range c.Frames(testnet.SplitRawLines) {
		got = append(got, string(frame))
		for _, err := range c.Frames(testnet.SplitRawLines) {
			if err != errFramesBusy {
				t.Errorf("an iteration inside an iteration: %v", err)
			}
		}
	}
	if !slices.Equal(got, []string{"one\n", "two\n"}) {
		t.Errorf("frames %q", got)
	}
}

// Close from inside the body ends the iteration; the frame in hand stays valid until then.
func TestCloseInsideTheBodyEndsTheIteration(t *testing.T) {
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	testnet.Send(t, peer, "one\ntwo\n")
	receiveAs[Readable](t, events)
	n := 0
	for frame, err := range c.Frames(testnet.SplitRawLines) {
		if n++; n == 1 {
			c.Abort()
			if string(frame) != "one\n" {
				t.Errorf("frame %q after Abort", frame)
			}
		} else if !errors.Is(err, net.ErrClosed) {
			t.Errorf("pair %d: %q, %v, want net.ErrClosed", n, frame, err)
		}
	}
	if n != 2 {
		t.Errorf("%d pairs, want a frame and an error", n)
	}
	receiveEnd(t, events)
	if n := locked(c, func() int { return c.ext.frames.Size() }); n != 0 {
		t.Error("memory is held after Closed")
	}
}

// The peer goes away behind every byte of a script of frames, by FIN and by RST, sent in one piece
// or with a partial frame already kept when the rest comes. The whole frames before the cut all
// arrive, the error says what the cut was, and nothing is kept.
//
// To see it fail: leave out f.drop in endFrames, or return io.EOF in the place of
// io.ErrUnexpectedEOF.
func TestDisconnectAtEveryByteOfAFrame(t *testing.T) {
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	for _, script := range []struct {
		name  string
		split bufio.SplitFunc
		data  string
	}{
		{"lengths", testnet.SplitPrefixed, "\x03abc\x00\x05hello\x01x\x0atwelve"},
		{"lines", testnet.SplitRawLines, "one\n\nthree\r\nfo"},
		{"longer than a block", testnet.SplitRawLines, string(bytes.Repeat([]byte("x"), buf.Small)) + "\n!\n"},
	} {
		for cut := range len(script.data) + 1 {
			if len(script.data) > 100 && cut > 3 && cut < buf.Small-3 {
				continue
			}
			for _, reset := range []bool{false, true} {
				for _, pieces := range []int{1, 2} {
					name := fmt.Sprintf("%s, %d bytes in %d pieces, reset %t", script.name, cut, pieces, reset)
					cutFrames(t, r, events, name, script.split, []byte(script.data[:cut]), reset, pieces)
					if t.Failed() {
						return
					}
				}
			}
		}
	}
	testnet.WaitFor(t, "nothing is left", func() bool {
		st := r.Stats()
		return r.Len() == 0 && st.Buffered == 0 && st.Accepted == st.Closed
	})
}

func cutFrames(t *testing.T, r *rig, events <-chan Event, name string, split bufio.SplitFunc, data []byte, reset bool, pieces int) {
	t.Helper()
	peer := testnet.Connect(t, r.Listener).(*net.TCPConn)
	defer peer.Close()
	c := receiveAs[Opened](t, events).Conn
	var got [][]byte
	var end error
	iterate := func() {
		receiveAs[Readable](t, events)
		for frame, err := range c.Frames(split) {
			if end = err; err == nil {
				got = append(got, slices.Clone(frame))
			}
		}
	}
	if half := len(data) / 2; pieces == 2 && half > 0 {
		testnet.Send(t, peer, data[:half])
		iterate()
		testnet.Send(t, peer, data[half:])
	} else {
		testnet.Send(t, peer, data)
	}
	if reset {
		_ = peer.SetLinger(0)
		_ = peer.Close()
	} else {
		_ = peer.CloseWrite()
	}
	for end == nil {
		iterate()
	}
	want, rest := testnet.Scanned(data, split)
	wantEnd := io.EOF
	if rest {
		wantEnd = io.ErrUnexpectedEOF
	}
	if reset {
		wantEnd = syscall.ECONNRESET
	}
	if !errors.Is(end, wantEnd) {
		t.Errorf("%s: the end is %v, want %v", name, end, wantEnd)
	}
	if !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%s: frames %.40q, want %.40q", name, got, want)
	}
	c.Close()
	peer.Close()
	receiveEnd(t, events)
	if err := c.Err(); reset && !errors.Is(err, syscall.ECONNRESET) || !reset && err != nil {
		t.Errorf("%s: Err is %v", name, err)
	}
	if f := locked(c, func() frameBuffer { return c.ext.frames }); f != (frameBuffer{}) {
		t.Errorf("%s: kept %+v", name, f)
	}
}

// hasMore waits until an iteration of Frames over c would find more.
func hasMore(t *testing.T, c *Conn) {
	t.Helper()
	testnet.WaitFor(t, "more input", func() bool {
		c.mu.Lock()
		defer c.unlock()
		return c.fd < 0 || sys.Unread(c.fd) > 0 && (c.announced() || !c.ext.frames.emptied)
	})
}

// A split function that skips what it reads, as bufio.ScanWords does with blanks, keeps its
// consumer no longer than one that returns frames.
func TestIterationOfFramesEndsWhileAllIsSkipped(t *testing.T) {
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
func TestReadTakesABoundedPartOfAPartialFrame(t *testing.T) {
	const size = 3*recvMax + 7
	r := listen(t, ListenerOptions{MaxFrame: 2 * size})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	sent := bytes.Repeat([]byte("partial "), size/8+1)[:size]
	go func() { _, _ = peer.Write(sent) }()
	buffered := func() int {
		c.mu.Lock()
		defer c.unlock()
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

// The same for a body that breaks behind frames kept from before, when an edge was merged into the
// Readable that is being handled. To see it fail: let beginFrames start with more false.
func TestInputBehindAnOutstandingReadableOutlivesABreak(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1}).serve()
	peer, c := r.open()
	one := func() {
		t.Helper()
		receiveAs[Readable](t, r.Events())
		for _, err := range c.Frames(revSplit(4)) {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	testnet.Send(t, peer, "frm1frm2")
	one() // frm2 is kept, and announced
	testnet.Send(t, peer, "frm3")
	testnet.WaitFor(t, "the bytes to arrive", func() bool { var b [1]byte; n, _ := sys.Peek(c.fd, b[:]); return n > 0 })
	asleep(t, r.Listener) // the edge has been merged into the Readable that is outstanding
	one()                 // frm2
	one()                 // frm3
}

func revSplit(size int) bufio.SplitFunc {
	return func(data []byte, atEOF bool) (int, []byte, error) {
		if len(data) < size {
			return 0, nil, nil
		}
		return size, data[:size], nil
	}
}

// The end of stream that Frames has met closes nothing before it was handed out: a body that breaks
// behind the last frame gets another Readable, and io.EOF with that. To see it fail: let fillFrames
// call endReadLocked.
func TestEndOfStreamCountsOnceFramesHasHandedItOut(t *testing.T) {
	const limit = 50 * time.Millisecond
	r := listen(t, ListenerOptions{Loops: 1, EOFTimeout: limit}).serve()
	peer, c := r.open()
	testnet.Send(t, peer, "last")
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var last string
	for last == "" {
		receiveAs[Readable](t, r.Events())
		for line, err := range c.Frames(bufio.ScanLines) {
			if err != nil {
				t.Fatal(err)
			}
			last = string(line)
			if end := locked(c, func() peerEnd { return c.peerEnd }); end != peerRead || r.loops[0].eofs.First() != 0 {
				t.Errorf("in the body of the last frame: the peer's end is at %d, its time to close has begun", end)
			}
			break
		}
	}
	receiveAs[Readable](t, r.Events())
	begun := time.Now()
	for i := range 2 {
		for _, err := range c.Frames(bufio.ScanLines) {
			late := i > 0 && time.Since(begun) >= limit // it is closed by then
			if err != io.EOF && !(late && errors.Is(err, net.ErrClosed)) {
				t.Fatalf("got %v, want EOF", err)
			}
		}
	}
	receiveEnd(t, r.Events())
	if err := c.Err(); err != nil {
		t.Errorf("Err: %v", err)
	}
}
