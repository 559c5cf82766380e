package tcpio

import (
	"io"
	"net"
	"os"
	"reflect"
	"syscall"

	"golang.org/x/sys/unix"
)

// Copies that stay in the kernel: sendfile(2) from a file, and splice(2) through a pipe between a socket and whatever
// else has a descriptor.

// copyChunk is the most one call moves, in bytes; a pipe of the default size holds as much.
const copyChunk = 64 << 10

// sendFrom is ReadFrom for the sources that the kernel can copy from. handled is false when r is none of them and nothing
// was done.
func (c *Conn) sendFrom(r io.Reader) (n int64, handled bool, err error) {
	if c.speaksTLS() {
		return 0, false, nil // the kernel cannot encrypt
	}
	remain := int64(1<<63 - 1)
	lr, limited := r.(*io.LimitedReader)
	if limited {
		r, remain = lr.R, lr.N
		defer func() { lr.N -= n }()
	}
	switch src := inside(r).(type) {
	case *os.File:
		return c.sendFile(src, remain)
	case *Conn:
		if limited || src.speaksTLS() {
			return 0, false, nil
		}
		n, err = spliceAll(connEnd{c}, connEnd{src}, src, nil)
		return n, true, err
	case *net.TCPConn:
		if limited {
			return 0, false, nil
		}
		return c.spliceFrom(src)
	case *net.UnixConn:
		if limited || src.LocalAddr().Network() != "unix" {
			return 0, false, nil
		}
		return c.spliceFrom(src)
	}
	return 0, false, nil
}

// inside undoes what io.Copy does to sources with a WriteTo that cannot help: *os.File and *net.TCPConn then pass
// themselves on in a struct that hides it, of a type that is not exported (fileWithoutWriteTo, tcpConnWithoutWriteTo).
// Structs of other packages are left alone, their Read may be one of their own.
func inside(r io.Reader) io.Reader {
	v := reflect.ValueOf(r)
	if v.Kind() != reflect.Struct {
		return r
	}
	var field reflect.Value
	switch v.Type().PkgPath() {
	case "os":
		field = v.FieldByName("File")
	case "net":
		field = v.FieldByName("TCPConn")
	}
	if field.IsValid() && field.CanInterface() {
		switch src := field.Interface().(type) {
		case *os.File:
			return src
		case *net.TCPConn:
			return src
		}
	}
	return r
}

func (c *Conn) spliceFrom(src syscall.Conn) (int64, bool, error) {
	raw, err := src.SyscallConn()
	if err != nil {
		return 0, true, err
	}
	n, err := spliceAll(connEnd{c}, raw, nil, nil)
	return n, true, err
}

// recvTo is WriteTo for the destinations that the kernel can copy to.
func (c *Conn) recvTo(w io.Writer) (n int64, handled bool, err error) {
	if c.speaksTLS() {
		return 0, false, nil
	}
	switch dst := w.(type) {
	case *Conn:
		if dst.speaksTLS() {
			return 0, false, nil
		}
		n, err = spliceAll(connEnd{dst}, connEnd{c}, c, nil)
		return n, true, err
	case *net.UnixConn:
		if dst.LocalAddr().Network() != "unix" {
			return 0, false, nil
		}
	case *net.TCPConn:
	case *os.File:
		if flags, err := fileFlags(dst); err != nil || flags&unix.O_APPEND != 0 {
			return 0, false, nil // splice refuses a file opened for appending
		}
	default:
		return 0, false, nil
	}
	raw, err := w.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, true, err
	}
	n, err = spliceAll(raw, connEnd{c}, c, w)
	return n, true, err
}

func fileFlags(f *os.File) (flags int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := raw.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	if ctlErr != nil {
		err = ctlErr
	}
	return flags, err
}

