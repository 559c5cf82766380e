package websocket

import (
	"net"
	"sync"

	"github.com/gobwas/ws"

	"github.com/rabbit-backend/tcpio"
)

// fragmentSize is what WriteText and WriteBinary put into one frame, in bytes: a pong goes out
// between two of them. A payload up to that is put together with its header in one buffer.
const fragmentSize = 64 << 10

// TryWriteText sends p, which must be valid UTF-8, as a text message, whole or not at all, without
// blocking. It fails with [tcpio.ErrWouldBlock] when the connection's queue has no room, and while
// a blocking write is under way; a Writable follows. Once the connection is closing it fails with
// an error that matches net.ErrClosed. p is not kept.
func (c *Conn) TryWriteText(p []byte) error { return c.tryWrite(ws.OpText, p) }

// TryWriteBinary sends p as a binary message, as TryWriteText does.
func (c *Conn) TryWriteBinary(p []byte) error { return c.tryWrite(ws.OpBinary, p) }

// WriteText sends p, which must be valid UTF-8, as a text message. It blocks while the
// connection's queue has no room, which an actor may do. Messages of concurrent callers do not
// interleave. Answers to pings go out in between. It fails as TryWriteText does, and when the
// write deadline of [Conn.Underlying] passes, which cuts the connection off.
func (c *Conn) WriteText(p []byte) error { return c.write(ws.OpText, p) }

// WriteBinary sends p as a binary message, as WriteText does.
func (c *Conn) WriteBinary(p []byte) error { return c.write(ws.OpBinary, p) }

// A payload is a message as it goes into frames.
type payload struct {
	op ws.OpCode
	p  []byte
	z  *buffer // of p, if it is compressed
}

// payloadOf compresses p where that was negotiated.
func (c *Conn) payloadOf(op ws.OpCode, p []byte) payload {
	if !c.packs || len(p) < c.s.opts.CompressMin {
		return payload{op: op, p: p}
	}
	z := deflate(p)
	return payload{op, z.b, z}
}

func (m payload) free() { m.z.free() }

// A frame is a frame on its way to a write. A long payload stays where it is, as tail.
type frame struct {
	buffer
	tail []byte
	head [ws.MaxHeaderSize]byte
}

var frames = sync.Pool{New: func() any { return new(frame) }}

func (f *frame) free() {
	if f.tail = nil; cap(f.b) <= keepMost {
		frames.Put(f)
	}
}

// whole is the only frame of m.
func (m payload) whole(masked bool) *frame { return m.part(0, len(m.p), masked) }

// joined is whole without a tail.
func (m payload) joined() *frame {
	f := m.whole(false)
	f.b, f.tail = append(f.b, f.tail...), nil
	return f
}

// part is the frame of m with its bytes from off to end.
func (m payload) part(off, end int, masked bool) *frame {
	h := ws.Header{Fin: end == len(m.p), OpCode: m.op, Length: int64(end - off)}
	if off > 0 {
		h.OpCode = ws.OpContinuation
	} else if m.z != nil {
		h.Rsv = ws.Rsv(true, false, false)
	}
	if masked {
		h.Masked, h.Mask = true, ws.NewMask()
	}
	f := frames.Get().(*frame)
	f.b = f.b[:0]
	_ = ws.WriteHeaderBuffer(f, h, f.head[:]) // a frame takes everything
	if !masked && end-off > fragmentSize {
		f.tail = m.p[off:end]
		return f
	}
	n := len(f.b)
	f.b = append(f.b, m.p[off:end]...)
	if masked {
		ws.Cipher(f.b[n:], h.Mask, 0)
	}
	return f
}

func (c *Conn) tryWrite(op ws.OpCode, p []byte) error {
	m := c.payloadOf(op, p)
	defer m.free()
	f := m.whole(c.client)
	defer f.free()
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.putLocked(f.sendLocked)
	if err == tcpio.ErrWouldBlock {
		c.refused = true
	}
	return err
}

// putLocked sends a message of one frame by send.
func (c *Conn) putLocked(send func(*Conn) error) error {
	switch {
	case c.phase != open:
		return c.errEnded("write")
	case c.sending:
		return tcpio.ErrWouldBlock
	}
	return send(c)
}

func (f *frame) sendLocked(c *Conn) (err error) {
	if f.tail == nil {
		_, err = c.tc.TryWrite(f.b)
	} else {
		_, err = c.tc.TryWritev(net.Buffers{f.b, f.tail})
	}
	return err
}

func (c *Conn) write(op ws.OpCode, p []byte) error {
	m := c.payloadOf(op, p)
	defer m.free()
	c.writing.Lock()
	defer c.writing.Unlock()
	if len(m.p) <= fragmentSize {
		f := m.whole(c.client)
		c.mu.Lock()
		err := c.putLocked(f.sendLocked)
		c.mu.Unlock()
		f.free()
		if err != tcpio.ErrWouldBlock {
			return err
		}
	}
	c.mu.Lock()
	c.sending = true
	c.mu.Unlock()
	cut, err := c.writeParts(m)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sending = false
	if cut && c.phase != over {
		c.end = &ending{code: Abnormal, err: err}
		c.phase = over
		c.tc.Abort()
		return err
	}
	c.flushControlLocked()
	if c.refused || c.skipped > 0 {
		c.tc.After(0, roomAgain{})
	}
	return err
}

// roomAgain is a Message to ourselves: a Writable may be owed.
type roomAgain struct{}

// writeParts sends m in fragments, and waits for room as often as it must. cut says that a frame
// may have been cut.
func (c *Conn) writeParts(m payload) (cut bool, err error) {
	for off := 0; ; off += fragmentSize {
		c.mu.Lock()
		c.flushControlLocked()
		pong, ended := c.takePongLocked(), c.phase != open
		c.mu.Unlock()
		if ended {
			return false, c.errEnded("write")
		}
		if pong != nil { // it found no room, since this write takes all there is
			if _, err := c.tc.Write(pong); err != nil {
				return true, err
			}
		}
		end := min(off+fragmentSize, len(m.p))
		f := m.part(off, end, c.client)
		_, err := c.tc.Write(f.b)
		f.free()
		if err != nil || end == len(m.p) {
			return err != nil, err
		}
	}
}
