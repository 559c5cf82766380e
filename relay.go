package tcpio

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
)

// RelayOptions are for Conn.Relay.
type RelayOptions struct {
	// IdleTimeout ends the relay when no byte has come from either peer, or gone to one, for so
	// long; 0 means never. Both connections are reset then, with a *[TimeoutError] of TimeoutIdle
	// as their Err. At most 20 days.
	IdleTimeout time.Duration
}

// Relay passes the bytes of c's peer on to the peer of to, and the other way, until both have ended
// their streams or one of the connections has failed. It returns at once. The two may be of any
// route, on any loop, of one listener or of two; neither needs a handler.
//
// What has been read and not been taken goes first: what Frames has kept, and what TLS has
// decrypted; and so does, before the bytes of the other peer, what was written and is still queued.
// So a proxy can read a request's first frame, choose the upstream by it, write what the upstream
// is to know, and relay the rest.
//
// A relay costs about 160 bytes, no goroutine at any time, and no buffer while nothing is passed
// on. A peer that reads slowly holds the other back: nothing more is read for it, and both
// directions together hold less than 256 KiB. Bulk between two plain connections stays in the
// kernel, in pipes, of which a listener has 256 at most (splice(2)). Without one, because
// descriptors have run out say, and with TLS, it is copied, 64 KiB at once; what then waits for a
// peer counts for MaxBuffered.
//
// A peer's end of stream (a half-close) reaches the other peer behind the last byte, and the other
// direction goes on. When both have ended, both connections close, as by Close. A peer receives an
// end of stream only where the other peer has sent one: whatever else ends one of the connections,
// a reset, a time limit, Close, an actor's error, or Shutdown, resets the other, also while that
// takes nothing. What was queued for it is dropped then. Err of that one is [ErrRelayEnded]. A unix
// socket knows no reset, its peer sees an end.
//
// The relay takes over reading and writing, and nothing else. On c, and on to, reads, writes,
// CloseWrite, Frames, StartTLS and Hijack fail with [ErrRelayed], also those that are blocked; a
// write or a copy to a connection that is under way comes to its end first. Readable and Writable
// are not sent any more, but one that is in a channel comes out there. All other events go to the
// connection's route: Message of Post and After, Draining, Closed. Events and Attach change the
// route as ever. Close and Abort end the relay, and so reset both connections. When the relay has
// ended, [RelayEnded] is sent to the route of c, and before Closed. [Relay.Done] tells those who have
// no route.
//
// The connections' own time limits hold, but for EOFTimeout. InputTimeout does not run while a peer
// is held back; WriteStallTimeout does, for the one that does not read. Shutdown's Draining leaves
// the relay alone; it is cut at the end of DrainTimeout or, without that, as other connections are
// closed: an actor's behind the Receive of Draining, any other's 250 ms later.
//
// It fails on a nil connection or one that has a relay already (ErrRelayed), if c and to are the
// same, before Preface is done, after CloseWrite (syscall.EPIPE), while a split function of Frames
// runs, and after the end of one with net.ErrClosed. Then both are as they were. It may be called
// within a loop over Frames, whose body must leave the loop then, and from any goroutine. nil
// options are the zero RelayOptions.
func (c *Conn) Relay(to *Conn, o *RelayOptions) (*Relay, error) {
	if o == nil {
		o = new(RelayOptions)
	}
	switch {
	case c == nil || to == nil:
		return nil, errors.New("tcpio: Conn.Relay: a connection is nil")
	case c == to:
		return nil, c.opError("relay", errors.New("tcpio: a connection cannot be relayed to itself"))
	case o.IdleTimeout < 0 || o.IdleTimeout > longestLimit:
		return nil, c.opError("relay", fmt.Errorf("tcpio: RelayOptions.IdleTimeout out of range: %v", o.IdleTimeout))
	}
	r := new(Relay)
	if o.IdleTimeout > 0 {
		r.idle = &relayIdle{timer: timer{kind: timerRelay, c: c}, limit: o.IdleTimeout}
	}
	a, b := &r.sides[0], &r.sides[1]
	a.relay, a.c = r, c
	b.relay, b.c = r, to
	a.mark.Or(relayFull) // until both are in it
	b.mark.Or(relayFull)
	if err := r.join(); err != nil {
		return nil, err
	}
	if err := a.begin(); err != nil {
		b.leave()
		a.leave()
		return nil, err
	}
	_ = b.begin()
	for i := range r.sides {
		if s := &r.sides[i]; s.full() {
			s.lookForError()
		}
	}
	if r.idle != nil {
		r.armIdle(r.idle.limit)
	}
	a.run(relayAll)
	return r, nil
}

