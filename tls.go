package tcpio

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

// TLS on the standard crypto/tls. A handshake runs on a goroutine of its own, which begins when a whole ClientHello has
// arrived and ends with the handshake; a silent client has none. Afterwards tls.Conn is called under the connection's
// mu, over a transport that never blocks: crypto/tls keeps a partial record across a temporary error, so that an idle
// connection has no goroutine either.

// tlsState is a connection's TLS. It is guarded by the Conn's mu.
type tlsState struct {
	config *tls.Config
	conn   *tls.Conn // nil before the handshake begins
	link   *tlsLink
	timer  *timer // HandshakeTimeout
	queued bool   // waits for a place among the handshakes

	// Bytes accepted and sent as records since the queue was last empty: what is queued is told in plain-text bytes.
	plain, sealed int
}

// handshakes are those of one listener.
type handshakes struct {
	slots chan struct{} // held by those that compute: they leave processors to established connections

	mu sync.Mutex
	// Guarded by mu, which is taken under a Conn's mu.
	running int     // goroutines
	waiting []*Conn // for one
}

const (
	recordHeader    = 5  // bytes; RFC 8446, 5.1
	recordHandshake = 22 // a record's type
)

// A TLS alert, fatal, unexpected_message: what a client that speaks no TLS is told. crypto/tls sends it none.
var plainTextAlert = []byte{21, 3, 1, 0, 2, 2, 10}

// errTruncated is an end of stream without close_notify.
var errTruncated = fmt.Errorf("tcpio: TLS connection ended without close_notify: %w", io.ErrUnexpectedEOF)

// errNotTLS is why a handshake failed with a client that sent something else than TLS.
var errNotTLS = errors.New("tcpio: the client does not speak TLS")

// errAgain is what the transport says instead of blocking. crypto/tls goes on behind a temporary error.
var errAgain net.Error = again{}

type again struct{}

func (again) Error() string   { return ErrWouldBlock.Error() }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

// TLS returns the state of the connection's TLS, nil while there is none: before the handshake of StartTLS is done, and on
// a plain connection. It works after Close.
func (c *Conn) TLS() *tls.ConnectionState {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flags&(fTLS|fHandshake) != fTLS {
		return nil
	}
	state := c.ext.tls.conn.ConnectionState()
	return &state
}

// StartTLS begins TLS on a plain connection, as the server, and returns at once: the client's next bytes must be its
// handshake, as after a STARTTLS command. What is queued goes out in plain text before it. Until the handshake is done
// reads and writes find nothing and no room; then a Readable says so, and TLS returns the state. When it fails, or
// takes longer than [ListenerOptions.HandshakeTimeout], the connection closes with the error.
//
// It fails when input that was read in plain text is still buffered by Frames: commands injected there must not be taken
// for the peer's encrypted ones. It fails on a nil config and on a connection that has TLS, and after Close with
// net.ErrClosed.
func (c *Conn) StartTLS(config *tls.Config) error {
	c.mu.Lock()
	defer c.unlock()
	switch {
	case c.flags&(fClosing|fReleased) != 0:
		return c.endedLocked("starttls")
	case config == nil:
		return c.opErrorLocked("starttls", errors.New("the config is nil"))
	case c.flags&fTLS != 0:
		return c.opErrorLocked("starttls", errors.New("the connection has TLS already"))
	case c.flags&(fEOF|fSendShut|fWriting) != 0:
		return c.opErrorLocked("starttls", errors.New("the connection is half-closed, or a write is under way"))
	case c.ext != nil && c.ext.frames.b != nil && c.ext.frames.off < c.ext.frames.end:
		return c.opErrorLocked("starttls", errors.New("plain-text input is still buffered"))
	}
	c.unreadableLocked()
	c.beginTLSLocked(config)
	c.handshakeReadyLocked(pollIn)
	return nil
}

// beginTLSLocked puts the connection before its handshake.
func (c *Conn) beginTLSLocked(config *tls.Config) {
	c.flags |= fTLS | fHandshake | fDistrust
	tm := &timer{kind: timerHandshake, c: c}
	c.extLocked().tls = &tlsState{config: config, timer: tm}
	c.lp.timers.add(c.lp, tm, c.lp.l.opts.HandshakeTimeout)
}

// handshakeReadyLocked is readyLocked for a connection in its handshake.
func (c *Conn) handshakeReadyLocked(bits uint32) {
	st := c.ext.tls
	if st.conn != nil {
		c.ext.canRead.open()
		return
	}
	if bits&(pollIn|pollHup|pollErr|pollRdHup) == 0 || st.queued {
		return
	}
	switch hello, err := c.helloLocked(bits); {
	case err == ErrWouldBlock:
	case err != nil:
		c.handshakeFailedLocked(err)
	case hello:
		st.queued = true
		c.lp.l.queueHandshake(c)
	}
}

