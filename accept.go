package tcpio

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// acceptState is what the first loop, which accepts for all, knows of the backlog. It is owned by that loop's role.
type acceptState uint8

const (
	acceptIdle  acceptState = iota // the backlog was seen empty: the next connection is an edge
	acceptMore                     // there may be more in it
	acceptPause                    // there may be, but no room, or no descriptor; retryAccept ends that
)

const (
	acceptBudget  = 64 // connections of one turn
	acceptBackoff = 5 * time.Millisecond
	acceptSlowest = time.Second // as net/http backs off
)

// A listenSocket is the listening descriptor. It is registered edge-triggered, once: pausing is simply not accepting.
type listenSocket struct {
	// Immutable after Listen.
	call sys.AcceptFunc // another one in tests

	mu sync.Mutex
	// Guarded by mu.
	path     string           // of a unix socket that we made, removed at close
	file     sys.FileID       // what we made there
	fd       int32            // -1 once closed
	arriving int32            // the descriptor that is accepted and not yet counted by a loop; -1: none
	adopted  []*Conn          // adopted connections that have no actor yet
	std      *net.TCPListener // what GetListener made

	// Immutable after Listen. Closed with fd: nothing arrives any more.
	over chan struct{}

	// Atomic.
	retry    atomic.Bool // look at the backlog again
	starved  atomic.Bool // accepting waits for a descriptor
	busy     atomic.Bool // somebody accepts
	last     atomic.Bool // Shutdown has begun: take what there is, and close
	adopting atomic.Bool // adopted is not empty

	// Owned by whoever accepts.
	backoff time.Duration
	again   timer   // when to look again after a failure
	left    int     // how many more are taken once last is set
	late    []*Conn // those that were: Shutdown may have missed them
}

// accept takes a connection from the backlog. It holds mu for a tick of the kernel's clock at most;
// see sys.Accepter.
func (s *listenSocket) accept() (int32, sys.Addr, syscall.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return -1, sys.Addr{}, syscall.EAGAIN
	}
	fd, peer, errno := s.call(s.fd)
	if errno == 0 {
		s.arriving = fd
	}
	return fd, peer, errno
}

// arrived says that the descriptor that accept returned is counted. It reports false when it is closed already.
func (s *listenSocket) arrived() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := s.arriving >= 0
	s.arriving = -1
	return open
}

// turnAway closes the descriptor that accept returned, if the end has not.
func (s *listenSocket) turnAway() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.arriving >= 0 {
		sys.Close(s.arriving, false)
		s.arriving = -1
	}
}

// close ends accepting. A descriptor that is still in a hook of the user's does not wait for that.
// A unix socket's file goes first: while the socket lives no other file can have its inode, and a successor, which binds as soon as
// the path is free, is not met by our removal.
func (s *listenSocket) close(p poller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return
	}
	if p != nil {
		_ = p.remove(int(s.fd))
	}
	if s.path != "" {
		sys.RemoveFile(s.path, s.file)
	}
	sys.CloseFD(s.fd)
	s.fd = -1
	if s.arriving >= 0 {
		sys.Close(s.arriving, false)
		s.arriving = -1
	}
	close(s.over)
	if s.std != nil {
		s.std.Close()
	}
}

// retryAccept makes the first loop look at the backlog again, if it had paused.
func (l *Listener) retryAccept() {
	l.socket.retry.Store(true)
	l.loops[0].kick()
}

// An accepting is one turn of accepting. There is one at a time, begun by the first loop's role, and so the
// hooks of a listener never run together. A hook that blocks loses that role, as Receive does, and keeps the
// accepting: the loops go on, the backlog waits.
type accepting struct {
	lp   *loop // the first
	kept bool  // this goroutine still has its role

	// The connection that has just been accepted.
	target *loop
	fd     int32
	peer   sys.Addr
	zone   sys.Zone
}

// runAccept accepts, while there is anybody to accept and room for what they will say. It reports false when
// the role was lost in a hook.
func (lp *loop) runAccept() (kept bool) {
	s := &lp.l.socket
	if lp.index != 0 || s.busy.Load() {
		return true
	}
	if s.retry.Load() && (lp.accept == acceptPause || s.last.Load() || s.adopting.Load()) {
		lp.accept = acceptMore
	}
	if lp.accept != acceptMore {
		return true
	}
	s.retry.Store(false)
	s.busy.Store(true)
	lp.accept = acceptPause // for whoever takes the role over; the end of this turn is told by retryAccept
	a := accepting{lp: lp, kept: true}
	next := a.some()
	s.busy.Store(false)
	if !a.kept {
		lp.l.retryAccept()
		return false
	}
	lp.accept = next
	return true
}

