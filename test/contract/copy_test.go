//go:build linux

package contract

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

const copySize = 5<<20 + 12345

// tcpPair is a connection of the package net alone.
func tcpPair(t testing.TB) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		_ = c.SetDeadline(time.Now().Add(testnet.Limit))
		t.Cleanup(func() { c.Close() })
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

func tempFile(t testing.TB, content []byte, flags int) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// goSend writes p at a peer and ends its stream.
func goSend(t testing.TB, peer net.Conn, p []byte) {
	go func() {
		if _, err := peer.Write(p); err != nil {
			t.Errorf("the peer's write: %v", err)
		}
		_ = peer.(interface{ CloseWrite() error }).CloseWrite()
	}()
}

// A copyCase is a source with content to come, a destination, and what has arrived there.
type copyCase struct {
	src  io.Reader
	dst  io.Writer
	got  func() []byte
	size int
}

func copyCases(t *testing.T) map[string]func(t *testing.T, content []byte) copyCase {
	source := func(t *testing.T, content []byte) *tcpio.Conn {
		c, peer := blockingPair(t, tcpio.ListenerOptions{})
		goSend(t, peer, content)
		return c
	}
	sink := func(t *testing.T, peer net.Conn, end func() error) func() []byte {
		arrived := make(chan []byte, 1)
		go func() {
			p, err := io.ReadAll(peer)
			if err != nil {
				t.Errorf("the receiving peer: %v", err)
			}
			arrived <- p
		}()
		return func() []byte {
			if err := end(); err != nil {
				t.Errorf("CloseWrite: %v", err)
			}
			return testnet.Await(t, "what was copied", arrived)
		}
	}
	return map[string]func(t *testing.T, content []byte) copyCase{
		"Conn to Conn": func(t *testing.T, content []byte) copyCase {
			dst, peer := blockingPair(t, tcpio.ListenerOptions{})
			return copyCase{src: source(t, content), dst: dst, got: sink(t, peer, dst.CloseWrite)}
		},
		"Conn to TCPConn": func(t *testing.T, content []byte) copyCase {
			dst, peer := tcpPair(t)
			return copyCase{src: source(t, content), dst: dst, got: sink(t, peer, dst.CloseWrite)}
		},
		"TCPConn to Conn": func(t *testing.T, content []byte) copyCase {
			src, feed := tcpPair(t)
			goSend(t, feed, content)
			dst, peer := blockingPair(t, tcpio.ListenerOptions{})
			return copyCase{src: src, dst: dst, got: sink(t, peer, dst.CloseWrite)}
		},
		"unix to Conn": func(t *testing.T, content []byte) copyCase {
			src, feed := unixPair(t)
			goSend(t, feed, content)
			dst, peer := blockingPair(t, tcpio.ListenerOptions{})
			return copyCase{src: src, dst: dst, got: sink(t, peer, dst.CloseWrite)}
		},
		"Conn to unix": func(t *testing.T, content []byte) copyCase {
			dst, peer := unixPair(t)
			return copyCase{src: source(t, content), dst: dst, got: sink(t, peer, dst.CloseWrite)}
		},
		"file to Conn": func(t *testing.T, content []byte) copyCase {
			dst, peer := blockingPair(t, tcpio.ListenerOptions{})
			return copyCase{src: tempFile(t, content, os.O_RDONLY), dst: dst, got: sink(t, peer, dst.CloseWrite)}
		},
		"limited file to Conn": func(t *testing.T, content []byte) copyCase {
			dst, peer := blockingPair(t, tcpio.ListenerOptions{})
			f := tempFile(t, content, os.O_RDONLY)
			return copyCase{src: io.LimitReader(f, copySize/2), dst: dst, got: sink(t, peer, dst.CloseWrite), size: copySize / 2}
		},
		"Conn to file": func(t *testing.T, content []byte) copyCase {
			f := tempFile(t, nil, os.O_RDWR)
			return copyCase{src: source(t, content), dst: f, got: func() []byte { return fileContent(t, f) }}
		},
	}
}

func unixPair(t testing.TB) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a.(*net.UnixConn), b.(*net.UnixConn)
}

