package tcpio

import (
	"crypto/tls"
	"io"
	"net"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/sys"
)

// TLS uses the standard crypto/tls. A handshake runs on a goroutine of its own, from when a whole
// ClientHello has arrived until the handshake ends; a silent client has none. Afterwards tls.Conn
// is called under the connection's mu, over a tlsLink that never blocks: crypto/tls goes on after a
// temporary error, so that an idle connection has no goroutine either.

// TLS returns the state of the connection's TLS, or nil while there is none: on a plain connection,
// and before the handshake of StartTLS is done. It works after Close.
func (c *Conn) TLS() *tls.ConnectionState {
	c.mu.Lock()
	defer c.unlock()
	st := c.tls()
	if st == nil || !st.done {
		return nil
	}
	state := st.conn.ConnectionState()
	return &state
}

// beginTLSLocked makes the connection wait for its handshake, as a server or as a client.
func (c *Conn) beginTLSLocked(config *tls.Config, client bool) {
	c.sock.add(sockUnsure)
	tm := &timer{kind: timerHandshake, c: c}
	c.extLocked().tls = &tlsState{config: config, client: client, timer: tm, link: tlsLink{c: c}}
	c.sh.addTimer(tm, c.sh.opts.HandshakeTimeout)
}

// tlsReadLocked decrypts until p is full, no record is left, or recordBudget is spent. If it
// returns bytes, and tlsState.more is set, the caller announces the rest. If the budget is spent
// without any, it returns ErrWouldBlock, and the loop announces the rest after its other
// connections.
func (c *Conn) tlsReadLocked(p []byte) (n int, err error) {
	if c.handshaking() {
		return 0, ErrWouldBlock
	}
	x, st := c.ext, c.ext.tls
	st.more, st.waits = false, false
	if x.readErr != nil {
		return 0, x.readErr
	}
	st.link.records = recordBudget
	st.reading = true
	for n < len(p) && err == nil {
		var m int
		if m, err = st.conn.Read(p[n:]); m > 0 {
			n += m
			st.link.silent = 0
		}
	}
	st.reading = false
	st.link.restLocked()
	if n > 0 {
		c.heardLocked()
	}
	if st.replied > repliesMax {
		err = errReplies // crypto/tls keeps the error for the next write
	}
	switch err {
	case nil:
		return n, nil
	case errAgain:
		if st.more = st.link.records == 0; st.more && n == 0 {
			c.sh.addTimer(&timer{kind: timerReadable, c: c}, 0)
		}
		err = ErrWouldBlock
	case io.EOF: // close_notify; crypto/tls says so again
		st.more = true
	default:
		st.more = true
		if x.readErr == nil { // else it is the socket's own
			_ = c.noteReadErrLocked(c.opErrorLocked("read", err))
		}
		err = x.readErr
	}
	if n > 0 {
		return n, nil // an error is for the next read
	}
	return 0, err
}

// sealLocked encrypts p and sends it or queues it.
func (c *Conn) sealLocked(p []byte) error {
	st := c.ext.tls
	st.plain = int64(c.queuedLocked()) + int64(len(p))
	st.sealed = int64(c.out.Len()) // tlsLink.Write adds what it sends of p
	if _, err := st.conn.Write(p); err != nil {
		if c.sendErrLocked() != nil {
			return c.ext.sendErr
		}
		return c.opErrorLocked("write", err)
	}
	return nil
}

// sealvLocked is sealLocked for several pieces, gathered into whole records.
func (c *Conn) sealvLocked(bufs net.Buffers) error {
	b := c.sh.pool.Get(buf.Large)
	defer c.sh.pool.Put(b)
	n := 0
	for _, p := range bufs {
		for len(p) > 0 {
			m := copy(b.Buf[n:], p)
			n, p = n+m, p[m:]
			if n == len(b.Buf) {
				if err := c.sealLocked(b.Buf); err != nil {
					return err
				}
				n = 0
			}
		}
	}
	if n == 0 {
		return nil
	}
	return c.sealLocked(b.Buf[:n])
}

// sendCloseNotifyLocked queues the close_notify of a connection whose handshake is done.
func (c *Conn) sendCloseNotifyLocked() {
	if st := c.tls(); st != nil && st.done && c.sendErrLocked() == nil && !c.finSent() {
		_ = st.conn.CloseWrite() // an error is in ext.sendErr already
	}
}

// endTLSLocked releases what only an open connection has.
func (c *Conn) endTLSLocked() {
	st := c.ext.tls
	if st.timer != nil {
		c.sh.timers.Remove(st.timer)
		st.timer = nil
	}
	if st.cancel != nil {
		st.cancel()
	}
	c.sh.handshakes.Leave(st.place)
	st.link.dropLocked()
}

// peekTLSLocked is peekLocked for a connection with TLS. It keeps what it decrypts in the buffer of
// Frames.
func (c *Conn) peekTLSLocked() (ready, end bool) {
	n, err := c.decryptLocked()
	switch {
	case n > 0:
		return true, false
	case err == ErrWouldBlock:
		c.emptiedLocked()
		return false, false
	}
	return true, err == io.EOF // which a read returns again
}

// decryptLocked reads plain text before the user does, into the buffer of Frames.
func (c *Conn) decryptLocked() (int, error) {
	f := &c.ext.frames
	fresh := !f.Held()
	if !f.WidenSome(&c.sh.pool) {
		return 0, nil // there is no room to decrypt it
	}
	f.busy = true // an answer of crypto/tls may end the connection, which must not drop the buffer
	n, err := c.tlsReadLocked(f.Room())
	f.busy = false
	if f.Filled(n); n > 0 {
		f.partial = false
	}
	if c.ended() || n == 0 && fresh {
		f.drop(&c.sh.pool)
	}
	return n, err
}

// plainTextWaitsLocked reports, when a time limit is due, whether the peer has sent plain text that
// was not known of: sealed bytes may hold none. It decrypts into the buffer of Frames, and only if
// nothing is there that the user has not looked at.
func (c *Conn) plainTextWaitsLocked() bool {
	x, st := c.ext, c.ext.tls
	switch {
	case c.handshaking() || c.atEOF():
		return false
	case x.frames.busy, x.frames.Held() && !x.frames.partial:
		st.waits = true // it counted when it was decrypted
		return false
	case x.frames.partial && x.frames.Len() > c.sh.opts.MaxFrame:
		return false
	}
	n, err := c.decryptLocked()
	if n == 0 && err == nil {
		return !st.link.in.Empty() || sys.Unread(c.fd) > 0
	}
	if n == 0 && err == ErrWouldBlock || c.ended() {
		return false
	}
	st.waits = true
	if !c.opened() {
		c.emitLocked(pendOpened) // DeferAccept has held it back
	}
	c.announceReadableLocked()
	return n > 0
}
