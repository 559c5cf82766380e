//go:build linux

package tcpio_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
)

// testLimit is how long a test waits for something that must happen.
const testLimit = 30 * time.Second

// listen opens a listener on a free loopback port unless opts say otherwise, and closes it at the end of the test.
func listen(t testing.TB, opts tcpio.ListenerOptions) *tcpio.Listener {
	t.Helper()
	if opts.Addr == "" && opts.Listener == nil {
		opts.Addr = "127.0.0.1:0"
	}
	l, err := tcpio.Listen(&opts)
	if err != nil {
		t.Fatalf("Listen: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// goServe runs Serve and delivers what it returned; nil if the test closed the listener before Serve had begun, as one does
// that ends early.
func goServe(ctx context.Context, l *tcpio.Listener) <-chan error {
	served := make(chan error, 1)
	go func() {
		err := l.Serve(ctx)
		if errors.Is(err, net.ErrClosed) {
			err = nil
		}
		served <- err
	}()
	return served
}

// needProgram returns the path of a program that a test needs, and skips the test if it is not installed. It comes before
// anything that the test starts. CI installs all of them.
func needProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed, and this was not tried with it", name)
	}
	return path
}

// startManual serves with the stream route. The test receives the events by itself; what it leaves is drained at the end.
func startManual(t testing.TB, opts tcpio.ListenerOptions) (*tcpio.Listener, <-chan tcpio.Event) {
	t.Helper()
	l := listen(t, opts)
	events := l.Events()
	served := goServe(t.Context(), l)
	t.Cleanup(func() {
		go l.Close()
		for range events {
		}
		if err := receive(t, "the end of Serve", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l, events
}

// startStream serves with the stream route and hands every event to handle, on one goroutine, after checking that the
// events of each connection are in the order that the contract gives. It ends with the test.
func startStream(t testing.TB, opts tcpio.ListenerOptions, handle func(tcpio.Event)) *tcpio.Listener {
	t.Helper()
	l := listen(t, opts)
	events := l.Events()
	served := goServe(t.Context(), l)
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		var order eventOrder
		for ev := range events {
			if err := order.check(ev); err != nil {
				t.Error(err)
			}
			handle(ev)
		}
		if n := len(order.open); n != 0 {
			t.Errorf("the stream ended without Closed of %d connections", n)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		if err := receive(t, "the end of Serve", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
		receive(t, "the end of the consumer", consumed)
	})
	return l
}

// eventOrder checks the order of events on one route. It is not for several goroutines.
type eventOrder struct {
	open map[uint64]bool // by Conn.ID
	seen int             // connections opened
}

func (o *eventOrder) check(ev tcpio.Event) error {
	if o.open == nil {
		o.open = make(map[uint64]bool)
	}
	c := tcpio.ConnOf(ev)
	if c == nil {
		return nil
	}
	id := c.ID()
	switch ev.(type) {
	case tcpio.Opened:
		if o.open[id] {
			return fmt.Errorf("connection %d opened twice", id)
		}
		o.open[id] = true
		o.seen++
	case tcpio.Closed:
		if !o.open[id] {
			return fmt.Errorf("connection %d: Closed without Opened, or twice", id)
		}
		delete(o.open, id)
	default:
		if !o.open[id] {
			return fmt.Errorf("connection %d: %T before Opened or after Closed", id, ev)
		}
	}
	return nil
}

// contextWithLimit ends with the test, or when something has taken too long.
func contextWithLimit(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testLimit)
	t.Cleanup(cancel)
	return ctx
}

// receive takes the next value from ch, or the zero value when ch is closed.
func receive[T any](t testing.TB, what string, ch <-chan T) (v T) {
	t.Helper()
	limit := time.NewTimer(testLimit)
	defer limit.Stop()
	select {
	case v = <-ch:
	case <-limit.C:
		t.Fatalf("after %v still not: %s", testLimit, what)
	}
	return v
}

// expect takes the next event, which must be an E.
func expect[E tcpio.Event](t testing.TB, events <-chan tcpio.Event) E {
	t.Helper()
	var want E
	ev := receive(t, fmt.Sprintf("%T", want), events)
	e, ok := ev.(E)
	if !ok {
		t.Fatalf("got %T, want %T", ev, want)
	}
	return e
}

// expectEnd fails the test unless events is closed, with nothing in it.
func expectEnd(t testing.TB, events <-chan tcpio.Event) {
	t.Helper()
	limit := time.NewTimer(testLimit)
	defer limit.Stop()
	select {
	case ev, ok := <-events:
		if ok {
			t.Fatalf("got %T, want the end of the stream", ev)
		}
	case <-limit.C:
		t.Fatalf("after %v the stream has not ended", testLimit)
	}
}

// expectSilence fails the test when an event comes within d.
func expectSilence(t testing.TB, events <-chan tcpio.Event, d time.Duration) {
	t.Helper()
	select {
	case ev, ok := <-events:
		if !ok {
			t.Fatal("the stream ended")
		}
		t.Fatalf("got %T, want nothing", ev)
	case <-time.After(d):
	}
}

// waitFor fails the test unless cond becomes true.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := time.NewTimer(testLimit)
	defer limit.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !cond() {
		select {
		case <-look.C:
		case <-limit.C:
			t.Fatalf("after %v still not: %s", testLimit, what)
		}
	}
}

// dial connects to l with the package net. Every call of the peer is bounded by testLimit.
func dial(t testing.TB, l *tcpio.Listener) net.Conn {
	t.Helper()
	peer, err := net.DialTimeout(l.Addr().Network(), l.Addr().String(), testLimit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	if err := peer.SetDeadline(time.Now().Add(testLimit)); err != nil {
		t.Fatal(err)
	}
	return peer
}

// open dials and receives the Opened, which must be the next event.
func open(t testing.TB, l *tcpio.Listener, events <-chan tcpio.Event) (*tcpio.Conn, net.Conn) {
	t.Helper()
	peer := dial(t, l)
	return expect[tcpio.Opened](t, events).Conn, peer
}

func send(t testing.TB, peer net.Conn, p []byte) {
	t.Helper()
	if _, err := peer.Write(p); err != nil {
		t.Fatalf("the peer's write: %v", err)
	}
}

func sendFIN(t testing.TB, peer net.Conn) {
	t.Helper()
	if err := peer.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatalf("the peer's CloseWrite: %v", err)
	}
}

// sendRST resets the peer's connection.
func sendRST(t testing.TB, peer net.Conn) {
	t.Helper()
	if err := peer.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := peer.Close(); err != nil {
		t.Fatal(err)
	}
}

// expectBytes reads exactly want at the peer.
func expectBytes(t testing.TB, peer io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(peer, got); err != nil {
		t.Fatalf("the peer got %d of %d bytes: %v", n, len(want), err)
	}
	if i := firstDifference(got, want); i >= 0 {
		t.Fatalf("the peer's byte %d of %d is %#x, want %#x", i, len(want), got[i], want[i])
	}
}

// expectEOF reads the end of stream at the peer.
func expectEOF(t testing.TB, peer io.Reader) {
	t.Helper()
	if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("the peer read %d, %v, want the end of stream", n, err)
	}
}

func firstDifference(a, b []byte) int {
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

// pattern is n bytes of noise, the same each time, that repeats with a prime period: a block that is lost, doubled or
// swapped shows.
func pattern(n int) []byte {
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

// readStream takes events until c's input has given n bytes or ended, and returns what was read and the end's error.
func readStream(t testing.TB, events <-chan tcpio.Event, c *tcpio.Conn, n, bufSize int) ([]byte, error) {
	t.Helper()
	var got []byte
	buf := make([]byte, bufSize)
	for n < 0 || len(got) < n {
		ev := expect[tcpio.Readable](t, events)
		if ev.Conn != c {
			t.Fatalf("Readable of connection %d, want %d", ev.Conn.ID(), c.ID())
		}
		m, err := c.TryRead(buf)
		got = append(got, buf[:m]...)
		if err != nil && err != tcpio.ErrWouldBlock {
			return got, err
		}
	}
	return got, nil
}

// fill writes chunks of size until the connection refuses, and returns everything accepted.
func fill(t testing.TB, c *tcpio.Conn, size int) []byte {
	t.Helper()
	source := pattern(size)
	var accepted []byte
	for {
		n, err := c.TryWrite(source)
		switch {
		case err == nil && n == size:
			accepted = append(accepted, source...)
		case err == tcpio.ErrWouldBlock && n == 0:
			return accepted
		default:
			t.Fatalf("TryWrite = %d, %v, want all or ErrWouldBlock", n, err)
		}
		if len(accepted) > 256<<20 {
			t.Fatalf("%d bytes accepted while the peer reads nothing", len(accepted))
		}
	}
}

// sockopt reads an integer option of c's socket.
func sockopt(t testing.TB, c *tcpio.Conn, level, opt int) (v int) {
	t.Helper()
	control(t, c, func(fd int) error {
		var err error
		v, err = unix.GetsockoptInt(fd, level, opt)
		return err
	})
	return v
}

// control runs f on c's descriptor.
func control(t testing.TB, c *tcpio.Conn, f func(fd int) error) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ferr error
	if err := rc.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if ferr != nil {
		t.Fatal(ferr)
	}
}

// shrinkSendBuffer makes c's socket take little, so that output is queued soon.
func shrinkSendBuffer(t testing.TB, c *tcpio.Conn) {
	t.Helper()
	control(t, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<10) })
}

// echo is a handler that sends back what it reads. It suits peers that read what they are sent.
func echo(t testing.TB) func(tcpio.Event) {
	buf := make([]byte, 64<<10)
	return func(ev tcpio.Event) {
		r, ok := ev.(tcpio.Readable)
		if !ok {
			return
		}
		n, err := r.Conn.TryRead(buf)
		switch {
		case err == io.EOF:
			r.Conn.Close()
		case err == nil:
			if _, err := r.Conn.TryWrite(buf[:n]); err != nil && !benign(err) {
				t.Errorf("TryWrite: %v", err)
			}
		case err != tcpio.ErrWouldBlock && !benign(err):
			t.Errorf("TryRead: %v", err)
		}
	}
}

// benign reports an error that a connection ends with when either side cuts it off.
func benign(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// ping sends p and expects it back.
func ping(t testing.TB, peer net.Conn, p []byte) {
	t.Helper()
	send(t, peer, p)
	expectBytes(t, peer, p)
}

// cpuTime is the processor time that this process has used.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// together runs the functions at once and waits for them.
func together(fs ...func()) {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Go(f)
	}
	wg.Wait()
}
