//go:build linux

package tcpio

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"testing"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// The peer goes away behind every byte of a script of frames, by FIN and by RST, sent in one piece or with a partial frame
// already kept when the rest comes. The whole frames before the cut all arrive, the error says what the cut was, and
// nothing is kept.
//
// To see it fail: leave out f.drop in endFrames, or return io.EOF in the place of io.ErrUnexpectedEOF.
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
	waitFor(t, "nothing is left", func() bool { return r.Len() == 0 })
	if st := r.Stats(); st.Queued != 0 || st.Accepted != st.Closed {
		t.Errorf("%+v", st)
	}
}

func cutFrames(t *testing.T, r *rig, events <-chan Event, name string, split bufio.SplitFunc, data []byte, reset bool, pieces int) {
	t.Helper()
	peer := dialTo(t, r.Listener)
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
		write(t, peer, data[:half])
		iterate()
		write(t, peer, data[half:])
	} else {
		write(t, peer, data)
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
	for closed := false; !closed; { // a Readable that the iteration has answered already may be on its way
		_, closed = receive(t, "Closed", events).(Closed)
	}
	if err := c.Err(); reset && !errors.Is(err, syscall.ECONNRESET) || !reset && err != nil {
		t.Errorf("%s: Err is %v", name, err)
	}
	if f := locked(c, func() frameBuffer { return c.ext.frames }); f != (frameBuffer{}) {
		t.Errorf("%s: kept %+v", name, f)
	}
}
