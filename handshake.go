package tcpio

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// TLS handshakes. One has a goroutine from its whole ClientHello on, of which there are MaxHandshakes, and computes when it
// is its turn.

// handshakes are those of one listener.
type handshakes struct {
	slots chan struct{} // of those that compute, see turn: they leave processors to established connections

	mu sync.Mutex
	// Guarded by mu, which is taken under a Conn's mu.
	running int       // goroutines
	waiting []*Conn   // for one
	stalled list.List // of *stall, the first to stall in front: those that wait for their client and may do so
}

// A stall is a handshake that waits for its client.
type stall struct {
	c     *Conn
	timer *timer // of HandshakeTimeout
	since int64  // on the clock of now
}

const (
	recordHeader    = 5             // bytes; RFC 8446, 5.1
	recordMax       = 16<<10 + 2048 // bytes; RFC 5246, 6.2.3
	recordHandshake = 22            // a record's type

	// A handshake that has computed for so long does not compute: a function of the config waits for something.
	turnMax = 5 * time.Millisecond
	// While others wait for a place, a client may let its handshake wait for so long: whoever never goes on does not keep
	// those out that would.
	stallMax = time.Second
)

// A TLS alert, fatal, unexpected_message: what a client that speaks no TLS is told. crypto/tls sends it none.
var plainTextAlert = []byte{21, 3, 1, 0, 2, 2, 10}

// errNotTLS is why a handshake failed with a client that sent something else than TLS.
var errNotTLS = errors.New("tcpio: the client does not speak TLS")

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
	case n >= recordHeader && n >= recordHeader+min(int(b.buf[3])<<8+int(b.buf[4]), recordMax):
		return true, nil // one that is too long is for crypto/tls to refuse
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
		if e := l.shaking.stalled.Front(); e != nil {
			l.shaking.stalled.Remove(e).(*stall).shorten()
		}
		return
	}
	l.shaking.running++
	go l.shake(c) // it ends when no handshake waits; closing a connection ends its own
}

// shake runs handshakes, one after the other, until none waits.
func (l *Listener) shake(c *Conn) {
	defer func() {
		if c == nil {
			return
		}
		if c = l.nextHandshake(); c != nil { // a function of the config called runtime.Goexit
			go l.shake(c)
		}
	}()
	for c != nil {
		l.handshake(c)
		c = l.nextHandshake()
	}
}

// nextHandshake is the one that has waited longest. Without any the goroutine gives up its place.
func (l *Listener) nextHandshake() *Conn {
	s := &l.shaking
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		s.waiting = nil
		s.running--
		return nil
	}
	c := s.waiting[0]
	s.waiting[0] = nil
	s.waiting = s.waiting[1:]
	return c
}

// stall notes that c's handshake, whose mu the caller holds, waits for its client. The result is for goOn.
func (s *handshakes) stall(c *Conn) *list.Element {
	st := &stall{c, c.ext.tls.timer, now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) > 0 {
		st.shorten()
		return nil
	}
	return s.stalled.PushBack(st)
}

func (s *handshakes) goOn(e *list.Element) {
	if e != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stalled.Remove(e) // which does nothing if it was shortened
	}
}

// shorten brings the end of a stalled handshake forward to stallMax. One that goes on and ends at this moment may leave its
// timer behind, which finds nothing to do. The caller holds the handshakes' mu.
func (s *stall) shorten() {
	if ts := &s.c.lp.timers; ts.stop(s.timer) {
		ts.add(s.c.lp, s.timer, time.Duration(min(s.timer.when, s.since+int64(stallMax))-now()))
	}
}

// handshake is one connection's.
func (l *Listener) handshake(c *Conn) {
	c.mu.Lock()
	if c.flags&(fClosing|fReleased) != 0 {
		c.unlock()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	st := c.ext.tls
	st.link = &tlsLink{c: c, turn: &turn{slots: l.shaking.slots}}
	st.conn = tls.Server(st.link, st.config)
	st.cancel = cancel
	c.unlock()

	var err error
	defer func() {
		c.mu.Lock()
		defer c.unlock()
		st.link.turn, st.cancel = nil, nil
		switch {
		case c.flags&(fClosing|fReleased) != 0:
		case err != nil:
			c.handshakeFailedLocked(err)
		default:
			c.handshakeDoneLocked()
		}
	}()
	c.runHandshake(ctx, st, &err)
}

// runHandshake keeps a panic in one of the config's functions to its connection. A goroutine that such a
// function exits still sets err.
func (c *Conn) runHandshake(ctx context.Context, st *tlsState, err *error) {
	turn := st.link.turn
	turn.begin()
	defer turn.end()
	ok := guard("a function of TLSConfig", func() {
		*err = st.conn.HandshakeContext(ctx)
		var plain tls.RecordHeaderError
		if errors.As(*err, &plain) { // asks methods of the user's, if a function of the config has failed
			*err = plain
		}
	}, func(p *PanicError, _ bool) {
		c.logPanic(p)
		*err = p
	})
	if p, panicked := (*err).(*PanicError); ok && panicked { // of a guardedIO
		c.logPanic(p)
	}
}

// A turn is a handshake's time on a processor. It ends by itself after turnMax: a function of the config that waits, for
// a certificate from elsewhere say, does not keep the others from theirs.
type turn struct {
	slots chan struct{}
	timer *time.Timer
	held  atomic.Bool
}

func (t *turn) begin() {
	t.slots <- struct{}{} // whoever has it gives it back within turnMax
	t.held.Store(true)
	if t.timer == nil {
		t.timer = time.AfterFunc(turnMax, t.giveBack)
	} else {
		t.timer.Reset(turnMax)
	}
}

func (t *turn) end() {
	t.timer.Stop()
	t.giveBack()
}

func (t *turn) giveBack() {
	if t.held.CompareAndSwap(true, false) {
		<-t.slots
	}
}

func (c *Conn) handshakeDoneLocked() {
	st := c.ext.tls
	c.lp.timers.stop(st.timer)
	st.timer, st.config = nil, nil
	c.flags &^= fHandshake
	c.ext.canSend.open()
	if c.flags&fOpened == 0 {
		c.flags &^= fHeard // the first byte that ReadTimeout waits for is one of the user's, and so is DeferAccept's
		c.armLimitLocked()
		if c.flags&fDefer != 0 {
			if ready, _ := c.peekLocked(); !ready {
				return
			}
		}
		c.emitLocked(pendOpened)
	}
	if c.mail() > 0 && c.flags&fMute == 0 {
		c.queueLocked()
	}
	c.roomLocked()
	c.readableLocked() // crypto/tls may have read the first bytes already: no edge would say so
}

// handshakeFailedLocked ends a connection whose handshake failed, behind the alert for the peer.
func (c *Conn) handshakeFailedLocked(err error) {
	if _, plain := err.(tls.RecordHeaderError); plain || err == errNotTLS {
		_ = c.rawWriteLocked(plainTextAlert)
	}
	c.lp.count.handshakes.Add(1)
	opErr := c.opErrorLocked("handshake", err)
	if c.flags&fOpened == 0 {
		c.lp.failLater(opErr)
	}
	c.closeLocked(opErr)
}
