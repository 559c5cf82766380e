package tcpio

import (
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
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
	call func(fd int) (int, sockaddr, syscall.Errno) // accept4; another one in tests

	mu sync.Mutex
	// Guarded by mu.
	path     string           // of a unix socket that we made, removed at close
	file     fileID           // what we made there
	fd       int              // -1 once closed
	arriving int              // descriptors accepted and not yet counted by a loop
	std      *net.TCPListener // what GetListener made

	// Atomic.
	retry   atomic.Bool // look at the backlog again
	starved atomic.Bool // accepting waits for a descriptor

	// Owned by the first loop's role.
	backoff time.Duration
	again   timer // when to look again after a failure
}

// accept takes a connection from the backlog.
func (s *listenSocket) accept() (int, sockaddr, syscall.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return -1, sockaddr{}, syscall.EAGAIN
	}
	fd, peer, errno := s.call(s.fd)
	if errno == 0 {
		s.arriving++
	}
	return fd, peer, errno
}

// arrived says that a descriptor that accept returned is counted, or closed.
func (s *listenSocket) arrived() {
	s.mu.Lock()
	s.arriving--
	s.mu.Unlock()
}

// over reports whether nothing more will arrive, and what has is counted by a loop.
func (s *listenSocket) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fd < 0 && s.arriving == 0
}

// close closes the socket. A unix socket's file goes first: while the socket lives no other file can have its inode, and
// a successor, which binds as soon as the path is free, is not met by our removal.
func (s *listenSocket) close(p poller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return
	}
	if p != nil {
		_ = p.remove(s.fd)
	}
	if s.path != "" {
		sysRemoveOwn(s.path, s.file)
	}
	sysClose(int32(s.fd))
	s.fd = -1
	if s.std != nil {
		s.std.Close()
	}
}

// retryAccept makes the first loop look at the backlog again, if it had paused.
func (l *Listener) retryAccept() {
	l.socket.retry.Store(true)
	l.loops[0].kick()
}

// roomAgain is called when a stream that was full has been emptied.
func (l *Listener) roomAgain() { l.retryAccept() }

// runAccept accepts, while there is anybody to accept and room for what they will say.
func (lp *loop) runAccept() {
	if lp.accept == acceptPause && lp.l.socket.retry.Load() {
		lp.accept = acceptMore
	}
	if lp.accept != acceptMore {
		return
	}
	lp.l.socket.retry.Store(false)
	lp.accept = lp.l.acceptSome()
}

func (l *Listener) acceptSome() acceptState {
	for range acceptBudget {
		target := l.leastBusy(false)
		if target == nil {
			return acceptPause // until roomAgain
		}
		fd, peer, errno := l.socket.accept()
		switch {
		case errno == 0:
		case errno == syscall.EAGAIN:
			return acceptIdle
		case retryable(errno):
			continue
		default:
			return l.acceptFailed(os.NewSyscallError("accept", errno), exhausted(errno))
		}
		switch err := l.welcome(target, int32(fd), peer); err {
		case nil:
			l.socket.backoff = 0
			l.socket.starved.Store(false)
		case net.ErrClosed:
			return acceptIdle
		default:
			return l.acceptFailed(err, true)
		}
	}
	return acceptMore
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
	first.timers.add(first, again, l.socket.backoff)
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
func (l *Listener) newConn(lp *loop, fd int32, peer sockaddr) *Conn {
	c := &Conn{lp: lp, id: lastID.Add(1), peer: peer, fd: fd, stream: l.streamFor(lp)}
	if !peer.isIP {
		c.flags |= fUnix | fDistrust
	} else if l.multipath && sysMultipath(fd) {
		c.flags |= fDistrust
	}
	if l.opts.AllowHalfOpen {
		c.flags |= fHalfOpen
	}
	switch {
	case l.opts.Actor != nil: // register asks for it
	case l.legacy != nil:
		c.actor = l.legacy
	case l.handOut != nil:
		c.flags |= fMute | fHalfOpen
		if l.opts.DeferAccept {
			c.flags |= fDefer
		}
	}
	return c
}

// register gives c to its loop. One that was accepted is announced by the loop at its first edge, whatever that says, and
// there is one, since nothing was sent on it yet: it is writable. That saves the wake-up of its loop. What else is served
// may have no edge until its peer moves, so it is announced here. On an error the descriptor is closed.
func (l *Listener) register(c *Conn, accepted bool) error {
	lp := c.lp
	served := !c.refused()
	if served {
		lp.live.Add(1)
	} else {
		l.refusing.Add(1)
	}
	if l.stopping.Load() && (!accepted || l.ending.Load() == endCut) {
		// The loops may have ended; for one that was accepted they wait, see checkGone.
		sysClose(c.fd)
		l.dismiss(c, c.flags)
		l.connGone(c)
		return net.ErrClosed
	}
	hook := served && l.opts.Actor != nil && c.flags&fDialled == 0
	// From add on others see c, and it may end at any moment. The reference keeps the descriptor until the registration
	// is over, fRunning its events until the actor is there.
	c.refs = 1
	if hook {
		c.flags |= fRunning
	}
	if served {
		c.mu.Lock()
		if l.opts.TLSConfig != nil && c.flags&fDialled == 0 {
			c.beginTLSLocked(l.opts.TLSConfig)
		}
		c.beginLimitsLocked() // before anybody can set others
		c.mu.Unlock()
	}
	t := lp.conns.add(c)
	var actor Actor
	if hook {
		actor = l.actorFor(c)
	}
	err := lp.p.add(int(c.fd), t, pollConn)
	c.mu.Lock()
	defer c.unlock()
	c.refs--
	if served {
		lp.count.accepted.Add(1)
	}
	if hook {
		if c.stream == nil && c.actor == nil { // not claimed meanwhile
			if c.actor = actor; actor == nil {
				c.flags |= fMute // nobody is there to be told
				c.abortLocked(net.ErrClosed)
			}
		}
	}
	if !accepted && err == nil && c.flags&(fOpened|fHandshake|fReleased) == 0 {
		c.emitLocked(pendOpened)
	}
	if hook {
		c.endTurnLocked()
	}
	if err != nil {
		if c.flags&fOpened == 0 {
			c.flags |= fMute // nobody has heard of it
		}
		c.releaseLocked(err)
		return err
	}
	// Shutdown and Close look at the connections after they have set ending: this one they may have missed.
	switch l.ending.Load() {
	case endTold:
		c.tellDrainingLocked()
	case endClosed:
		c.closeLocked(nil)
	case endCut:
		c.abortLocked(net.ErrClosed)
	}
	return nil
}

// actorFor asks the user's hook for c's actor; nil refuses c, and so does a panic, which is logged.
func (l *Listener) actorFor(c *Conn) (a Actor) {
	defer func() {
		if v := recover(); v != nil {
			c.logPanic(&PanicError{Value: v, Stack: debug.Stack()})
		}
	}()
	return l.opts.Actor(c)
}

// lastID numbers the connections of the process.
var lastID atomic.Uint64

// connGone is called when a connection's descriptor is closed and Closed emitted.
func (l *Listener) connGone(c *Conn) {
	n := int64(0)
	if c.refused() {
		n = l.refusing.Add(-1)
	} else {
		n = c.lp.live.Add(-1)
	}
	if l.socket.starved.Load() {
		l.retryAccept()
	}
	if n == 0 && l.stopping.Load() {
		l.checkGone()
	}
}