func fileContent(t testing.TB, f *os.File) []byte {
	t.Helper()
	p, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCopyMovesEveryByte(t *testing.T) {
	t.Parallel()
	content := testnet.Pattern(copySize)
	for name, make := range copyCases(t) {
		t.Run(name, func(t *testing.T) {
			cc := make(t, content)
			want := content
			if cc.size > 0 {
				want = content[:cc.size]
			}
			n, err := io.Copy(cc.dst, cc.src)
			if n != int64(len(want)) || err != nil {
				t.Fatalf("Copy = %d, %v, want %d", n, err, len(want))
			}
			if got := cc.got(); !bytes.Equal(got, want) {
				t.Fatalf("%d bytes arrived, the first difference is at %d", len(got), testnet.FirstDifference(got, want))
			}
		})
	}
}

// A copy that is blocked shows where: the ordinary way would be in Read or Write.
func TestBulkBetweenConnectionsStaysInTheKernel(t *testing.T) {
	src, feed := blockingPair(t, tcpio.ListenerOptions{})
	dst, peer := blockingPair(t, tcpio.ListenerOptions{})
	go func() {
		for p := make([]byte, 64<<10); ; {
			if _, err := feed.Write(p); err != nil {
				return // at the end of the test
			}
		}
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(dst, src)
	}()
	testnet.WaitFor(t, "the copy to wait for room within splice", func() bool {
		if blockedIn("(*Conn).writeAllLocked") > 0 { // behind a short read, which goes the ordinary way
			_, _ = io.CopyN(io.Discard, peer, 64<<10)
		}
		return blockedIn("(*Conn).spliceOutLocked") > 0
	})
	dst.Abort()
	testnet.Await(t, "the end of Copy", done)
	src.Abort()
}

// Many files take no splice, and only trying tells: a device, or what /proc has. The bytes that are
// in the pipe by then are not lost.
func TestCopyToAFileThatTakesNoSpliceLosesNothing(t *testing.T) {
	comm, err := os.OpenFile("/proc/thread-self/comm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("this system has no /proc: %v", err)
	}
	defer comm.Close()
	c, peer := blockingPair(t, tcpio.ListenerOptions{})
	goSend(t, peer, []byte("tcpio-test"))
	if n, err := io.Copy(comm, c); n != 10 || err != nil {
		t.Fatalf("Copy = %d, %v, want 10", n, err)
	}
	got := make([]byte, 64)
	n, _ := comm.ReadAt(got, 0)
	if string(got[:n]) != "tcpio-test\n" {
		t.Errorf("the thread's name is %q", got[:n])
	}
}

// Somebody's own Read is called, also if there is a socket inside.
func TestCopyDoesNotLookInsideAReader(t *testing.T) {
	src, feed := tcpPair(t)
	dst, peer := blockingPair(t, tcpio.ListenerOptions{})
	goSend(t, feed, []byte("text"))
	// An io.LimitedReader, since the promoted WriteTo is what io.Copy would call otherwise.
	if n, err := io.Copy(dst, io.LimitReader(upperCase{src}, 100)); n != 4 || err != nil {
		t.Fatalf("Copy = %d, %v", n, err)
	}
	testnet.ExpectBytes(t, peer, "TEXT")
}

type upperCase struct{ *net.TCPConn }

func (u upperCase) Read(p []byte) (int, error) {
	n, err := u.TCPConn.Read(p)
	copy(p, bytes.ToUpper(p[:n]))
	return n, err
}

func TestCopyToAnAppendedFileGoesBehindItsContent(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{})
	f := tempFile(t, []byte("before,"), os.O_WRONLY|os.O_APPEND)
	goSend(t, peer, []byte("behind"))
	if n, err := io.Copy(f, c); n != 6 || err != nil {
		t.Fatalf("Copy = %d, %v", n, err)
	}
	if got := fileContent(t, f); string(got) != "before,behind" {
		t.Fatalf("the file holds %q", got)
	}
}

func TestCopyTakesALimitedReaderToItsLimit(t *testing.T) {
	for name, pair := range map[string]func() (io.Reader, net.Conn){
		"Conn":    func() (io.Reader, net.Conn) { c, p := blockingPair(t, tcpio.ListenerOptions{}); return c, p },
		"TCPConn": func() (io.Reader, net.Conn) { c, p := tcpPair(t); return c, p },
		"bufio": func() (io.Reader, net.Conn) {
			c, p := blockingPair(t, tcpio.ListenerOptions{})
			return bufio.NewReader(c), p
		},
	} {
		t.Run(name, func(t *testing.T) {
			src, feed := pair()
			dst, peer := blockingPair(t, tcpio.ListenerOptions{})
			testnet.Send(t, feed, "0123456789")
			limited := &io.LimitedReader{R: src, N: 6}
			if n, err := io.Copy(dst, limited); n != 6 || err != nil || limited.N != 0 {
				t.Fatalf("Copy = %d, %v, and the limit is %d", n, err, limited.N)
			}
			testnet.ExpectBytes(t, peer, "012345")
			rest := make([]byte, 4)
			if _, err := io.ReadFull(src, rest); err != nil || string(rest) != "6789" {
				t.Fatalf("the rest is %q, %v", rest, err)
			}
		})
	}
}

