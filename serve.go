package tcpio

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/rabbit-backend/tcpio/internal/wait"
	"golang.org/x/sync/errgroup"
)

// Start runs the listener until Close or Shutdown, as Serve does with a context that never ends;
// what Serve would return goes to OnErrorEvent, or to the log. It is what programs written for the
// first tcpio call. Without OnConnEvent, and without any other route, connections are accepted and
// their input is thrown away.
func (l *Listener) Start() {
	l.mu.Lock()
	if !l.routesFixed() {
		l.callbacks = &callback{onErr: l.opts.OnErrorEvent, calls: new(wait.CallQueue)}
		l.fixRoutesLocked(1, false)
	}
	cb := l.errorsTo()
	l.mu.Unlock()
	switch err := l.Serve(context.Background()); {
	case err == nil:
	case cb.onErr != nil:
		cb.errors().Run(func() { cb.tellNow(&l.shared, err) })
	default:
		l.logOnce(slog.LevelError, "tcpio: Serve failed", "addr", l.addr.String(), "err", err)
	}
}

// Serve accepts connections and runs the loops. It returns nil once Shutdown or Close has stopped
// the listener; the end of ctx is a Shutdown, within DrainTimeout and CloseTimeout. Otherwise it
// returns the error that stopped the loops. Serve may be called before Events, EventsPerLoop or
// NetListener, but accepts nothing and dials nothing until one of them is called, unless
// ListenerOptions.NewActor or OnConnEvent is set. If that takes longer than a second, it logs a
// warning, once.
//
// When it returns, every connection and every channel is closed. At the end it waits CloseTimeout
// for events to be received, and drops those that are left; it waits no longer when the stop began
// so long ago and nobody has received one since. A second call fails, and so does one after Close,
// with net.ErrClosed.
func (l *Listener) Serve(ctx context.Context) error {
	l.mu.Lock()
	if l.stopping.Load() {
		l.mu.Unlock()
		return &net.OpError{Op: "serve", Net: l.addr.Network(), Addr: l.addr, Err: net.ErrClosed}
	}
	if l.served {
		l.mu.Unlock()
		return errors.New("tcpio: Serve was called before on this listener")
	}
	l.served = true
	l.mu.Unlock()

	release := context.AfterFunc(ctx, func() { _ = l.Shutdown(context.Background()) })
	defer release()
	l.awaitRoutes()
	started, err := l.startLoops()
	if err != nil {
		l.abortAll()
	}
	if started {
		var g errgroup.Group
		for _, lp := range l.loops {
			g.Go(func() error {
				go lp.drive() // on a goroutine that a handler may keep for ever: Serve ends without it
				<-lp.done
				return lp.err
			})
		}
		err = g.Wait()
	}
	l.finish()
	return err
}

// routePatience is how long Serve waits for a route in silence.
const routePatience = time.Second

// awaitRoutes waits until it is known where events go. A program that has forgotten to say so would
// seem to hang: its peers connect, and wait in the backlog.
func (l *Listener) awaitRoutes() {
	t := time.NewTimer(routePatience)
	defer t.Stop()
	select {
	case <-l.routesKnown:
		return
	case <-t.C:
	}
	l.logOnce(slog.LevelWarn, "tcpio: Serve waits for a route, and accepts nothing: call Events, EventsPerLoop or "+
		"NetListener, or set NewActor or OnConnEvent", "addr", l.addr.String())
	<-l.routesKnown
}

// startLoops gives the loops their pollers, unless the listener has stopped already.
func (l *Listener) startLoops() (started bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopping.Load() {
		return false, nil
	}
	pollers := make([]poller, len(l.loops))
	for i := range pollers {
		if pollers[i], err = l.newPoller(); err != nil {
			break
		}
	}
	for _, e := range l.entries {
		if err == nil && e.fd >= 0 {
			err = pollers[0].add(int(e.fd), listenKey, pollEdge)
		}
	}
	for i, p := range pollers {
		if err == nil {
			l.loops[i].begin(p)
		} else if p != nil {
			p.close()
		}
	}
	if err == nil {
		l.polling = true
		close(l.started)
	}
	return l.polling, err
}

// finish waits for the last events to be received and closes the channels. Its time is over
// CloseTimeout behind the last descriptor; handlers that block may have used it up. A consumer that
// has received nothing for CloseTimeout of the end has left.
func (l *Listener) finish() {
	<-l.allClosed
	l.mu.Lock()
	stoppedAt := l.stoppedAt
	l.mu.Unlock()
	limit := int64(l.opts.CloseTimeout)
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(l.allClosedAt+limit-now()))
	defer cancel()
	l.logCuts()
	for l.feeders.Load() > 0 {
		left := min(l.allClosedAt, max(stoppedAt, l.fedAt.Load())) + limit - now()
		if left <= 0 {
			break
		}
		select {
		case <-l.feedersDone:
		case <-time.After(time.Duration(left)):
		}
	}
	l.pipes.Close()
	close(l.dropEvents)
	for l.feeders.Load() > 0 {
		<-l.feedersDone
	}
	l.logRest(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finished = true
	if l.events != nil {
		close(l.events.ch)
	}
	if l.accepted != nil {
		close(l.accepted.ch)
	}
	for _, lp := range l.loops {
		if lp.stream != nil {
			close(lp.stream.ch)
		}
		if l.polling {
			lp.watchdog.Stop()
			lp.p.close()
		}
	}
}