// abandon is called on a goroutine that is exiting in a hook: accepting, and the loop, go on without it.
func (a *accepting) abandon() {
	lp := a.lp
	lp.l.socket.busy.Store(false)
	if !a.kept {
		lp.l.retryAccept()
		return
	}
	lp.accept = acceptMore
	lp.kicked.Store(true) // as in takeOver
	go lp.drive()
}

// some accepts a number of connections, and gives adopted ones their actor.
func (a *accepting) some() acceptState {
	l := a.lp.l
	s := &l.socket
	last := s.last.Load()
	next := acceptMore
	for range acceptBudget {
		if !a.kept || next != acceptMore {
			break
		}
		if c := s.nextAdopted(); c != nil {
			a.lp.untold.Add(-1)
			a.askForActor(c)
			continue
		}
		if last {
			if s.left == 0 {
				next = acceptIdle
				break
			}
			s.left--
		}
		next = a.one(l.leastBusy(last))
	}
	if last && next != acceptMore {
		s.close(a.lp.p)
		l.checkGone()
		for _, c := range s.late {
			c.drain() // behind what they have sent already, as it is for the others
		}
		s.late = nil
	}
	return next
}

// one accepts a connection for target.
func (a *accepting) one(target *loop) acceptState {
	l := a.lp.l
	if target == nil {
		return acceptPause // until roomAgain
	}
	fd, peer, errno := l.socket.accept()
	switch {
	case errno == 0:
	case errno == syscall.EAGAIN:
		return acceptIdle
	case sys.Retryable(errno), sys.Exhausted(errno) && l.evictEnded():
		return acceptMore
	default:
		return l.acceptFailed(os.NewSyscallError("accept", errno), sys.Exhausted(errno))
	}
	a.target, a.fd, a.peer = target, fd, peer
	switch err := a.welcome(); err {
	case nil:
		l.socket.backoff = 0
		l.socket.starved.Store(false)
	case net.ErrClosed:
		return acceptIdle
	default:
		return l.acceptFailed(err, true)
	}
	return acceptMore
}

// hook calls a hook of the user's for peer. A panic, and runtime.Goexit, are logged and make it false; the
// goroutine that exits calls exited, which is all of this turn that still runs.
func (a *accepting) hook(in, what string, peer netip.AddrPort, f, exited func()) (ok bool) {
	lp := a.lp
	w := uint64(0)
	if a.kept {
		lp.holder.Store(nil)
		lp.watch()
		w = lp.enter(hook)
	}
	back := func() { a.kept = a.kept && lp.state.CompareAndSwap(w, w&^roleMask) }
	ok = guard(in, f, func(p *PanicError, exiting bool) {
		lp.l.log("tcpio: "+what+" panicked", "peer", peer.String(), "panic", p.Value, "stack", string(p.Stack))
		if exiting {
			back()
			exited()
			a.abandon()
		}
	})
	back()
	return ok
}

// acceptFailed says so and looks again later; when a connection of ours ends, at once.
func (l *Listener) acceptFailed(err error, starved bool) acceptState {
	l.failed(&net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: err})
	l.socket.backoff = min(max(2*l.socket.backoff, acceptBackoff), acceptSlowest)
	l.socket.starved.Store(starved)
	first := l.loops[0]
	again := &l.socket.again // one, however often a connection that ends makes us look in between
	first.timers.stop(again)
	again.kind = timerAccept
	first.timers.add(&first.shard, again, l.socket.backoff)
	return acceptPause
}

// leastBusy is the loop with the fewest connections, of those whose stream has room, or of all; nil if there is none.
func (l *Listener) leastBusy(all bool) *loop {
	var best *loop
	for _, lp := range l.loops {
		if s := l.streamFor(lp); !all && s != nil && s.blocked.Load() {
			continue
		}
		if best == nil || lp.live.Load() < best.live.Load() {
			best = lp
		}
	}
	return best
}

// newConn makes a connection of fd, on lp.
func (l *Listener) newConn(lp *loop, fd int32, peer sys.Addr, from origin) *Conn {
	c := &Conn{sh: &lp.shard, id: lastID.Add(1), peer: peer, origin: from, fd: fd, stream: l.streamFor(lp)}
	if !peer.IsIP {
		c.flags |= fDistrust
	} else if l.multipath && sys.Multipath(fd) {
		c.flags |= fDistrust
	}
	switch {
	case l.opts.Actor != nil: // register asks for it
	case l.legacy != nil:
		c.actor = l.legacy
	case l.handOut != nil:
		c.flags |= fMute
		if l.opts.DeferAccept {
			c.flags |= fDefer
		}
	}
	return c
}

