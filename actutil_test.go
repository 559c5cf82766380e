//go:build linux

package tcpio_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// actRace says that the race detector slows everything down, longTests that the tests run at their full length: loads are
// scaled to them.
const (
	actRace   = tcpio.RaceEnabled
	longTests = tcpio.LongTests
)

// actWait is how long a test waits for what must happen; only a failing test waits that long.
const actWait = 40 * time.Second

// actRig is a listener that is being served on a port of its own.
type actRig struct {
	t      testing.TB
	l      *tcpio.Listener
	cancel context.CancelFunc
	served chan struct{}
	err    error // of Serve; read after served is closed
}

// actServe serves until the test ends, or stop.
func actServe(t testing.TB, o *tcpio.ListenerOptions) *actRig {
	t.Helper()
	o.Addr = "127.0.0.1:0"
	l, err := tcpio.Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &actRig{t: t, l: l, cancel: cancel, served: make(chan struct{})}
	served := goServe(ctx, l)
	go func() {
		defer close(r.served)
		r.err = <-served
	}()
	t.Cleanup(r.stop)
	return r
}

// actServeAll serves with one actor for all connections.
func actServeAll(t testing.TB, o tcpio.ListenerOptions, a tcpio.Actor) *actRig {
	t.Helper()
	o.Actor = func(*tcpio.Conn) tcpio.Actor { return a }
	return actServe(t, &o)
}

func (r *actRig) stop() {
	r.l.Close()
	r.cancel()
	actRecv(r.t, "the end of Serve", r.served)
	if r.err != nil {
		r.t.Errorf("Serve: %v", r.err)
	}
}

// dial returns a client whose every wait ends by itself.
func (r *actRig) dial() *net.TCPConn {
	r.t.Helper()
	c, err := net.DialTimeout("tcp", r.l.Addr().String(), actWait)
	if err != nil {
		r.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(actWait))
	r.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// conns waits for n connections and returns them, those of the first loop first.
func (r *actRig) conns(n int) (conns []*tcpio.Conn) {
	r.t.Helper()
	actUntil(r.t, fmt.Sprintf("%d connections", n), func() bool {
		conns = slices.Collect(r.l.Conns())
		return len(conns) == n
	})
	return conns
}

// actRecv receives; a closed channel gives the zero value.
func actRecv[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(actWait):
		buf := make([]byte, 1<<16)
		t.Fatalf("no %s within %v\n%s", what, actWait, buf[:runtime.Stack(buf, true)])
		panic("unreachable")
	}
}

// actUntil waits for cond, which nobody signals.
func actUntil(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(actWait); !cond(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", actWait, what)
		}
	}
}

// actWriteString writes s and fails the test if that fails.
func actWriteString(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatalf("client write: %v", err)
	}
}

// actReadString reads n bytes.
func actReadString(t testing.TB, c net.Conn, n int) string {
	t.Helper()
	p := make([]byte, n)
	if m, err := io.ReadFull(c, p); err != nil {
		t.Fatalf("client read %q, then %v", p[:m], err)
	}
	return string(p)
}

// actEcho answers a Readable with what there is.
func actEcho(c *tcpio.Conn) error {
	var p [4096]byte
	n, err := c.TryRead(p[:])
	switch err {
	case nil:
		_, err = c.TryWrite(p[:n])
		return err
	case tcpio.ErrWouldBlock:
		return nil
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// actPing sends s through an echo and waits for it to come back.
func actPing(t testing.TB, c net.Conn, s string) {
	t.Helper()
	actWriteString(t, c, s)
	if got := actReadString(t, c, len(s)); got != s {
		t.Fatalf("echo of %q: %q", s, got)
	}
}

// actLog counts what the library logs.
type actLog struct {
	mu    sync.Mutex
	lines []string
}

func (h *actLog) Enabled(context.Context, slog.Level) bool { return true }
func (h *actLog) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *actLog) WithGroup(string) slog.Handler            { return h }
func (h *actLog) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	h.mu.Lock()
	h.lines = append(h.lines, line)
	h.mu.Unlock()
	return nil
}

// count returns how many lines contain s.
func (h *actLog) count(s string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, l := range h.lines {
		if strings.Contains(l, s) {
			n++
		}
	}
	return n
}

// actAlone finds out when two goroutines are inside at the same time.
type actAlone struct{ in atomic.Int32 }

func (a *actAlone) enter(t testing.TB) (leave func()) {
	if a.in.Add(1) != 1 {
		t.Error("two events of one connection were handled together")
	}
	return func() { a.in.Add(-1) }
}