// logCuts says at the end whom Shutdown has cut off.
func (l *Listener) logCuts() {
	if !l.hurried.Load() {
		return
	}
	t := l.Stats().Timeouts
	late, level := t.Close-l.lateBefore.Load(), slog.LevelInfo
	if late > 0 {
		level = slog.LevelWarn
	}
	if t.Drain+late > 0 {
		l.logOnce(level, "tcpio: Shutdown cut connections off", "addr", l.addr.String(), "drain", t.Drain, "close", late)
	}
}

// finishUnserved closes the channels of a listener that Serve was never called on, and now never
// will be.
func (l *Listener) finishUnserved() {
	l.mu.Lock()
	mine := !l.served
	l.served = true
	l.mu.Unlock()
	if mine {
		l.finish()
	}
}

// Shutdown stops the listener in order. It accepts what the backlog holds and then nothing more; it
// sends [Draining] to every connection; it closes each as Conn.Close does, when
// [ListenerOptions].DrainTimeout says; and it returns nil once every descriptor is closed. When ctx
// ends first, Shutdown cuts off the connections that are left, and returns ctx's error.
//
// A connection that Shutdown has closed or cut off, instead of its handler, has [ErrDrainTimeout]
// as its Err if its peer had not ended, or had sent what was not read yet; and ErrCloseTimeout if
// output was left at the end. At the end of Serve one line of the log counts them.
//
// A closing connection ends when its peer does; and, unlike outside of Shutdown, also when its peer
// has acknowledged everything, the FIN too, and has sent nothing for 250 ms. So a peer that keeps
// its side open and is silent holds up nobody, and one that has not received everything has
// CloseTimeout.
//
// It does not wait for events to be received, so a consumer may call it; the Closed events are
// still to come.
//
// Whatever ctx is, a connection has DrainTimeout, or CloseTimeout while its actor's Receive blocks,
// and then CloseTimeout. Shutdown does not wait longer for a hook that blocks (Admit, AcceptRate,
// NewActor): it gives up its connection and the backlog. A Receive that itself calls Shutdown
// counts as one that blocks, so the call takes CloseTimeout; call it from a goroutine of its own
// instead.
func (l *Listener) Shutdown(ctx context.Context) error {
	l.endAt(endTold)
	if !l.hurried.Swap(true) {
		l.lateBefore.Store(l.Stats().Timeouts.Close)
	}
	l.acceptRest()
	for c := range l.everyConn() {
		c.tellShutdown()
	}
	var err error
	if d := l.opts.DrainTimeout; d > 0 {
		err = l.awaitAllClosed(ctx, d)
	} else if err = l.awaitAllClosed(ctx, min(drainGrace, l.opts.CloseTimeout)); err == errGrace {
		l.endDrain(false)
		err = l.awaitAllClosed(ctx, l.opts.CloseTimeout) // for handlers that block, and their answers
	}
	if err == errGrace {
		l.endDrain(true)
		if err = l.awaitAllClosed(ctx, l.opts.CloseTimeout); err == errGrace {
			l.stopAccepting() // a hook still blocks
			err = l.awaitAllClosed(ctx, 0)
		}
	}
	if err != nil {
		l.endAt(endCut)
		l.stopAccepting()
		for c := range l.everyConn() {
			c.cutShort()
		}
		<-l.allClosed
	}
	l.finishUnserved()
	return err
}

// endDrain closes the connections whose handlers have had their time: all, or those without an
// actor, which ends its own as soon as it has handled Draining.
func (l *Listener) endDrain(actorsToo bool) {
	l.endAt(endClosed)
	for c := range l.everyConn() {
		c.mu.Lock()
		if actorsToo || c.actor == nil {
			c.endDrainLocked()
		}
		c.unlock()
	}
}

// drainGrace is how long a consumer whose turn has no visible end, a channel's, has from Draining
// on.
const drainGrace = 250 * time.Millisecond

var errGrace = errors.New("tcpio: handlers have had their time")

// awaitAllClosed waits until every descriptor is closed. It gives up with ctx's error, or after
// limit, if there is one, with errGrace.
func (l *Listener) awaitAllClosed(ctx context.Context, limit time.Duration) error {
	var late <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-l.allClosed:
		return nil
	case <-late:
		return errGrace
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close stops at once: it accepts nothing more, aborts every connection, and returns nil when every
// descriptor is closed. It does not wait for events to be received. Called again it does nothing
// more.
func (l *Listener) Close() error {
	l.abortAll()
	<-l.allClosed
	l.finishUnserved()
	return nil
}

// acceptRest stops behind what the kernel has accepted already, so that closing the listening
// socket resets nobody. The first loop takes it: hooks run one at a time.
func (l *Listener) acceptRest() {
	if l.stop() == nil {
		l.stopAccepting() // the loops do not run, and never will
		return
	}
	l.dials.end()
	l.socket.last.Store(true)
	l.retryAccept()
}
