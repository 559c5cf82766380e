//go:build linux

package testnet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Listener has an address to connect to.
type Listener interface{ Addr() net.Addr }

// peerLife is how long the calls of a peer may go on: it ends a test that hangs, and is long beside
// what a test takes that does not, on a machine that is busy.
const peerLife = 4 * Limit

// Dial connects to l with the package net, until the test ends. The peer's calls fail after
// some time, so that a test does not hang.
func Dial(t testing.TB, l Listener) net.Conn {
	t.Helper()
	peer := Connect(t, l)
	t.Cleanup(func() { peer.Close() })
	return peer
}

// DialTCP is Dial for TCP.
func DialTCP(t testing.TB, l Listener) *net.TCPConn {
	t.Helper()
	return Dial(t, l).(*net.TCPConn)
}

// Connect is Dial, but the caller closes the peer.
func Connect(t T, l Listener) net.Conn {
	t.Helper()
	peer, err := net.DialTimeout(l.Addr().Network(), l.Addr().String(), Limit)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	if err := peer.SetDeadline(time.Now().Add(peerLife)); err != nil {
		t.Fatalf("the peer's deadline: %v", err)
	}
	return peer
}

// TCPPair is a connection of the package net alone.
func TCPPair(t testing.TB) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a := DialTCP(t, ln)
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	_ = b.SetDeadline(time.Now().Add(peerLife))
	return a, b.(*net.TCPConn)
}

// Swapped makes the connections of pipe, a nettest.MakePipe, with their ends exchanged.
func Swapped(pipe func() (c1, c2 net.Conn, stop func(), err error)) func() (c1, c2 net.Conn, stop func(), err error) {
	return func() (net.Conn, net.Conn, func(), error) {
		c1, c2, stop, err := pipe()
		return c2, c1, stop, err
	}
}

// Upstream listens, and hands over what it accepts.
func Upstream(t testing.TB, network, addr string) (string, <-chan net.Conn) {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	accepted, over, ended := make(chan net.Conn, 16), make(chan struct{}), make(chan struct{})
	var all []net.Conn // the goroutine's until it has ended: one may be accepted while the test ends
	go func() {
		defer close(ended)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(peerLife))
			all = append(all, c)
			select {
			case accepted <- c:
			case <-over:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(over)
		ln.Close()
		<-ended
		for _, c := range all {
			c.Close()
		}
	})
	return ln.Addr().String(), accepted
}

// Send writes all of p at the peer.
func Send[P ~string | ~[]byte](t T, peer io.Writer, p P) {
	t.Helper()
	if _, err := peer.Write([]byte(p)); err != nil {
		t.Fatalf("the peer's write: %v", err)
	}
}

// FIN ends the peer's output.
func FIN(t T, peer net.Conn) {
	t.Helper()
	if err := peer.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatalf("the peer's CloseWrite: %v", err)
	}
}

// RST resets the peer's connection.
func RST(t T, peer net.Conn) {
	t.Helper()
	if err := peer.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatalf("the peer's SetLinger: %v", err)
	}
	if err := peer.Close(); err != nil {
		t.Fatalf("the peer's Close: %v", err)
	}
}

// ExpectBytes reads exactly want at the peer.
func ExpectBytes[P ~string | ~[]byte](t T, peer io.Reader, want P) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(peer, got); err != nil {
		t.Fatalf("the peer got %d of %d bytes: %v", n, len(want), err)
	}
	if i := FirstDifference(got, []byte(want)); i >= 0 {
		t.Fatalf("the peer's byte %d of %d is %#x, want %#x", i, len(want), got[i], want[i])
	}
}

// ExpectEOF reads the end of stream at the peer.
func ExpectEOF(t T, peer io.Reader) {
	t.Helper()
	if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("the peer read %d, %v, want the end of stream", n, err)
	}
}

// ReadString reads n bytes at the peer.
func ReadString(t T, peer io.Reader, n int) string {
	t.Helper()
	p := make([]byte, n)
	if m, err := io.ReadFull(peer, p); err != nil {
		t.Fatalf("the peer read %q, then %v", p[:m], err)
	}
	return string(p)
}

// Ping sends p and expects it back.
func Ping[P ~string | ~[]byte](t T, peer io.ReadWriter, p P) {
	t.Helper()
	Send(t, peer, p)
	ExpectBytes(t, peer, p)
}

// Benign reports an error that a connection ends with when either side cuts it off.
func Benign(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// FirstDifference is the index of the first byte in which a and b differ, or -1.
func FirstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// Pattern is n bytes of noise, the same each time, that repeats with a prime period: a block that
// is lost, doubled or swapped shows.
func Pattern(n int) []byte {
	p := make([]byte, n)
	for i := 0; i < n; {
		i += copy(p[i:], noise())
	}
	return p
}

var noise = sync.OnceValue(func() []byte {
	p := make([]byte, 65521)
	x := uint32(2463534242)
	for i := range p {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		p[i] = byte(x)
	}
	return p
})
