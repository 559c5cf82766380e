package tcpio

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/wait"
)

// The callback API is the compatibility surface: what programs written for the first tcpio use. It
// is an actor like any other.

// Callback makes an Actor of the callbacks that the first tcpio had. onConn is called when there is
// something to read from a connection, and again while unread bytes remain; it reads with Read. An
// error that it returns closes the connection, behind what is queued, and goes to onErr: io.EOF at
// an orderly end, which Read returns. onConn is never called with nothing to read. Either may be
// nil: without onConn, input is thrown away.
//
// onConn may block. Connections that share one Callback have their calls made one at a time, those
// of onErr included, so that callbacks may share state without a lock; while one blocks the others
// wait, but connections are still accepted, flushed and timed. A call that waits for its turn
// counts as one that runs: Shutdown gives its connection CloseTimeout, and EOFTimeout does not run.
// A panic in onConn, or runtime.Goexit, aborts its connection and goes to onErr as a *[PanicError];
// one in onErr is only logged. The net.Conn passed is a *Conn; programs that assert a *net.TCPConn
// need Conn.Hijack instead.
func Callback(onConn func(net.Conn) error, onErr func(error)) Actor {
	return &callback{onConn: onConn, onErr: onErr, calls: new(wait.CallQueue)}
}

type callback struct {
	onConn func(net.Conn) error
	onErr  func(error)
	calls  *wait.CallQueue // nil: calls for different connections run at once
	errs   wait.CallQueue  // then errors still come one at a time

	trouble atomic.Pointer[error] // of the listener, not reported yet
}

// spinPause is how soon a callback is called again that has read nothing.
const spinPause = 10 * time.Millisecond

// Receive implements Actor.
func (cb *callback) Receive(ev Event) error {
	r, ok := ev.(Readable)
	switch {
	case !ok:
	case cb.calls == nil:
		cb.call(r.Conn)
	case cb.calls.Enter():
		defer cb.calls.Pass()
		cb.call(r.Conn)
	default:
		c := r.Conn
		c.mu.Lock()
		c.extLocked().late++
		c.unlock()
		cb.calls.Post(func() { cb.lateCall(c) })
	}
	return nil
}

// lateCall is a call that has waited for its turn, which its connection's turn has not. If that has
// moved to another route meanwhile, what there was to read has been announced there.
func (cb *callback) lateCall(c *Conn) {
	c.mu.Lock()
	waited := c.callWaitsLocked()
	c.unlock()
	if !waited {
		return
	}
	defer func() {
		c.mu.Lock()
		defer c.unlock()
		if !c.callWaitsLocked() {
			return // it has moved to another route
		}
		if c.ext.late--; c.ext.late > 0 {
			return // more has come meanwhile, for another call
		}
		c.todo.add(todoIdle)
	}()
	cb.call(c)
}

// call is one call of onConn, if there is anything to read.
func (cb *callback) call(c *Conn) {
	c.mu.Lock()
	ready, end := c.peekLocked() // an error that it meets is the next read's
	before := c.stamp
	c.unlock()
	if !ready {
		return
	}
	var err error
	orderly := false
	if !guard(inCallback, func() {
		if cb.onConn == nil {
			err = c.discard()
		} else {
			err = cb.onConn(c)
		}
		orderly = errors.Is(err, io.EOF) // asks methods of the user's
	}, func(p *PanicError, _ bool) { cb.panicked(c, p) }) {
		return
	}
	c.mu.Lock()
	switch {
	case orderly:
		c.closeLocked(nil)
	case err != nil:
		c.closeLocked(err)
	case c.ended():
	case c.returnedEOF():
		c.closeLocked(nil)
	case c.stamp != before:
		// It has read; whatever is left announces itself.
	case end:
		c.closeLocked(nil) // the end is all there is, and the callback does not want it
	default:
		// Unread bytes remain, so it is called again, though not in a spin.
		c.sh.addTimer(&timer{kind: timerReadable, c: c}, spinPause)
	}
	c.unlock()
	if err != nil {
		if !orderly {
			c.handlerFailed(err, cb.onErr != nil)
		}
		cb.tell(c.sh.shared, err)
	}
}

const inCallback = "OnConnEvent"

// panicked ends the connection that onConn panicked for, or is exiting in, and nobody else's call.
func (cb *callback) panicked(c *Conn, p *PanicError) {
	c.mu.Lock()
	c.abortLocked(p)
	c.unlock()
	c.logPanic(p)
	cb.tell(c.sh.shared, p)
}

// exitedCallback reports whether err is why a connection ended whose callback called
// runtime.Goexit. The goroutine's own guard, if it is one of a loop, need not say so again.
func exitedCallback(err error) bool {
	p, ok := err.(*PanicError)
	return ok && p != nil && p.Value == goexit{inCallback}
}

// tell gives err to onErr, in its turn. That is behind a callback that is running, and never on a
// loop.
func (cb *callback) tell(sh *shared, err error) {
	if cb.onErr != nil {
		cb.errors().Post(func() { cb.tellNow(sh, err) })
	}
}

func (cb *callback) errors() *wait.CallQueue {
	if cb.calls != nil {
		return cb.calls
	}
	return &cb.errs
}

func (cb *callback) tellNow(sh *shared, err error) {
	guard("OnErrorEvent", func() { cb.onErr(err) }, func(p *PanicError, _ bool) {
		sh.logPanic("OnErrorEvent", p)
	})
}

// listenerFailed tells onErr of trouble that concerns no connection. While one is waiting for its
// turn, a later one takes its place.
func (cb *callback) listenerFailed(sh *shared, err error) {
	if cb.trouble.Swap(&err) == nil {
		cb.errors().Post(func() { cb.tellNow(sh, *cb.trouble.Swap(nil)) })
	}
}

// discard reads and throws away one block of input.
func (c *Conn) discard() error {
	b := c.sh.pool.Get(buf.Large)
	defer c.sh.pool.Put(b)
	if _, err := c.TryRead(b.Buf); err != nil && err != ErrWouldBlock {
		return err
	}
	return nil
}
