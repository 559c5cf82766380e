//go:build linux

package contract

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestWriteStallTimeoutEndsACopyToAPeerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"Conn", "reader"} {
		t.Run(kind, func(t *testing.T) {
			dst, _ := blockingPair(t, tcpio.ListenerOptions{WriteStallTimeout: 100 * time.Millisecond})
			var r io.Reader = neverEnding{}
			if kind == "Conn" {
				src, feed := blockingPair(t, tcpio.ListenerOptions{})
				go func() { _, _ = io.Copy(feed, neverEnding{}) }()
				t.Cleanup(func() { src.Abort() })
				r = src
			}
			done := make(chan error, 1)
			go func() {
				_, err := io.Copy(dst, r)
				done <- err
			}()
			if err := testnet.Await(t, "the end of Copy", done); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Copy: %v", err)
			}
			var limit *tcpio.TimeoutError
			testnet.WaitFor(t, "Err", func() bool { return dst.Err() != nil })
			if err := dst.Err(); !errors.As(err, &limit) || limit.Kind.String() != "write" {
				t.Errorf("Err: %v", err)
			}
		})
	}
}

func TestIdleTimeoutLeavesACopyThatMovesAlone(t *testing.T) {
	t.Parallel()
	withSomeLimit(t, 2*time.Second, copySlowly)
}

// withSomeLimit has f do within a time limit what the limit must not end. A busy machine may stand
// still for the whole of it, so it is tried with longer ones, too. The last error fails the test.
func withSomeLimit(t *testing.T, limit time.Duration, f func(t *testing.T, limit time.Duration) error) {
	t.Helper()
	for longest := 8 * limit; ; limit *= 2 {
		err := f(t, limit)
		if err == nil {
			return
		}
		if limit >= longest {
			t.Fatalf("with a limit of %v: %v", limit, err)
		}
		t.Logf("with a limit of %v: %v", limit, err)
	}
}

// copySlowly copies a file to a connection with that IdleTimeout, whose peer takes twice the limit
// to read it.
func copySlowly(t *testing.T, limit time.Duration) error {
	const size, pause = 256 << 20, 8 << 20
	dst, peer := blockingPair(t, tcpio.ListenerOptions{IdleTimeout: limit})
	f := tempFile(t, nil, os.O_RDWR)
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.Copy(dst, f)
		dst.Close()
	}()
	got, buf := 0, make([]byte, 4<<20)
	for {
		n, err := peer.Read(buf)
		switch got += n; {
		case err == io.EOF && got == size:
			return nil
		case err != nil:
			return fmt.Errorf("after %d of %d bytes: %w", got, size, err)
		case got%pause < n:
			time.Sleep(2 * limit * pause / size)
		}
	}
}

func TestGroupDoesNotCloseAMemberForItsCopy(t *testing.T) {
	dst, peer := blockingPair(t, tcpio.ListenerOptions{})
	src, feed := blockingPair(t, tcpio.ListenerOptions{})
	g := tcpio.Group{Slow: tcpio.CloseSlow}
	g.Join(dst)
	want := testnet.Pattern(16 << 20)
	goSend(t, feed, want)
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(dst, src)
		done <- err
	}()
	testnet.ExpectBytes(t, peer, want[:1<<20])
	for range 100 {
		_, _ = g.Write([]byte("to all"))
	}
	testnet.ExpectBytes(t, peer, want[1<<20:])
	if err := testnet.Await(t, "the end of Copy", done); err != nil || g.Len() != 1 {
		t.Errorf("Copy: %v; %d members", err, g.Len())
	}
}

// A pipe in blocking mode, as a program's standard output is, with a reader that is slow.
func TestCopyToABlockingPipeLosesNothing(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	defer r.Close()
	c, peer := blockingPair(t, tcpio.ListenerOptions{})
	want := testnet.Pattern(1 << 20)
	goSend(t, peer, want)
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, c)
		w.Close()
		done <- err
	}()
	var got []byte
	buf := make([]byte, 30_000)
	for {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := testnet.Await(t, "the end of Copy", done); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
	}
}

// A source that blocks for ever keeps neither Close nor Shutdown.
func TestCopyFromASourceThatHangsDoesNotHoldUpTheEnd(t *testing.T) {
	for _, how := range []string{"Close", "Shutdown"} {
		t.Run(how, func(t *testing.T) {
			l := harness.Listen(t, tcpio.ListenerOptions{})
			ln := serveNetListener(t, l)
			dst, _ := acceptPair(t, l, ln)
			r, w := io.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = io.Copy(dst, r)
			}()
			_, _ = w.Write([]byte("x"))
			if how == "Close" {
				l.Close()
			} else {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				_ = l.Shutdown(ctx)
			}
			if n := l.Len(); n != 0 {
				t.Errorf("%d connections left", n)
			}
			w.Close()
			testnet.Await(t, "the end of Copy", done)
		})
	}
}