// sendFile copies from a regular file, from its offset on. What is not a regular file is left to the ordinary way.
func (c *Conn) sendFile(f *os.File, remain int64) (n int64, handled bool, err error) {
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return 0, false, nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, true, err
	}
	if err := c.beginWrite(); err != nil {
		return 0, true, err
	}
	defer c.endWrite()
	for remain > 0 {
		moved, errno := 0, error(nil)
		err := connEnd{c}.Write(func(dst uintptr) bool {
			ctlErr := raw.Control(func(src uintptr) {
				moved, errno = retryEINTR(func() (int, error) {
					return unix.Sendfile(int(dst), int(src), nil, int(min(remain, 1<<30)))
				})
			})
			if ctlErr != nil {
				errno = ctlErr
			}
			return errno != unix.EAGAIN
		})
		switch {
		case err != nil:
			return n, true, err
		case errno != nil && n == 0 && moved == 0 && (errno == unix.EINVAL || errno == unix.ENOSYS):
			return 0, false, nil // a file system without it
		case errno != nil:
			return n, true, c.opError("sendfile", errno)
		case moved == 0:
			return n, true, nil
		}
		n += int64(moved)
		remain -= int64(moved)
		c.account(0, moved)
	}
	return n, true, nil
}

// An end is one side of a splice: Read and Write call f until it returns true, and block in between, as a
// syscall.RawConn does.
type end interface {
	Read(f func(fd uintptr) bool) error
	Write(f func(fd uintptr) bool) error
}

// connEnd is a Conn as an end. Writing needs beginWrite.
type connEnd struct{ c *Conn }

func (e connEnd) Read(f func(fd uintptr) bool) error {
	err := e.c.retryFD("splice", readGate, f)
	e.c.mu.Lock()
	e.c.reannounceLocked()
	e.c.unlock()
	return err
}

func (e connEnd) Write(f func(fd uintptr) bool) error {
	return e.c.retryFD("splice", sendGate, f)
}

// spliceAll moves everything from src to dst through a pipe. from is src's Conn if it is one: what it has buffered goes
// first, and its end of stream is noted. plain, if not nil, is dst for what the kernel cannot put there: not every file
// has a splice, and only trying tells.
func spliceAll(dst, src end, from *Conn, plain io.Writer) (n int64, err error) {
	to, _ := dst.(connEnd)
	if to.c != nil {
		if err := to.c.beginWrite(); err != nil {
			return 0, err
		}
		defer to.c.endWrite()
	}
	if from != nil {
		if n, err = from.drainFrames(dst); err != nil {
			return n, err
		}
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return n, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	for {
		got, errno := 0, error(nil)
		err := src.Read(func(fd uintptr) bool {
			got, errno = splice(int(fd), pipe[1], copyChunk)
			return errno != unix.EAGAIN
		})
		if err == nil && errno != nil {
			err = spliceError(from, errno)
		}
		if err != nil {
			return n, err
		}
		if got == 0 {
			if from != nil {
				from.noteFin()
			}
			return n, nil
		}
		from.account(got, 0)
		for got > 0 {
			put, errno := 0, error(nil)
			err := dst.Write(func(fd uintptr) bool {
				put, errno = splice(pipe[0], int(fd), got)
				return errno != unix.EAGAIN
			})
			n += int64(put)
			got -= put
			to.c.account(0, put)
			if err == nil && errno == unix.EINVAL && plain != nil {
				rest, err := copyOn(plain, pipe[0], got, from)
				return n + rest, err
			}
			if err == nil && errno != nil {
				err = spliceError(to.c, errno)
			}
			if err != nil {
				return n, err
			}
		}
	}
}

// copyOn goes on with the copy from a splice to w without the kernel: first the size bytes that are in the pipe.
func copyOn(w io.Writer, pipe, size int, from *Conn) (n int64, err error) {
	for buf := make([]byte, size); n < int64(size); {
		got, err := retryEINTR(func() (int, error) { return unix.Read(pipe, buf[n:]) })
		if err != nil {
			return n, os.NewSyscallError("read", err)
		}
		put, err := w.Write(buf[n : n+int64(got)])
		if n += int64(put); err != nil {
			return n, err
		}
	}
	rest, err := io.Copy(w, onlyReader{from})
	return n + rest, err
}

func splice(from, to, size int) (int, error) {
	return retryEINTR(func() (int, error) {
		n, err := unix.Splice(from, nil, to, nil, size, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		return int(n), err
	})
}

func spliceError(c *Conn, errno error) error {
	if c == nil {
		return os.NewSyscallError("splice", errno)
	}
	return c.opError("splice", errno)
}

func retryEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// drainFrames writes what Frames has kept to dst.
func (c *Conn) drainFrames(dst end) (n int64, err error) {
	buf := make([]byte, blockSmall)
	for {
		c.mu.Lock()
		size := 0
		if c.ext != nil {
			size = c.ext.frames.read(c.lp.l, buf)
		}
		c.mu.Unlock()
		if size == 0 {
			return n, nil
		}
		for p := buf[:size]; len(p) > 0; {
			put, errno := 0, error(nil)
			err := dst.Write(func(fd uintptr) bool {
				put, errno = retryEINTR(func() (int, error) { return unix.Write(int(fd), p) })
				return errno != unix.EAGAIN
			})
			if err == nil && errno != nil {
				err = os.NewSyscallError("write", errno)
			}
			if err != nil {
				return n, err
			}
			p = p[put:]
			n += int64(put)
			if to, ok := dst.(connEnd); ok {
				to.c.account(0, put)
			}
		}
	}
}

// account notes what the kernel has moved, for the time limits and the counters. A nil c is somebody else's socket.
func (c *Conn) account(in, out int) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if in > 0 {
		c.receivedLocked(in)
	}
	if out > 0 {
		c.sentLocked(out)
	}
}

func (c *Conn) beginWrite() error {
	c.mu.Lock()
	defer c.unlock()
	if err := c.beginWriteLocked(); err != nil {
		return err
	}
	if err := c.waitFlushedLocked(); err != nil {
		c.endWriteLocked()
		return err
	}
	return nil
}

func (c *Conn) endWrite() {
	c.mu.Lock()
	c.endWriteLocked()
	c.unlock()
}

func (c *Conn) opError(op string, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opErrorLocked(op, err)
}

// sysGiveAway makes a *net.TCPConn of a duplicate of fd.
func sysGiveAway(fd int32) (*net.TCPConn, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(dup), "tcpio")
	defer f.Close()
	nc, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		nc.Close()
		return nil, unix.EINVAL
	}
	_ = unlimitCalls(int(fd))
	return tc, nil
}