// join makes both connections the relay's, or neither. The older one is the first: of calls at the
// same time that want each other's connections one succeeds.
func (r *Relay) join() error {
	one, two := &r.sides[0], &r.sides[1]
	if two.c.id < one.c.id {
		one, two = two, one
	}
	if err := two.mayJoin(); err != nil { // before a blocked Read of the other learns of a relay
		return err
	}
	if err := one.join(); err != nil {
		return err
	}
	if err := two.join(); err != nil {
		one.leave()
		return err
	}
	return nil
}

// mayJoin says why join would fail now.
func (s *relaySide) mayJoin() error {
	s.c.mu.Lock()
	defer s.c.unlock()
	return s.c.mayRelayLocked()
}

// join makes the connection the relay's.
func (s *relaySide) join() error {
	c := s.c
	c.mu.Lock()
	defer c.unlock()
	if err := c.mayRelayLocked(); err != nil {
		return err
	}
	s.readable = c.announced()
	s.writable = c.user.has(userWantsRoom) || c.pending.has(pendWritable)
	c.withdrawReadableLocked()
	data := c.userDataLocked()
	c.route.add(routeRelayed)
	c.setDataLocked(s, data)
	if c.tls() != nil {
		s.relay.sealed = true
	}
	c.dropExtLocked()
	c.user.drop(userWantsRoom)
	c.pending.drop(pendWritable)
	if c.eofTimed() {
		c.endLimitsLocked()
		c.peerEnd = peerTold
		c.armLimitLocked()
	}
	if s.relay.idle != nil {
		c.sh.timed.Store(true)
		c.sh.tick()
		c.beginNotesLocked()
	}
	if c.ext != nil {
		c.ext.waits.openRead() // whoever is blocked there learns of the relay
		c.ext.waits.openSend()
	}
	return nil
}

// dropExtLocked gives up an ext that holds nothing but addresses, which the socket knows too. An
// idle relay would keep it for the dial and the handler that came before.
func (c *Conn) dropExtLocked() {
	x := c.ext
	if x == nil || !c.peer.IsIP || c.peer.Named() || c.prefaced() {
		return // who has no lock looks there
	}
	if a, ok := x.local.(*net.TCPAddr); ok && a.Zone != "" {
		return
	}
	if x.blank() {
		c.ext = nil
		*x = connExt{}
		c.sh.exts.Put(x)
	}
}

// blank reports whether x, of a connection without a preface, holds nothing but addresses. Nobody
// has a pointer to it then: what is used without mu, a waits say, makes x not blank.
func (x *connExt) blank() bool {
	switch {
	case x.err != nil, x.readErr != nil, x.sendErr != nil, x.timer != nil, x.timers != nil, x.context.ctx != nil,
		x.posted != 0, x.copies != 0, x.fdUsers != 0, x.late != 0, x.mailbox.Len() != 0, len(x.groups) != 0,
		x.raw, x.given, x.connecting, x.ownInput, x.tls != nil, x.waits != nil, x.dial != nil, x.dialed != nil,
		x.frames != frameBuffer{}:
		return false
	}
	return true
}

