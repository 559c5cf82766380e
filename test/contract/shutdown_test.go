//go:build linux

package contract

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// shut runs Shutdown, and returns what it returned.
func shut(t *testing.T, l *tcpio.Listener) <-chan error {
	done := make(chan error, 1)
	ctx := testnet.Context(t)
	go func() { done <- l.Shutdown(ctx) }()
	return done
}

// A peer that is silent and has everything is not waited for, and loses nothing: neither what it
// has not read yet, nor, by what it says later, the end. CloseTimeout is an hour, so the wait would
// fail the test. To see it fail: let closeDueLocked look at closeBy alone.
func TestShutdownDoesNotWaitForASilentPeerWhichLosesNothing(t *testing.T) {
	t.Parallel()
	last := testnet.Pattern(50 << 10) // the peer's socket has room for it
	for _, network := range []string{"tcp", "unix"} {
		for _, closes := range []string{"before", "at Draining", "never"} {
			t.Run(network+", closed "+closes, func(t *testing.T) {
				t.Parallel()
				opts := tcpio.ListenerOptions{Network: network, CloseTimeout: drainNever}
				if closes == "at Draining" {
					opts.DrainTimeout = drainNever // however late that is
				}
				if network == "unix" {
					opts.Addr = filepath.Join(t.TempDir(), "socket")
				}
				l, events := harness.Manual(t, opts)
				c, peer := harness.Open(t, l, events)
				if _, err := c.TryWrite(last); err != nil {
					t.Fatal(err)
				}
				if closes == "before" {
					c.Close()
				}
				done := shut(t, l)
				if closes != "before" {
					harness.Expect[tcpio.Draining](t, events)
				}
				if closes == "at Draining" {
					c.Close()
				}
				if err := testnet.Receive(t, "the end of Shutdown", done); err != nil {
					t.Fatal(err)
				}
				harness.Expect[tcpio.Closed](t, events)
				_, _ = peer.Write([]byte("late")) // it is answered with a reset, or fails
				testnet.ExpectBytes(t, peer, last)
				testnet.ExpectEOF(t, peer)
				if err := c.Err(); (err == tcpio.ErrDrainTimeout) != (closes == "never") || err != nil && closes != "never" {
					t.Errorf("Err = %v", err)
				}
				if n := l.Stats().Timeouts.Close; n != 0 {
					t.Errorf("%d connections count as cut off by CloseTimeout", n)
				}
			})
		}
	}
}

func TestShutdownDoesNotWaitForASilentPeerOfTLS(t *testing.T) {
	t.Parallel()
	l, _ := harness.TLS(t, tcpio.ListenerOptions{CloseTimeout: drainNever}, harness.EchoActor)
	peer := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Ping(t, peer, "hello")
	if err := testnet.Receive(t, "the end of Shutdown", shut(t, l)); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectEOF(t, peer) // by close_notify
}

// A peer that has not acknowledged everything, or that still says something, is waited for. To see
// it fail: leave Delivered, or heard, out of closeDueLocked.
func TestShutdownWaitsForAPeerThatIsAtWork(t *testing.T) {
	t.Parallel()
	// More than five looks at the connections, by each of which one could have ended.
	const long = 1500 * time.Millisecond
	t.Run("it does not read", func(t *testing.T) {
		t.Parallel()
		l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: drainNever})
		c, peer := harness.Open(t, l, events)
		// The socket takes it, so that nothing is queued here, but the peer's has no room for all of it.
		// Its size is said: the kernel's own choice is small while others use much of its memory.
		testnet.Control(t, c, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
		})
		if err := peer.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
		const sent = 256 << 10
		if _, err := c.TryWrite(make([]byte, sent)); err != nil {
			t.Fatal(err)
		}
		read := 0 // where the kernel is short of memory, the socket takes the rest only now
		for buf := make([]byte, 4<<10); c.Buffered() > 0; {
			n, err := peer.Read(buf)
			if read += n; err != nil {
				t.Fatalf("%v, with %d bytes read and %d queued", err, read, c.Buffered())
			}
		}
		c.Close()
		done := shut(t, l)
		select {
		case err := <-done:
			t.Fatalf("Shutdown = %v, while the peer has not received everything", err)
		case <-time.After(long):
		}
		if n, err := io.Copy(io.Discard, peer); n != int64(sent-read) || err != nil {
			t.Errorf("the peer read %d bytes to %v, want %d", n, err, sent-read)
		}
		if err := testnet.Receive(t, "the end of Shutdown", done); err != nil {
			t.Error(err)
		}
	})
	t.Run("it sends", func(t *testing.T) {
		t.Parallel()
		// waits returns false if the peer, which is the test itself, was silent for so long that
		// Shutdown may go.
		waits := func() (proven bool) {
			l, events := harness.Manual(t, tcpio.ListenerOptions{CloseTimeout: drainNever})
			c, peer := harness.Open(t, l, events)
			last := time.Now() // when it last said something
			c.Close()
			done := shut(t, l)
			for end := time.Now().Add(long); time.Now().Before(end); {
				var err error
				over := false
				select {
				case err = <-done:
					over = true
				case <-time.After(20 * time.Millisecond):
				}
				before := last
				last = time.Now()
				_, werr := peer.Write([]byte("I have not finished"))
				if time.Since(before) > 200*time.Millisecond {
					return false
				}
				if over || werr != nil {
					t.Fatalf("Shutdown = %v, the peer's write %v, while the peer is at work", err, werr)
				}
			}
			testnet.ExpectEOF(t, peer)
			if err := testnet.Receive(t, "the end of Shutdown", done); err != nil { // now it is silent
				t.Error(err)
			}
			return true
		}
		for range 20 {
			if waits() {
				return
			}
		}
		t.Skip("SKIPPED: this machine stood still whenever the peer was to send")
	})
}

