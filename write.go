package tcpio

import (
	"math"
	"net"
	"syscall"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/sys"
)

// TryWrite writes all of p or nothing, without blocking. What the socket does not take at once is copied and queued, and
// goes out by itself. It returns len(p), nil; or 0, [ErrWouldBlock] when something is queued and p would take the queue
// past [ListenerOptions.WriteBuffer] bytes: a Writable follows once the queue has fallen to half of that. One p larger
// than the limit is taken when the queue is empty. [ListenerOptions.MaxBuffered] refuses likewise, for all connections
// together. An empty p gives 0, nil.
//
// Success means accepted, not received by the peer. Writes of one connection go out in the order of the calls, and
// those of concurrent callers never interleave: while a large one is under way others get ErrWouldBlock. p is not kept.
// After CloseWrite it fails with an error that matches syscall.EPIPE, after Close with net.ErrClosed, and once the peer
// has reset the connection with a *net.OpError around the cause; what arrived before that can still be read.
func (c *Conn) TryWrite(p []byte) (int, error) {
	c.mu.Lock()
	n, err := c.writeLocked(p)
	c.unlock()
	return n, err
}

// TryWritev is TryWrite for several pieces at once, in one system call for up to 64 of them: all of them are taken, or
// none. Neither bufs nor what it points to is changed or kept.
func (c *Conn) TryWritev(bufs net.Buffers) (int64, error) {
	total := int64(0)
	for _, b := range bufs {
		total += int64(len(b))
	}
	if total > math.MaxInt {
		return 0, c.opError("write", syscall.EMSGSIZE)
	}
	c.mu.Lock()
	err := c.writevLocked(bufs, int(total))
	c.unlock()
	if err != nil {
		return 0, err
	}
	return total, nil
}

// sendableLocked says why nothing can be written any more.
func (c *Conn) sendableLocked() error {
	switch {
	case c.ended():
		return c.endedLocked("write")
	case c.flags&fSendShut != 0:
		return c.opErrorLocked("write", syscall.EPIPE)
	case c.flags&fSendErr != 0:
		return c.ext.sendErr
	}
	return nil
}

// mayWriteLocked says whether size more bytes are taken now.
func (c *Conn) mayWriteLocked(size int) error {
	if c.ended() || c.flags&(fSendShut|fSendErr) != 0 {
		return c.sendableLocked()
	}
	switch {
	case size == 0:
		return nil
	case c.flags&(fWriting|fHandshake) != 0, c.out != nil && size > c.sh.opts.WriteBuffer-c.queuedLocked():
		c.flags |= fWantRoom
		return ErrWouldBlock
	case !c.mayQueueLocked(size):
		c.flags |= fWantRoom
		return ErrWouldBlock
	}
	return nil
}

func (c *Conn) writeLocked(p []byte) (int, error) {
	err := c.mayWriteLocked(len(p))
	switch {
	case err != nil || len(p) == 0:
		return 0, err
	case len(p) <= holdMax:
		err = c.putLocked(p)
	default:
		err = c.putBulkLocked(p)
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *Conn) writevLocked(bufs net.Buffers, total int) error {
	if err := c.mayWriteLocked(total); err != nil || total == 0 {
		return err
	}
	if total <= holdMax && len(bufs) <= holdPieces {
		return c.putvLocked(bufs)
	}
	return c.putvBulkLocked(bufs)
}

// putLocked takes p: the socket what it takes, the queue the rest. With TLS p is sealed.
func (c *Conn) putLocked(p []byte) error {
	if c.flags&fTLS != 0 {
		return c.sealLocked(p)
	}
	return c.putRawLocked(p)
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
		c.queueOutLocked().append(c.sh.shared, p[sent:])
	}
	return nil
}

// putvLocked is putLocked for several pieces.
func (c *Conn) putvLocked(bufs net.Buffers) error {
	if c.flags&fTLS != 0 {
		return c.sealvLocked(bufs)
	}
	sent := 0
	if c.out == nil {
		var err error
		if sent, err = c.sendvLocked(bufs); err != nil {
			return err
		}
	}
	for _, b := range bufs {
		if sent >= len(b) {
			sent -= len(b)
			continue
		}
		c.queueOutLocked().append(c.sh.shared, b[sent:])
		sent = 0
	}
	return nil
}

