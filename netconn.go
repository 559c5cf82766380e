package tcpio

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// Conn as a net.Conn. A blocked caller costs its goroutine and no thread, on loops that go on
// meanwhile.

var _ net.Conn = (*Conn)(nil)

// Read reads into p and blocks until there is at least a byte, the peer's end of stream (io.EOF),
// an error, or the read deadline. Errors other than io.EOF are *net.OpError; test with errors.Is
// for os.ErrDeadlineExceeded and net.ErrClosed. While a goroutine is blocked in Read, arriving
// bytes wake it and are not announced by Readable; otherwise Read is to events what TryRead is.
func (c *Conn) Read(p []byte) (int, error) {
	return c.awaitRead(func() (int, error) { return c.readLocked(p) })
}

// awaitRead calls read, with mu held, until it returns something else than ErrWouldBlock, and
// blocks in between.
func (c *Conn) awaitRead(read func() (int, error)) (int, error) {
	for woken := false; ; {
		c.mu.Lock()
		if c.ext != nil && c.ext.waits.readLate() {
			err := c.opErrorLocked("read", os.ErrDeadlineExceeded)
			if woken {
				c.reannounceLocked() // the wake-up was ours, the bytes are for the next reader
			}
			c.unlock()
			return 0, err
		}
		n, err := read()
		if err == ErrWouldBlock && c.atEOF() && (c.ext == nil || !c.ext.frames.split) {
			n, err = read() // the end was left to a Readable that is in a channel; see leaveEndLocked
		}
		if err != ErrWouldBlock {
			c.askHelpLocked()
			c.unlock()
			return n, err
		}
		x := c.extLocked()
		opened, late := x.waiting().canRead.Enter(), x.waits.readLimit.Channel()
		c.askHelpLocked()
		c.unlock()
		c.sh.willBlock(c)
		select {
		case <-opened:
			woken = true
		case <-late:
			c.mu.Lock()
			woken = x.waits.canRead.Leave(opened)
			c.unlock()
		}
	}
}

// reannounceLocked announces input that a blocked reader was woken for and did not take.
func (c *Conn) reannounceLocked() {
	if !c.ended() && !c.returnedEOF() {
		c.announceReadableLocked()
	}
}

// Write writes p. It blocks while [ListenerOptions.WriteBuffer] bytes are queued, or MaxBuffered
// are, while another write or a copy to the connection is under way, and during a TLS handshake:
// until there is room, an error, or the write deadline; then it returns how many bytes of p were
// accepted. Writes of concurrent callers do not interleave. Errors are *net.OpError, as for
// TryWrite.
//
// The consumer of the stream should call TryWrite: while its Write waits for one peer, which
// fmt.Fprintf(c, …), io.Copy and a bufio.Writer do too, it receives the events of none. An actor's
// Receive and the goroutine that claimed the connection may wait, and delay nobody else.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.unlock()
	if err := c.beginWriteLocked(); err != nil {
		return 0, err
	}
	defer c.endWriteLocked()
	return c.writeAllLocked(p)
}

// writeAllLocked writes p, and waits for room as often as it must. The caller has begun a write.
func (c *Conn) writeAllLocked(p []byte) (n int, err error) {
	limit := c.sh.opts.WriteBuffer
	for {
		size := min(len(p)-n, holdMax)
		took := 0
		if c.out == nil && c.tls() == nil {
			// Send before queueing, also after a wait: epoll reports writability only after a send
			// has returned EAGAIN.
			if took, err = c.sendLocked(p[n : n+size]); err != nil {
				return n + took, err
			}
		}
		if took < size {
			room := c.shareOfBudgetLocked(min(limit-c.queuedLocked(), size-took))
			if room > 0 {
				if err = c.putLocked(p[n+took : n+took+room]); err != nil {
					return n + took, err
				}
				took += room
			}
		}
		if n += took; n == len(p) {
			return n, nil
		}
		if took > 0 {
			err = c.breatheLocked()
			if err == nil {
				err = c.checkWritableLocked()
			}
		} else {
			err = c.waitRoomLocked()
		}
		if err != nil {
			return n, err
		}
	}
}

// beginWriteLocked makes the caller the only one who writes until endWriteLocked.
func (c *Conn) beginWriteLocked() error {
	for {
		if c.ext != nil && c.ext.waits.sendLate() {
			return c.opErrorLocked("write", os.ErrDeadlineExceeded)
		}
		if c.relayed() {
			return c.relayedLocked("write")
		}
		if err := c.checkWritableLocked(); err != nil {
			return err
		}
		if c.outputFree() && !c.handshaking() {
			c.writing = writeHeld
			return nil
		}
		if err := c.waitRoomLocked(); err != nil {
			return err
		}
	}
}

