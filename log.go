package tcpio

import (
	"context"
	"log/slog"
	"time"
)

// log writes a line about one connection or peer, unless there were too many. Nothing that a peer
// sent may be among args. It must not be called under a lock: it may wait for logPatience.
func (sh *shared) log(msg string, args ...any) {
	if sh.opts.Logger == nil {
		return
	}
	suppressed, ok := sh.logLimit.Take(now())
	if !ok {
		return
	}
	if suppressed > 0 {
		args = append(args, slog.Uint64("suppressed", suppressed))
	}
	sh.writeLine(msg, args...)
}

const (
	// logPatience is how long writeLine waits for its line, so that the line usually comes before
	// the effects of what it reports. A Logger that takes longer delays no caller.
	logPatience = 10 * time.Millisecond
	// logQueue is how many lines wait for the Logger at most: a burst of LogLimit's.
	logQueue = 10
)

// writeLine gives Logger a line. The Logger's handler and the methods of args are user code, so a
// goroutine of their own runs them. A line in which they panic is counted as suppressed, and so is
// one that finds logQueue lines waiting.
func (sh *shared) writeLine(msg string, args ...any) {
	if sh.opts.Logger == nil {
		return
	}
	if sh.logging.Len() >= logQueue {
		sh.logLimit.Suppress()
		return
	}
	written := make(chan struct{})
	next := sh.logging.Post(func() {
		defer close(written)
		guard("the Logger", func() { sh.opts.Logger.Error(msg, args...) }, func(*PanicError, bool) { sh.logLimit.Suppress() })
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
func (sh *shared) logRest(ctx context.Context) {
	if sh.opts.Logger == nil {
		return
	}
	if n := sh.logLimit.Suppressed(); n > 0 {
		sh.writeLine("tcpio: lines were suppressed", "addr", sh.addr.String(), "suppressed", n)
	}
	written := make(chan struct{})
	sh.logging.Post(func() { close(written) })
	select {
	case <-written:
	case <-ctx.Done():
	}
}

func (c *Conn) logPanic(p *PanicError) {
	c.sh.log("tcpio: handler panicked", "conn", c.id, "peer", c.RemoteAddr().String(), "panic", p.Value, "stack", string(p.Stack))
}