// To see it fail: leave logCuts out of finish.
func TestServeSaysWhomShutdownHasCutOff(t *testing.T) {
	t.Parallel()
	const msg = "tcpio: Shutdown cut connections off"
	for name, tc := range map[string]struct {
		draining func(c *tcpio.Conn)
		silent   bool
		attrs    string // "" for no line
		level    slog.Level
	}{
		"nobody":                        {draining: func(c *tcpio.Conn) { c.Close() }, silent: true},
		"a peer that had not ended":     {silent: true, attrs: "drain=1 close=0", level: slog.LevelInfo},
		"a peer that has no room at us": {draining: func(c *tcpio.Conn) { c.Close() }, attrs: "drain=0 close=1", level: slog.LevelWarn},
		"the same, and nobody closed":   {attrs: "drain=1 close=1", level: slog.LevelWarn},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &levels{least: slog.LevelInfo}
			o := tcpio.ListenerOptions{Logger: slog.New(log), CloseTimeout: testnet.Limit}
			if tc.draining != nil {
				o.DrainTimeout = drainNever // however late it closes
			}
			if !tc.silent {
				o.CloseTimeout = 700 * time.Millisecond
			}
			l := harness.Listen(t, o)
			events := l.Events()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			served := harness.Go(ctx, l)
			c, peer := harness.Open(t, l, events)
			if !tc.silent {
				harness.Fill(t, c, 64<<10)
			}
			cancel()
			harness.Expect[tcpio.Draining](t, events)
			if tc.draining != nil {
				tc.draining(c)
			}
			if err := testnet.Receive(t, "the end of Serve", served); err != nil {
				t.Fatal(err)
			}
			peer.Close()
			line := strings.TrimSpace(log.String())
			if tc.attrs == "" && line != "" || !strings.HasSuffix(line, tc.attrs) || log.Count("") != log.Count(msg) {
				t.Errorf("the log has %q, want a line that ends with %q", line, tc.attrs)
			}
			if level, ok := log.level(msg); ok && level != tc.level {
				t.Errorf("the level is %v, want %v", level, tc.level)
			}
		})
	}
}

// A consumer that has left before the end has no second CloseTimeout: its events, which nobody
// receives, are given up with the last connection. To see it fail: leave stoppedAt and fedAt out of
// finish.
func TestConsumerThatLeftCostsOneCloseTimeout(t *testing.T) {
	t.Parallel()
	takesOneLimit(t, leave)
}

// leave ends a listener whose consumer has left.
func leave(t *testing.T, limit time.Duration) (took time.Duration) {
	l := harness.Listen(t, tcpio.ListenerOptions{EventBuffer: 1, CloseTimeout: limit})
	events := l.Events()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := harness.Go(ctx, l)
	var peers []net.Conn
	for range 2 { // the channel is full
		peers = append(peers, testnet.Dial(t, l))
	}
	testnet.WaitFor(t, "a full stream", func() bool { return l.Len() > 0 && len(events) == 1 })
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() { // peers that are not silent are waited for
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			for _, p := range peers {
				_, _ = p.Write([]byte("x"))
			}
		}
	}()
	began := time.Now()
	cancel()
	if err := testnet.Receive(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
	took = time.Since(began)
	close(stop)
	<-ended
	return took
}