// mayRelayLocked says why the connection cannot be in a relay.
func (c *Conn) mayRelayLocked() error {
	switch {
	case c.ended():
		return c.endedLocked("relay")
	case c.relayed():
		return c.relayedLocked("relay")
	case c.sendEnd != sendOpen:
		return c.opErrorLocked("relay", syscall.EPIPE)
	case c.ext != nil && c.ext.preface != nil:
		return c.opErrorLocked("relay", errors.New("tcpio: Preface is not done"))
	case c.ext != nil && c.ext.frames.split:
		return c.opErrorLocked("relay", errors.New("tcpio: a split function of Frames is looking at the input"))
	}
	return nil
}

// leave undoes join.
func (s *relaySide) leave() {
	c := s.c
	c.mu.Lock()
	defer c.unlock()
	readable := s.readable || c.announced()
	c.withdrawReadableLocked()
	data := c.userDataLocked()
	c.route.drop(routeRelayed)
	c.setDataLocked(nil, data)
	if c.ended() {
		return
	}
	if readable {
		c.announceReadableLocked()
	}
	if s.writable {
		c.user.add(userWantsRoom)
		c.todo.add(todoProgress)
	}
	c.todo.add(todoIdle)
}

// begin lets the bytes flow: into the connection, if it has room, and from it. It fails for the
// first one if one has ended meanwhile.
func (s *relaySide) begin() error {
	c, r := s.c, s.relay
	c.mu.Lock()
	defer c.unlock()
	if !r.joined() {
		if r.end.Load() != nil {
			return c.endedLocked("relay")
		}
		r.state.Or(relayJoined)
	}
	if !c.ended() {
		c.relayRoomLocked()
		if c.ext != nil || s.readable || c.atEOF() {
			c.announceReadableLocked()
		} // else the next byte is an edge
		s.failed = true // what an edge has said of it before is not known
	}
	return nil
}

// run passes on what can be, or acts on the end of the relay. The caller holds no lock.
func (s *relaySide) run(todo relayTodo) {
	r := s.relay
	if !r.joined() {
		return // Relay goes on
	}
	if r.idle != nil && r.idle.due.Swap(false) {
		r.checkIdle()
	}
	if todo&relayIn != 0 && r.end.Load() == nil {
		s.pass()
	}
	if todo&relayOut != 0 && r.end.Load() == nil {
		s.other().pass()
	}
	if r.end.Load() != nil && r.state.Or(relayOver)&relayOver == 0 {
		r.finish()
	}
}

// pass moves the bytes of the direction from the side's connection, if there are any and they have
// room. If another goroutine does that, it looks again.
func (s *relaySide) pass() {
	for {
		turn := s.turn.Load()
		if turn == turnIdle {
			if s.turn.CompareAndSwap(turnIdle, turnRunning) {
				break
			}
		} else if s.turn.CompareAndSwap(turn, turnAgain) {
			return
		}
	}
	for {
		s.move()
		if s.turn.CompareAndSwap(turnRunning, turnIdle) {
			return
		}
		s.turn.Store(turnRunning)
	}
}

// move reads once and writes what that gave; if it was a whole buffer, bulk goes on.
func (s *relaySide) move() {
	switch {
	case s.ended || s.relay.end.Load() != nil:
		s.dropPipe()
		return
	case s.full():
		return
	case s.atEnd:
		s.passEnd()
		return
	case s.hasPipe && !s.emptyPipe():
		if s.ended {
			s.dropPipe()
		}
		return
	case (s.hasPipe || s.busy) && s.mayBulk():
		n := s.bulk()
		if s.busy = n >= buf.Large; n > 0 {
			return
		}
	}
	s.dropPipe()
	b := s.c.sh.pool.Get(buf.Large)
	n, err := s.read(b.Buf)
	if n > 0 {
		s.write(b.Buf[:n])
	}
	whole := n == len(b.Buf)
	s.c.sh.pool.Put(b)
	if whole && !s.full() && !s.ended && s.mayBulk() {
		s.busy = s.bulk() >= buf.Large
	}
	if err == io.EOF {
		s.atEnd = true
		s.passEnd()
	}
}

