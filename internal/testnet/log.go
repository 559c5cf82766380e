//go:build linux

package testnet

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
)

// A Log keeps what is logged. It is a slog.Handler, with a line for each record: the message, and
// " key=value" for each attribute. It is an io.Writer too, for another handler.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Enabled is slog.Handler's.
func (h *Log) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs is slog.Handler's.
func (h *Log) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup is slog.Handler's.
func (h *Log) WithGroup(string) slog.Handler { return h }

// Handle is slog.Handler's.
func (h *Log) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	_, err := h.Write([]byte(strings.ReplaceAll(line, "\n", " ") + "\n"))
	return err
}

// Write is io.Writer's.
func (h *Log) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.buf.Write(p)
}

// String is what was logged.
func (h *Log) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.buf.String()
}

// Await waits until n lines contain s, and fails the test if there are more. A Logger's line comes
// from a goroutine of its own: usually before the effects of what it reports, not always.
func (h *Log) Await(t T, s string, n int) {
	t.Helper()
	WaitFor(t, fmt.Sprintf("%d lines with %q", n, s), func() bool { return h.Count(s) >= n })
	if got := h.Count(s); got != n {
		t.Errorf("%d lines with %q, want %d:\n%s", got, s, n, h)
	}
}

// Count returns how many lines contain s.
func (h *Log) Count(s string) int {
	n := 0
	for line := range strings.Lines(h.String()) {
		if strings.Contains(line, s) {
			n++
		}
	}
	return n
}
