package tcpio

import (
	"context"
	"log/slog"
	"time"
)

// log writes a line about one connection or peer, unless there were too many. Nothing that a peer
// sent may be among args. It must not be called under a lock: it may wait for logPatience.
func (l *Listener) log(msg string, args ...any) {
	if l.opts.Logger == nil {
		return
	}
	suppressed, ok := l.logLimit.Take(now())
	if !ok {
		return
	}
	if suppressed > 0 {
		args = append(args, slog.Uint64("suppressed", suppressed))
	}
	l.write(msg, args...)
}

const (
	// logPatience is how long write waits for its line, so that the line usually comes before
	// the effects of what it reports. A Logger that takes longer delays no caller.
	logPatience = 10 * time.Millisecond
	// logQueue is how many lines wait for the Logger at most: a burst of LogLimit's.
	logQueue = 10
)

// write gives Logger a line. The Logger's handler and the methods of args are user code, so a
// goroutine of their own runs them. A line in which they panic is counted as suppressed, and so is
// one that finds logQueue lines waiting.
func (l *Listener) write(msg string, args ...any) {
	if l.opts.Logger == nil {
		return
	}
	if l.logging.len() >= logQueue {
		l.logLimit.Suppress()
		return
	}
	written := make(chan struct{})
	next := l.logging.post(func() {
		defer close(written)
		guard("the Logger", func() { l.opts.Logger.Error(msg, args...) }, func(*PanicError, bool) { l.logLimit.Suppress() })
	})
	if !next {
		return // other lines are before it
	}
	t := time.NewTimer(logPatience)
	defer t.Stop()
	select {
	case <-written:
	case <-t.C:
	}
}

// logRest reports at the end how many lines were suppressed since the last one. It waits until all
// lines are written, or ctx ends.
func (l *Listener) logRest(ctx context.Context) {
	if l.opts.Logger == nil {
		return
	}
	if n := l.logLimit.Suppressed(); n > 0 {
		l.write("tcpio: lines were suppressed", "addr", l.addr.String(), "suppressed", n)
	}
	written := make(chan struct{})
	l.logging.post(func() { close(written) })
	select {
	case <-written:
	case <-ctx.Done():
	}
}
