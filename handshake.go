package tcpio

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// TLS handshakes. One has a goroutine from its whole ClientHello on, of which there are MaxHandshakes, and computes when it
// is its turn.
//
// Under overload the newest ClientHello is served first. Somebody must wait longer than anybody is willing to, and it is
// better that some are served at once than that all are when their clients are about to give up: served in the order of
// arrival, a queue that grows faster than it empties makes everybody wait for HandshakeTimeout. In a burst that ends,
// all are served before the queue is empty, whatever the order. Goroutines that have waited for their client and want to
// go on have every other turn: each follows from one of the new ones, so that neither kind piles up.

// handshakes are those of one listener.
type handshakes struct {
	max int // goroutines; immutable

	mu sync.Mutex
	// Guarded by mu, which is taken under a Conn's mu.
	turns    int       // to be had; half of the processors at first, see turn
	running  int       // goroutines
	fresh    list.List // of *Conn, without a goroutine yet, the newest in front
	again    list.List // of *turn, of goroutines that wait for one, who came first in front
	wasAgain bool      // the last turn was for one of those
	stalled  list.List // of *stall, the first to stall in front: those that wait for their client and may do so
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
	if bits&(pollIn|pollHup|pollErr|pollRdHup) == 0 {
		return
	}
	err := st.link.helloLocked()
	switch {
	case bits&(pollHup|pollErr|pollRdHup) != 0 && (err == nil || err == ErrWouldBlock):
		c.handshakeFailedLocked(c.hungUpLocked())
	case err == ErrWouldBlock:
	case err != nil:
		c.handshakeFailedLocked(err)
	case st.place == nil:
		st.place = c.sh.shaking.enqueue(c)
	}
}

// helloLocked reads until the first record is whole. The goroutine of a handshake is for clients that have got as far as
// that.
func (t *tlsLink) helloLocked() error {
	defer t.restLocked()
	for t.left == 0 {
		if t.end == t.off {
			if err := t.fillLocked(); err != nil {
				return t.hello(err)
			}
		}
		if t.b.buf[t.off] != recordHandshake {
			return errNotTLS
		}
		if err := t.recordLocked(); err != nil {
			return t.hello(err)
		}
	}
	return nil
}

// hello is a read error before the handshake.
func (t *tlsLink) hello(err error) error {
	if err == io.EOF {
		return errTruncated
	}
	return err
}

// hungUpLocked is why the handshake of a peer fails that has gone before its turn came: whoever has sent a ClientHello and then
// its end will not answer what the server would compute for it.
func (c *Conn) hungUpLocked() error {
	if err := c.socketErrorLocked(); err != nil {
		return err
	}
	return errTruncated
}

// enqueue begins c's handshake, now or when it is its turn. The caller holds c.mu.
func (s *handshakes) enqueue(c *Conn) *list.Element {
	s.mu.Lock()
	defer s.mu.Unlock()
	place := s.fresh.PushFront(c)
	s.allotLocked()
	if e := s.stalled.Front(); e != nil && s.full() {
		s.stalled.Remove(e).(*stall).shorten()
	}
	return place
}

// leave takes a connection that has closed out of the queue, wherever it is by now.
func (s *handshakes) leave(place *list.Element) {
	if place != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fresh.Remove(place) // which does nothing if it has its goroutine
	}
}

// full reports whether somebody waits for a goroutine's place.
func (s *handshakes) full() bool { return s.running >= s.max && s.fresh.Len() > 0 }

// allotLocked gives away the turns there are.
func (s *handshakes) allotLocked() {
	for s.turns > 0 {
		mayBegin := s.running < s.max && s.fresh.Len() > 0
		switch e := s.again.Front(); {
		case e != nil && !(mayBegin && s.wasAgain):
			s.wasAgain = true
			t := s.again.Remove(e).(*turn)
			t.held = true
			close(t.got)
		case mayBegin:
			s.wasAgain = false
			s.running++
			c := s.fresh.Remove(s.fresh.Front()).(*Conn)
			go s.run(c, &turn{s: s, held: true}) // it ends with its handshake, which closing the connection ends
		default:
			return
		}
		s.turns--
	}
}

// run is a handshake's goroutine.
func (s *handshakes) run(c *Conn, t *turn) {
	defer func() { // also behind a runtime.Goexit in a function of the config
		t.end()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.running--
		s.allotLocked()
	}()
	c.handshake(t)
}

// stall notes that c's handshake, whose mu the caller holds, waits for its client. The result is for goOn.
func (s *handshakes) stall(c *Conn) *list.Element {
	st := &stall{c, c.ext.tls.timer, now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full() {
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
	if ts := &s.c.sh.timers; ts.stop(s.timer) {
		ts.add(s.c.sh, s.timer, time.Duration(min(s.timer.when, s.since+int64(stallMax))-now()))
	}
}

// handshake is one connection's.
func (c *Conn) handshake(t *turn) {
	c.mu.Lock()
	if !c.ended() && sys.HungUp(c.fd) { // the loop may not have come to it yet
		c.handshakeFailedLocked(c.hungUpLocked())
	}
	if c.ended() {
		c.unlock()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	st := c.ext.tls
	st.link.turn = t
	st.conn = tls.Server(&st.link, st.config)
	st.cancel = cancel
	c.unlock()

	var err error
	defer func() {
		c.mu.Lock()
		defer c.unlock()
		st.link.turn, st.cancel = nil, nil
		switch {
		case c.ended():
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

// A turn is a handshake's time on a processor. There are half as many as processors. On two, the round trip of an
// established connection then takes 11 ms at the 99th percentile beside a flood of clients that send a ClientHello and
// hang up, and 13 beside fifty at a time that wait for the answer; with crypto/tls and a goroutine each, 486 and 30. A
// turn ends by itself after turnMax: a function of the config that waits, for a certificate from elsewhere say, does not
// keep the others from theirs.
type turn struct {
	s     *handshakes
	timer *time.Timer

	// Guarded by s.mu.
	held bool
	got  chan struct{} // closed when a goroutine that waits for its turn has it
}

// begin waits for a turn, unless the goroutine was begun with one.
func (t *turn) begin() {
	t.s.mu.Lock()
	if !t.held {
		got := make(chan struct{})
		t.got = got
		t.s.again.PushBack(t)
		t.s.allotLocked()
		t.s.mu.Unlock()
		<-got // whoever has a turn gives it back within turnMax
	} else {
		t.s.mu.Unlock()
	}
	if t.timer == nil {
		t.timer = time.AfterFunc(turnMax, t.giveBack)
	} else {
		t.timer.Reset(turnMax)
	}
}

func (t *turn) end() {
	if t.timer != nil {
		t.timer.Stop()
	}
	t.giveBack()
}

func (t *turn) giveBack() {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.held {
		t.held = false
		t.s.turns++
		t.s.allotLocked()
	}
}

func (c *Conn) handshakeDoneLocked() {
	st := c.ext.tls
	c.sh.timers.stop(st.timer)
	st.timer, st.config = nil, nil
	st.link.silent = 0
	c.flags &^= fHandshake
	c.ext.canSend.open()
	if c.flags&fTimed != 0 {
		c.limit.lastIn = c.sh.coarse() // the other limits begin here
		c.armLimitLocked()
	}
	if c.flags&fOpened == 0 {
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
	c.sh.count.handshakes.Add(1)
	opErr := c.opErrorLocked("handshake", err)
	if c.flags&fOpened == 0 {
		c.sh.report(opErr)
	}
	c.closeLocked(opErr)
}
