package tcpio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// An Actor receives the events of a connection, one at a time and in order, never two together, on a goroutine of the
// loop: no goroutine is kept for it.
//
// Receive may block, for a database say: when it holds the loop for more than a millisecond or so, another goroutine
// carries on with the loop's other connections; see [ListenerOptions.MaxBlocked]. A returned error closes the connection
// with that error, behind what is queued; io.EOF, as TryRead returns it, is an orderly close, and Err is nil. A panic
// aborts the connection with a *[PanicError]; nothing else is touched. In all these cases Closed still follows; an error
// or a panic of Receive at Closed is only logged.
type Actor interface{ Receive(ev Event) error }

// ActorFunc is a function as an Actor.
type ActorFunc func(ev Event) error

// Receive calls f.
func (f ActorFunc) Receive(ev Event) error { return f(ev) }

// A PanicError is the Err of a connection whose actor panicked, or called runtime.Goexit; Value then says so.
type PanicError struct {
	Value any    // what panic was called with
	Stack []byte // of the goroutine at the panic, as runtime/debug.Stack has it
}

func (e *PanicError) Error() string { return fmt.Sprintf("tcpio: actor panicked: %v", e.Value) }

// Unwrap returns the panic's value if it is an error, such as runtime.Error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// errGoexit is the value of a PanicError when an actor called runtime.Goexit.
var errGoexit error = goexit{"Receive"}

// mail is a value in a mailbox.
type mail struct {
	value any
	ask   *ask
	timed bool // from a timer: not counted against MailboxSize
}

// An ask is a question that somebody waits for the answer of.
type ask struct {
	over  atomic.Bool // answered, or given up
	reply chan any    // of one; filled by whoever set over, if that was Reply
}

// Post sends v to the connection: it arrives as a Message on whichever route the connection has. It does not block.
// Values of one poster arrive in the order posted, all of them behind Opened and, if Post returned nil, before Closed.
//
// It fails with [ErrMailboxFull] when [ListenerOptions.MailboxSize] values wait already, and with an error that matches
// net.ErrClosed once the connection is closing. What it refuses it has not kept.
func (c *Conn) Post(v any) error { return c.post(mail{value: v}) }

func (c *Conn) post(m mail) error {
	c.mu.Lock()
	defer c.unlock()
	if c.flags&(fClosing|fReleased) != 0 {
		return c.endedLocked("post")
	}
	if c.ext != nil && c.ext.posted >= c.sh.opts.MailboxSize {
		return ErrMailboxFull
	}
	c.deliverLocked(m)
	return nil
}

// deliverLocked sends m to the connection's route, or leaves it in the mailbox until the route has room.
func (c *Conn) deliverLocked(m mail) {
	early := c.flags&(fHandshake|fOpened) == fHandshake
	if c.flags&(fOpened|fDefer|fHandshake) == 0 {
		c.emitLocked(pendOpened)
	}
	c.sh.count.events.Add(1)
	c.sh.count.posted.Add(1)
	if s := c.stream; s != nil && !early && c.flags&(fQueued|fMute) == 0 {
		if _, ok := s.trySend(Message{c, m.value, m.ask}); ok {
			return
		}
	}
	x := c.extLocked()
	x.mailbox = append(x.mailbox, m)
	if !m.timed {
		x.posted++
	}
	if c.flags&fMute == 0 && !early {
		c.queueLocked()
	}
}

// takeMailLocked takes the oldest value.
func (c *Conn) takeMailLocked() Message {
	x := c.ext
	m := x.mailbox[0]
	x.mailbox[0] = mail{}
	if x.mailbox = x.mailbox[1:]; len(x.mailbox) == 0 {
		x.mailbox = nil
	}
	if !m.timed {
		x.posted--
	}
	return Message{c, m.value, m.ask}
}

