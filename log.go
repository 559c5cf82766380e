package tcpio

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	logBurst = 10          // lines at once
	logEvery = time.Second // after them, one
)

// A lineLimit bounds the lines that connections and peers can make a listener log: a peer that makes a handler panic can
// do so a thousand times a second. What is suppressed is counted, and told by the next line or at the end of Serve.
type lineLimit struct {
	mu sync.Mutex
	// Guarded by mu.
	full       int64  // when the whole burst is there again, on the clock of now
	suppressed uint64 // lines since the last one
}

// take asks for a line at time t. It reports how many were suppressed before it, which are then told.
func (n *lineLimit) take(t int64) (suppressed uint64, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.full = max(n.full, t); n.full-t > (logBurst-1)*int64(logEvery) {
		n.suppressed++
		return 0, false
	}
	n.full += int64(logEvery)
	return n.rest(), true
}

func (n *lineLimit) rest() uint64 {
	s := n.suppressed
	n.suppressed = 0
	return s
}

// lost counts a line that could not be written.
func (n *lineLimit) lost() {
	n.mu.Lock()
	n.suppressed++
	n.mu.Unlock()
}

// log writes a line of what concerns one connection or peer, unless there were too many. Nothing that a peer sent is
// among args. It must not be called under a lock: it may wait for a moment.
func (l *Listener) log(msg string, args ...any) {
	if l.opts.Logger == nil {
		return
	}
	suppressed, ok := l.lines.take(now())
	if !ok {
		return
	}
	if suppressed > 0 {
		args = append(args, slog.Uint64("suppressed", suppressed))
	}
	l.write(msg, args...)
}

// logPatience is how long whoever logs waits for the line to be written, so that it comes before what follows
// from what it tells. A Logger that is slower holds up nobody.
const logPatience = 10 * time.Millisecond

// write gives Logger a line. Its handler and the values' methods are the user's, so they have a goroutine of
// their own; a line in which they panic is lost and counted, and so is one that finds as many waiting as come
// in one burst.
func (l *Listener) write(msg string, args ...any) {
	if l.opts.Logger == nil {
		return
	}
	if l.logging.len() >= logBurst {
		l.lines.lost()
		return
	}
	written := make(chan struct{})
	next := l.logging.post(func() {
		defer close(written)
		guard("the Logger", func() { l.opts.Logger.Error(msg, args...) }, func(*PanicError, bool) { l.lines.lost() })
	})
	if !next {
		return // behind others, which nobody may be waiting for any more
	}
	t := time.NewTimer(logPatience)
	defer t.Stop()
	select {
	case <-written:
	case <-t.C:
	}
}

// logRest tells at the end what no further line will, and waits until the lines are written, or ctx ends.
func (l *Listener) logRest(ctx context.Context) {
	if l.opts.Logger == nil {
		return
	}
	l.lines.mu.Lock()
	n := l.lines.rest()
	l.lines.mu.Unlock()
	if n > 0 {
		l.write("tcpio: lines were suppressed", "addr", l.addr.String(), "suppressed", n)
	}
	written := make(chan struct{})
	l.logging.post(func() { close(written) })
	select {
	case <-written:
	case <-ctx.Done():
	}
}
