package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// An upstream is a connection to Redis: one of a pool, which all clients share, or a client's own
// (owner). Requests are sent in the order in which they come, and Redis answers in that order, so
// that the queue says whose reply is next. One goroutine has everything here.
type upstream struct {
	g     *gateway
	proto int // of RESP: 2 or 3
	pool  *pool
	owner *client // of one that is no pool's; nil while it is idle

	state    upstreamState
	conn     *tcpio.Conn // once it is dialed
	out      []byte      // requests for the end of the batch
	dirty    bool        // it is in g.dirty
	stalled  bool        // Redis does not read: what is in out waits for a Writable
	pending  []pending   // whose replies are to come
	head     int         // pending[:head] are there
	scan     scanner
	part     bool      // a part of the next reply has come
	heard    time.Time // when a byte came last
	hello    []byte    // the reply to HELLO
	failures int       // in a row
	clients  int       // of the pool's clients, those that use this one
	blocked  []*client // hold a request until there is room, or the state changes
}

type upstreamState int

const (
	unused     upstreamState = iota // nobody has asked for it yet
	connecting                      // dialed, or HELLO is not answered yet
	ready                           //
	backOff                         // it failed, and is tried again later
	gone                            // for ever; only one that is no pool's
)

// A pending is a request that waits for its reply.
type pending struct {
	c      *client // nil: HELLO
	at     time.Time
	blocks bool // it may wait for as long as it likes
}

const (
	batch      = 64 << 10  // requests that are sent together, in bytes
	mostOut    = 256 << 10 // that wait for a Redis that does not read; then clients are not read
	mostHello  = 64 << 10
	firstPause = 50 * time.Millisecond
	lastPause  = 5 * time.Second
)

// A pool has the connections for the clients of one version of the protocol.
type pool struct {
	proto int
	ups   []*upstream
	why   error // the last one was lost
}

// pick returns the connection with the fewest clients that is ready; otherwise one that will soon
// be; otherwise nil.
func (p *pool) pick() (best *upstream) {
	for _, u := range p.ups {
		if u.state == unused {
			u.dial()
		}
		better := best == nil || u.state == ready && best.state != ready || u.state == best.state && u.clients < best.clients
		if (u.state == ready || u.state == connecting) && better {
			best = u
		}
	}
	return best
}

// dial begins to connect. The answer is a Dialed.
func (u *upstream) dial() {
	u.state = connecting
	_, err := u.g.l.DialAsync(tcpio.DialRequest{
		Network: u.g.cfg.network(), Address: u.g.cfg.to, Dialer: &net.Dialer{Timeout: u.g.cfg.timeout}, Value: u,
	})
	if err != nil {
		u.lost(err) // the gateway is stopping
	}
}

// dialed takes the connection, and greets.
func (u *upstream) dialed(ev tcpio.Dialed) {
	switch {
	case u.state == gone && ev.Conn != nil:
		ev.Conn.Abort() // its client has gone meanwhile
	case u.state == gone:
	case ev.Err != nil:
		u.lost(ev.Err)
	default:
		u.conn = ev.Conn
		u.conn.SetData(u)
		u.hello = u.hello[:0]
		args := [][]byte{[]byte("HELLO"), {byte('0' + u.proto)}}
		if user, password := u.g.cfg.user, u.g.cfg.password; password != "" {
			args = append(args, []byte("AUTH"), []byte(user), []byte(password))
		}
		u.push(nil, appendRequest(nil, args...), false)
	}
}

// greeted is called behind the reply to HELLO.
func (u *upstream) greeted() {
	if u.hello[0] == '-' {
		u.lost(fmt.Errorf("HELLO: %s", string(u.hello[1:len(u.hello)-2])))
		return
	}
	u.state, u.failures = ready, 0
	u.wakeBlocked()
}

// push sends a request. The caller has looked at room.
func (u *upstream) push(c *client, request []byte, blocks bool) {
	u.out = append(u.out, request...)
	u.pending = append(u.pending, pending{c, u.g.now, blocks})
	u.g.watch()
	if len(u.out) >= batch && !u.stalled {
		u.flush()
	} else if !u.dirty {
		u.dirty = true
		u.g.dirty = append(u.g.dirty, u)
	}
}

// room reports whether a request may be sent. If not, c is woken when that may have changed.
func (u *upstream) room(c *client) bool {
	if u.state == ready && !(u.stalled && len(u.out) >= mostOut) {
		return true
	}
	u.blocked = append(u.blocked, c)
	return false
}

// flush sends what has been gathered. What Redis has no room for waits for a Writable.
func (u *upstream) flush() {
	if len(u.out) == 0 || u.conn == nil {
		return
	}
	_, err := u.conn.TryWrite(u.out)
	if u.stalled = err == tcpio.ErrWouldBlock; u.stalled {
		return
	}
	if u.out = u.out[:0]; cap(u.out) > mostOut {
		u.out = nil
	}
	// After any other error Closed comes, or what is left to read.
}