func (c *Conn) endWriteLocked() {
	c.writing = writeFree
	c.todo.add(todoProgress)
}

// waitRoomLocked gives up mu until there may be room to write. It fails when writing is over or the
// deadline has passed.
func (c *Conn) waitRoomLocked() error {
	x := c.extLocked()
	opened, late := x.waiting().canSend.Enter(), x.waits.sendLimit.Channel()
	c.unlock()
	c.sh.willBlock(c)
	select {
	case <-opened:
	case <-late:
	}
	c.mu.Lock()
	x.waits.canSend.Leave(opened)
	if x.waits.sendLate() {
		return c.opErrorLocked("write", os.ErrDeadlineExceeded)
	}
	return c.checkWritableLocked()
}

// waitFlushedLocked waits until the socket has taken everything queued.
func (c *Conn) waitFlushedLocked() error {
	for c.out != nil {
		if err := c.waitRoomLocked(); err != nil {
			return err
		}
	}
	return c.checkWritableLocked()
}

// SetDeadline sets both deadlines; see net.Conn. A deadline in the past makes blocked and later
// calls fail with os.ErrDeadlineExceeded at once, the zero time means none. The Try methods have no
// deadline. After Close it fails with net.ErrClosed.
func (c *Conn) SetDeadline(t time.Time) error {
	return c.setLimits(t, true, true)
}

// SetReadDeadline sets the deadline of Read; see SetDeadline.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.setLimits(t, true, false)
}

// SetWriteDeadline sets the deadline of Write; see SetDeadline.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.setLimits(t, false, true)
}

func (c *Conn) setLimits(t time.Time, read, send bool) error {
	c.mu.Lock()
	defer c.unlock()
	if c.ended() {
		return c.endedLocked("set")
	}
	if c.ext == nil && t.IsZero() {
		return nil
	}
	x := c.extLocked()
	if read {
		x.waiting().readLimit.Set(&c.mu.bare, t)
	}
	if send {
		x.waiting().sendLimit.Set(&c.mu.bare, t)
	}
	return nil
}

// SetNoDelay sets whether small writes are sent at once (true, the default) or gathered by Nagle's
// algorithm (TCP_NODELAY, tcp(7)). On a unix socket it does nothing. After Close it fails with
// net.ErrClosed.
func (c *Conn) SetNoDelay(on bool) error {
	c.mu.Lock()
	defer c.unlock()
	if c.ended() {
		return c.opErrorLocked("set", net.ErrClosed)
	}
	if !c.peer.IsIP {
		return nil
	}
	if err := sys.SetNoDelay(c.fd, on); err != nil {
		return c.opErrorLocked("set", err)
	}
	return nil
}

// Hijack gives the connection away for good, as a *net.TCPConn of the Go runtime's own poller. It
// blocks until queued output is flushed, for which the write deadline holds. For tcpio the
// connection ends: Closed follows, and Err is ErrHijacked. Nothing that was read is lost: while
// Frames has kept bytes, Hijack fails and changes nothing; TryRead takes them first. A unix socket
// cannot be hijacked. After Close it fails with net.ErrClosed.
func (c *Conn) Hijack() (*net.TCPConn, error) {
	c.mu.Lock()
	defer c.unlock()
	if err := c.mayHijackLocked(); err != nil {
		return nil, err
	}
	if err := c.beginWriteLocked(); err != nil {
		return nil, err
	}
	defer c.endWriteLocked()
	for {
		if err := c.mayHijackLocked(); err != nil { // it may have TLS or a Relay by now
			return nil, err
		}
		if c.out == nil {
			break
		}
		if err := c.waitRoomLocked(); err != nil {
			return nil, err
		}
	}
	switch {
	case !c.peer.IsIP:
		return nil, c.opErrorLocked("hijack", errors.New("not a TCP connection"))
	case c.readErrLocked() != nil:
		return nil, c.ext.readErr // the socket would not tell it again
	case c.ext != nil && c.ext.frames.Held():
		return nil, c.opErrorLocked("hijack", errors.New("bytes that were read are still buffered"))
	}
	tc, err := sys.GiveAway(c.fd)
	if err != nil {
		return nil, c.opErrorLocked("hijack", err)
	}
	c.extLocked().given = true
	c.releaseLocked(ErrHijacked)
	return tc, nil
}

// mayHijackLocked says why somebody else has the connection's bytes.
func (c *Conn) mayHijackLocked() error {
	switch {
	case c.ended():
		return c.endedLocked("hijack")
	case c.relayed():
		return c.relayedLocked("hijack")
	case c.tls() != nil || c.handshaking():
		return c.opErrorLocked("hijack", errors.New("the connection speaks TLS, or Preface is not done"))
	}
	return c.checkWritableLocked()
}
