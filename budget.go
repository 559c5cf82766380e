package tcpio

import "sync"

// MaxBuffered bounds the output that waits for sockets, over all connections: a thousand peers that do not read must not
// take a thousand times WriteBuffer. Only queueing costs anything here; what sockets take at once is not looked at.

// starved is the connections whose write was refused because others' output has used up MaxBuffered.
type starved struct {
	mu sync.Mutex
	// Guarded by mu, which is taken under a Conn's mu.
	conns map[*Conn]struct{}
}

// mayQueueLocked says whether a write of size bytes fits into MaxBuffered, or as much is free that it may go past it. What
// it refuses gets room when half is free.
func (c *Conn) mayQueueLocked(size int) bool {
	l := c.lp.l
	bound := int64(l.opts.MaxBuffered)
	if bound == 0 || size <= blockSmall && c.out == nil {
		return true // a peer that reads is served, whoever else does not
	}
	if queued := l.queued.Load(); queued <= bound/2 || queued+int64(size) <= bound {
		return true
	}
	l.starved.mu.Lock()
	if l.starved.conns == nil {
		l.starved.conns = make(map[*Conn]struct{})
	}
	l.starved.conns[c] = struct{}{}
	l.starving.Store(true)
	l.starved.mu.Unlock()
	c.flags |= fStarved
	l.unqueued(0) // it may have fallen meanwhile
	return false
}

// affordLocked is how many of size bytes a write that blocks for the rest may queue at once; in small steps, since others
// queue at the same time. With something queued, or a socket that has refused, an edge says when to ask again.
func (c *Conn) affordLocked(size int) int {
	l := c.lp.l
	if l.opts.MaxBuffered == 0 {
		return size
	}
	left := int64(l.opts.MaxBuffered) - l.queued.Load()
	if c.out == nil {
		left = max(left, blockSmall)
	}
	return int(min(int64(size), max(left, 0), blockLarge))
}

// unqueued accounts for n bytes that wait no more. It is called with a Conn's mu held, any Conn's.
func (l *Listener) unqueued(n int) {
	if l.queued.Add(-int64(n)) > int64(l.opts.MaxBuffered/2) || !l.starving.Load() {
		return
	}
	l.starved.mu.Lock()
	conns := l.starved.conns
	l.starved.conns = nil
	l.starving.Store(false)
	l.starved.mu.Unlock()
	for c := range conns {
		c.lp.schedule(c) // their locks are not to be taken here
	}
}

// unstarveLocked ends the waiting of a connection that ends.
func (c *Conn) unstarveLocked() {
	if c.flags&fStarved == 0 {
		return
	}
	c.flags &^= fStarved
	l := c.lp.l
	l.starved.mu.Lock()
	delete(l.starved.conns, c)
	l.starved.mu.Unlock()
}
