//go:build linux

package testnet

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

// A failing is a T that notes what it was told, and goes on.
type failing struct{ said []string }

func (f *failing) Helper() {}

func (f *failing) Errorf(format string, args ...any) {
	f.said = append(f.said, fmt.Sprintf(format, args...))
}

func (f *failing) Fatalf(format string, args ...any) { f.Errorf(format, args...) }

func (f *failing) want(t *testing.T, words string) {
	t.Helper()
	if len(f.said) != 1 || !strings.Contains(f.said[0], words) {
		t.Errorf("failed with %q, want one failure with %q", f.said, words)
	}
	f.said = nil
}

func TestReceiveAndAwaitDifferInWhatAClosedChannelIs(t *testing.T) {
	var f failing
	full, closed := make(chan int, 1), make(chan int)
	close(closed)
	full <- 7
	if v := Receive(&f, "seven", full); v != 7 || f.said != nil {
		t.Errorf("received %d, %q", v, f.said)
	}
	if v := Await(&f, "the end", closed); v != 0 || f.said != nil {
		t.Errorf("awaited %d, %q", v, f.said)
	}
	AwaitClosed(&f, "the end", closed)
	if f.said != nil {
		t.Errorf("the end is a failure: %q", f.said)
	}
	Receive(&f, "a value", closed)
	f.want(t, "closed instead of: a value")
	full <- 8
	AwaitClosed(&f, "the end", full)
	f.want(t, "got a int, 8")
}

func TestWaitForAsksUntilItIsTrue(t *testing.T) {
	asked := 0
	WaitFor(t, "the third time", func() bool { asked++; return asked == 3 })
	if asked != 3 {
		t.Errorf("asked %d times", asked)
	}
}

func TestPeersSendAndEnd(t *testing.T) {
	a, b := TCPPair(t)
	go func() { _, _ = io.Copy(b, b) }()
	Ping(t, a, "text")
	Ping(t, a, []byte{1, 2, 3})
	Send(t, a, "abc")
	if got := ReadString(t, a, 3); got != "abc" {
		t.Errorf("got %q", got)
	}
	var f failing
	ExpectBytes(&f, strings.NewReader("abx"), "abc")
	f.want(t, "byte 2 of 3")

	c, d := TCPPair(t)
	FIN(t, c)
	ExpectEOF(t, d)
	RST(t, c)
	WaitFor(t, "the reset", func() bool {
		_, err := d.Write([]byte("x"))
		return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	})
}

func TestUpstreamHandsOverWhatItAccepts(t *testing.T) {
	addr, accepted := Upstream(t, "tcp", "127.0.0.1:0")
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	Send(t, c, "x")
	ExpectBytes(t, Receive(t, "the connection", accepted), "x")
}

func TestPatternIsTheSameEachTimeAndHasNoShortPeriod(t *testing.T) {
	p := Pattern(200000)
	if !bytes.Equal(p[:100], Pattern(100)) {
		t.Error("it differs")
	}
	for _, size := range []int{512, 4096, 65536} {
		if bytes.Equal(p[:size], p[size:2*size]) {
			t.Errorf("blocks of %d bytes are alike", size)
		}
	}
	for want, pair := range map[int][2]string{-1: {"ab", "ab"}, 1: {"ab", "ac"}, 2: {"ab", "abc"}, 0: {"", "a"}} {
		if got := FirstDifference([]byte(pair[0]), []byte(pair[1])); got != want {
			t.Errorf("%q differ at %d, want %d", pair, got, want)
		}
	}
}

