//go:build linux

package tcpio

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"testing"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// The end of stream inside a frame is told once, also to a consumer that goes on as if nothing were.
func TestCutFrameAtTheEndDoesNotSpin(t *testing.T) {
	c, got, err, events := frameRig(t, ListenerOptions{}, testnet.SplitRawLines, []byte("whole\ncut"))
	if err != io.ErrUnexpectedEOF || len(got) != 1 {
		t.Fatalf("%d frames, %v, want one and io.ErrUnexpectedEOF", len(got), err)
	}
	// The consumer goes on. A Readable that was on its way already may bring the same end once more.
	for turns := 0; ; turns++ {
		waitFor(t, "the loop sleeps", func() bool { return role(c.sh.state.Load()&roleMask) == sleeping })
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

// Frames that were in the buffer already answer a Readable only for the buffer; the end behind them is still told.
func TestBufferedFramesDoNotAnswerForTheSocket(t *testing.T) {
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	write(t, peer, []byte("one\ntwo\n"))
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end is signalled", func() bool { return markedSock(c, sockUnsure) })
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
		write(t, peer, append(slices.Clone(lines), "partial"...))
		for n := 0; n < 3000; {
			receiveAs[Readable](t, events)
			for _, err := range c.Frames(testnet.SplitRawLines) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
		}
		waitFor(t, "the partial frame is in", func() bool {
			for _, err := range c.Frames(testnet.SplitRawLines) {
				t.Fatalf("a frame too many, or %v", err)
			}
			return locked(c, func() bool { f := &c.ext.frames; return f.Len() == len("partial") })
		})
		if n := held(); n != buf.Small {
			t.Errorf("%d bytes held for a partial frame of 7, want %d", n, buf.Small)
		}
		write(t, peer, []byte("\n"))
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
	write(t, peer, []byte("one\ntwo\n"))
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
	write(t, peer, []byte("one\ntwo\n"))
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
	receiveAs[Closed](t, events)
	if n := locked(c, func() int { return c.ext.frames.Size() }); n != 0 {
		t.Error("memory is held after Closed")
	}
}
