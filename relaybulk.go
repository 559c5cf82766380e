package tcpio

import (
	"syscall"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/sys"
)

// Bulk of a relay stays in the kernel: splice(2) moves it into a pipe and out again. A direction
// has a pipe while it moves bytes, and as long as the pipe holds some that the other socket has no
// room for; an idle one has none.

const (
	// relayHeld is how many bytes the two directions of a relay may hold together, in bytes: in
	// pipes, and in the output queues of the connections.
	relayHeld = 240 << 10
	// relayBudget is how many bytes of a direction one turn moves before others have theirs.
	relayBudget = 1 << 20
)

// held is how many bytes of the direction the relay holds, at most: of those in the other
// connection's queue it takes no lock to know.
func (s *relaySide) held() int {
	if n := int(s.inPipe.Load()); n > 0 || !s.full() {
		return n
	}
	return buf.Large
}

// mayBulk reports whether splice can move the bytes.
func (s *relaySide) mayBulk() bool { return !s.copies && !s.relay.sealed }

// bulk moves input by splice until there is no more, the other socket has no room, or the turn has
// had its share. It returns how many bytes it took in.
func (s *relaySide) bulk() (moved int) {
	if !s.hasPipe {
		pipe, ok := s.c.sh.pipes.Get()
		if !ok {
			return 0 // copying goes on
		}
		s.pipe, s.hasPipe = pipe, true
	}
	if !s.limited {
		s.limited = true
		for _, c := range [...]*Conn{s.c, s.other().c} {
			c.mu.Lock()
			if !c.released() {
				_ = sys.LimitCalls(c.fd)
			}
			c.unlock()
		}
	}
	for moved < relayBudget {
		n := s.fillPipe(relayHeld - s.other().held())
		if n == 0 {
			break
		}
		moved += n
		if !s.emptyPipe() {
			return moved
		}
	}
	s.dropPipe()
	return moved
}

// fillPipe moves up to size bytes of input into the pipe, which is empty. It returns 0 if there is
// none that it can move; an end is left to the next read.
func (s *relaySide) fillPipe(size int) int {
	c := s.c
	c.mu.Lock()
	defer c.unlock()
	if c.ended() || c.atEOF() || c.readErrLocked() != nil || c.ext != nil && c.ext.frames.Held() || size <= 0 {
		return 0
	}
	n, errno := s.pipe.SpliceFrom(c.fd, size)
	if sys.Unspliceable(errno) {
		s.copies = true
		return 0
	}
	n, err := c.receivedLocked(n, errno)
	switch err {
	case nil:
		c.countInLocked(n)
		c.moreLocked()
		s.inPipe.Store(int32(n))
	case ErrWouldBlock:
		c.emptiedLocked()
	}
	return n
}

// emptyPipe moves what the pipe holds to the other socket, and reports whether that was all.
func (s *relaySide) emptyPipe() bool {
	c := s.other().c
	c.mu.Lock()
	all := s.emptyPipeLocked(c)
	full := !all && s.full()
	c.unlock()
	if full {
		s.lookForError()
	}
	return all
}

func (s *relaySide) emptyPipeLocked(c *Conn) bool {
	waits := c.sock.has(sockWaiting)
	c.sock.drop(sockWaiting)
	for left := int(s.inPipe.Load()); left > 0; {
		if c.checkWritableLocked() != nil {
			s.breakLocked(c)
			return false
		}
		n, errno := s.pipe.SpliceTo(c.fd, left)
		switch {
		case n > 0:
			c.sentLocked(n)
		case errno == syscall.EAGAIN:
			c.sock.add(sockWaiting)
			if !waits {
				c.outputWaitsLocked()
			}
			s.mark.Or(relayFull)
			return false
		case errno == 0 || sys.Unspliceable(errno):
			s.copies = true
			if n = s.copyPipeLocked(c, left); n == 0 {
				return false
			}
		default:
			_ = c.failSendLocked(errno)
			s.breakLocked(c)
			return false
		}
		left -= n
		s.inPipe.Store(int32(left))
		s.passed.Add(uint64(n))
	}
	if c.out != nil {
		s.mark.Or(relayFull) // what was copied
		return false
	}
	return true
}

// lookForError is called when the other connection is full: what was reported of this one meanwhile
// is not left behind its input.
func (s *relaySide) lookForError() {
	c := s.c
	c.mu.Lock()
	if s.failed || c.sendErrLocked() != nil {
		c.relayErrorLocked()
	}
	c.unlock()
}

// breakLocked ends a direction whose bytes the connection c does not take any more. What c's peer
// has sent before is still passed on, and the error is met behind that; but not where the other
// direction is broken too.
func (s *relaySide) breakLocked(c *Conn) {
	s.ended = true
	s.mark.Or(relayBroken)
	if err := c.sendErrLocked(); err != nil && s.other().mark.Load()&relayBroken != 0 {
		c.releaseLocked(err)
	}
}

// copyPipeLocked writes what the pipe holds, for a socket that splice refuses.
func (s *relaySide) copyPipeLocked(c *Conn, size int) int {
	b := c.sh.pool.Get(buf.Large)
	defer c.sh.pool.Put(b)
	n, err := s.pipe.Read(b.Buf[:min(size, len(b.Buf))])
	if err != nil || n == 0 || c.putLocked(b.Buf[:n]) != nil {
		c.abortLocked(c.opErrorLocked("write", syscall.EIO))
		return 0
	}
	return n
}

// dropPipe gives the pipe back, and with it what it holds.
func (s *relaySide) dropPipe() {
	if s.hasPipe {
		s.c.sh.pipes.Put(s.pipe, s.inPipe.Swap(0) == 0)
		s.hasPipe = false
	}
}