// sysTake moves the socket out of nc: a duplicate that this package owns, after which nc is closed.
func sysTake(nc net.Conn) (int32, sockaddr, error) {
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return -1, sockaddr{}, err
	}
	fd := -1
	ctlErr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if ctlErr != nil {
		err = ctlErr
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, sockaddr{}, os.NewSyscallError("fcntl", err)
	}
	_ = limitCalls(fd)
	peer := peerOf(nc.RemoteAddr())
	if _, ok := nc.(*net.TCPConn); ok && !peer.isIP {
		peer.isIP, peer.is4 = true, true // reset before somebody asked: it has no peer any more, and is no unix socket for that
	}
	return int32(fd), peer, nil
}

// sysListenerFile makes a duplicate of fd. The shared description stays non-blocking, and so it does when somebody
// calls Fd: NewFile, unlike net.TCPListener's File, does not touch that.
func sysListenerFile(fd int) (*os.File, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(dup), "tcpio"), nil
}

// sysListenerCopy makes a *net.TCPListener of a duplicate of fd.
func sysListenerCopy(fd int) (*net.TCPListener, error) {
	f, err := sysListenerFile(fd)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	tl, ok := ln.(*net.TCPListener)
	if !ok {
		ln.Close()
		return nil, unix.EINVAL
	}
	return tl, nil
}

// sysPeek reports whether a read would return at once: with a byte, the end of the stream, or an error.
func sysPeek(fd int32) (ready, end bool) {
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch err {
		case nil:
			return true, n == 0
		case unix.EINTR:
		case unix.EAGAIN:
			return false, false
		default:
			return true, false
		}
	}
}

func (c *Conn) speaksTLS() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flags&fTLS != 0
}

// noteFin is called when the peer's FIN was met behind the Conn's back.
func (c *Conn) noteFin() {
	c.mu.Lock()
	c.flags |= fFinSeen
	c.mu.Unlock()
	c.noteEnd()
}
