package tcpio

import (
	"math"
	"math/bits"
	"net"
	"syscall"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/sys"
)

// recvLocked is one recv.
func (c *Conn) recvLocked(p []byte) (int, error) {
	if err := c.readErrLocked(); err != nil {
		return 0, err
	}
	n, err := c.receivedLocked(sys.Recv(c.fd, p))
	if n > 0 {
		c.countInLocked(n)
	}
	return n, err
}

// lookLocked is recvLocked that leaves the bytes where they are.
func (c *Conn) lookLocked(p []byte) (int, error) {
	if err := c.readErrLocked(); err != nil {
		return 0, err
	}
	return c.receivedLocked(sys.Peek(c.fd, p))
}

// countInLocked accounts for n bytes of input.
func (c *Conn) countInLocked(n int) {
	c.sh.count.bytesIn.Add(uint64(n))
	if c.tls() == nil {
		c.heardLocked() // of TLS plain text counts, see tlsReadLocked
	}
}

const (
	// sendChunk bounds one system call, in bytes: a peer that reads as fast as we write keeps the
	// kernel in it for all of p, and neither the collector nor the scheduler gets in between.
	sendChunk = 1 << 20
	// flushBudget is how much of a queue one turn sends, in bytes, before others have theirs.
	flushBudget = 1 << 20
)

// sendLocked sends until the socket refuses, which is what makes epoll report the next room
// (epoll(7), edge-triggered).
func (c *Conn) sendLocked(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n, errno := sys.Send(c.fd, p[sent:min(len(p), sent+sendChunk)])
		switch errno {
		case 0:
			sent += n
			c.sentLocked(n)
		case syscall.EAGAIN:
			return sent, nil
		default:
			return sent, c.failSendLocked(errno)
		}
	}
	return sent, nil
}

// sendvLocked is sendLocked for several pieces.
func (c *Conn) sendvLocked(bufs net.Buffers) (int, error) {
	sent, i, off := 0, 0, 0
	for {
		var v sys.Vec
		for j, o, room := i, off, sendChunk; j < len(bufs) && room > 0; j, o = j+1, 0 {
			p := bufs[j][o:]
			p = p[:min(len(p), room)]
			if !v.Add(p) {
				break
			}
			room -= len(p)
		}
		if v.N == 0 {
			return sent, nil
		}
		n, errno := sys.Sendv(c.fd, &v)
		switch errno {
		case 0:
		case syscall.EAGAIN:
			return sent, nil
		default:
			return sent, c.failSendLocked(errno)
		}
		sent += n
		c.sentLocked(n)
		for n > 0 {
			left := len(bufs[i]) - off
			if n < left {
				off += n
				break
			}
			n -= left
			i, off = i+1, 0
		}
	}
}

// failSendLocked notes that writing failed for good. The first cause stays. What is queued cannot
// go out any more.
func (c *Conn) failSendLocked(errno syscall.Errno) error {
	if c.sendErrLocked() == nil {
		c.extLocked().sendErr = c.opErrorLocked("write", errno)
		c.sock.add(sockUnsure)
	}
	c.dropOutLocked()
	c.todo.add(todoProgress | todoSendErr)
	return c.ext.sendErr
}

// flushLocked moves queued output into the socket until the queue is empty or the socket refuses;
// see sendLocked. A peer that reads as fast as that goes on in another turn.
func (c *Conn) flushLocked() {
	for sent := 0; c.out != nil; {
		c.todo.add(todoProgress)
		if sent >= flushBudget {
			c.flushSoonLocked()
			return
		}
		var v sys.Vec
		c.out.Fill(&v, sendChunk)
		n, errno := sys.Sendv(c.fd, &v)
		switch {
		case errno == syscall.EAGAIN:
			return
		case errno != 0:
			_ = c.failSendLocked(errno)
			return
		}
		sent += n
		c.sentLocked(n)
		c.out.Consume(&c.sh.pool, n)
		wake(c.sh.budget.Free(n))
		if c.out.Len() == 0 {
			c.out = nil
			return
		}
	}
}

// flushSoonLocked has the loop go on with a queue whose socket has not refused: no edge will say
// so.
func (c *Conn) flushSoonLocked() {
	c.wantLocked(wantFlush)
}

// queueOutLocked returns the output queue, to which n bytes are going to be added.
func (c *Conn) queueOutLocked(n int) *buf.Queue {
	if c.out == nil {
		c.out = new(buf.Queue)
		c.outputWaitsLocked()
	}
	c.sh.budget.Add(n)
	return c.out
}

// enqueueLocked copies p to the end of the output queue.
func (c *Conn) enqueueLocked(p []byte) { c.queueOutLocked(len(p)).Append(&c.sh.pool, p) }

// dropOutLocked gives up what is queued.
func (c *Conn) dropOutLocked() {
	if c.out != nil {
		wake(c.sh.budget.Free(c.out.Len()))
		c.out.Drop(&c.sh.pool)
		c.out = nil
	}
}

// putRawLocked is putLocked for bytes as they are.
func (c *Conn) putRawLocked(p []byte) error {
	sent := 0
	if c.out == nil {
		var err error
		if sent, err = c.sendLocked(p); err != nil {
			return err
		}
	}
	if sent < len(p) {
		c.enqueueLocked(p[sent:])
	}
	return nil
}

// rawWriteLocked sends or queues p as it is, whatever the queue holds.
func (c *Conn) rawWriteLocked(p []byte) error {
	switch {
	case c.released() || c.fd < 0:
		return net.ErrClosed
	case c.sendErrLocked() != nil:
		return c.ext.sendErr
	case c.finSent():
		return syscall.EPIPE
	}
	return c.putRawLocked(p)
}

// sentLocked accounts for n bytes that the socket took.
func (c *Conn) sentLocked(n int) {
	c.sh.count.bytesOut.Add(uint64(n))
	// An answer to a key update is no activity.
	if c.sock.has(sockTimed) && (c.tls() == nil || !c.ext.tls.reading) {
		c.limit.lastOut = c.sh.coarse()
	}
}

// queuedLocked is what waits for the socket, in bytes of the user's.
func (c *Conn) queuedLocked() int {
	if c.out == nil {
		return 0
	}
	if c.tls() == nil || c.ext.tls.sealed == 0 {
		return c.out.Len()
	}
	st := c.ext.tls
	return plainShare(c.out.Len(), st.plain, st.sealed)
}

// plainShare is the part of plain bytes that size of their sealed bytes stand for, rounded up: it
// adds up to no less. The product takes 128 bits: that of two lengths over 3 GiB has more than 63.
// What does not fit an int is the largest.
func plainShare(size int, plain, sealed int64) int {
	hi, lo := bits.Mul64(uint64(size), uint64(plain))
	lo, carry := bits.Add64(lo, uint64(sealed-1), 0)
	hi += carry
	if hi >= uint64(sealed) {
		return math.MaxInt // over 64 bits
	}
	share, _ := bits.Div64(hi, lo, uint64(sealed))
	return int(min(share, math.MaxInt))
}

// roomLocked emits the Writable that a refused write is owed, once half of the limit is free, and
// wakes the goroutines that wait for room.
func (c *Conn) roomLocked() {
	if c.relayed() {
		c.relayRoomLocked()
	}
	if c.handshaking() || c.queuedLocked() > c.sh.opts.WriteBuffer/2 {
		return
	}
	if c.ext != nil {
		c.ext.waits.openSend()
	}
	if c.user.has(userWantsRoom) && c.outputFree() && c.announces() && !c.ended() {
		c.user.drop(userWantsRoom)
		c.emitLocked(pendWritable)
	}
}