func TestCopyBeginsWithWhatFramesHasBuffered(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	src, feed := harness.Open(t, l, events)
	testnet.Send(t, feed, "line\nhalf a li")
	for got := 0; got == 0; {
		harness.Expect[tcpio.Readable](t, events)
		for frame := range src.Frames(bufio.ScanLines) {
			if got++; string(frame) != "line" {
				t.Fatalf("the frame is %q", frame)
			}
		}
	}
	dst, peer := blockingPair(t, tcpio.ListenerOptions{})
	goSend(t, feed, []byte("ne, and more"))
	if n, err := io.Copy(dst, src); n != 21 || err != nil {
		t.Fatalf("Copy = %d, %v", n, err)
	}
	testnet.ExpectBytes(t, peer, "half a line, and more")
}

func TestCopyGoesBehindWhatIsQueued(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{WriteBuffer: 1 << 20})
	testnet.ShrinkSendBuffer(t, c)
	queued := harness.Fill(t, c, 64<<10)
	content := testnet.Pattern(300000)
	f := tempFile(t, content, os.O_RDONLY)
	done := make(chan outcome, 1)
	go func() {
		n, err := io.Copy(c, f)
		done <- outcome{int(n), err}
	}()
	testnet.ExpectBytes(t, peer, queued)
	testnet.ExpectBytes(t, peer, content)
	if o := testnet.Await(t, "the end of Copy", done); o.n != len(content) || o.err != nil {
		t.Fatalf("Copy = %d, %v", o.n, o.err)
	}
}

// A copy that waits for input ends with a deadline or the source's end, one that waits for room
// likewise.
func TestBlockedCopyIsEnded(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(src, dst *tcpio.Conn) error
		want error
		full bool // it waits for room, not for input
	}{
		"by the source's deadline":       {func(src, _ *tcpio.Conn) error { return src.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded, false},
		"by the destination's deadline":  {func(_, dst *tcpio.Conn) error { return dst.SetWriteDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded, true},
		"by closing the source":          {func(src, _ *tcpio.Conn) error { return src.Close() }, net.ErrClosed, false},
		"by closing the destination":     {func(_, dst *tcpio.Conn) error { return dst.Close() }, net.ErrClosed, true},
		"by aborting a full destination": {func(_, dst *tcpio.Conn) error { return dst.Abort() }, net.ErrClosed, true},
	} {
		t.Run(name, func(t *testing.T) {
			src, feed := blockingPair(t, tcpio.ListenerOptions{})
			dst, _ := blockingPair(t, tcpio.ListenerOptions{CloseTimeout: 50 * time.Millisecond})
			done := make(chan error, 1)
			go func() {
				_, err := io.Copy(dst, src)
				done <- err
			}()
			if tt.full {
				blast, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() {
					for p := make([]byte, 64<<10); blast.Err() == nil; {
						if _, err := feed.Write(p); err != nil {
							return
						}
					}
				}()
				testnet.WaitFor(t, "the copy to wait for room", func() bool { // behind a short read it is within a write
					return blockedIn("(*Conn).spliceOutLocked")+blockedIn("(*Conn).writeAllLocked") > 0
				})
			} else {
				testnet.Send(t, feed, "x")
				waitBlocked(t, 1, "(*Conn).copyTo")
			}
			if err := tt.end(src, dst); err != nil {
				t.Fatal(err)
			}
			if err := testnet.Await(t, "the end of Copy", done); !errors.Is(err, tt.want) {
				t.Fatalf("Copy: %v, want %v", err, tt.want)
			}
			feed.Close()
		})
	}
}

// The end of the source is told once, and closes nothing: the source can still answer.
func TestEndThatCopyReadsLeavesTheConnectionOpen(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	src, feed := harness.Open(t, l, events)
	dst, peer := blockingPair(t, tcpio.ListenerOptions{})
	goSend(t, feed, []byte("all"))
	if n, err := io.Copy(dst, src); n != 3 || err != nil {
		t.Fatalf("Copy = %d, %v", n, err)
	}
	testnet.ExpectBytes(t, peer, "all")
	if _, err := src.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, feed, "answer")
	src.Close()
	for {
		if ev, ok := testnet.Await(t, "Closed", events).(tcpio.Closed); ok {
			if err := ev.Conn.Err(); err != nil {
				t.Fatalf("Err = %v", err)
			}
			break
		}
	}
}
