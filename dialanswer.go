package tcpio

import (
	"errors"
	"slices"
	"sync"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// A dialAnswer is where the answer to a dial goes: to one of to, actor, stream and caller.
type dialAnswer struct {
	// Immutable.
	sh     *shard
	value  any
	to     *Conn
	actor  Actor
	stream *stream
	caller chan *Dialed // of a call that waits; its connection may have the stream as its route

	left bool // to's place is given back; guarded by to's mu

	mu   sync.Mutex
	over bool // guarded by mu: the answer is on its way, or there will be none
}

// expect takes a place in To's mailbox for the answer, and has m know of To's end.
func (d *dialAnswer) expect(m membership) error {
	c := d.to
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.unlock()
	switch {
	case c.ended():
		return c.endedLocked("dial")
	case !c.isClaimed():
		return errors.New("the connection To has no route")
	case c.ext != nil && int(c.ext.posted) >= c.sh.opts.MailboxSize:
		return ErrMailboxFull
	}
	x := c.extLocked()
	x.posted++
	x.groups = append(x.groups, m)
	return nil
}

// tell gives the place in To's mailbox back, and sends the answer there, if there is one. It
// returns false if To has closed.
func (d *dialAnswer) tell(m membership, answer *Dialed) bool {
	c := d.to
	c.mu.Lock()
	defer c.unlock()
	x := c.ext
	if !d.left {
		d.left = true
		x.posted--
		if i := slices.Index(x.groups, m); i >= 0 {
			x.groups = slices.Delete(x.groups, i, i+1)
		}
	}
	if c.ended() {
		return false
	}
	if answer != nil {
		c.deliverLocked(mail{value: (*answerTo)(answer)})
	}
	return true
}

// take reports whether the caller is the one to answer, or to give up.
func (d *dialAnswer) take() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.over
	d.over = true
	return !was
}

// beginLocked begins the route of the connection that was dialed. To's handler, or a
// caller, is to give it one if the dial has none for it.
func (d *dialAnswer) beginLocked(c *Conn) *Dialed {
	answer := &Dialed{Conn: c, Value: d.value, To: d.to}
	c.ext.dial = nil
	// An edge that came before may have said so, or the handshake may have taken it.
	unread := c.announced() || c.ext.edges&^pollOut != 0 || c.tls() != nil && (sys.Unread(c.fd) > 0 || sys.HungUp(c.fd))
	c.ext.edges = 0
	c.withdrawReadableLocked()
	if d.stream == nil && d.actor == nil {
		c.route.add(routeOpened) // moveLocked emits Opened
	} else {
		c.stream, c.actor, c.claim = d.stream, d.actor, claimed
		if d.caller == nil {
			c.ext.dialed = answer
			c.emitLocked(pendDialed)
		}
		c.emitLocked(pendOpened)
	}
	if unread {
		c.announceReadableLocked() // without a route it is noted
	}
	c.todo.add(todoProgress | todoIdle)
	return answer
}

// failed delivers that the dial has failed, unless it is To or a caller that is to be told. A Conn
// that never was one carries the answer.
func (d *dialAnswer) failed(err error) *Dialed {
	answer := &Dialed{Err: err, Value: d.value, To: d.to}
	if d.to != nil || d.caller != nil {
		return answer
	}
	c := &Conn{sh: d.sh, id: lastID.Add(1), origin: dialed,
		fd: -1, phase: phaseGone, stream: d.stream, actor: d.actor}
	c.ext = &connExt{dialed: answer}
	c.mu.Lock()
	defer c.unlock()
	if c.stream != nil || c.sh.oweClosed() {
		c.emitLocked(pendDialed)
	}
	return answer
}
