//go:build linux

package hazards

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// What users of other epoll libraries ran into; one test each.

func TestReplyAfterTheClientsHalfCloseArrives(t *testing.T) {
	answered := make(chan struct{})
	l := harness.Stream(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) {
		r, ok := ev.(tcpio.Readable)
		if !ok {
			return
		}
		for {
			_, err := r.Conn.TryRead(make([]byte, 100))
			if err == io.EOF && r.Conn.Data() == nil {
				r.Conn.SetData("seen") // a stale Readable shows the end again
				time.AfterFunc(150*time.Millisecond, func() {
					defer close(answered)
					if _, err := r.Conn.TryWrite([]byte("late reply")); err != nil {
						t.Errorf("TryWrite: %v", err)
					}
					r.Conn.Close()
				})
			}
			if err != nil {
				return
			}
		}
	})
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "request")
	testnet.FIN(t, peer)
	testnet.ExpectBytes(t, peer, "late reply")
	testnet.ExpectEOF(t, peer)
	testnet.Await(t, "the end of the handler", answered)
}

func TestInputThatCameWithAFINIsReadToTheLastByte(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			opts := tcpio.ListenerOptions{Network: network}
			if network == "unix" {
				opts.Addr = filepath.Join(t.TempDir(), "s")
			}
			l, events := harness.Manual(t, opts)
			c, peer := harness.Open(t, l, events)
			want := testnet.Pattern(1 << 20)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				if _, err := peer.Write(want); err != nil {
					t.Errorf("the peer's write: %v", err)
				}
				peer.Close()
			}()
			if network == "tcp" {
				testnet.Await(t, "data and FIN under way", sent) // before anything is read
			}
			got, err := harness.ReadStream(t, events, c, -1, 5000)
			if err != io.EOF || !bytes.Equal(got, want) {
				t.Fatalf("read %d of %d bytes, %v; they differ at %d", len(got), len(want), err, testnet.FirstDifference(got, want))
			}
			c.Close()
			if ev := harness.Expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
				t.Errorf("Err = %v", ev.Conn.Err())
			}
		})
	}
}

func TestResetIsToldHoweverFarReadingHasCome(t *testing.T) {
	// Linux throws away what is unread when a reset arrives, so what counts is that the connection
	// ends with it, however far reading has come, and that what was read before is right.
	for _, readFirst := range []int{0, 10, 1000} {
		l, events := harness.Manual(t, tcpio.ListenerOptions{})
		c, peer := harness.Open(t, l, events)
		want := testnet.Pattern(1000)
		testnet.Send(t, peer, want)
		var got []byte
		if readFirst > 0 {
			var err error
			if got, err = harness.ReadStream(t, events, c, readFirst, readFirst); err != nil {
				t.Fatal(err)
			}
		}
		testnet.RST(t, peer)
		rest, err := harness.ReadStream(t, events, c, -1, 100)
		got = append(got, rest...)
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after %d bytes: TryRead: %v, want a reset", readFirst, err)
		}
		if !bytes.HasPrefix(want, got) {
			t.Errorf("read %d bytes that were not sent", len(got))
		}
		for { // a Readable for the reset may be on its way yet
			ev := testnet.Await(t, "Closed", events)
			if _, ok := ev.(tcpio.Closed); ok {
				break
			}
			if _, ok := ev.(tcpio.Readable); !ok {
				t.Fatalf("got %T", ev)
			}
		}
		if !errors.Is(c.Err(), syscall.ECONNRESET) {
			t.Errorf("Err = %v, want a reset", c.Err())
		}
	}
}

func TestResetOfASilentConnectionIsToldWithoutReading(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.FIN(t, peer)
	if _, err := harness.ReadStream(t, events, c, -1, 100); err != io.EOF {
		t.Fatal(err)
	}
	// Nothing is left to read: no Readable can bring the reset.
	testnet.RST(t, peer)
	if err := harness.Expect[tcpio.Closed](t, events).Conn.Err(); err == nil {
		t.Error("Err = nil after a reset")
	}
}
