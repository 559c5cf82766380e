package tcpio

import (
	"io"
	"os"
	"syscall"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/sys"
)

// Copies. Every byte goes through the reads and writes of every other caller, which decide what may
// be done and how it ended. Between two plain connections splice(2) moves bulk through a pipe,
// without a copy to user space. It only moves bytes: it leaves every end, and what it cannot do, to
// the next read or write.
//
// Measured on loopback, CPU per GiB as a ratio to reads and writes of 64 KiB: a pipe of 64 KiB
// 0.95, of 256 KiB 0.65, of 1 MiB 0.55. sendfile(2) from a cached file was 0.8 and is not used: a
// slow file system would hold the connection for as long as it takes.

// copyChunk is the most that one splice moves, and a pipe of ours holds, in bytes.
const copyChunk = 256 << 10

// ReadFrom copies r to the connection until io.EOF or an error, as io.Copy does for a writer that
// has it. From a *Conn bulk stays in the kernel (splice(2)) unless one of the two has TLS. It
// blocks as Write does, and as r does. While it copies from a *Conn it is the only writer; from
// other readers other writes may come in between two reads of r.
//
// It returns how many bytes the connection took. After an error of r what was read before has been
// written. An error of the connection is what the next Write returns too.
func (c *Conn) ReadFrom(r io.Reader) (n int64, err error) {
	if src, ok := r.(*Conn); ok {
		return copyConn(c, src)
	}
	c.noteCopy(1)
	defer c.noteCopy(-1)
	b := c.sh.pool.Get(buf.Large)
	defer c.sh.pool.Put(b)
	for {
		got, rerr := r.Read(b.Buf)
		if got > 0 {
			put, err := c.Write(b.Buf[:got])
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

// WriteTo copies the connection to w until the peer's end of stream, for which it returns nil, or
// an error. To a *Conn bulk stays in the kernel (splice(2)) unless one of the two has TLS. It
// blocks as Read does, and as w does. While it waits for the peer it keeps no buffer.
//
// It returns how many bytes w took. An error of the connection, such as a reset, is what the next
// Read returns too, or matches, and it is in Err.
func (c *Conn) WriteTo(w io.Writer) (n int64, err error) {
	if dst, ok := w.(*Conn); ok {
		return copyConn(dst, c)
	}
	return c.copyTo(w.Write, nil)
}

// copyConn copies src to dst, as dst's only writer.
func copyConn(dst, src *Conn) (int64, error) {
	dst.mu.Lock()
	err := dst.beginWriteLocked()
	dst.unlock()
	if err != nil {
		return 0, err
	}
	defer func() {
		dst.mu.Lock()
		dst.endWriteLocked()
		dst.unlock()
	}()
	dst.noteCopy(1)
	defer dst.noteCopy(-1)
	return src.copyTo(func(p []byte) (int, error) {
		dst.mu.Lock()
		defer dst.unlock()
		if err := dst.checkWritableLocked(); err != nil {
			return 0, err
		}
		return dst.writeAllLocked(p)
	}, dst)
}

// noteCopy counts the copies to the connection that are under way. EOFTimeout waits for them, also
// while their source is silent, and begins anew after the last.
func (c *Conn) noteCopy(n int32) {
	c.mu.Lock()
	defer c.unlock()
	c.extLocked().copies += n
	if c.eofTimed() {
		c.limit.lastOut = c.sh.coarse()
	}
}

// copyTo copies the connection by write; to, if not nil, is the connection that write writes to.
func (c *Conn) copyTo(write func([]byte) (int, error), to *Conn) (n int64, err error) {
	pool := &c.sh.pool
	for {
		var b *buf.Block
		got, err := c.awaitRead(func() (int, error) {
			b = pool.Get(buf.Large)
			n, err := c.readLocked(b.Buf)
			if err != nil {
				pool.Put(b)
			}
			return n, err
		})
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		full := got == len(b.Buf)
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

// writeBlock writes b's first n bytes and gives b back, also when write, which may be a user's,
// panics.
func writeBlock(write func([]byte) (int, error), pool *buf.Pool, b *buf.Block, n int) (int, error) {
	defer pool.Put(b)
	put, err := write(b.Buf[:n])
	if err == nil && put < n {
		err = io.ErrShortWrite
	}
	return put, err
}

// spliceTo moves input to a connection of which the caller is the only writer. It returns when
// there is no more input for the moment, or at an end, which the next read finds. An error is the
// write's.
func (c *Conn) spliceTo(to *Conn) (n int64, err error) {
	pipe, err := sys.NewPipe(copyChunk)
	if err != nil {
		return 0, nil // no descriptor free
	}
	defer pipe.Close()
	for _, conn := range [...]*Conn{c, to} {
		conn.mu.Lock()
		if !conn.released() {
			_ = sys.LimitCalls(conn.fd)
		}
		conn.unlock()
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
	if c.ended() || c.relayed() || c.tls() != nil || c.handshaking() || c.atEOF() {
		return 0
	}
	if x := c.ext; x != nil && (x.frames.Held() || x.waits.readLate() || x.readErr != nil) {
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

// spliceOutLocked moves size bytes from the pipe to the socket, as Write does with a caller's
// bytes. whole is false if it had to write some of them instead.
func (c *Conn) spliceOutLocked(pipe sys.Pipe, size int) (n int, whole bool, err error) {
	for n < size {
		if err := c.waitFlushedLocked(); err != nil {
			return n, false, err
		}
		put, errno := 0, syscall.EINVAL // StartTLS came in between: TLS has to seal the rest
		if c.tls() == nil {
			put, errno = pipe.SpliceTo(c.fd, size-n)
		}
		switch {
		case put > 0:
			n += put
			c.sentLocked(put)
		case errno == syscall.EAGAIN:
			if err := c.waitSocketLocked(); err != nil {
				return n, false, err
			}
		case errno == 0 || sys.Unspliceable(errno):
			put, err := c.writePipeLocked(pipe, size-n)
			return n + put, false, err
		default:
			return n, false, c.failSendLocked(errno)
		}
	}
	return n, true, nil
}

// writePipeLocked writes the size bytes that the pipe holds.
func (c *Conn) writePipeLocked(pipe sys.Pipe, size int) (n int, err error) {
	b := c.sh.pool.Get(size)
	defer c.sh.pool.Put(b)
	for n < size {
		got, err := pipe.Read(b.Buf[:size-n])
		if err == nil && got == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return n, os.NewSyscallError("read", err)
		}
		put, err := c.writeAllLocked(b.Buf[:got])
		if n += put; err != nil {
			return n, err
		}
	}
	return n, nil
}

// waitSocketLocked waits until the socket, which has refused bytes that are not queued, has room.
// They count as output that waits.
func (c *Conn) waitSocketLocked() error {
	c.sock.add(sockWaiting)
	c.outputWaitsLocked()
	err := c.waitRoomLocked()
	c.sock.drop(sockWaiting)
	return err
}