// helloLocked looks, without reading, whether the first record has arrived whole. The goroutine of a handshake is for
// clients that have got as far as that.
func (c *Conn) helloLocked(bits uint32) (whole bool, err error) {
	b := c.lp.l.pool.get(blockLarge)
	defer c.lp.l.pool.put(b)
	n, errno := sysPeekAt(c.fd, b.buf)
	switch {
	case errno == syscall.EAGAIN:
		return false, ErrWouldBlock
	case errno != 0:
		return false, c.opErrorLocked("read", errno)
	case n == 0:
		c.flags |= fFinSeen
		return false, errTruncated
	case b.buf[0] != recordHandshake:
		return false, errNotTLS
	case n >= recordHeader && n >= recordHeader+int(b.buf[3])<<8+int(b.buf[4]):
		return true, nil
	case bits&(pollHup|pollErr|pollRdHup) != 0:
		return false, errTruncated // the rest will not come
	}
	return false, ErrWouldBlock
}

// queueHandshake begins c's handshake, now or when there is a place. The caller holds c.mu.
func (l *Listener) queueHandshake(c *Conn) {
	l.shaking.mu.Lock()
	defer l.shaking.mu.Unlock()
	if l.shaking.running >= l.opts.MaxHandshakes {
		l.shaking.waiting = append(l.shaking.waiting, c)
		return
	}
	l.shaking.running++
	go l.shake(c) // it ends when no handshake waits; closing a connection ends its own
}

// shake runs handshakes, one after the other, until none waits.
func (l *Listener) shake(c *Conn) {
	for c != nil {
		l.handshake(c)
		l.shaking.mu.Lock()
		if c = nil; len(l.shaking.waiting) > 0 {
			c = l.shaking.waiting[0]
			l.shaking.waiting[0] = nil
			l.shaking.waiting = l.shaking.waiting[1:]
		} else {
			l.shaking.waiting = nil
			l.shaking.running--
		}
		l.shaking.mu.Unlock()
	}
}

// handshake is one connection's.
func (l *Listener) handshake(c *Conn) {
	c.mu.Lock()
	if c.flags&(fClosing|fReleased) != 0 {
		c.unlock()
		return
	}
	st := c.ext.tls
	st.link = &tlsLink{c: c, blocking: true}
	st.conn = tls.Server(st.link, st.config)
	c.unlock()

	l.shaking.slots <- struct{}{}
	err := c.protectHandshake(st.conn)
	<-l.shaking.slots

	c.mu.Lock()
	defer c.unlock()
	st.link.blocking = false
	switch {
	case c.flags&(fClosing|fReleased) != 0:
	case err != nil:
		c.handshakeFailedLocked(err)
	default:
		c.handshakeDoneLocked()
	}
}

// protectHandshake keeps a panic in one of the config's functions to its connection.
func (c *Conn) protectHandshake(conn *tls.Conn) (err error) {
	defer func() {
		if v := recover(); v != nil {
			p := &PanicError{Value: v, Stack: debug.Stack()}
			c.logPanic(p)
			err = p
		}
	}()
	return conn.Handshake()
}

func (c *Conn) handshakeDoneLocked() {
	st := c.ext.tls
	c.lp.timers.stop(st.timer)
	st.timer, st.config = nil, nil
	c.flags &^= fHandshake
	c.flags &^= fDefer // bytes have arrived
	if c.flags&fOpened == 0 {
		c.emitLocked(pendOpened)
	}
	if c.mail() > 0 && c.flags&fMute == 0 {
		c.queueLocked()
	}
	c.ext.canSend.open()
	c.roomLocked()
	c.readableLocked() // crypto/tls may have read the first bytes already: no edge would say so
}

// handshakeFailedLocked ends a connection whose handshake failed, behind the alert for the peer.
func (c *Conn) handshakeFailedLocked(err error) {
	var plain tls.RecordHeaderError
	if err == errNotTLS || errors.As(err, &plain) {
		_ = c.rawWriteLocked(plainTextAlert)
	}
	c.lp.count.handshakes.Add(1)
	opErr := c.opErrorLocked("handshake", err)
	if c.flags&fOpened == 0 {
		c.lp.failLater(opErr)
	}
	c.closeLocked(opErr)
}

// tlsReadLocked reads what has been decrypted, or can be.
func (c *Conn) tlsReadLocked(p []byte) (int, error) {
	if c.flags&fHandshake != 0 {
		return 0, ErrWouldBlock
	}
	if err := c.ext.readErr; err != nil {
		return 0, err
	}
	n, err := c.ext.tls.conn.Read(p)
	switch {
	case err == nil:
		return n, nil
	case err == errAgain:
		err = ErrWouldBlock
	case err == io.EOF: // close_notify; crypto/tls says so again
	default:
		err = c.opErrorLocked("read", err)
		c.ext.readErr = err
	}
	if n > 0 {
		return n, nil // the error is for the next read
	}
	return 0, err
}

