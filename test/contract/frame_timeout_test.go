//go:build linux

package contract

import (
	"bufio"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A peer that adds a byte now and then satisfies ReadStallTimeout for ever. To see it fail: let
// every iteration of Frames begin the frame anew.
func TestFrameTimeoutEndsAFrameThatDrips(t *testing.T) {
	t.Parallel()
	for name, dial := range map[string]func(*testing.T, *tcpio.Listener) net.Conn{
		"plain": func(t *testing.T, l *tcpio.Listener) net.Conn { return testnet.Dial(t, l) },
		"TLS": func(t *testing.T, l *tcpio.Listener) net.Conn {
			return testnet.DialTLS(t, l, testnet.ClientTLS())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := tcpio.ListenerOptions{FrameTimeout: 300 * time.Millisecond, ReadStallTimeout: time.Minute, CloseTimeout: time.Second}
			if name == "TLS" {
				opts.TLSConfig = testnet.ServerTLS()
			}
			lines := make(chan string, 100)
			l, opened, closed := harness.Route(t, "actor", opts, readLines(lines))
			peer := dial(t, l)
			testnet.Send(t, peer, "a whole line\n")
			testnet.Receive(t, "Opened", opened)
			if line := testnet.Receive(t, "the line", lines); line != "a whole line" {
				t.Fatalf("the line is %q", line)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					if _, err := peer.Write([]byte("x")); err != nil {
						return
					}
					time.Sleep(10 * time.Millisecond) // the drip
				}
			}()
			c := testnet.Receive(t, "the end", closed)
			if !limitIs("frame")(c.Err()) {
				t.Errorf("Err is %v", c.Err())
			}
			if n := l.Stats().Timeouts.Frame; n != 1 {
				t.Errorf("%d frames timed out", n)
			}
			peer.Close()
			testnet.AwaitClosed(t, "the end of the drip", ended)
		})
	}
}

// Frames that are whole in time have no limit together, nor has the time between two of them.
func TestFrameTimeoutIsOfOneFrame(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second // in which a line makes its way
	lines := make(chan string, 100)
	l, _, closed := harness.Route(t, "stream", tcpio.ListenerOptions{FrameTimeout: limit}, readLines(lines))
	peer := testnet.Dial(t, l)
	for start := time.Now(); time.Since(start) < limit+limit/4; {
		testnet.Send(t, peer, "a line\nand a ha") // the second one begins
		testnet.Receive(t, "a line", lines)
		testnet.Send(t, peer, "lf\n")
		testnet.Receive(t, "a half line", lines)
	}
	select {
	case c := <-closed:
		t.Errorf("the connection ended: %v", c.Err())
	case <-time.After(limit + limit/10): // between frames
	}
}

// What has arrived and waits for its reader is not late. To see it fail: leave since alone
// in beginFrames.
func TestFrameTimeoutDoesNotCountInputThatWaitsForItsReader(t *testing.T) {
	t.Parallel()
	const limit = 500 * time.Millisecond
	l, events := harness.Manual(t, tcpio.ListenerOptions{FrameTimeout: limit})
	c, peer := harness.Open(t, l, events)
	frames := func() (got string) {
		for f, err := range c.Frames(bufio.ScanLines) {
			if err != nil {
				t.Fatal(err)
			}
			got += string(f)
		}
		return got
	}
	testnet.Send(t, peer, "a")
	harness.Expect[tcpio.Readable](t, events)
	if got := frames(); got != "" {
		t.Fatalf("the frame %q has no end", got)
	}
	testnet.Send(t, peer, "b")
	harness.Expect[tcpio.Readable](t, events)
	harness.ExpectSilence(t, events, 2*limit) // nobody reads
	if got := frames(); got != "" {
		t.Fatalf("the frame %q has no end", got)
	}
	testnet.Send(t, peer, "c\n")
	harness.Expect[tcpio.Readable](t, events)
	if got := frames(); got != "abc" {
		t.Fatalf("the frame is %q", got)
	}
}

// Over TLS too, a peer that always has a few bytes on their way gains no time. To see it fail: give
// the frame all of its time again in beginFrames, or have limitDueLocked ask for no frame.late.
func TestFrameTimeoutHoldsOverTLSForAPeerThatNeverPauses(t *testing.T) {
	t.Parallel()
	const limit, peers = time.Second, 4
	l := harness.Stream(t, tcpio.ListenerOptions{
		FrameTimeout: limit, MaxFrame: 1 << 29, CloseTimeout: limit / 10, TLSConfig: testnet.ServerTLS(),
	}, func(ev tcpio.Event) {
		if r, ok := ev.(tcpio.Readable); ok {
			for range r.Conn.Frames(bufio.ScanLines) {
			}
		}
	})
	ended := make(chan time.Duration, peers)
	for range peers {
		c := tls.Client(testnet.Dial(t, l), testnet.ClientTLS())
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		go func() {
			start := time.Now()
			for {
				if _, err := c.Write([]byte("a")); err != nil {
					ended <- time.Since(start)
					return
				}
				time.Sleep(100 * time.Microsecond)
			}
		}()
	}
	for range peers {
		if took := testnet.Receive(t, "the end of a peer", ended); took > 5*limit {
			t.Errorf("a frame without an end lasted for %v, want %v", took, limit)
		}
	}
	if n := l.Stats().Timeouts.Frame; n != peers {
		t.Errorf("%d ended by FrameTimeout, want %d", n, peers)
	}
}

func readLines(lines chan<- string) func(tcpio.Event) error {
	return func(ev tcpio.Event) error {
		r, ok := ev.(tcpio.Readable)
		if !ok {
			return nil
		}
		for line, err := range r.Conn.Frames(bufio.ScanLines) {
			if err != nil {
				return err
			}
			lines <- string(line)
		}
		return nil
	}
}