// register gives c to its loop. One that was accepted is announced by the loop at its first edge, whatever that says, and
// there is one, since nothing was sent on it yet: it is writable. That saves the wake-up of its loop. What else is served
// may have no edge until its peer moves, so it is announced here. On an error the descriptor is closed. If c is to get its
// actor from the user's hook, it has no turn before employ.
func (l *Listener) register(c *Conn) error {
	sh := c.sh
	served := c.origin != refused
	arrived := c.origin == accepted || !served
	if served {
		sh.live.Add(1)
	} else {
		l.refusing.Add(1)
	}
	if arrived && !l.socket.arrived() {
		l.dismiss(c)
		l.connGone(c)
		return net.ErrClosed
	}
	if l.stopping.Load() && (!arrived || l.ending.Load() == endCut) {
		// The loops may have ended; for one that was accepted they wait, see checkGone.
		if arrived {
			sys.Close(c.fd, false)
		} else {
			sys.CloseFD(c.fd) // whoever brought it keeps it
		}
		l.dismiss(c)
		l.connGone(c)
		return net.ErrClosed
	}
	// From add on others see c, and it may end at any moment. fNew keeps the descriptor until the registration
	// is over, fRunning its events until the actor is there.
	c.flags |= fNew
	asks := l.asksForActor(c)
	if asks {
		c.flags |= fRunning
	}
	if served {
		c.mu.Lock()
		if l.opts.TLSConfig != nil && c.origin != dialled {
			c.beginTLSLocked(l.opts.TLSConfig)
		}
		c.beginLimitsLocked() // before anybody can set others
		c.mu.Unlock()
	}
	t := sh.conns.add(c)
	err := sh.p.add(int(c.fd), t, pollConn)
	c.mu.Lock()
	defer c.unlock()
	c.flags &^= fNew
	if served {
		sh.count.accepted.Add(1)
	}
	if !arrived && err == nil && c.flags&(fOpened|fHandshake|fReleased) == 0 {
		c.emitLocked(pendOpened)
	}
	if err != nil {
		if c.flags&fOpened == 0 {
			c.flags |= fMute // nobody has heard of it
		}
		if !arrived {
			c.extLocked().given = true // whoever brought it keeps it
		}
		if asks {
			c.endTurnLocked()
		}
		c.releaseLocked(err)
		return err
	}
	// Shutdown and Close look at the connections after they have set ending: this one they may have missed.
	switch l.ending.Load() {
	case endTold:
		if !arrived { // else see late
			c.tellDrainingLocked()
		}
	case endClosed:
		c.closeLocked(nil)
	case endCut:
		c.abortLocked(net.ErrClosed)
	}
	return nil
}

// asksForActor says whether the user's hook makes c's actor. c is not registered yet.
func (l *Listener) asksForActor(c *Conn) bool {
	return l.opts.Actor != nil && (c.origin == accepted || c.origin == adopted)
}

// askForActor asks it. Nil refuses c, and so do a panic and runtime.Goexit, which are logged.
func (a *accepting) askForActor(c *Conn) {
	var actor Actor
	if !a.hook("Actor", "handler", c.peer.AddrPort(""), func() { actor = c.sh.opts.Actor(c) }, func() { c.employ(nil) }) {
		actor = nil
	}
	c.employ(actor)
}

// employ gives c its actor and begins its turns, unless it was claimed meanwhile; nil refuses it.
func (c *Conn) employ(actor Actor) {
	c.mu.Lock()
	defer c.unlock()
	if c.stream == nil && c.actor == nil {
		if c.actor = actor; actor == nil {
			c.flags |= fMute // nobody is there to be told
			c.abortLocked(net.ErrClosed)
		}
	}
	c.endTurnLocked()
}

// adopt has the first loop ask for the actor of a connection that was not accepted: hooks run there, one at a
// time.
func (l *Listener) adopt(c *Conn) {
	s := &l.socket
	if !l.loops[0].expect() { // it has ended, and so has c: until then it waits for what it is to ask
		c.employ(nil)
		return
	}
	s.mu.Lock()
	s.adopted = append(s.adopted, c)
	s.adopting.Store(true)
	s.mu.Unlock()
	l.retryAccept()
}

// nextAdopted takes one of them; nil when there is none.
func (s *listenSocket) nextAdopted() *Conn {
	if !s.adopting.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.adopted[0]
	s.adopted[0] = nil
	if s.adopted = s.adopted[1:]; len(s.adopted) == 0 {
		s.adopted = nil
		s.adopting.Store(false)
	}
	return c
}

// lastID numbers the connections of the process.
var lastID atomic.Uint64

// connGone is called when a connection's descriptor is closed and Closed emitted.
func (l *Listener) connGone(c *Conn) {
	n := int64(0)
	if c.origin == refused {
		n = l.refusing.Add(-1)
	} else {
		n = c.sh.live.Add(-1)
	}
	if l.socket.starved.Load() {
		l.retryAccept()
	}
	if n == 0 && l.stopping.Load() {
		l.checkGone()
	}
}
