package tcpio

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/rabbit-backend/tcpio/internal/quota"
)

// logger is where lines go. The default is looked up for each, so that slog.SetDefault counts later
// too.
func (sh *shared) logger() *slog.Logger {
	if l := sh.opts.Logger; l != nil {
		return l
	}
	return slog.Default()
}

// log writes a line about one connection or peer, unless there were too many. Nothing that a peer
// sent may be among args. It must not be called under a lock: it may wait for logPatience.
func (sh *shared) log(msg string, args ...any) {
	if suppressed, ok := sh.logLimit.Take(now()); ok {
		sh.await(sh.writeLine(slog.LevelError, &sh.logLimit, msg, withSuppressed(args, suppressed)))
	}
}

// logDebug is log for a line that most programs switch off. It has a limit of its own, so that it
// takes no line away from others, and it does not wait.
func (sh *shared) logDebug(msg string, args ...any) {
	if suppressed, ok := sh.debugLimit.Take(now()); ok {
		sh.writeLine(slog.LevelDebug, &sh.debugLimit, msg, withSuppressed(args, suppressed))
	}
}

// logOnce is log for a line that comes so seldom that it needs no limit.
func (sh *shared) logOnce(level slog.Level, msg string, args ...any) {
	sh.await(sh.writeLine(level, &sh.logLimit, msg, args))
}

func withSuppressed(args []any, n uint64) []any {
	if n > 0 {
		args = append(args, slog.Uint64("suppressed", n))
	}
	return args
}

const (
	// logPatience is how long await waits for a line, so that the line usually comes before the
	// effects of what it reports. A Logger that takes longer delays no caller.
	logPatience = 10 * time.Millisecond
	// logQueue is how many lines wait for the Logger at most: a burst of LogLimit's.
	logQueue = 10
)

// writeLine gives the logger a line. Its handler and the methods of args are user code, so a
// goroutine of their own runs them. A line in which they panic is counted in limit as suppressed,
// and so is one that finds logQueue lines waiting. The channel is closed when the line is written;
// it is nil if other lines are before it.
func (sh *shared) writeLine(level slog.Level, limit *quota.LogLimit, msg string, args []any) <-chan struct{} {
	if sh.logging.Len() >= logQueue {
		limit.Suppress()
		return nil
	}
	written := make(chan struct{})
	next := sh.logging.Post(func() {
		defer close(written)
		guard("the Logger", func() { sh.logger().Log(context.Background(), level, msg, args...) },
			func(*PanicError, bool) { limit.Suppress() })
	})
	if !next {
		return nil
	}
	return written
}

// await waits for a line, but not long.
func (sh *shared) await(written <-chan struct{}) {
	if written == nil {
		return
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
	const msg = "tcpio: lines were suppressed"
	if n := sh.debugLimit.Suppressed(); n > 0 {
		sh.writeLine(slog.LevelDebug, &sh.debugLimit, msg, []any{"addr", sh.addr.String(), "suppressed", n})
	}
	if n := sh.logLimit.Suppressed(); n > 0 {
		sh.writeLine(slog.LevelError, &sh.logLimit, msg, []any{"addr", sh.addr.String(), "suppressed", n})
	}
	written := make(chan struct{})
	sh.logging.Post(func() { close(written) })
	select {
	case <-written:
	case <-ctx.Done():
	}
}

// logPanic reports and counts a panic in what, about which args say more.
func (sh *shared) logPanic(what string, p *PanicError, args ...any) {
	sh.panics.Add(1)
	sh.log("tcpio: "+what+" panicked", append(args, "panic", p.Value, "stack", string(p.Stack))...)
}

func (c *Conn) logPanic(p *PanicError) {
	c.sh.logPanic("handler", p, "conn", c.id, "peer", c.RemoteAddr().String())
}

// HandlerFailed counts and logs err as tcpio does when a Receive has returned it, or panicked: a
// *[PanicError] in [Stats].Panics, with a line at the limited rate of such lines; any other in
// HandlerErrors, with a line at the level Debug. io.EOF and nil are no failures. It does nothing to
// the connection. It is for packages that call handlers of their users' themselves. Any goroutine
// may call it; it waits 10 ms at most for the Logger; it works after the connection closed.
func (c *Conn) HandlerFailed(err error) {
	if err == nil || err == io.EOF {
		return
	}
	// Not errors.As: an error of the user's has methods of the user's.
	if p, ok := err.(*PanicError); ok {
		c.logPanic(p)
		return
	}
	c.handlerFailed(err, false)
}

// handlerFailed counts an error that a handler has returned, and reports it unless somebody else is
// told.
func (c *Conn) handlerFailed(err error, told bool) {
	c.sh.count.handlerErrors.Add(1)
	if !told {
		c.sh.logDebug("tcpio: handler failed", "conn", c.id, "peer", c.RemoteAddr().String(), "err", err)
	}
}

// LogValue is the connection as a group of attributes for log/slog: id, peer and local, the
// addresses as RemoteAddr and LocalAddr return them. It works after the connection closed.
func (c *Conn) LogValue() slog.Value {
	if c == nil || c.sh == nil {
		return slog.StringValue(c.String())
	}
	return slog.GroupValue(slog.Uint64("id", c.id),
		slog.String("peer", c.RemoteAddr().String()), slog.String("local", c.LocalAddr().String()))
}
