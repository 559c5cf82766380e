//go:build linux

package contract

import (
	"bufio"
	"crypto/tls"
	"fmt"
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
	withSomeLimit(t, 2*time.Second, wholeFrames)
}

// wholeFrames has limit for a line to make its way.
func wholeFrames(t *testing.T, limit time.Duration) error {
	lines := make(chan string, 100)
	l, _, closed := harness.Route(t, "stream", tcpio.ListenerOptions{FrameTimeout: limit}, readLines(lines))
	peer := testnet.Dial(t, l)
	for start := time.Now(); time.Since(start) < limit+limit/4; {
		for _, part := range []string{"a line\nand a ha", "lf\n"} { // the second line begins in the first part
			if _, err := peer.Write([]byte(part)); err != nil {
				return err
			}
			select {
			case <-lines:
			case c := <-closed:
				return fmt.Errorf("it ended: %v", c.Err())
			case <-time.After(testnet.Limit):
				t.Fatal("no line")
			}
		}
	}
	select {
	case c := <-closed:
		return fmt.Errorf("it ended: %v", c.Err())
	case <-time.After(limit + limit/10): // between frames
	}
	return nil
}

// What has arrived and waits for its reader is not late. To see it fail: leave since alone
// in beginFrames.
func TestFrameTimeoutDoesNotCountInputThatWaitsForItsReader(t *testing.T) {
	t.Parallel()
	withSomeLimit(t, 500*time.Millisecond, lateReader)
}

// lateReader has limit for a frame, without the time for which its second part waits to be read.
func lateReader(t *testing.T, limit time.Duration) error {
	l, events := harness.Manual(t, tcpio.ListenerOptions{FrameTimeout: limit})
	c, peer := harness.Open(t, l, events)
	for _, part := range []struct {
		sent, frame string
		before      time.Duration // it is sent
		unread      time.Duration
	}{{sent: "a"}, {sent: "b", unread: 2 * limit}, {before: limit / 4, sent: "c\n", frame: "abc"}} {
		time.Sleep(part.before)
		if _, err := peer.Write([]byte(part.sent)); err != nil {
			return err
		}
		ev := testnet.Receive(t, "Readable", events)
		if _, ok := ev.(tcpio.Readable); !ok {
			return fmt.Errorf("%v behind %q: %v", ev, part.sent, c.Err())
		}
		select {
		case ev := <-events:
			return fmt.Errorf("%v while %q is unread: %v", ev, part.sent, c.Err())
		case <-time.After(part.unread):
		}
		got := ""
		for f, err := range c.Frames(bufio.ScanLines) {
			if err != nil {
				return err
			}
			got += string(f)
		}
		if got != part.frame {
			return fmt.Errorf("the frame is %q, want %q", got, part.frame)
		}
	}
	return nil
}

// Over TLS too, a peer that always has a few bytes on their way gains no time. To see it fail: give
// the frame all of its time again in beginFrames.
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
	ended := make(chan struct{}, peers)
	for range peers {
		c := tls.Client(testnet.Dial(t, l), testnet.ClientTLS())
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				if _, err := c.Write([]byte("a")); err != nil {
					ended <- struct{}{}
					return
				}
				time.Sleep(time.Millisecond) // more of them would be input that waits for its reader
			}
		}()
	}
	for range peers {
		testnet.Receive(t, "the end of a peer", ended)
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
