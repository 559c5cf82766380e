package websocket

import (
	"bytes"
	"io"
	"net/http"
	"runtime/debug"
	"sync"

	"github.com/rabbit-backend/tcpio"
)

// driver is a Conn as the actor of the connection under it.
type driver Conn

// Receive hands what ev means to the Conn's actor.
func (d *driver) Receive(ev tcpio.Event) error {
	t := turn{c: (*Conn)(d)}
	t.receive(ev)
	return nil
}

// A turn handles one event of the connection under c.
type turn struct {
	c      *Conn
	stream bool             // it runs in an iteration of Events
	yield  func(Event) bool // that iteration's body; nil for an actor
	broken bool             // the body has ended by a break
	shakes bool             // the handshake is not done
	work   int              // done so far; see turnWork
}

// turnWork is how much a turn does before others have theirs: so many frames. A message or a ping
// counts as frameCost, since it costs a call of the handler, or a write.
const turnWork, frameCost = 1024, 16

func (t *turn) receive(ev tcpio.Event) {
	switch ev := ev.(type) {
	case tcpio.Opened, tcpio.Readable:
		t.run()
	case tcpio.Writable:
		t.writable()
	case tcpio.Message:
		switch ev.Value.(type) {
		case nudge:
			t.c.mu.Lock()
			t.c.nudged = false
			t.c.mu.Unlock()
			t.run()
		case roomAgain:
			t.writable()
		default:
			t.message(ev)
		}
	case tcpio.Draining:
		t.draining()
	case tcpio.Closed:
		t.closed()
	}
}

// deliver hands ev to the iteration's body or to the actor.
func (t *turn) deliver(ev Event) {
	if t.stream {
		t.broken = t.broken || !t.yield(ev)
		return
	}
	for {
		t.c.mu.Lock()
		a := t.c.actor
		t.c.mu.Unlock()
		if a == nil {
			return
		}
		switch err := t.c.guard(func() error { return a.Receive(ev) }); err {
		case nil:
			return
		case errMoved:
		default:
			t.c.actorFailed(ev, err)
			return
		}
	}
}

// message delivers a posted value, behind Opened. A connection whose handshake is not done has no
// events, and drops it.
func (t *turn) message(ev tcpio.Message) {
	if !t.c.isAnnounced() {
		t.run()
	}
	if t.c.isAnnounced() {
		t.deliver(Message{t.c, ev.Value, ev})
	}
}

func (c *Conn) isAnnounced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.announced
}

// guard calls f, which calls the user's code, makes a panic an error, and reports what is no error
// of ours. It leaves runtime.Goexit to the core.
func (c *Conn) guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &tcpio.PanicError{Value: v, Stack: debug.Stack()}
		}
		if err != errMoved {
			c.tc.HandlerFailed(err)
		}
	}()
	return f()
}

// actorFailed ends a connection whose actor returned err.
func (c *Conn) actorFailed(ev Event, err error) {
	if _, last := ev.(Closed); last {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == io.EOF {
		c.closeLocked(ending{code: Normal, by: Local})
	} else {
		c.closeLocked(ending{code: InternalError, by: Local, err: err})
	}
}

// A window is what a turn reads into, from a pool.
type window struct {
	buf  [32 << 10]byte
	r    bytes.Reader
	head [16]byte
}

var windows = sync.Pool{New: func() any { return new(window) }}

// enter begins decoding. It reports false where that is not this turn's to do.
func (t *turn) enter() bool {
	c := t.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.busy:
		c.again = true
		return false
	case c.streamed != t.stream:
		c.nudgeLocked() // the connection has moved, and this event with it
		return false
	case c.phase == over || c.paused && c.announced:
		return false
	}
	c.busy, c.heard, t.shakes = true, true, c.phase == opening
	if c.pinged {
		c.pinged = false
		c.s.timers.arm(c, forPing)
	}
	return true
}

// leave ends decoding.
func (c *Conn) leave() {
	if in := c.in; in != nil && in.idle() {
		c.in = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy = false; c.again {
		c.again = false
		c.nudgeLocked()
	}
}

// handOver ends Dial's part: a turn follows with Opened, on the route that the connection has then.
func (c *Conn) handOver() {
	c.mu.Lock()
	c.again = true
	c.mu.Unlock()
	c.leave()
}

// halted reports whether the turn has to leave the rest to another one, and sees to it that one
// follows.
func (t *turn) halted() bool {
	c := t.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.phase == over || c.paused:
		return true
	case t.broken || c.streamed != t.stream:
		c.again = true
		return true
	}
	return false
}

// comeAgain has another turn follow.
func (t *turn) comeAgain() {
	t.c.mu.Lock()
	t.c.again = true
	t.c.mu.Unlock()
}

// run reads once, at most a window or what a large message has room for, and decodes it.
func (t *turn) run() {
	if !t.enter() {
		return
	}
	c := t.c
	defer c.leave()
	w := windows.Get().(*window)
	defer windows.Put(w)
	if t.shakes && !t.shake(w) {
		return
	}
	if c.in != nil && c.in.hello {
		t.hello()
		if t.halted() {
			return
		}
	}
	if !t.goOn(w) {
		return
	}
	if c.late() {
		t.fail(PolicyViolation, "a message took longer than MessageTimeout")
		return
	}
	if in := c.in; in != nil && in.large() && c.s.opts.PieceSize == 0 {
		room := in.room()
		n, err := c.tc.TryRead(room)
		if n > 0 {
			t.payload(room[:n], true)
		}
		t.readFailed(err)
		return
	}
	n, err := c.tc.TryRead(w.buf[:])
	if n > 0 {
		t.decode(w, w.buf[:n])
	}
	t.readFailed(err)
}

