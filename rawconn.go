package tcpio

import (
	"os"
	"syscall"

	"github.com/rabbit-backend/tcpio/internal/wait"
)

// SyscallConn gives access to the descriptor, for options and calls that tcpio does not have. The
// functions passed to Control, Read and Write may use the descriptor until they return and must not
// close it or change its blocking mode. A connection that ends meanwhile is closed after that.
//
// Read and Write call their function until it returns true, and block in between until the
// connection is ready, or until the deadline. Bytes that Read takes are the caller's, and a
// Readable follows if there are more. Once reading or writing has failed, Read or Write returns
// that error. After Close everything fails with net.ErrClosed.
//
// With TLS the descriptor carries what TLS makes of the bytes. SO_LINGER has no effect: tcpio sets
// it anew before the close, since close(2) would block the loop.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	c.mu.Lock()
	defer c.unlock()
	if c.ended() {
		return nil, c.endedLocked("raw")
	}
	c.extLocked().raw = true
	return rawConn{c}, nil
}

type rawConn struct{ c *Conn }

func (r rawConn) Control(f func(fd uintptr)) error {
	return r.c.withFD("raw-control", f)
}

func (r rawConn) ext() *connExt {
	r.c.mu.Lock()
	defer r.c.unlock()
	return r.c.extLocked()
}

func (r rawConn) Read(f func(fd uintptr) bool) error {
	c, x := r.c, r.ext()
	tries, read := 0, false
	// Announce the input that f has left, which only a look shows, and an edge of which Read took
	// the wake-up. Do it also if f panics.
	defer func() {
		if tries == 0 {
			return
		}
		c.mu.Lock()
		defer c.unlock()
		if c.ended() || c.returnedEOF() {
			return
		}
		if read {
			c.countInLocked(0)
		}
		if ready, _ := c.peekLocked(); ready || tries > 1 {
			c.moreLocked()
		}
	}()
	err := c.retryFD("raw-read", &x.waiting().canRead, &x.waits.readLimit, c.readErrLocked,
		func(fd uintptr) bool { tries++; return f(fd) })
	read = err == nil
	return err
}

func (r rawConn) Write(f func(fd uintptr) bool) error {
	c, x := r.c, r.ext()
	err := c.retryFD("raw-write", &x.waiting().canSend, &x.waits.sendLimit, c.checkWritableLocked, f)
	if err == nil {
		c.mu.Lock()
		c.sentLocked(0)
		c.unlock()
	}
	return err
}

// retryFD calls f until it returns true, and blocks at g in between, until the deadline d or an
// error of check. It enters g before it calls f, so that no edge falls between the two.
func (c *Conn) retryFD(op string, g *wait.Gate, d *wait.Deadline, check func() error,
	f func(fd uintptr) bool) error {
	for {
		c.mu.Lock()
		err := check()
		if err == nil && d.Passed() {
			err = c.opErrorLocked(op, os.ErrDeadlineExceeded)
		}
		if err != nil {
			c.unlock()
			return err
		}
		opened, late := g.Enter(), d.Channel()
		c.unlock()
		if again, err := c.tryFD(op, g, opened, late, f); !again {
			return err
		}
	}
}

// tryFD is one attempt of retryFD, which has entered g. It leaves g even if f panics: a reader that
// is not there would take the next announcement.
func (c *Conn) tryFD(op string, g *wait.Gate, opened chan struct{}, late <-chan struct{},
	f func(fd uintptr) bool) (again bool, err error) {
	defer func() {
		c.mu.Lock()
		g.Leave(opened)
		c.unlock()
	}()
	done := false
	if err := c.withFD(op, func(fd uintptr) { done = f(fd) }); err != nil || done {
		return false, err
	}
	c.sh.willBlock(c)
	select {
	case <-opened:
	case <-late:
	}
	return true, nil
}

// withFD calls f with the descriptor, which is not closed before f has returned.
func (c *Conn) withFD(op string, f func(fd uintptr)) error {
	c.mu.Lock()
	if c.ended() {
		err := c.endedLocked(op)
		c.unlock()
		return err
	}
	c.extLocked().fdUsers++
	fd := c.fd
	c.unlock()
	defer func() {
		c.mu.Lock()
		c.ext.fdUsers--
		c.unlock()
	}()
	f(uintptr(fd))
	return nil
}