// writable goes on when Redis has read.
func (u *upstream) writable() {
	if u.flush(); !u.stalled {
		u.wakeBlocked()
	}
}

func (u *upstream) wakeBlocked() {
	u.g.woken = append(u.g.woken, u.blocked...)
	u.blocked = u.blocked[:0]
}

// readable reads replies, a bounded number so that others have their turn.
func (u *upstream) readable(buf []byte) {
	for range 16 {
		n, err := u.conn.TryRead(buf)
		if n > 0 {
			u.heard = u.g.now
			if err := u.replies(buf[:n]); err != nil {
				u.lost(err)
			}
		}
		switch {
		case u.conn == nil, err == tcpio.ErrWouldBlock:
			return
		case err == io.EOF:
			u.lost(errors.New("it closed the connection"))
			return
		case err != nil:
			return // Closed follows, which says why
		case n < len(buf):
			return // a Readable follows
		}
	}
}

// replies hands p on: to each client its replies, and the parts of them that are there.
func (u *upstream) replies(p []byte) error {
	start, whole := 0, 0 // p[start:] has not been handed on; whole replies in it
	for i := 0; i < len(p); {
		between := u.scan.left == 0 && u.scan.kind == 0 && !u.part
		if between && p[i] != '>' && u.head == len(u.pending) {
			return protocolError("a reply that nobody has asked for")
		}
		n, done, err := u.scan.next(p[i:])
		if err != nil {
			return err
		}
		i += n
		if u.scan.first == '>' { // nobody here can use it: who subscribes has a connection of its own
			start = i
			continue
		}
		c := u.pending[u.head].c
		if u.part = !done; !done {
			u.deliver(c, p[start:i], whole)
			return nil
		}
		u.pending[u.head] = pending{}
		whole++
		if u.head++; u.head == len(u.pending) {
			u.pending, u.head = u.pending[:0], 0
		}
		if i == len(p) || u.head == len(u.pending) || u.pending[u.head].c != c || p[i] == '>' {
			u.deliver(c, p[start:i], whole)
			start, whole = i, 0
		}
		if u.conn == nil {
			return nil // HELLO has failed
		}
	}
	if u.head > 4096 && u.head > len(u.pending)/2 { // a queue that is never empty must not grow for ever
		u.pending, u.head = append(u.pending[:0], u.pending[u.head:]...), 0
	}
	return nil
}

// deliver hands over bytes in which so many replies end.
func (u *upstream) deliver(c *client, p []byte, whole int) {
	if c != nil {
		c.write(p)
		c.answered(whole)
		return
	}
	if u.hello = append(u.hello, p...); len(u.hello) > mostHello {
		u.lost(errors.New("the reply to HELLO is too big"))
	} else if whole > 0 {
		u.greeted()
	}
}

// lost ends the connection. Whoever waits for a reply gets an error instead, or, where a part of
// the reply has come, a reset.
func (u *upstream) lost(why error) {
	if u.conn != nil {
		u.conn.SetData(nil)
		u.conn.Abort()
	}
	if !u.g.draining {
		u.g.logf("upstream lost: %v", why)
	}
	waiting := u.pending[u.head:]
	part := u.part
	u.conn, u.out, u.pending, u.head, u.scan, u.part, u.stalled = nil, nil, nil, 0, scanner{}, false, false
	u.state = gone
	delete(u.g.privates, u)
	if u.pool != nil && !u.g.draining {
		u.state, u.pool.why = backOff, why
		pause := min(firstPause<<min(u.failures, 10), lastPause)
		u.failures++
		u.g.after(pause/2+rand.N(pause), u) // so that not all come back at once
	}
	for i, w := range waiting {
		switch {
		case w.c == nil:
		case i == 0 && part:
			w.c.cut("an upstream was lost within its reply")
		default:
			w.c.write(upstreamLost(why))
			w.c.answered(1)
		}
	}
	u.wakeBlocked()
	if c := u.owner; c != nil {
		u.owner = nil
		c.leaseLost(why)
	}
}

// upstreamLost is the reply of a request whose own one will never come. It may have been carried
// out.
func upstreamLost(why error) []byte {
	text := []byte("-ERR upstream lost: " + why.Error())
	for i, b := range text {
		if b == '\r' || b == '\n' {
			text[i] = ' '
		}
	}
	return append(text, "\r\n"...)
}

// timed reports whether Redis owes a reply on time. A client that has the connection to itself may
// wait for ever.
func (u *upstream) timed() bool {
	return u.head < len(u.pending) && u.conn != nil && (u.pool != nil || u.state != ready)
}

// late reports whether Redis has owed a reply for too long: it is stopped, or the network is
// broken.
func (u *upstream) late() bool {
	if !u.timed() {
		return false
	}
	since := u.pending[u.head].at
	if u.heard.After(since) {
		since = u.heard
	}
	return u.g.now.Sub(since) >= u.g.cfg.timeout
}
