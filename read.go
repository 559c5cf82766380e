package tcpio

import "io"

const (
	// recvMax bounds, in bytes, what one call reads under the connection's mu, which the loop needs
	// too: a peer that sends as fast as we read would keep us there for all of a large buffer.
	recvMax = 1 << 20
	// readRounds bounds how often one call asks for more. A TLS peer can make a byte of data cost
	// many records.
	readRounds = 16
)

// TryRead reads what has arrived into p, without blocking. It returns 1 to len(p) bytes; or
// [ErrWouldBlock] when there is nothing; or [io.EOF] at the peer's end of stream, and again until
// the connection closed; or a *net.OpError around the cause when the connection failed, which
// closes it. An empty p gives 0, nil. One call reads 1 MiB at most.
//
// A Readable that was outstanding is answered by it: after a full p another follows by itself,
// unless one is still in the channel; otherwise when the peer has sent more. So a consumer may read
// once for each Readable, or until ErrWouldBlock. No Readable follows io.EOF: while one is in the
// channel among other events, the first read that meets the end gives ErrWouldBlock, and the next
// one io.EOF.
//
// The peer's end of stream closes nothing: writing goes on until Close. See
// [ListenerOptions.EOFTimeout].
func (c *Conn) TryRead(p []byte) (int, error) {
	c.mu.Lock()
	n, err := c.readLocked(p)
	c.askHelpLocked()
	c.unlock()
	return n, err
}

// readLocked is a read of the user's.
func (c *Conn) readLocked(p []byte) (int, error) {
	if c.relayed() {
		return 0, c.relayedLocked("read")
	}
	return c.takeLocked(p)
}

// takeLocked reads what has arrived, for the user or a Relay.
func (c *Conn) takeLocked(p []byte) (int, error) {
	if c.ended() {
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
		n = c.ext.frames.read(&c.sh.pool, p[:min(len(p), recvMax)])
	}
	for round := 1; ; round++ {
		if n == len(p) || n > 0 && c.atEOF() || round > readRounds || n >= recvMax {
			c.moreLocked()
			return n, nil
		}
		if c.atEOF() {
			c.endReadLocked() // again, or Frames has read it
			return 0, io.EOF
		}
		q := p[n:min(len(p), n+recvMax)]
		m, err := c.inputLocked(q)
		n += m
		switch {
		case err == nil && c.tls() != nil && n < len(p):
			if c.ext.tls.more { // it has read all there is, or its share
				c.moreLocked()
			} else {
				c.emptiedLocked()
			}
			return n, nil
		case err == nil:
			if m < len(q) && !c.sock.has(sockUnsure) {
				c.emptiedLocked() // a short read has emptied a TCP socket; the next byte is a new edge
				return n, nil
			}
		case err == ErrWouldBlock:
			c.emptiedLocked()
			if n > 0 {
				return n, nil
			}
			return 0, err
		case n > 0:
			c.moreLocked() // the end, or an error, is for the next read to return
			return n, nil
		case err == io.EOF:
			if c.leaveEndLocked() {
				return 0, ErrWouldBlock
			}
			c.endReadLocked()
			return 0, err
		default:
			c.withdrawReadableLocked()
			c.todo.add(todoReadErr)
			return 0, err
		}
	}
}

// inputLocked is one read, of plain text.
func (c *Conn) inputLocked(p []byte) (int, error) {
	if x := c.ext; x != nil {
		switch {
		case x.preface != nil:
			return 0, ErrWouldBlock
		case x.tls != nil:
			return c.tlsReadLocked(p)
		}
	}
	return c.recvLocked(p)
}

// leaveEndLocked is called when a read meets the peer's end of stream. It reports true when a
// Readable is in the channel that cannot be withdrawn: the read behind that one returns the end
// then, and so does any other, if it comes first. Where that is unclear, the feeder, which will
// know, sends another Readable if none is left.
func (c *Conn) leaveEndLocked() bool {
	if c.stream == nil || !c.announces() || c.sentAt == 0 {
		return false // no Readable was sent
	}
	switch c.stream.withdraw(c.sentAt) {
	case received:
		return false
	case unclear:
		if !c.pending.has(pendReadable) {
			c.withdrawReadableLocked()
			c.announceReadableLocked()
		}
	}
	reach(&c.peerEnd, peerRead)
	return true
}

// endReadLocked notes that the user receives the peer's end of stream. No Readable comes behind
// that.
func (c *Conn) endReadLocked() {
	if c.inChannelLocked() {
		c.stream.withdraw(c.sentAt)
	}
	c.withdrawReadableLocked()
	reach(&c.peerEnd, peerTold)
	c.todo.add(todoIdle)
}

// noteEnd is called when the user receives the peer's end of stream other than by a read.
func (c *Conn) noteEnd() {
	c.mu.Lock()
	if !c.returnedEOF() && !c.ended() {
		c.endReadLocked()
	}
	c.unlock()
}

// peekLocked reports whether there is anything to read, and whether that is only the end. If there
// is nothing, the Readable was stale, and the next edge is a new one.
func (c *Conn) peekLocked() (ready, end bool) {
	switch {
	case c.ended():
		return false, false
	case c.ext != nil && (c.ext.frames.Held() || c.ext.frames.busy || c.ext.readErr != nil):
		return true, false
	case c.atEOF():
		untold := !c.returnedEOF()
		return untold, untold
	}
	if c.tls() != nil {
		return c.peekTLSLocked()
	}
	var b [1]byte
	_, err := c.lookLocked(b[:])
	if err == ErrWouldBlock {
		c.emptiedLocked()
	}
	return err != ErrWouldBlock, err == io.EOF
}
