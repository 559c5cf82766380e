package tcpio

import (
	"math"
	"net"
	"syscall"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// TryWrite writes all of p or nothing, without blocking. What the socket does not take at once is
// copied and queued, and goes out by itself. It returns len(p), nil; or 0, [ErrWouldBlock] when
// something is queued and p would take the queue past [ListenerOptions.WriteBuffer] bytes: a
// Writable follows once the queue has fallen to half of that. One p larger than the limit is taken
// when the queue is empty. [ListenerOptions.MaxBuffered] refuses likewise, for all connections
// together. An empty p gives 0, nil.
//
// Success means accepted, not received by the peer. Writes of one connection go out in the order of
// the calls, and those of concurrent callers never interleave: while a large one is under way
// others get ErrWouldBlock. p is not kept. After CloseWrite it fails with an error that matches
// syscall.EPIPE, after Close with net.ErrClosed, and once the peer has reset the connection with a
// *net.OpError around the cause; what arrived before that can still be read.
func (c *Conn) TryWrite(p []byte) (int, error) {
	c.mu.Lock()
	n, err := c.writeLocked(p)
	c.unlock()
	return n, err
}

// TryWritev is TryWrite for several pieces at once, in one system call for up to 64 of them: all of
// them are taken, or none. Neither bufs nor what it points to is changed or kept.
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

// checkWritableLocked says why nothing can be written any more.
func (c *Conn) checkWritableLocked() error {
	switch {
	case c.ended():
		return c.endedLocked("write")
	case c.sendEnd != sendOpen:
		return c.opErrorLocked("write", syscall.EPIPE)
	case c.sendErrLocked() != nil:
		return c.ext.sendErr
	}
	return nil
}

// checkRoomLocked says whether size more bytes are taken now.
func (c *Conn) checkRoomLocked(size int) error {
	if c.relayed() {
		return c.relayedLocked("write")
	}
	if err := c.checkWritableLocked(); err != nil {
		return err
	}
	switch {
	case size == 0:
		return nil
	case !c.outputFree(), c.handshaking(), c.out != nil && size > c.sh.opts.WriteBuffer-c.queuedLocked():
		c.user.add(userWantsRoom)
		return ErrWouldBlock
	case !c.mayQueueLocked(size):
		c.user.add(userWantsRoom)
		return ErrWouldBlock
	}
	return nil
}

func (c *Conn) writeLocked(p []byte) (int, error) {
	err := c.checkRoomLocked(len(p))
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
	if err := c.checkRoomLocked(total); err != nil || total == 0 {
		return err
	}
	if total <= holdMax && len(bufs) <= holdPieces {
		return c.putvLocked(bufs)
	}
	return c.putvBulkLocked(bufs)
}

// putLocked takes p: the socket what it takes, the queue the rest. With TLS p is sealed.
func (c *Conn) putLocked(p []byte) error {
	if c.tls() != nil {
		return c.sealLocked(p)
	}
	return c.putRawLocked(p)
}

// putvLocked is putLocked for several pieces.
func (c *Conn) putvLocked(bufs net.Buffers) error {
	if c.tls() != nil {
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
		c.enqueueLocked(b[sent:])
		sent = 0
	}
	return nil
}

const (
	// holdMax is how many bytes a write moves before it gives up mu for a moment: the loop needs mu
	// to serve its other connections. Sealing as much takes a quarter of a millisecond.
	holdMax = 256 << 10
	// holdPieces bounds likewise the pieces of a TryWritev.
	holdPieces = 4096
)

// putBulkLocked is putLocked for a large p. Others have mu in between, but their bytes do not come
// between these, and an end that begins meanwhile waits for them; only a reset does not.
func (c *Conn) putBulkLocked(p []byte) error {
	c.writing = writeBulk
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
	c.writing = writeBulk
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

// breatheLocked lets others have mu. It fails when nothing can be written any more; a Close
// meanwhile does not hinder what was accepted before it.
func (c *Conn) breatheLocked() error {
	c.unlock()
	c.mu.Lock()
	switch {
	case c.released():
		return c.endedLocked("write")
	case c.sendErrLocked() != nil:
		return c.ext.sendErr
	}
	return nil
}

// endBulkLocked goes on with what had to wait for a large write.
func (c *Conn) endBulkLocked() {
	c.writing = writeFree
	c.todo.add(todoProgress)
}

// Buffered returns the output in bytes that was accepted by a write and not yet by the socket.
func (c *Conn) Buffered() int {
	c.mu.Lock()
	defer c.unlock()
	return c.queuedLocked()
}
