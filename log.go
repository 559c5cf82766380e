package tcpio

import (
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

// log writes a line of what concerns one connection or peer, unless there were too many. Nothing that a peer sent is
// among args. It must not be called under a lock: the handler is the user's.
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
	l.opts.Logger.Error(msg, args...)
}

// logRest tells at the end what no further line will.
func (l *Listener) logRest() {
	if l.opts.Logger == nil {
		return
	}
	l.lines.mu.Lock()
	n := l.lines.rest()
	l.lines.mu.Unlock()
	if n > 0 {
		l.opts.Logger.Error("tcpio: lines were suppressed", "addr", l.addr.String(), "suppressed", n)
	}
}
