package tcpio

import (
	"context"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// Context returns a context that ends with the connection, the same on every call: for what a
// handler calls that is of no use without the peer, a database say. It ends when the connection's
// end begins, by Close, Abort, an error or a time limit, and when the peer resets the connection,
// also while a handler blocks and nobody reads. The peer's end of stream alone does not end it: the
// peer may wait for the answer.
//
// Its Err is context.Canceled, and context.Cause the connection's Err, or net.ErrClosed where that
// is nil or not known yet. Context costs nothing until it is called, and about 200 bytes then, no
// goroutine. Any goroutine may call it; after the connection's end it has ended. While handlers
// block at [ListenerOptions.MaxBlocked], loops wait for them and a reset is seen later.
func (c *Conn) Context() context.Context {
	c.mu.Lock()
	defer c.unlock()
	x := &c.extLocked().context
	if x.ctx == nil {
		x.ctx, x.end = context.WithCancelCause(context.Background())
		if c.ended() || sys.Over(c.fd) { // its edge has come before
			c.endContextLocked()
		}
	}
	return x.ctx
}

// SetData attaches a value of the user's to the connection, for Data to return. tcpio does not look
// at it and drops it with the Conn.
func (c *Conn) SetData(v any) {
	c.mu.Lock()
	var side *relaySide
	if c.relayed() {
		side = c.side()
	}
	c.setDataLocked(side, v)
	c.unlock()
}

// Data returns what SetData set last, nil before. It works after the connection closed too, so that
// the handler of Closed finds its state.
func (c *Conn) Data() any {
	c.mu.Lock()
	defer c.unlock()
	return c.userDataLocked()
}

// Endpoint returns the Name of the [Endpoint] that the connection came by. It is empty for one that
// came by the listener's own Addr, was adopted or dialed. Any goroutine may call it; it works after
// Close.
func (c *Conn) Endpoint() string { return c.entry().name }

// Listener returns the listener that serves the connection, also after the connection closed. A
// handler that dials needs no variable for it.
func (c *Conn) Listener() *Listener {
	l, _ := c.sh.listener.(*Listener)
	return l
}