// goOn handles what an earlier turn has left. It reports false if the turn has to end.
func (t *turn) goOn(w *window) bool {
	c := t.c
	if c.in != nil && c.in.unpacks != nil {
		u := c.in.unpacks
		c.in.unpacks = nil
		if !t.inflate(c.in.unpackOp, u) {
			return false
		}
	}
	if c.in == nil || len(c.in.rest) == 0 {
		return true
	}
	rest := c.in.rest
	c.in.rest = nil
	return t.decode(w, rest)
}

func (c *Conn) inPhase(p phase) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase == p
}

// readFailed ends a connection that cannot be read from any more.
func (t *turn) readFailed(err error) {
	c := t.c
	if err == nil || err == tcpio.ErrWouldBlock {
		return
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	e := ending{code: Abnormal, err: err}
	t.lastWord(e)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == open {
		c.end = &e
	}
	c.overLocked()
}

// lastWord is called before the connection is ended because of what the peer sent. The receiver of
// a claim may still be answering the last message: it gets Closed now, and the connection ends once
// it has received that.
func (t *turn) lastWord(e ending) {
	c := t.c
	c.mu.Lock()
	_, claimed := c.actor.(*claim)
	claimed = claimed && c.announced && c.phase == open
	if claimed {
		c.announced = false
		c.end = &e
		c.s.timers.arm(c, forClose)
	}
	c.mu.Unlock()
	if claimed {
		t.deliver(e.event(c))
	}
}

// event is the Closed of this ending.
func (e *ending) event(c *Conn) Closed { return Closed{c, e.code, e.reason, e.by} }

// hello delivers Opened.
func (t *turn) hello() {
	c := t.c
	req := c.in.req
	c.in.hello, c.in.req = false, nil
	if choose := c.s.opts.NewActor; choose != nil && !c.client {
		var a Actor
		err := c.guard(func() error { a = choose(c); return nil })
		c.mu.Lock()
		if c.actor == nil {
			c.actor = a
		}
		if c.actor == nil || err != nil {
			c.actor = nil
			c.failLocked(ending{code: PolicyViolation, by: Local, err: err})
		}
		none := c.actor == nil
		c.mu.Unlock()
		if none {
			return
		}
	}
	c.mu.Lock()
	c.announced = true
	c.mu.Unlock()
	t.deliver(Opened{c, req})
}

// writable sends the control frames that waited for room, and delivers Writable if it is owed.
func (t *turn) writable() {
	c := t.c
	c.mu.Lock()
	c.flushControlLocked()
	tell := c.announced && c.phase == open && !c.sending && (c.refused || c.skipped > 0)
	skipped := c.skipped
	if tell {
		c.refused, c.skipped = false, 0
	}
	c.mu.Unlock()
	if tell {
		t.deliver(Writable{c, skipped})
	}
}

// draining delivers Draining, and then ends the connection.
func (t *turn) draining() {
	c := t.c
	if c.isAnnounced() {
		t.deliver(Draining{c})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, claimed := c.actor.(*claim) // its receiver has only begun to handle Draining
	switch {
	case c.phase == opening:
		c.overLocked()
	case c.phase != open:
	case c.s.drain > 0 || claimed && c.s.l != nil: // else tcpio closes the connection now
		c.s.timers.arm(c, forDrain)
	default:
		c.closeLocked(ending{code: GoingAway, by: Local})
	}
}

// closed delivers Closed.
func (t *turn) closed() {
	c := t.c
	c.s.timers.arm(c, forNothing)
	c.mu.Lock()
	if c.end == nil {
		c.end = &ending{code: Abnormal}
	}
	c.phase = over
	ev := c.end.event(c)
	c.out = nil
	announced := c.announced
	c.mu.Unlock()
	if announced {
		t.deliver(ev)
	}
	c.mu.Lock()
	c.gone = true
	c.mu.Unlock()
}

// expired is called when a deadline has passed.
func (c *Conn) expired(kind deadline) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case kind == forHandshake && c.phase == opening:
		c.refuseLocked(&HandshakeError{http.StatusRequestTimeout, "the request has not arrived in time"})
	case kind == forClose && c.phase != opening:
		c.overLocked()
		c.tc.Close() // also if our Close frame still waits
	case c.phase != open:
	case kind == forDrain:
		c.closeLocked(ending{code: GoingAway, by: Local})
	case c.heard || c.paused:
		c.heard, c.pinged = false, false
		c.s.timers.arm(c, forPing)
	case kind == forPing:
		if c.controlLocked(frameOf(c, opPing, nil)) == tcpio.ErrWouldBlock {
			c.s.timers.arm(c, forPing) // its output makes no progress: that is WriteStallTimeout's
			break
		}
		c.pinged = true
		c.s.timers.arm(c, forPong)
	case kind == forPong:
		c.failLocked(ending{code: PolicyViolation, by: Local, reason: "no pong", err: errNoPong})
	}
}

var errNoPong = &FrameError{PolicyViolation, "the peer did not answer a ping"}
