package tcpio

// Readable: level-triggered to the user, on readiness that comes by edges. Input is announced once,
// and again only behind a read.

// announceReadableLocked announces input, once until somebody reads.
func (c *Conn) announceReadableLocked() {
	if c.ext != nil && c.ext.waits.openRead() {
		return // the goroutine that was blocked reads it
	}
	if c.announced() {
		return
	}
	if c.ext != nil && c.ext.frames.since != 0 {
		c.ext.frames.offered = c.sh.coarse()
	}
	c.user.add(userReadable)
	if c.relayed() {
		c.wantLocked(wantRelay)
		return
	}
	if !c.isClaimed() {
		return // noted for the route that may come
	}
	if c.stream != nil {
		c.stamp = c.sh.demand.Add()
	}
	c.emitLocked(pendReadable)
}

// withdrawReadableLocked takes back the announcement: somebody has read, or never will.
func (c *Conn) withdrawReadableLocked() {
	if !c.announced() {
		return
	}
	c.user.drop(userReadable)
	c.pending.drop(pendReadable)
	if c.stream == nil {
		c.stamp++ // counts reads; see callback
	} else if c.announces() && c.sh.demand.Done(c.stamp) {
		c.todo.add(todoPoll)
	}
}

// inChannelLocked reports whether the outstanding Readable is in its channel, not yet received. A
// read then does not answer it, and it need not be sent again.
func (c *Conn) inChannelLocked() bool {
	return c.stream != nil && c.announced() && !c.pending.has(pendReadable) && c.announces() && c.stream.where(c.sentAt) == inside
}

// moreLocked is called behind a read that may have left something: level-triggered to the user,
// since no edge will say so.
func (c *Conn) moreLocked() {
	if c.inChannelLocked() || c.stream != nil && c.pending.has(pendReadable) {
		if c.ext != nil {
			c.ext.waits.openRead()
		}
		return // the consumer has yet to receive one
	}
	c.withdrawReadableLocked()
	c.announceReadableLocked()
}

// emptiedLocked is called behind a read that left nothing: the next byte is a new edge. A Readable
// that the consumer has yet to receive announces that byte too. One that says that the handshake is
// done is owed to the user, whatever was read: who upgrades may be the one who speaks first.
func (c *Conn) emptiedLocked() {
	if c.inChannelLocked() {
		return
	}
	if t := c.tls(); t != nil && t.tells {
		if c.pending.has(pendReadable) {
			return
		}
		t.tells = false
	}
	c.withdrawReadableLocked()
}

// askHelpLocked is called after a read: if the consumer of a stream has taken everything that was
// delivered, this is the moment to look for more, before the answer is written; see
// loop.pollForLoop.
func (c *Conn) askHelpLocked() {
	if s := c.stream; s != nil && !s.private && len(s.ch) == 0 {
		c.todo.add(todoPoll)
	}
}