// Ask posts v and blocks until the connection's handler has called Reply on the Message. It fails as Post does, with
// ctx's error when ctx ends first, and with net.ErrClosed when the connection ends without a reply. It must not be
// called from the handler that would have to reply.
func (c *Conn) Ask(ctx context.Context, v any) (any, error) {
	q := &ask{reply: make(chan any, 1)}
	c.mu.Lock()
	gone := c.extLocked().gone.enter()
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.ext.gone.leave(gone)
		c.mu.Unlock()
	}()
	if err := c.post(mail{value: v, ask: q}); err != nil {
		return nil, err
	}
	err := error(nil)
	select {
	case r := <-q.reply:
		return r, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-gone:
		c.mu.Lock()
		err = c.endedLocked("ask")
		c.mu.Unlock()
	}
	if !q.over.CompareAndSwap(false, true) {
		return <-q.reply, nil // it came together with the end
	}
	return nil, err
}

// Reply answers the Ask that sent m, from any goroutine, without blocking. It reports whether the answer was taken: not
// for a second one, not when Ask has given up, and not for a Message that comes from Post or After.
func (m Message) Reply(v any) bool {
	if m.ask == nil || !m.ask.over.CompareAndSwap(false, true) {
		return false
	}
	m.ask.reply <- v
	return true
}

// After posts v to the connection d from now, as a Message. A timer costs about a hundred bytes and no goroutine, does not
// count against MailboxSize, and ends with the connection. stop reports whether it kept v from being delivered; it may be
// called from anywhere and more than once. On a connection that is closing After does nothing.
func (c *Conn) After(d time.Duration, v any) (stop func() bool) {
	tm := &timer{kind: timerMessage, c: c, value: v}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flags&(fClosing|fReleased) != 0 {
		return func() bool { return false }
	}
	x := c.extLocked()
	if tm.next = x.timers; tm.next != nil {
		tm.next.prev = tm
	}
	x.timers = tm
	c.sh.timers.add(c.sh, tm, d)
	return tm.cancel
}

func (tm *timer) cancel() bool {
	c := tm.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sh.timers.stop(tm) {
		return false
	}
	c.unlinkTimerLocked(tm)
	return true
}

func (c *Conn) unlinkTimerLocked(tm *timer) {
	if tm.prev != nil {
		tm.prev.next = tm.next
	} else if c.ext.timers == tm {
		c.ext.timers = tm.next
	}
	if tm.next != nil {
		tm.next.prev = tm.prev
	}
	tm.next, tm.prev = nil, nil
}

// timedLocked delivers a timer's value.
func (c *Conn) timedLocked(tm *timer) {
	c.unlinkTimerLocked(tm)
	if c.flags&(fClosing|fReleased) == 0 {
		c.deliverLocked(mail{value: tm.value, timed: true})
	}
}

// Attach gives the connection to a. Called while Opened is handled it takes everything after that; called later, from
// any goroutine, also from an actor's own Receive to change the protocol, the switch falls between two events: none is
// lost, doubled or reordered. Opened is not repeated; a Readable still unread is announced again to a. Events already in
// a channel come out there. A channel from Conn.Events is closed behind those.
//
// A nil a is an error, and so is a connection whose Closed has been delivered, or can only come on its channel because
// Serve has no loop left to run a (net.ErrClosed): that one stays where it is.
func (c *Conn) Attach(a Actor) error {
	if a == nil {
		return errors.New("tcpio: Conn.Attach: the actor is nil")
	}
	c.mu.Lock()
	defer c.unlock()
	if c.toldLocked() || c.stream != nil && c.flags&pendClosed != 0 && !c.sh.expect() {
		return c.endedLocked("attach")
	}
	c.moveLocked(nil, a)
	return nil
}

// claimBuffer is the capacity of a claimed channel: the events of one connection but for messages are never more.
const claimBuffer = 8