// sealLocked encrypts p and sends it or queues it.
func (c *Conn) sealLocked(p []byte) error {
	st := c.ext.tls
	if c.out == nil {
		st.plain, st.sealed = 0, 0
	}
	st.plain += len(p)
	if _, err := st.conn.Write(p); err != nil {
		if c.flags&fSendErr != 0 {
			return c.ext.sendErr
		}
		return c.opErrorLocked("write", err)
	}
	return nil
}

// sealvLocked is sealLocked for several pieces, gathered into whole records.
func (c *Conn) sealvLocked(bufs net.Buffers) error {
	b := c.lp.l.pool.get(blockLarge)
	defer c.lp.l.pool.put(b)
	n := 0
	for _, p := range bufs {
		for len(p) > 0 {
			m := copy(b.buf[n:], p)
			n, p = n+m, p[m:]
			if n == len(b.buf) {
				if err := c.sealLocked(b.buf); err != nil {
					return err
				}
				n = 0
			}
		}
	}
	if n == 0 {
		return nil
	}
	return c.sealLocked(b.buf[:n])
}

// queuedLocked is what waits for the socket, in bytes of the user's.
func (c *Conn) queuedLocked() int {
	if c.out == nil {
		return 0
	}
	if c.flags&fTLS != 0 && c.ext.tls.sealed > 0 {
		return int(int64(c.out.size) * int64(c.ext.tls.plain) / int64(c.ext.tls.sealed))
	}
	return c.out.size
}

// rawWriteLocked sends or queues p as it is, whatever the queue holds.
func (c *Conn) rawWriteLocked(p []byte) error {
	switch {
	case c.flags&fReleased != 0 || c.fd < 0:
		return net.ErrClosed
	case c.flags&fSendErr != 0:
		return c.ext.sendErr
	case c.flags&fFinSent != 0:
		return syscall.EPIPE
	}
	sent := 0
	if c.out == nil {
		var err error
		if sent, err = c.sendLocked(p); err != nil {
			return err
		}
	}
	if sent < len(p) {
		c.queueOutLocked().append(c.lp.l, p[sent:])
	}
	return nil
}

// sayGoodbyeLocked queues the close_notify, if there is anybody who would understand it.
func (c *Conn) sayGoodbyeLocked() {
	if c.flags&(fTLS|fHandshake|fSendErr|fFinSent) == fTLS {
		_ = c.ext.tls.conn.CloseWrite() // a failure to write is the connection's, and known
	}
}

// tlsLink is the net.Conn below a tls.Conn. While the handshake runs it blocks and takes the connection's mu; afterwards
// it does not block and the caller has mu.
type tlsLink struct {
	c        *Conn
	blocking bool // guarded by c.mu, and not changed while the handshake's goroutine runs
}

func (t *tlsLink) Read(p []byte) (int, error) {
	if !t.blocking {
		n, err := t.c.recvLocked(p)
		return n, t.cause(err)
	}
	c := t.c
	for {
		c.mu.Lock()
		if c.flags&(fClosing|fReleased) != 0 {
			c.unlock()
			return 0, net.ErrClosed
		}
		n, err := c.recvLocked(p)
		if err != ErrWouldBlock {
			c.unlock()
			return n, t.cause(err)
		}
		opened := c.ext.canRead.enter()
		c.unlock()
		slots := c.lp.l.shaking.slots
		<-slots // who waits for a client leaves the processor to others' handshakes
		<-opened
		slots <- struct{}{}
	}
}

// cause is a read error as crypto/tls has to see it: it takes a bare io.EOF between two records for an orderly end.
func (t *tlsLink) cause(err error) error {
	switch err {
	case ErrWouldBlock:
		return errAgain
	case io.EOF:
		return errTruncated
	}
	return err
}

func (t *tlsLink) Write(p []byte) (int, error) {
	if t.blocking {
		t.c.mu.Lock()
		defer t.c.unlock()
	}
	t.c.ext.tls.sealed += len(p)
	if err := t.c.rawWriteLocked(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (t *tlsLink) Close() error                     { return nil }
func (t *tlsLink) LocalAddr() net.Addr              { return t.c.LocalAddr() }
func (t *tlsLink) RemoteAddr() net.Addr             { return t.c.RemoteAddr() }
func (t *tlsLink) SetDeadline(time.Time) error      { return nil }
func (t *tlsLink) SetReadDeadline(time.Time) error  { return nil }
func (t *tlsLink) SetWriteDeadline(time.Time) error { return nil }

// peekTLSLocked is peekLocked for a connection whose bytes must be decrypted to be seen: they are kept as Frames keeps its
// own.
func (c *Conn) peekTLSLocked() (ready, end bool) {
	b := c.lp.l.pool.get(blockSmall)
	n, err := c.inputLocked(b.buf)
	if n > 0 {
		f := &c.ext.frames
		f.b, f.off, f.end = b, 0, n
		return true, false
	}
	c.lp.l.pool.put(b)
	if err == ErrWouldBlock {
		c.unreadableLocked()
		return false, false
	}
	return true, err == io.EOF // a read says so again
}