const (
	// holdMax is how many bytes a write moves before it gives up mu for a moment: the loop needs mu to serve its other
	// connections. Sealing as much takes a quarter of a millisecond.
	holdMax = 256 << 10
	// holdPieces bounds likewise the pieces of a TryWritev.
	holdPieces = 4096
)

// putBulkLocked is putLocked for a large p. Others have mu in between, but their bytes do not come between these, and an end
// that begins meanwhile waits for them; only a reset does not.
func (c *Conn) putBulkLocked(p []byte) error {
	c.flags |= fWriting | fBulk
	defer c.endBulkLocked()
	for {
		n := min(len(p), holdMax)
		if err := c.putLocked(p[:n]); err != nil {
			return err
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
		if err := c.breatheLocked(); err != nil {
			return err
		}
	}
}

// putvBulkLocked is putBulkLocked for many pieces.
func (c *Conn) putvBulkLocked(bufs net.Buffers) error {
	c.flags |= fWriting | fBulk
	defer c.endBulkLocked()
	var part [sys.VecMax][]byte
	for off := 0; len(bufs) > 0; {
		n, room := 0, holdMax
		for looked := 0; len(bufs) > 0 && n < len(part) && room > 0 && looked < holdPieces; looked++ {
			p := bufs[0][off:]
			if len(p) > room {
				p = p[:room]
				off += room
			} else {
				bufs, off = bufs[1:], 0
			}
			if len(p) > 0 {
				part[n] = p
				n++
				room -= len(p)
			}
		}
		if err := c.putvLocked(part[:n]); err != nil {
			return err
		}
		if len(bufs) > 0 {
			if err := c.breatheLocked(); err != nil {
				return err
			}
		}
	}
	return nil
}

// breatheLocked lets others have mu. It fails when nothing can be written any more; a Close meanwhile does not hinder what was
// accepted before it.
func (c *Conn) breatheLocked() error {
	c.unlock()
	c.mu.Lock()
	switch {
	case c.released():
		return c.endedLocked("write")
	case c.flags&fSendErr != 0:
		return c.ext.sendErr
	}
	return nil
}

// endBulkLocked goes on with what had to wait for a large write.
func (c *Conn) endBulkLocked() {
	c.flags &^= fWriting | fBulk
	if c.released() {
		return
	}
	c.roomLocked()
	c.lastBytesLocked()
}

const (
	// sendChunk bounds one system call, in bytes: a peer that reads as fast as we write keeps the kernel in it for all of
	// p, and neither the collector nor the scheduler gets in between.
	sendChunk = 1 << 20
	// flushBudget is how much of a queue one turn sends, in bytes, before others have theirs.
	flushBudget = 1 << 20
)

// sendLocked sends until the socket refuses, which is what makes epoll report the next room (epoll(7), edge-triggered).
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

// failSendLocked ends writing for good. Reading goes on: what the peer sent before it went is still there.
func (c *Conn) failSendLocked(errno syscall.Errno) error {
	err := c.sendFailLocked(errno)
	if c.ended() || c.flags&fTold != 0 {
		c.releaseLocked(err) // nothing will be read, so this is the end; no other edge will say it
	} else if c.flags&fEOF == 0 {
		c.readableLocked()
	}
	return err
}

// flushLocked moves queued output into the socket until the queue is empty or the socket refuses; see sendLocked. A peer
// that reads as fast as that goes on in another turn.
func (c *Conn) flushLocked() {
	for sent := 0; c.out != nil; {
		if sent >= flushBudget {
			c.flushSoonLocked()
			c.roomLocked()
			return
		}
		var v sys.Vec
		c.out.fill(&v)
		n, errno := sys.Sendv(c.fd, &v)
		switch {
		case errno == syscall.EAGAIN:
			c.roomLocked()
			return
		case errno != 0:
			c.failSendLocked(errno)
			return
		}
		sent += n
		c.sentLocked(n)
		c.out.consume(c.sh.shared, n)
		if c.out.size == 0 {
			c.out.drop(c.sh.shared)
			c.out = nil
			c.roomLocked()
			c.lastBytesLocked()
			return
		}
	}
}

// flushSoonLocked has the loop go on with a queue whose socket has not refused: no edge will say so.
func (c *Conn) flushSoonLocked() {
	if c.flags&fFlush == 0 {
		c.flags |= fFlush
		c.sh.schedule(c)
	}
}

// roomLocked tells those who were refused once half of the limit is free.
func (c *Conn) roomLocked() {
	if c.flags&fHandshake != 0 || c.queuedLocked() > c.sh.opts.WriteBuffer/2 {
		return
	}
	if c.ext != nil {
		c.ext.canSend.Open()
	}
	if c.flags&(fWantRoom|fWriting|fMute) == fWantRoom && !c.ended() {
		c.flags &^= fWantRoom
		c.emitLocked(pendWritable)
	}
}

func (c *Conn) queueOutLocked() *outQueue {
	if c.out == nil {
		c.out = new(outQueue)
		c.outputWaitsLocked()
	}
	return c.out
}

// sentLocked accounts for n bytes that the socket took.
func (c *Conn) sentLocked(n int) {
	c.sh.count.bytesOut.Add(uint64(n))
	if c.flags&fTimed != 0 && (c.flags&fTLS == 0 || !c.ext.tls.reading) { // an answer to a key update is no activity
		c.limit.lastOut = c.sh.coarse()
	}
}

// outQueue is output that waits for room in the socket, in pooled blocks. It is guarded by its connection's mu. A nil
// queue is empty.
type outQueue struct {
	segs []segment // non-empty each
	size int       // bytes
}

// A segment is b.Buf[off:end]. Blocks shared between connections are never written to.
type segment struct {
	b        *buf.Block
	off, end int
}

func (q *outQueue) len() int {
	if q == nil {
		return 0
	}
	return q.size
}

// append copies p to the end of the queue.
func (q *outQueue) append(sh *shared, p []byte) {
	q.size += len(p)
	sh.budget.Add(len(p))
	if n := len(q.segs); n > 0 {
		if last := &q.segs[n-1]; !last.b.Shared() {
			n := copy(last.b.Buf[last.end:], p)
			last.end += n
			p = p[n:]
		}
	}
	for len(p) > 0 {
		size := buf.Small
		if len(p) > buf.Large/2 {
			size = buf.Large // at least half full: a peer that never reads costs what is queued for it, and not a block's size
		}
		b := sh.pool.Get(size)
		n := copy(b.Buf, p)
		q.segs = append(q.segs, segment{b, 0, n})
		p = p[n:]
	}
}

// share appends a block without copying; the queue takes over one reference.
func (q *outQueue) share(sh *shared, b *buf.Block, off, end int) {
	q.size += end - off
	sh.budget.Add(end - off)
	q.segs = append(q.segs, segment{b, off, end})
}

// fill points v at the front of the queue.
func (q *outQueue) fill(v *sys.Vec) {
	room := sendChunk
	for _, s := range q.segs {
		n := min(s.end-s.off, room)
		if n == 0 || !v.Add(s.b.Buf[s.off:s.off+n]) {
			return
		}
		room -= n
	}
}

// consume drops the first n bytes.
func (q *outQueue) consume(sh *shared, n int) {
	q.size -= n
	wake(sh.budget.Free(n))
	for n > 0 {
		s := &q.segs[0]
		left := s.end - s.off
		if n < left {
			s.off += n
			return
		}
		n -= left
		sh.pool.Put(s.b)
		*s = segment{}
		q.segs = q.segs[1:]
	}
}

// drop gives everything back.
func (q *outQueue) drop(sh *shared) {
	wake(sh.budget.Free(q.size))
	for _, s := range q.segs {
		sh.pool.Put(s.b)
	}
	*q = outQueue{}
}