// Events claims the connection for the goroutine that receives from the returned channel: from now on its events come
// there, in order, and the channel is closed behind Closed. Serve still owns the socket. Called while Opened is handled
// it takes everything after that; called later the switch is as described at Attach. While nobody receives, only this
// connection pauses. Called again it returns the same channel, and after Closed was delivered elsewhere a closed one.
func (c *Conn) Events() <-chan Event {
	c.mu.Lock()
	defer c.unlock()
	if c.stream != nil && c.stream.private {
		return c.stream.ch
	}
	s := newStream(c.sh.shared, claimBuffer, true)
	if c.toldLocked() {
		close(s.ch)
		return s.ch
	}
	c.moveLocked(s, nil)
	return s.ch
}

// toldLocked reports whether Closed has left the connection.
func (c *Conn) toldLocked() bool {
	return c.flags&fGone != 0 && c.flags&pendClosed == 0
}

// moveLocked changes the route to s, or to a if s is nil. What is undelivered goes along.
func (c *Conn) moveLocked(s *stream, a Actor) {
	unread := c.flags&fReadable != 0
	c.unreadableLocked()
	if old := c.stream; old != nil {
		c.flags &^= fQueued // the old stream's feeder passes over it
		old.leave()
	} else if s != nil {
		c.flags &^= fQueued // and so does the loop
	}
	if c.flags&pendClosed != 0 && c.stream == nil && s != nil {
		c.sh.untold.Add(-1) // the other way round Attach has counted it
		c.sh.kick()         // it may be the last one that the end waits for
	}
	c.stream, c.actor, c.sentAt = s, a, 0
	plain := c.flags&fMute != 0
	if c.ext != nil {
		c.ext.late = 0
	}
	c.flags &^= fMute | fDefer
	if plain && c.flags&(fHandshake|pendOpened) == 0 {
		c.emitLocked(pendOpened) // it was handed out as a net.Conn
	}
	if c.flags&(pendMask&^pendReadable) != 0 || c.mail() > 0 {
		c.queueLocked()
	}
	if unread {
		c.readableLocked()
	}
	c.roomLocked() // a Writable that was owed before there was a route
	c.awaitUserLocked()
}

func (c *Conn) hasActor() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.actor != nil
}

// actorBudget is how many events one turn of an actor handles before others have theirs.
const actorBudget = 16

// runActor runs a turn of c's actor. The caller has set fRunning, which nobody else clears, and has the role. It reports
// false when the role was lost in a handler that blocked; the turn then ends with that handler.
func (lp *loop) runActor(c *Conn) (kept bool) {
	kept = true
	for budget := actorBudget; ; budget-- {
		c.mu.Lock()
		var ev Event
		if budget > 0 && kept && c.stream == nil {
			ev = c.nextLocked()
		}
		if ev == nil {
			c.endTurnLocked()
			c.unlock()
			if !kept {
				lp.l.blocked.Add(-1)
				lp.kick() // it may be the last one that the end waits for
			}
			return kept
		}
		actor := c.actor
		if _, draining := ev.(Draining); draining {
			c.flags |= fDrained
		}
		c.mu.Unlock()
		if actor != nil {
			kept = lp.receive(c, actor, ev)
		}
		if _, last := ev.(Closed); last {
			lp.untold.Add(-1)
		}
	}
}

// endTurnLocked ends a turn. A connection whose handler was told of the Shutdown is closed behind it.
func (c *Conn) endTurnLocked() {
	c.flags &^= fRunning
	c.endDrainLocked()
	c.awaitUserLocked()
	if c.stream == nil && (c.flags&pendMask != 0 || c.mail() > 0) {
		c.queueLocked()
	}
}

// endDrainLocked closes a connection whose actor was told of the Shutdown and has nothing more to do.
func (c *Conn) endDrainLocked() {
	if c.flags&(fDrained|fRunning) == fDrained && !c.callWaitsLocked() && c.stream == nil && c.sh.opts.DrainTimeout == 0 {
		c.closeLocked(nil)
	}
}

