package tcpio

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// How the two directions of a connection end. The kernel reports an error once, to whichever call
// meets it first: a recv, a look, a send or a copy. Each of them notes it here, and whatever is
// asked afterwards, by whichever way, is answered from here: a reset never becomes an end of
// stream.
//
// Input ends by the peer's end of stream, or by readErr; output by sendErr, or by our own
// CloseWrite or Close.

// receivedLocked makes the result of a system call that reads, looks or copies from the socket into
// what a read returns, and notes an end.
func (c *Conn) receivedLocked(n int, errno syscall.Errno) (int, error) {
	switch {
	case n > 0:
		return n, nil
	case errno == syscall.EAGAIN:
		return 0, ErrWouldBlock
	case errno != 0:
		return 0, c.noteReadErrLocked(c.opErrorLocked("read", errno))
	}
	if err := c.cutOffLocked(); err != nil {
		return 0, c.noteReadErrLocked(err)
	}
	c.sock.add(sockFinSeen)
	return 0, io.EOF
}

// noteReadErrLocked notes why reading failed. The first cause stays.
func (c *Conn) noteReadErrLocked(err error) error {
	x := c.extLocked()
	if x.readErr == nil {
		x.readErr = err
	}
	return x.readErr
}

// readErrLocked is why reading failed before, nil if it did not.
func (c *Conn) readErrLocked() error {
	if c.ext == nil {
		return nil
	}
	return c.ext.readErr
}

// sendErrLocked is why writing failed before, nil if it did not.
func (c *Conn) sendErrLocked() error {
	if c.ext == nil {
		return nil
	}
	return c.ext.sendErr
}

// cutOffLocked is why an end of input is not the peer's end of stream: the connection was reset,
// and another call got that error. A FIN that came before the reset is an end of stream all the
// same. The kernel shows which it was: a reset behind a FIN is EPIPE (tcp_reset in tcp_input.c),
// and recv looks for the FIN before the error (tcp_recvmsg_locked in tcp.c).
func (c *Conn) cutOffLocked() error {
	if c.sock.has(sockFinSeen) {
		return nil
	}
	if err := c.sendErrLocked(); err != nil {
		if c.ext.raw || !errors.Is(err, syscall.EPIPE) {
			return err
		}
		return nil
	}
	if c.origin == accepted && (c.ext == nil || !c.ext.raw) {
		return nil // nobody else has had the descriptor
	}
	if !c.peer.IsIP || c.finSent() || !sys.Disconnected(c.fd) || sys.HasError(c.fd) {
		return nil // an error that is still pending comes behind a FIN, or recv had returned it
	}
	// Another user of the descriptor got it: see SyscallConn.
	return c.opErrorLocked("read", syscall.ECONNRESET)
}

// socketErrorLocked takes the socket's pending error, nil if there is none.
func (c *Conn) socketErrorLocked() error {
	errno := sys.TakeError(c.fd)
	if errno == 0 {
		return nil
	}
	return c.noteReadErrLocked(c.opErrorLocked("read", errno))
}

// causeLocked is why a connection that was closed without a cause did not end in order: the error
// of its writes, or else of its reads; nil if neither failed.
func (c *Conn) causeLocked() error {
	switch {
	case c.sendErrLocked() != nil:
		return c.ext.sendErr // what was written did not all go out
	case c.ext != nil:
		return c.ext.readErr
	}
	return nil
}

// endedLocked is the error of an operation on a connection that is closing or closed. It matches
// net.ErrClosed, and the system's error too if that is what ended the connection.
func (c *Conn) endedLocked(op string) error {
	err := net.ErrClosed
	// An error of the user's is not looked into.
	if x := c.ext; x != nil && x.err != nil && (x.err == x.readErr || x.err == x.sendErr) {
		var errno syscall.Errno
		if errors.As(x.err, &errno) {
			err = &endedError{errno}
		}
	}
	return c.opErrorLocked(op, err)
}

// opErrorLocked is the shape of every error at the edge: what, where, and the cause for errors.Is.
func (c *Conn) opErrorLocked(op string, err error) error {
	switch e := err.(type) {
	case syscall.Errno:
		err = os.NewSyscallError(op, e)
	case *net.OpError:
		if c.ext != nil && (e == c.ext.readErr || e == c.ext.sendErr) {
			err = e.Err // it has the addresses already
		}
	}
	local := c.localLocked()
	return &net.OpError{Op: op, Net: local.Network(), Source: local, Addr: c.RemoteAddr(), Err: err}
}

// relayedLocked is the error of an operation that only the connection's Relay may do.
func (c *Conn) relayedLocked(op string) error {
	if c.ended() {
		return c.endedLocked(op)
	}
	return c.opErrorLocked(op, ErrRelayed)
}

// opError is opErrorLocked for a caller without mu.
func (c *Conn) opError(op string, err error) error {
	c.mu.Lock()
	defer c.unlock()
	return c.opErrorLocked(op, err)
}
