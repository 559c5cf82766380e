package tcpio

import (
	"io"
	"syscall"
)

// readableLocked announces input, once until somebody reads.
func (c *Conn) readableLocked() {
	if c.ext != nil && c.ext.canRead.open() {
		return // whoever was blocked reads it
	}
	if c.flags&fReadable != 0 {
		return
	}
	c.flags |= fReadable
	if c.flags&fMute != 0 {
		return // noted for the route that may come
	}
	if c.stream != nil {
		c.stamp = c.lp.demand.add()
	}
	c.emitLocked(pendReadable)
}

// unreadableLocked takes back the announcement: somebody has read, or never will.
func (c *Conn) unreadableLocked() {
	if c.flags&fReadable == 0 {
		return
	}
	c.flags &^= fReadable | pendReadable
	if c.stream == nil {
		c.stamp++ // counts reads; see callback
	} else if c.flags&fMute == 0 && c.lp.demand.done(c.stamp) {
		c.flags |= fHelp
	}
}

// TryRead reads what has arrived into p, without blocking. It returns 1 to len(p) bytes; or [ErrWouldBlock] when
// there is nothing; or [io.EOF] at the peer's end of stream, and again until the connection closed; or a *net.OpError
// around the cause when the connection failed, which closes it. An empty p gives 0, nil.
//
// A Readable that was outstanding is settled by it: after a full p another follows by itself, otherwise when the peer
// has sent more. p is not kept. Concurrent reads are atomic: no byte is lost or doubled, who gets it is not defined.
// After Close it fails with net.ErrClosed.
//
// After io.EOF the connection may still be written to. Unless [ListenerOptions.AllowHalfOpen] is set the library
// closes it once its output is flushed: behind the actor's Receive in which the end was read, elsewhere 250 ms later.
// A handler that owes nothing calls Close at EOF and has it at once.
func (c *Conn) TryRead(p []byte) (int, error) {
	c.mu.Lock()
	n, err := c.readLocked(p)
	c.askHelpLocked()
	c.unlock()
	return n, err
}

// askHelpLocked is called after a read: if the consumer of a stream has taken everything that was delivered, this is the
// moment to look for more, before the answer is written; see loop.help.
func (c *Conn) askHelpLocked() {
	if s := c.stream; s != nil && !s.private && len(s.ch) == 0 {
		c.flags |= fHelp
	}
}

func (c *Conn) readLocked(p []byte) (int, error) {
	if c.flags&(fClosing|fReleased) != 0 {
		return 0, c.endedLocked("read")
	}
	if len(p) == 0 {
		return 0, nil
	}
	n := 0
	if c.ext != nil {
		if c.ext.frames.split {
			return 0, ErrWouldBlock
		}
		n = c.ext.frames.read(c.lp.l, p)
	}
	for {
		if n == len(p) {
			c.unreadableLocked()
			c.readableLocked() // level-triggered to the user: there may be more, and no edge would say so
			return n, nil
		}
		if c.flags&fEOF != 0 {
			if n > 0 {
				c.unreadableLocked()
				c.readableLocked()
				return n, nil
			}
			if c.flags&fTold == 0 { // Frames has read it
				c.unreadableLocked()
				c.endReadLocked()
			}
			return 0, io.EOF
		}
		m, err := c.inputLocked(p[n:])
		n += m
		switch {
		case m > 0 && c.flags&fTLS != 0 && n < len(p):
			c.unreadableLocked() // it has read all there is, or its share
			if c.ext.tls.more {
				c.readableLocked()
			}
			return n, nil
		case m > 0:
			if n < len(p) && c.flags&fDistrust == 0 {
				c.unreadableLocked() // a short read has drained a TCP socket; the next byte is a new edge
				return n, nil
			}
		case n > 0 && err == ErrWouldBlock:
			c.unreadableLocked()
			return n, nil
		case n > 0:
			// The end, or an error, is for the next read to return.
			c.unreadableLocked()
			c.readableLocked()
			return n, nil
		default:
			c.unreadableLocked()
			switch err {
			case ErrWouldBlock:
			case io.EOF:
				c.endReadLocked()
			default:
				c.readFailedLocked(err)
			}
			return 0, err
		}
	}
}

// inputLocked is one read, of plain text.
func (c *Conn) inputLocked(p []byte) (int, error) {
	if c.flags&fTLS != 0 {
		return c.tlsReadLocked(p)
	}
	return c.recvLocked(p)
}

// readFailedLocked ends a connection that cannot be read from. The peer of a TLS connection is told by an alert.
func (c *Conn) readFailedLocked(err error) {
	if c.flags&fTLS != 0 {
		c.closeLocked(err)
	} else {
		c.releaseLocked(err)
	}
}

// recvLocked is one recv. An error is remembered, since the kernel tells it once; after a failed write, which may have
// been told of the reset first, the end that the kernel then shows is not an orderly one.
func (c *Conn) recvLocked(p []byte) (int, error) {
	if c.ext != nil && c.ext.readErr != nil {
		return 0, c.ext.readErr
	}
	n, errno := sysRecv(c.fd, p)
	switch {
	case n > 0:
		c.receivedLocked(n)
		return n, nil
	case errno == 0:
		c.flags |= fFinSeen
		if c.flags&fSendErr != 0 {
			return 0, c.ext.sendErr
		}
		return 0, io.EOF
	case errno == syscall.EAGAIN:
		return 0, ErrWouldBlock
	}
	err := c.opErrorLocked("read", errno)
	c.extLocked().readErr = err
	return 0, err
}

// receivedLocked accounts for n bytes of input.
func (c *Conn) receivedLocked(n int) {
	c.lp.count.bytesIn.Add(uint64(n))
	if c.flags&fTLS == 0 {
		c.heardLocked() // of TLS plain text counts, see tlsReadLocked
	}
}

// endReadLocked notes that the user is told of the peer's end of stream. With an actor running, its turn decides when it is over; see runActor.
func (c *Conn) endReadLocked() {
	c.flags |= fEOF | fTold
	if c.flags&(fHalfOpen|fRunning) == 0 {
		c.lp.timers.add(c.lp, &timer{kind: timerGrace, c: c}, eofGrace)
	}
}

// noteEnd is called when the user is told of the peer's end of stream other than by a read.
func (c *Conn) noteEnd() {
	c.mu.Lock()
	if c.flags&(fTold|fReleased) == 0 {
		c.unreadableLocked()
		c.endReadLocked()
	}
	c.unlock()
}