// read reads what has been announced. An error other than io.EOF needs nothing more: the connection
// has ended, or has nothing.
func (s *relaySide) read(p []byte) (int, error) {
	c, to := s.c, s.other().c
	if left := to.sh.budget.Left(); to.sh.budget.Most > 0 && left < int64(len(p)) {
		p = p[:max(left, buf.Small)]
	}
	n, err := 0, ErrWouldBlock
	c.mu.Lock()
	if c.announced() {
		n, err = c.takeLocked(p)
		if err == io.EOF && c.sendErrLocked() != nil {
			c.releaseLocked(c.ext.sendErr) // a reset behind the end
		}
	}
	c.unlock()
	return n, err
}

// write gives p to the other connection, which had nothing queued.
func (s *relaySide) write(p []byte) {
	c := s.other().c
	c.mu.Lock()
	err := c.checkWritableLocked()
	if err == nil {
		err = c.putLocked(p)
	}
	full := false
	switch {
	case err == nil:
		s.passed.Add(uint64(len(p)))
		if full = c.out != nil; full {
			s.mark.Or(relayFull)
		}
	case !c.ended() && c.sendErrLocked() == nil:
		c.abortLocked(err) // of crypto/tls
	default:
		s.breakLocked(c)
	}
	c.unlock()
	if full {
		s.lookForError()
	}
}

// passEnd notes the end of stream in the other connection, and what follows when it has gone out:
// when both directions have come so far, the relay has ended.
func (s *relaySide) passEnd() {
	c, r := s.other().c, s.relay
	me := int32(1)
	if s == &r.sides[1] {
		me = 2
	}
	r.first.CompareAndSwap(0, me)
	c.mu.Lock()
	if !c.ended() {
		reach(&c.sendEnd, sendShut)
		// The last end needs no FIN of its own: the close that follows sends it.
		last := r.ends.Load() == 1 && c.out == nil && c.tls() == nil && c.sock.has(sockFinSeen) && !c.fdUsedLocked()
		if s.ended = last && c.sendErrLocked() == nil; !s.ended {
			c.todo.add(todoProgress)
		}
	}
	c.unlock()
	if !s.ended {
		c.mu.Lock()
		s.ended = c.finSent() && c.sendErrLocked() == nil
		c.unlock()
	}
	if s.ended && r.ends.Add(1) == 2 {
		r.decide(RelayEnd{By: r.sides[r.first.Load()-1].c})
	}
}

// finish brings the end of the relay to both connections, once.
func (r *Relay) finish() {
	end := r.end.Load()
	for i := range r.sides {
		r.sides[i].pass() // lets go of the pipe
	}
	if r.idle != nil {
		r.sides[0].c.sh.timers.Remove(&r.idle.timer)
	}
	for i := range r.sides {
		c := r.sides[i].c
		c.mu.Lock()
		c.tellRelayEndLocked()
		switch {
		case end.Err == nil:
			c.closeLocked(nil)
		case end.By == nil:
			c.abortLocked(end.Err)
		case end.By != c:
			c.abortLocked(ErrRelayEnded)
		}
		c.unlock()
	}
}

// armIdle has the idle limit looked at, d from now.
func (r *Relay) armIdle(d time.Duration) {
	sh := r.sides[0].c.sh
	sh.addTimer(&r.idle.timer, d)
	if r.end.Load() != nil {
		sh.timers.Remove(&r.idle.timer)
	}
}

// checkIdle ends the relay if its idle limit is reached.
func (r *Relay) checkIdle() {
	quiet := r.idle.limit
	for i := range r.sides {
		c := r.sides[i].c
		c.mu.Lock()
		t := c.sh.coarse()
		quiet = min(quiet, time.Duration(t-max(c.limit.lastIn, c.limit.lastOut)))
		c.unlock()
	}
	if quiet < r.idle.limit {
		r.armIdle(r.idle.limit - quiet)
		return
	}
	r.decide(RelayEnd{Err: &TimeoutError{TimeoutIdle, r.idle.limit}})
	if end := r.end.Load(); end.By == nil && end.Err != nil {
		for i := range r.sides {
			r.sides[i].c.sh.count.timeouts[TimeoutIdle].Add(1)
		}
	}
}