func TestLeftDescriptorsAreFound(t *testing.T) {
	before, err := Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]int, 2)
	if err := unix.Pipe2(ends, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	after, err := Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	if left, goes := newDescriptors(before, after, []string{"pipe"}); len(left) != 2 || !goes {
		t.Errorf("left are %q, pipes alone: %v", left, goes)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if after, err = Descriptors(); err != nil {
		t.Fatal(err)
	}
	for _, collected := range [][]string{{"pipe"}, {"pipe", "socket"}} {
		if left, goes := newDescriptors(before, after, collected); len(left) != 3 || goes != (len(collected) == 2) {
			t.Errorf("left are %q, of %q alone: %v", left, collected, goes)
		}
	}
	ln.Close()
	for _, fd := range ends {
		unix.Close(fd)
	}
	if after, err = Descriptors(); err != nil {
		t.Fatal(err)
	}
	if left, _ := newDescriptors(before, after, nil); left != nil {
		t.Errorf("left are %q", left)
	}
}

func TestLogHasALineForEachRecord(t *testing.T) {
	log := new(Log)
	l := slog.New(log)
	l.Info("one", "stack", "a\nb")
	l.Warn("two", "n", 2)
	_, _ = io.WriteString(log, "three\n")
	if log.Count("") != 3 || log.Count("n=2") != 1 || log.Count("stack=a b") != 1 || log.Count("none") != 0 {
		t.Errorf("it is %q", log)
	}
	log.Await(t, "o", 2)
	var f failing
	log.Await(&f, "", 2)
	f.want(t, "3 lines")
}

func TestTLSPeersTrustTheServer(t *testing.T) {
	ln, err := tls.Listen("tcp", "127.0.0.1:0", ServerTLS())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		if c, err := ln.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	peer := DialTLS(t, ln, ClientTLS())
	Ping(t, peer, "secret")
	peer.Close()
	AwaitClosed(t, "the end of the server", served)
}

const childEnv = "TCPIO_TEST_CHILD"

// TestChild answers each line with "twice LINE LINE".
func TestChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		t.Skip("runs in a process of its own only")
	}
	fmt.Println("noise")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println("twice", in.Text(), in.Text())
	}
}

func TestChildAnswersLinesUntilItsInputEnds(t *testing.T) {
	c := StartChild(t, "TestChild", childEnv+"=1")
	for _, line := range []string{"a", "b"} {
		c.Say(line)
		if got := c.Line("twice "); got != line+" "+line {
			t.Errorf("got %q", got)
		}
	}
}

func TestProcessorTimeAndMemoryAreMeasured(t *testing.T) {
	before := CPU(t)
	WaitFor(t, "processor time", func() bool { return CPU(t) > before+time.Millisecond })
	if rss, peak := Status(t, "VmRSS"), Status(t, "VmHWM"); rss < 1<<20 || peak < rss/2 {
		t.Errorf("VmRSS %d, VmHWM %d bytes", rss, peak)
	}
}

func TestSocketsAreReachable(t *testing.T) {
	a, _ := TCPPair(t)
	before := Sockopt(t, a, unix.SOL_SOCKET, unix.SO_SNDBUF)
	ShrinkSendBuffer(t, a)
	if after := Sockopt(t, a, unix.SOL_SOCKET, unix.SO_SNDBUF); after >= before {
		t.Errorf("the send buffer has %d bytes after %d", after, before)
	}
	Control(t, a, func(fd int) error {
		if dup := Duplicate(t, fd); dup == fd {
			t.Error("the duplicate has the same number")
		}
		return nil
	})
}

func TestNamespacesHaveTheirOwnInterfaces(t *testing.T) {
	n := NewNetns(t)
	n.Do(t, func() error {
		links, err := net.Interfaces()
		if err == nil && len(links) != 1 {
			return fmt.Errorf("%d interfaces in a new namespace, want loopback alone", len(links))
		}
		return err
	})
}

// A program has its address to itself before it listens, and while it is down.
func TestFreeAddrIsNoOneElses(t *testing.T) {
	one, other := FreeAddr(t), FreeAddr(t)
	if one == other {
		t.Fatalf("twice the address %s", one)
	}
	ln, err := net.Listen("tcp", one)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", one)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if host, _, _ := net.SplitHostPort(c.LocalAddr().String()); host == Host() {
		t.Errorf("connections begin at %s, and may take a port there", host)
	}
}

// What ends by itself is no leak, though goleak does not wait for it.
// To see it fail: have goroutines look once.
func TestAGoroutineOnItsWayOutIsNoLeak(t *testing.T) {
	go time.Sleep(700 * time.Millisecond) // as net/http's server does, behind a connection's last answer
	if err := goroutines(); err != nil {
		t.Error(err)
	}
}