// receive calls the actor and deals with how it ends. It reports whether the caller still has the role.
func (lp *loop) receive(c *Conn, actor Actor, ev Event) (kept bool) {
	lp.holder.Store(c)
	w := lp.enter(handler)
	var err error
	ok := guard("Receive", func() { err = actor.Receive(ev) }, func(p *PanicError, exiting bool) {
		kept = lp.state.CompareAndSwap(w, w&^roleMask)
		c.actorPanicked(ev, p)
		if exiting {
			lp.abandon(c, ev, kept)
		}
	})
	if ok {
		kept = lp.state.CompareAndSwap(w, w&^roleMask)
		if err != nil {
			c.actorFailed(ev, err)
		}
	}
	return kept
}

// abandon is called on a goroutine that is exiting inside a handler: the loop goes on without it.
func (lp *loop) abandon(c *Conn, ev Event, kept bool) {
	if _, last := ev.(Closed); last {
		lp.untold.Add(-1)
	}
	c.mu.Lock()
	c.endTurnLocked()
	c.unlock()
	if kept {
		lp.kicked.Store(true) // as in takeOver
		go lp.drive()
	} else {
		lp.l.blocked.Add(-1)
		lp.kick()
	}
}

// actorFailed ends a connection whose actor returned err.
func (c *Conn) actorFailed(ev Event, err error) {
	if _, last := ev.(Closed); last {
		c.sh.log("tcpio: actor failed at Closed", "conn", c.id, "peer", c.RemoteAddr().String(), "err", err)
		return
	}
	if err == io.EOF { // not errors.Is: an error of the user's has methods of the user's
		err = nil
	}
	c.mu.Lock()
	c.closeLocked(err)
	c.unlock()
}

// actorPanicked ends a connection whose actor panicked, or is exiting.
func (c *Conn) actorPanicked(ev Event, p *PanicError) {
	_, last := ev.(Closed)
	c.mu.Lock()
	said := p.Value == errGoexit && c.ext != nil && exitedCallback(c.ext.err)
	c.mu.Unlock()
	if !said {
		c.logPanic(p)
	}
	if !last {
		c.mu.Lock()
		c.abortLocked(p)
		c.unlock()
	}
}

func (c *Conn) logPanic(p *PanicError) {
	c.sh.log("tcpio: handler panicked", "conn", c.id, "peer", c.RemoteAddr().String(), "panic", p.Value, "stack", string(p.Stack))
}

// willBlock is called before a blocking call on c. If c's own handler has the loop, the loop goes on without waiting for
// the watchdog to notice.
func (lp *loop) willBlock(c *Conn) {
	w := lp.state.Load()
	if role(w&roleMask) == handler && lp.holder.Load() == c && lp.state.Load() == w {
		lp.takeOver(w, true)
	}
}

// takeOver gives the role of a loop whose owner has been in user code for long, state w, to a new goroutine,
// which carries on with the rest of the batch. At the bound the loop waits for its handler instead, which
// must not be when the handler waits for the loop, nor when the listener is over. A hook does not count:
// there is one at a time.
func (lp *loop) takeOver(w uint64, must bool) {
	counts := role(w&roleMask) == handler
	if counts {
		if n := lp.l.blocked.Add(1); n > int64(lp.l.opts.MaxBlocked) && !must && !lp.l.timeIsUp() {
			lp.l.blocked.Add(-1)
			return
		}
	}
	if !lp.state.CompareAndSwap(w, w&^roleMask) {
		if counts {
			lp.l.blocked.Add(-1) // the handler has just returned
		}
		return
	}
	lp.kicked.Store(true) // the handler's turn may have come from the queue: the others in it wait
	go lp.drive()
}

// Blocked returns the number of goroutines that are in an actor's Receive which has blocked and lost its loop.
func (l *Listener) Blocked() int { return int(l.blocked.Load()) }
