package tcpio

import "github.com/rabbit-backend/tcpio/internal/buf"

// MaxBuffered bounds the output that waits for sockets, of all connections together: a thousand
// peers that do not read must not take a thousand times WriteBuffer. Only queueing counts; what a
// socket takes at once does not.

// mayQueueLocked reports whether a write of size bytes fits into MaxBuffered. If not, the loop
// calls roomLocked when half of MaxBuffered is free. A connection that has nothing queued may write
// a small block in any case, so that peers that read are served.
func (c *Conn) mayQueueLocked(size int) bool {
	b := &c.sh.budget
	if size <= buf.Small && c.out == nil || b.Fits(size) {
		return true
	}
	c.user.add(userStarved)
	wake(b.Wait(c))
	return false
}

// wake has the loops of conns call roomLocked. Its caller holds another Conn's mu, so that it must
// not take theirs.
func wake(conns map[*Conn]struct{}) {
	for c := range conns {
		c.sh.schedule(c)
	}
}

// shareOfBudgetLocked returns how many of size bytes a write that waits for the rest may queue at
// once: a large block at most, since others queue at the same time. If it returns 0 the queue is
// not empty, so a later flush calls roomLocked and the writer tries again.
func (c *Conn) shareOfBudgetLocked(size int) int {
	b := &c.sh.budget
	if b.Most == 0 {
		return size
	}
	left := b.Left()
	if c.out == nil {
		left = max(left, buf.Small)
	}
	return int(min(int64(size), max(left, 0), buf.Large))
}

// unstarveLocked ends the waiting of a connection that ends.
func (c *Conn) unstarveLocked() {
	if c.user.has(userStarved) {
		c.user.drop(userStarved)
		c.sh.budget.Leave(c)
	}
}
