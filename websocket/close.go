package websocket

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"github.com/rabbit-backend/tcpio"
)

// A control is control frames that wait for room. It is guarded by the Conn's mu.
type control struct {
	pong []byte // the answer to the last ping; earlier ones need none (RFC 6455, 5.5.3)
	end  []byte // a Close frame, behind which nothing is sent
}

// Close begins the closing handshake and returns at once: what was accepted by writes still goes
// out, then a Close frame with code and reason, of which 123 bytes are sent. No message comes
// behind it. When the peer has answered, or did not within CloseTimeout, the connection ends and
// Closed follows. On a connection that has ended or is closing it does nothing and returns nil.
// A code that may not be sent is an error.
func (c *Conn) Close(code Code, reason string) error {
	if !code.sendable() {
		return badCode(code)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeLocked(ending{code: code, by: Local, reason: cut(reason)})
	return nil
}

type badCode Code

func (e badCode) Error() string { return "websocket: Close: no code to send: " + Code(e).String() }

// Abort cuts the connection off without a Close frame; see [tcpio.Conn.Abort].
func (c *Conn) Abort() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase = over
	return c.tc.Abort()
}

// Ping sends a ping with p, at most 125 bytes. It does not block, and fails as TryWriteText does.
// The pong is no event; see [Options].PingInterval.
func (c *Conn) Ping(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != open {
		return c.errEnded("ping")
	}
	return c.controlLocked(frameOf(c, opPing, p[:min(len(p), ws.MaxControlFramePayloadSize)]))
}

// cut shortens a reason to what fits into a Close frame, at the end of a character.
func cut(reason string) string {
	reason = strings.ToValidUTF8(reason, "\uFFFD")
	if len(reason) <= ws.MaxControlFramePayloadSize-2 {
		return reason
	}
	n := ws.MaxControlFramePayloadSize - 2
	for !utf8.RuneStart(reason[n]) {
		n--
	}
	return reason[:n]
}

// frameOf is a control frame as it is sent.
func frameOf(c *Conn, op ws.OpCode, p []byte) []byte {
	f := payload{op: op, p: p}.whole(c.client)
	defer f.free()
	return append([]byte(nil), f.b...)
}

func (c *Conn) controlLocked(frame []byte) error {
	_, err := c.tc.TryWrite(frame)
	return err
}

// pong answers a ping.
func (c *Conn) pong(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != open {
		return
	}
	f := frameOf(c, opPong, p)
	if c.out == nil || c.out.pong == nil {
		if c.controlLocked(f) != tcpio.ErrWouldBlock {
			return
		}
	}
	c.needOut().pong = f
}

// takePongLocked takes the pong that waits for room, nil if none does.
func (c *Conn) takePongLocked() (pong []byte) {
	if c.out == nil {
		return nil
	}
	if pong, c.out.pong = c.out.pong, nil; c.out.end == nil {
		c.out = nil
	}
	return pong
}

func (c *Conn) needOut() *control {
	if c.out == nil {
		c.out = new(control)
	}
	return c.out
}

// closeLocked begins the closing handshake.
func (c *Conn) closeLocked(e ending) {
	switch c.phase {
	case opening:
		c.overLocked()
	case open:
		c.endLocked(e, false)
	}
}

// failLocked ends the connection without waiting for the peer's Close frame (RFC 6455, 7.1.7).
func (c *Conn) failLocked(e ending) {
	switch c.phase {
	case open:
		c.endLocked(e, true)
	case opening, closing:
		c.overLocked()
	}
}

// endLocked sends a Close frame. With last the connection ends behind it.
func (c *Conn) endLocked(e ending, last bool) {
	c.end = &e
	var p []byte
	if e.code != NoStatus {
		reason := e.reason
		if e.by == Peer {
			reason = ""
		}
		p = append(binary.BigEndian.AppendUint16(p, uint16(e.code)), reason...)
	}
	c.phase = closing
	if last {
		c.phase = over
	}
	c.s.timers.arm(c, forClose)
	c.needOut().end = frameOf(c, opClose, p)
	c.out.pong = nil
	if !c.sending { // else it would cut in behind a fragment that is about to be sent
		c.flushControlLocked()
	}
}

// flushControlLocked sends what control frames wait, as far as there is room.
func (c *Conn) flushControlLocked() {
	out := c.out
	if out == nil {
		return
	}
	if out.pong != nil && c.controlLocked(out.pong) == tcpio.ErrWouldBlock {
		return
	}
	out.pong = nil
	if out.end == nil {
		c.out = nil
		return
	}
	err := c.controlLocked(out.end)
	if err == tcpio.ErrWouldBlock {
		return
	}
	c.out = nil
	if err != nil || c.phase == over { // where nothing can be written, nothing needs to be awaited
		c.phase = over
		c.tc.Close()
	}
}

// overLocked ends the connection: what was accepted by writes still goes out, a Close frame that
// waits for room too.
func (c *Conn) overLocked() {
	c.phase = over
	if c.out == nil || c.out.end == nil {
		c.tc.Close()
	}
}
