package tcpio

import (
	"context"
	"errors"
	"math"
	"time"
)

// How far the end has come. It is set before the connections are gone through: one that is registered
// meanwhile either is seen there or sees it.
const (
	endTold   = 1 + iota // Shutdown has told the connections
	endClosed            // their time is over
	endCut               // Close, or the end of Shutdown's ctx
)

// abortAll stops everything. It does not wait.
func (l *Listener) abortAll() {
	l.endAt(endCut)
	l.stopAccepting()
	for c := range l.everyConn() {
		c.Abort()
	}
}

// finish waits for the last events to be received and closes the channels. There is one CloseTimeout for
// all that is still to be told when the last descriptor is closed: handlers that block may have used it up.
func (l *Listener) finish() {
	<-l.gone
	left := time.Duration(l.goneAt + int64(l.opts.CloseTimeout) - now())
	ctx, cancel := context.WithTimeout(context.Background(), left)
	defer cancel()
	for ctx.Err() == nil && l.feeders.Load() > 0 {
		select {
		case <-l.fed:
		case <-ctx.Done():
		}
	}
	close(l.giveUp)
	for l.feeders.Load() > 0 {
		<-l.fed
	}
	l.logRest(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finished = true
	if l.events != nil {
		close(l.events.ch)
	}
	if l.handOut != nil {
		close(l.handOut.accepted.ch)
	}
	for _, lp := range l.loops {
		if lp.stream != nil {
			close(lp.stream.ch)
		}
		lp.dog.Stop()
		if l.polling {
			lp.p.close()
		}
	}
}

// Shutdown stops the listener in order. It accepts what the backlog holds and then nothing more; it sends
// [Draining] to every connection; it closes each as Conn.Close does, when [ListenerOptions].DrainTimeout
// says; and it returns nil once every descriptor is closed. When ctx ends first, Shutdown cuts off the
// connections that are left, with ErrCloseTimeout if output was left, and returns ctx's error.
//
// It does not wait for events to be received, so a consumer may call it; the Closed events are still to
// come.
//
// Whatever ctx is, a connection has DrainTimeout, or CloseTimeout while its actor's Receive blocks, and
// then CloseTimeout. Shutdown does not wait longer for a hook that blocks (Admit, AcceptRate, Actor): it
// gives up its connection and the backlog. A Receive that itself calls Shutdown counts as one that blocks,
// so the call takes CloseTimeout; call it from a goroutine of its own instead.
func (l *Listener) Shutdown(ctx context.Context) error {
	l.endAt(endTold)
	l.acceptRest()
	for c := range l.everyConn() {
		c.drain()
	}
	var err error
	if d := l.opts.DrainTimeout; d > 0 {
		err = l.awaitGone(ctx, d)
	} else if err = l.awaitGone(ctx, min(drainGrace, l.opts.CloseTimeout)); err == errGrace {
		l.endAt(endClosed)
		for c := range l.everyConn() {
			if !c.hasActor() {
				c.Close()
			}
		}
		err = l.awaitGone(ctx, l.opts.CloseTimeout) // for handlers that block, and their answers
	}
	if err == errGrace {
		l.endAt(endClosed)
		for c := range l.everyConn() {
			c.Close()
		}
		if err = l.awaitGone(ctx, l.opts.CloseTimeout); err == errGrace {
			l.stopAccepting() // a hook still blocks
			err = l.awaitGone(ctx, 0)
		}
	}
	if err != nil {
		l.endAt(endCut)
		l.stopAccepting()
		for c := range l.everyConn() {
			c.mu.Lock()
			c.cutLocked()
			c.unlock()
		}
		<-l.gone
	}
	l.finishUnserved()
	return err
}

// drainGrace is how long a consumer whose turn has no visible end, a channel's, has from Draining on.
const drainGrace = 250 * time.Millisecond

var errGrace = errors.New("tcpio: handlers have had their time")

// awaitGone waits until every descriptor is closed. It gives up with ctx's error, or after limit, if there
// is one, with errGrace.
func (l *Listener) awaitGone(ctx context.Context, limit time.Duration) error {
	var late <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-l.gone:
		return nil
	case <-late:
		return errGrace
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close stops at once: it accepts nothing more, aborts every connection, and returns nil when every
// descriptor is closed. It does not wait for events to be received. Called again it does nothing more.
func (l *Listener) Close() error {
	l.abortAll()
	<-l.gone
	l.finishUnserved()
	return nil
}

// finishUnserved closes the channels of a listener that Serve was never called on, and now never will be.
func (l *Listener) finishUnserved() {
	l.mu.Lock()
	mine := !l.served
	l.served = true
	l.mu.Unlock()
	if mine {
		l.finish()
	}
}

// endAt notes how far the end has come. It never goes back.
func (l *Listener) endAt(stage int32) {
	for {
		at := l.ending.Load()
		if at >= stage || l.ending.CompareAndSwap(at, stage) {
			return
		}
	}
}

// stopAccepting stops at once. What waits in the backlog is reset, and what is in a hook is closed.
func (l *Listener) stopAccepting() {
	l.socket.close(l.stop())
	l.checkGone()
}

// acceptRest stops behind what the kernel has accepted already, so that closing the listening socket resets
// nobody. The first loop takes it: hooks run one at a time.
func (l *Listener) acceptRest() {
	if l.stop() == nil {
		l.stopAccepting() // the loops do not run, and never will
		return
	}
	l.socket.last.Store(true)
	l.retryAccept()
}

// stop notes that the listener is stopping. It returns the first loop's poller, nil if there is none.
func (l *Listener) stop() poller {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopping.Store(true)
	l.decideLocked(0, false)
	if !l.polling {
		return nil
	}
	return l.loops[0].p
}

// checkGone notes that the last descriptor is closed, and ends the loops.
func (l *Listener) checkGone() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.socket.over: // before the counts: what was arriving until now is in one of them
	default:
		return
	}
	for _, lp := range l.loops {
		if lp.live.Load() != 0 {
			return
		}
	}
	if l.refusing.Load() != 0 {
		return
	}
	select {
	case <-l.gone:
		return
	default:
	}
	l.goneAt = now()
	close(l.gone)
	for _, lp := range l.loops {
		lp.timers.add(&lp.shard, &timer{kind: timerWake}, l.opts.CloseTimeout)
		lp.kick()
	}
}

// allTold is a loop's untold when it has ended: so far below zero that it stays there.
const allTold = math.MinInt64 / 2

// ended tells a loop that it has nothing more to do: every descriptor is closed, and every actor of its own
// was told, for which a handler that still blocks has CloseTimeout.
func (lp *loop) ended() bool {
	if !lp.l.stopping.Load() {
		return false
	}
	select {
	case <-lp.l.gone:
		if lp.untold.CompareAndSwap(0, allTold) {
			return true
		}
		if !lp.l.timeIsUp() {
			return false
		}
		lp.untold.Store(allTold)
		return true
	default:
		return false
	}
}

// timeIsUp reports whether handlers that still block have had their time: every descriptor is closed since
// CloseTimeout.
func (l *Listener) timeIsUp() bool {
	select {
	case <-l.gone:
		return now() >= l.goneAt+int64(l.opts.CloseTimeout)
	default:
		return false
	}
}
