package tcpio

import (
	"os"
	"syscall"
)

// SyscallConn gives access to the descriptor, for options and calls that tcpio does not have. The functions passed to
// Control, Read and Write may use the descriptor until they return and must not close it or change its blocking mode.
// While one runs the descriptor cannot go: a connection that ends meanwhile is closed behind it. Read and Write call
// their function until it returns true and block in between until the connection is ready, or until the deadline; bytes that
// Read takes are the caller's, and a Readable follows if there are more. Once reading or writing has failed, Read or Write returns
// that error. After Close everything fails with net.ErrClosed.
//
// With TLS the descriptor carries what TLS makes of the bytes. SO_LINGER has no effect: it is set anew before the close,
// since close(2) would block the loop.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flags&(fClosing|fReleased) != 0 {
		return nil, c.endedLocked("raw")
	}
	c.extLocked().raw = true
	return rawConn{c}, nil
}

type rawConn struct{ c *Conn }

func (r rawConn) Control(f func(fd uintptr)) error {
	return r.c.withFD("raw-control", f)
}

func (r rawConn) Read(f func(fd uintptr) bool) error {
	c := r.c
	c.mu.Lock()
	err := c.readErrLocked()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	tries, read := 0, false
	// What f left behind is announced, which only a look tells, and so is an edge that it took the wake-up of, also when f panics.
	defer func() {
		c.mu.Lock()
		defer c.unlock()
		if c.flags&(fClosing|fReleased|fTold) != 0 {
			return
		}
		if read {
			c.countInLocked(0)
		}
		if ready, _ := c.peekLocked(); ready || tries > 1 {
			c.moreLocked()
		}
	}()
	err = c.retryFD("raw-read", readGate, func(fd uintptr) bool { tries++; return f(fd) })
	read = err == nil
	return err
}

func (r rawConn) Write(f func(fd uintptr) bool) error {
	r.c.mu.Lock()
	err := r.c.sendableLocked()
	r.c.mu.Unlock()
	if err != nil {
		return err
	}
	err = r.c.retryFD("raw-write", sendGate, f)
	if err == nil {
		r.c.mu.Lock()
		r.c.sentLocked(0)
		r.c.mu.Unlock()
	}
	return err
}

func readGate(x *connExt) (*gate, *limit) { return &x.canRead, &x.readLimit }
func sendGate(x *connExt) (*gate, *limit) { return &x.canSend, &x.sendLimit }

// retryFD calls f until it returns true, and blocks at the gate in between, until the deadline. The gate is entered before
// the attempt, so that no edge falls between the two.
func (c *Conn) retryFD(op string, at func(*connExt) (*gate, *limit), f func(fd uintptr) bool) error {
	for {
		c.mu.Lock()
		g, d := at(c.extLocked())
		if d.passed() {
			err := c.opErrorLocked(op, os.ErrDeadlineExceeded)
			c.mu.Unlock()
			return err
		}
		opened, late := g.enter(), d.channel()
		c.mu.Unlock()
		if again, err := c.tryFD(op, g, opened, late, f); !again {
			return err
		}
	}
}

// tryFD is one attempt of retryFD, which has entered g. However f ends, nobody is left at the gate, where a
// reader that is not there would take the next announcement.
func (c *Conn) tryFD(op string, g *gate, opened chan struct{}, late <-chan struct{}, f func(fd uintptr) bool) (again bool, err error) {
	defer func() {
		c.mu.Lock()
		g.leave(opened)
		c.mu.Unlock()
	}()
	done := false
	if err := c.withFD(op, func(fd uintptr) { done = f(fd) }); err != nil || done {
		return false, err
	}
	c.sh.blocks(c)
	select {
	case <-opened:
	case <-late:
	}
	return true, nil
}

// withFD runs f with the descriptor, which lives until f has returned.
func (c *Conn) withFD(op string, f func(fd uintptr)) error {
	c.mu.Lock()
	if c.flags&(fClosing|fReleased) != 0 {
		err := c.endedLocked(op)
		c.unlock()
		return err
	}
	c.extLocked().fdUsers++
	fd := c.fd
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.ext.fdUsers--
		c.unlock()
	}()
	f(uintptr(fd))
	return nil
}
