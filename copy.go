package tcpio

import (
	"io"
	"os"
	"syscall"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// Copies. Every byte goes through the same reads and writes as any other, which decide what may be done and how it ended. Between
// two plain connections splice(2) moves bulk through a pipe, without a copy to user space; it only ever moves bytes: what it
// cannot do, and every end, is left to the next read or write.
//
// Measured on loopback, CPU per GiB as a ratio to reads and writes of 64 KiB: a pipe of 64 KiB 0.95, of 256 KiB 0.65, of 1 MiB
// 0.55. sendfile(2) from a cached file was 0.8 and is not used: while a slow file system keeps it, it keeps the connection.

// copyChunk is the most that one splice moves, and a pipe of ours holds, in bytes.
const copyChunk = 256 << 10

// ReadFrom copies r to the connection until io.EOF or an error, as io.Copy does for a writer that has it. From a *Conn bulk stays
// in the kernel (splice(2)) unless one of the two has TLS. It blocks as Write does, and as r does. From a *Conn no other write
// comes in between; from other readers one may, between two reads of r.
//
// It returns how many bytes the connection took. After an error of r what was read from it before has been written. An error of
// the connection is what the next Write returns too.
func (c *Conn) ReadFrom(r io.Reader) (n int64, err error) {
	if src, ok := r.(*Conn); ok {
		return copyConn(c, src)
	}
	c.noteCopy(1)
	defer c.noteCopy(-1)
	b := c.sh.pool.get(blockLarge)
	defer c.sh.pool.put(b)
	for {
		got, rerr := r.Read(b.buf)
		if got > 0 {
			put, err := c.Write(b.buf[:got])
			if n += int64(put); err != nil {
				return n, err
			}
		}
		switch rerr {
		case nil:
		case io.EOF:
			return n, nil
		default:
			return n, rerr
		}
	}
}

// WriteTo copies the connection to w until the peer's end of stream, for which it returns nil, or an error. To a *Conn bulk stays
// in the kernel (splice(2)) unless one of the two has TLS. It blocks as Read does, and as w does. While it waits for the peer it
// keeps no buffer.
//
// It returns how many bytes w took. An error of the connection, a reset say, is what the next Read returns too, or matches, and
// it is in Err.
func (c *Conn) WriteTo(w io.Writer) (n int64, err error) {
	if dst, ok := w.(*Conn); ok {
		return copyConn(dst, c)
	}
	return c.copyTo(w.Write, nil)
}

// copyConn copies src to dst.
func copyConn(dst, src *Conn) (int64, error) {
	if err := dst.beginWrite(); err != nil {
		return 0, err
	}
	defer dst.endWrite()
	dst.noteCopy(1)
	defer dst.noteCopy(-1)
	return src.copyTo(dst.writeAll, dst)
}

// noteCopy counts the copies to the connection that are under way: EOFTimeout waits for them, also while their source is silent,
// and begins anew behind them.
func (c *Conn) noteCopy(n int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.extLocked().copies += n
	if c.flags&fEnded != 0 {
		c.limit.lastOut = c.sh.coarse()
	}
}

// copyTo copies the connection by write; to, if not nil, is the connection that write writes to.
func (c *Conn) copyTo(write func([]byte) (int, error), to *Conn) (n int64, err error) {
	pool := &c.sh.pool
	for {
		var b *block
		got, rerr := c.awaitRead(func() (int, error) {
			b = pool.get(blockLarge)
			n, err := c.readLocked(b.buf)
			if err != nil {
				pool.put(b)
				b = nil
			}
			return n, err
		})
		if rerr == io.EOF {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
		full := got == len(b.buf)
		put, err := writeBlock(write, pool, b, got)
		n += int64(put)
		if err == nil && full && to != nil {
			var moved int64
			moved, err = c.spliceTo(to)
			n += moved
		}
		if err != nil {
			return n, err
		}
	}
}

// writeBlock writes b's first n bytes and gives b back, also when write, which may be a user's, panics.
func writeBlock(write func([]byte) (int, error), pool *pool, b *block, n int) (int, error) {
	defer pool.put(b)
	put, err := write(b.buf[:n])
	if err == nil && put < n {
		err = io.ErrShortWrite
	}
	return put, err
}

// writeAll is Write for a caller that has begun a write.
func (c *Conn) writeAll(p []byte) (int, error) {
	c.mu.Lock()
	defer c.unlock()
	if err := c.sendableLocked(); err != nil {
		return 0, err
	}
	return c.writeAllLocked(p)
}

// spliceTo moves what there is to read to a connection on which a write was begun, until there is no more for the moment, or an
// end, which the next read finds. An error is the write's.
func (c *Conn) spliceTo(to *Conn) (n int64, err error) {
	pipe, err := sys.NewPipe(copyChunk)
	if err != nil {
		return 0, nil // no descriptor free
	}
	defer pipe.Close()
	for _, end := range [...]*Conn{c, to} {
		end.mu.Lock()
		if end.flags&fReleased == 0 {
			_ = sys.LimitCalls(end.fd)
		}
		end.mu.Unlock()
	}
	for {
		c.mu.Lock()
		got := c.spliceInLocked(pipe)
		c.unlock()
		if got == 0 {
			return n, nil
		}
		to.mu.Lock()
		put, whole, err := to.spliceOutLocked(pipe, got)
		to.unlock()
		if n += int64(put); err != nil || !whole {
			return n, err
		}
	}
}

// spliceInLocked moves input into the pipe. It returns 0 when there is nothing that it can move.
func (c *Conn) spliceInLocked(pipe sys.Pipe) int {
	if c.flags&(fClosing|fReleased|fTLS|fEOF) != 0 || c.ext != nil && (c.ext.frames.b != nil || c.ext.readLimit.passed()) ||
		c.readErrLocked() != nil {
		return 0
	}
	n, errno := pipe.SpliceFrom(c.fd, copyChunk)
	if sys.Unspliceable(errno) {
		return 0
	}
	n, err := c.receivedLocked(n, errno)
	if err == nil {
		c.countInLocked(n)
		c.moreLocked()
	}
	return n
}

// spliceOutLocked moves size bytes from the pipe to the socket, as Write does with bytes of the user's. whole is false when the
// kernel would not do it: the bytes have gone out by a plain write then.
func (c *Conn) spliceOutLocked(pipe sys.Pipe, size int) (n int, whole bool, err error) {
	for n < size {
		if err := c.waitFlushedLocked(); err != nil {
			return n, false, err
		}
		if c.flags&fTLS != 0 {
			break
		}
		put, errno := pipe.SpliceTo(c.fd, size-n)
		switch {
		case put > 0:
			n += put
			c.sentLocked(put)
			continue
		case errno == syscall.EAGAIN:
			if err := c.waitSocketLocked(); err != nil {
				return n, false, err
			}
			continue
		case errno != 0 && !sys.Unspliceable(errno):
			return n, false, c.failSendLocked(errno)
		}
		break
	}
	if n == size {
		return n, true, nil
	}
	b := c.sh.pool.get(size - n)
	defer c.sh.pool.put(b)
	for n < size {
		got, err := pipe.Read(b.buf[:size-n])
		if err == nil && got == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return n, false, os.NewSyscallError("read", err)
		}
		put, err := c.writeAllLocked(b.buf[:got])
		if n += put; err != nil {
			return n, false, err
		}
	}
	return n, false, nil
}

// waitSocketLocked waits until the socket, which has refused bytes that are not queued, has room. It counts as output that waits.
func (c *Conn) waitSocketLocked() error {
	c.extLocked().waiting = true
	c.outputWaitsLocked()
	err := c.waitRoomLocked()
	c.ext.waiting = false
	return err
}
