package tcpio

import (
	"context"
	"time"
)

// Post sends v to the connection: it arrives as a Message on whichever route the connection has. It
// does not block. Values of one poster arrive in the order posted, all of them behind Opened and,
// if Post returned nil, before Closed.
//
// It fails with [ErrMailboxFull] when [ListenerOptions.MailboxSize] values wait already, and with
// an error that matches net.ErrClosed once the connection is closing. What it refuses it has not
// kept.
func (c *Conn) Post(v any) error { return c.post(mail{value: v}) }

func (c *Conn) post(m mail) error {
	c.mu.Lock()
	defer c.unlock()
	if c.ended() {
		return c.endedLocked("post")
	}
	if c.ext != nil && int(c.ext.posted) >= c.sh.opts.MailboxSize {
		return ErrMailboxFull
	}
	c.deliverLocked(m)
	return nil
}

// deliverLocked sends m to the connection's route, or leaves it in the mailbox until the route has
// room.
func (c *Conn) deliverLocked(m mail) {
	early := c.isEarly()
	if !early && !c.opened() && !c.isUnheard() {
		c.emitLocked(pendOpened)
	}
	c.sh.count.events.Add(1)
	c.sh.count.posted.Add(1)
	if s := c.stream; s != nil && !early && !c.route.has(routeQueued) && c.isClaimed() {
		if _, ok := s.trySend(m.event(c)); ok {
			return
		}
	}
	x := c.extLocked()
	x.mailbox.Push(m)
	if !m.timed {
		x.posted++
	}
	if c.isClaimed() && !early {
		c.queueLocked()
	}
}

// Ask posts v and blocks until the connection's handler has called Reply on the Message. It fails
// as Post does, with ctx's error when ctx ends first, and with net.ErrClosed when the connection
// ends without a reply. It must not be called from the handler that would have to reply.
func (c *Conn) Ask(ctx context.Context, v any) (any, error) {
	q := &ask{reply: make(chan any, 1)}
	c.mu.Lock()
	gone := c.extLocked().waiting().gone.Enter()
	c.unlock()
	defer func() {
		c.mu.Lock()
		c.ext.waiting().gone.Leave(gone)
		c.unlock()
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
		c.unlock()
	}
	if !q.over.CompareAndSwap(false, true) {
		return <-q.reply, nil // it came together with the end
	}
	return nil, err
}

// After posts v to the connection d from now, as a Message. A timer costs about a hundred bytes and
// no goroutine, does not count against MailboxSize, and ends with the connection. stop reports
// whether it kept v from being delivered; it may be called from anywhere and more than once. On a
// connection that is closing After does nothing.
func (c *Conn) After(d time.Duration, v any) (stop func() bool) {
	tm := &timer{kind: timerMessage, c: c, value: v}
	c.mu.Lock()
	defer c.unlock()
	if c.ended() {
		return func() bool { return false }
	}
	x := c.extLocked()
	if tm.next = x.timers; tm.next != nil {
		tm.next.prev = tm
	}
	x.timers = tm
	c.sh.addTimer(tm, d)
	return tm.cancel
}

func (tm *timer) cancel() bool {
	c := tm.c
	c.mu.Lock()
	defer c.unlock()
	if !c.sh.timers.Remove(tm) {
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
	if !c.ended() {
		c.deliverLocked(mail{value: tm.value, timed: true})
	}
}
