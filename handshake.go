package tcpio

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"github.com/rabbit-backend/tcpio/internal/quota"
	"github.com/rabbit-backend/tcpio/internal/sys"
	"github.com/rabbit-backend/tcpio/internal/tlsio"
)

// plainTextAlert is sent to a client that speaks no TLS, to which crypto/tls sends no alert: a
// fatal unexpected_message.
var plainTextAlert = []byte{21, 3, 1, 0, 2, 2, 10}

// handshakeReadyLocked is readyLocked for a connection in its handshake.
func (c *Conn) handshakeReadyLocked(bits uint32) {
	st := c.ext.tls
	if st.conn != nil {
		c.ext.waits.openRead()
		return
	}
	if bits&(pollIn|pollHup|pollErr|pollRdHup) == 0 {
		return
	}
	if st.client { // it speaks first, and waits only for its turn
		if bits&(pollHup|pollErr|pollRdHup) != 0 {
			c.handshakeFailedLocked(c.hungUpLocked())
		}
		return
	}
	err := st.link.helloLocked()
	switch {
	case bits&(pollHup|pollErr|pollRdHup) != 0 && (err == nil || err == ErrWouldBlock):
		c.handshakeFailedLocked(c.hungUpLocked())
	case err == ErrWouldBlock:
	case err != nil:
		c.handshakeFailedLocked(err)
	case st.place == nil:
		st.place = c.sh.handshakes.Enqueue(c.handshake)
	}
}

// beginClientLocked begins the handshake of a client.
func (c *Conn) beginClientLocked() {
	if !c.ended() {
		c.ext.tls.place = c.sh.handshakes.Enqueue(c.handshake)
	}
}

// hungUpLocked is the error of a handshake that has not begun and whose peer has hung up: a client
// will not answer what the server would compute for it.
func (c *Conn) hungUpLocked() error {
	if err := c.socketErrorLocked(); err != nil {
		return err
	}
	return errTruncated
}

// handshake runs on the goroutine that Handshakes gives it. t is its turn.
func (c *Conn) handshake(t *quota.Turn) {
	c.mu.Lock()
	if !c.ended() && sys.HungUp(c.fd) { // the loop may not have come to it yet
		c.handshakeFailedLocked(c.hungUpLocked())
	}
	if c.ended() {
		c.unlock()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	st := c.ext.tls
	st.link.turn = t
	if st.client {
		st.conn = tls.Client(&st.link, st.config)
	} else {
		st.conn = tls.Server(&st.link, st.config)
	}
	st.cancel = cancel
	c.unlock()

	var err error
	defer func() {
		c.mu.Lock()
		defer c.unlock()
		st.link.turn, st.cancel = nil, nil
		switch {
		case c.ended():
		case err != nil:
			c.handshakeFailedLocked(err)
		default:
			c.handshakeDoneLocked()
		}
	}()
	c.runHandshake(ctx, st, &err)
}

// runHandshake sets err also when a function of the config panics or ends its goroutine.
func (c *Conn) runHandshake(ctx context.Context, st *tlsState, err *error) {
	ok := guard("a function of TLSConfig", func() {
		*err = st.conn.HandshakeContext(ctx)
		var plain tls.RecordHeaderError
		// errors.As calls methods of an error that a function of the config has returned.
		if errors.As(*err, &plain) {
			*err = plain
		}
	}, func(p *PanicError, _ bool) {
		c.logPanic(p)
		*err = p
	})
	if p, panicked := (*err).(*PanicError); ok && panicked { // of a guardedIO
		c.logPanic(p)
	}
}

func (c *Conn) handshakeDoneLocked() {
	st := c.ext.tls
	c.sh.timers.Remove(st.timer)
	st.timer, st.config = nil, nil
	st.link.silent = 0
	st.done, st.tells = true, c.opened() // otherwise Opened tells
	c.ext.waits.openSend()
	if c.sock.has(sockTimed) {
		c.limit.lastIn = c.sh.coarse() // the other limits begin here
		c.armLimitLocked()
	}
	if c.ext.dial != nil {
		c.ext.dial.poke() // it answers, and then emits Opened
	} else if !c.opened() {
		if c.isUnheard() {
			if ready, _ := c.peekLocked(); !ready {
				return
			}
		}
		c.emitLocked(pendOpened)
	}
	if c.mailReady() > 0 && c.isClaimed() {
		c.queueLocked()
	}
	c.todo.add(todoProgress)
	c.announceReadableLocked() // crypto/tls may have read the first bytes: no edge would say so
}

// handshakeFailedLocked ends a connection whose handshake failed, behind the alert for the peer.
func (c *Conn) handshakeFailedLocked(err error) {
	if _, plain := err.(tls.RecordHeaderError); plain || err == tlsio.ErrNotTLS {
		_ = c.rawWriteLocked(plainTextAlert)
	}
	c.sh.count.handshakesFailed.Add(1)
	opErr := c.opErrorLocked("handshake", err)
	if !c.opened() && c.origin != dialed { // which the dial reports
		c.sh.report(ofPeer, opErr)
	}
	c.closeLocked(opErr)
}

// handshakeTimedOutLocked ends a connection whose client has taken too long for its handshake.
func (c *Conn) handshakeTimedOutLocked() {
	if !c.ended() && c.handshaking() {
		c.sh.count.timeouts[TimeoutHandshake].Add(1)
		c.handshakeFailedLocked(&TimeoutError{TimeoutHandshake, c.sh.opts.HandshakeTimeout})
	}
}

func (t *tlsLink) Read(p []byte) (int, error) {
	c := t.c
	if t.turn == nil {
		n, err := t.takeLocked(p)
		return n, t.cause(err)
	}
	for {
		c.mu.Lock()
		if c.ended() {
			c.unlock()
			return 0, net.ErrClosed
		}
		t.records, t.silent = 1, 0 // crypto/tls has bounds of its own for a handshake
		n, err := t.takeLocked(p)
		if err != ErrWouldBlock {
			c.unlock()
			return n, t.cause(err)
		}
		t.restLocked()
		opened := c.ext.waiting().canRead.Enter()
		c.unlock()
		if !t.turn.Wait(opened) { // opened: bytes, the end, or HandshakeTimeout
			c.mu.Lock()
			c.handshakeTimedOutLocked()
			c.unlock()
		}
	}
}
