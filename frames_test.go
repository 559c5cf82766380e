//go:build linux

package tcpio

import (
	"bufio"
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

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
