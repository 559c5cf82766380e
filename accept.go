package tcpio

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

const (
	acceptBudget  = 64 // connections of one turn
	acceptBackoff = 5 * time.Millisecond
	acceptSlowest = time.Second // as net/http backs off
)

// An accepting is one turn of accepting. The goroutine with the first loop's role begins it, and
// there is one at a time, so that the hooks of a listener never run together. A goroutine that
// blocks in a hook loses the role, as in Receive, and keeps the turn: the loops go on, and the
// backlog waits.
type accepting struct {
	lp   *loop // the first
	kept bool  // this goroutine still has its role

	// The connection that has just been accepted.
	target *loop
	fd     int32
	peer   sys.Addr
	zone   sys.Zone
}

// runAccept accepts while there are peers in the backlog and the streams have room. It returns
// false if the goroutine has lost the role in a hook.
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
	lp.accept = acceptPause // for a goroutine that takes the role; then we call retryAccept
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

// abandon hands accepting, and the loop, to another goroutine. hook calls it if the user's function
// ends this one.
func (a *accepting) abandon() {
	lp := a.lp
	lp.l.socket.busy.Store(false)
	if !a.kept {
		lp.l.retryAccept()
		return
	}
	lp.accept = acceptMore
	lp.kicked.Store(true) // resume begins without sleeping in epoll, as after takeOver
	go lp.resume()
}

// some accepts up to acceptBudget connections, and gives adopted ones their actor.
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
			a.lp.closedOwed.Add(-1)
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
		l.checkAllClosed()
		for _, c := range s.late {
			c.tellShutdown() // behind what they have sent already, as for the others
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
		return l.acceptFailed(peer, os.NewSyscallError("accept", errno), sys.Exhausted(errno))
	}
	a.target, a.fd, a.peer = target, fd, peer
	switch err := a.admit(); err {
	case nil:
		l.socket.backoff = 0
		l.socket.starved.Store(false)
	case net.ErrClosed:
		return acceptIdle
	default:
		return l.acceptFailed(peer, err, true)
	}
	return acceptMore
}

// hook calls the user's hook f, of the given name, for peer. After a panic or runtime.Goexit, which
// it logs, it returns false. A goroutine that exits calls exited, and abandon, and nothing else of
// this turn.
func (a *accepting) hook(name string, peer netip.AddrPort, f, exited func()) (ok bool) {
	lp := a.lp
	w := uint64(0)
	if a.kept {
		lp.handlerConn.Store(nil)
		lp.watch()
		w = lp.enter(hook)
	}
	back := func() { a.kept = a.kept && lp.state.CompareAndSwap(w, w&^roleMask) }
	ok = guard(name, f, func(p *PanicError, exiting bool) {
		lp.l.logPanic(name, p, "peer", peer.String())
		if exiting {
			back()
			exited()
			a.abandon()
		}
	})
	back()
	return ok
}

// acceptFailed reports err of the peer's entry, and pauses accepting. It resumes after a back-off,
// or as soon as one of our connections closes.
func (l *Listener) acceptFailed(peer sys.Addr, err error, starved bool) acceptState {
	addr := l.entries[peer.Entry].addr
	l.loops[0].report(ofListener, &net.OpError{Op: "accept", Net: addr.Network(), Addr: addr, Err: err})
	l.socket.backoff = min(max(2*l.socket.backoff, acceptBackoff), acceptSlowest)
	l.socket.starved.Store(starved)
	first := l.loops[0]
	again := &l.socket.again // one, however often a connection that ends makes us look in between
	first.timers.Remove(again)
	again.kind = timerAccept
	first.addTimer(again, l.socket.backoff)
	return acceptPause
}

// leastBusy returns the loop with the fewest connections: of all loops, or of those whose stream
// has room, and nil if there is none.
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

// askForActor has the user's hook make c's actor. Nil refuses c, and so do a panic and
// runtime.Goexit.
func (a *accepting) askForActor(c *Conn) {
	var actor Actor
	ask := func() { actor = c.sh.opts.NewActor(c) }
	if !a.hook("NewActor", c.addrPort(), ask, func() { c.employ(nil) }) {
		actor = nil
	}
	c.employ(actor)
}

// adopt has the first loop ask for the actor of a connection that has not come from this turn of
// accepting. Hooks run on that loop, one at a time.
func (l *Listener) adopt(c *Conn) {
	s := &l.socket
	if !l.loops[0].oweClosed() { // it has ended, and c too: a loop waits for the actors it owes
		c.employ(nil)
		return
	}
	s.mu.Lock()
	s.adopted = append(s.adopted, c)
	s.adopting.Store(true)
	s.mu.Unlock()
	l.retryAccept()
}

// runPreface shows Preface what has arrived on c. The caller has the role; runPreface returns false
// if that was lost in the user's function, as runActor does.
func (lp *loop) runPreface(c *Conn) (kept bool) {
	b, head := c.lookAhead()
	if b == nil {
		return true
	}
	lp.handlerConn.Store(c)
	w := lp.enter(handler)
	back := func() { kept = lp.state.CompareAndSwap(w, w&^roleMask) }
	n, err := 0, error(nil)
	ok := guard("Preface", func() {
		// errors.Is calls methods of an error that the user's function has returned.
		if n, err = c.entry().preface(c, head); errors.Is(err, ErrShortPreface) {
			err = ErrShortPreface
		}
	}, func(p *PanicError, exiting bool) {
		back()
		c.logPanic(p)
		c.endPreface(b, head, 0, p)
		switch {
		case !exiting:
		case kept:
			lp.kicked.Store(true) // as in takeOver
			go lp.resume()
		default:
			lp.endBlocked()
		}
	})
	if ok {
		back()
		if c.endPreface(b, head, n, err) && lp.l.asksForActor(c) {
			lp.l.adopt(c)
		}
	}
	if !kept {
		lp.endBlocked()
	}
	return kept
}

// evictEnded makes room for another connection: of those whose peer has ended and that the user has
// not closed, it closes the one that waits longest. It returns false if there is none.
func (l *Listener) evictEnded() bool {
	for range limitBudget {
		var first *loop
		for _, lp := range l.loops {
			if at := lp.eofs.First(); at != 0 && (first == nil || at < first.eofs.First()) {
				first = lp
			}
		}
		if first == nil {
			return false
		}
		last, ok := first.eofs.Due(math.MaxInt64)
		if !ok {
			continue // it has just gone
		}
		c := last.c
		c.mu.Lock()
		closed := !c.ended() && !c.busyLocked()
		if closed {
			c.endWaitLocked()
		} else {
			c.limit.lastIn = c.sh.coarse() // its wait begins anew
			c.armLimitLocked()
		}
		c.unlock()
		if closed {
			return true
		}
	}
	return false
}

// admission decides about a peer before anything is allocated for it. If it returns admitted, it
// has taken a place of the peer's address, where addresses are counted.
func (a *accepting) admission() refusal {
	l := a.lp.l
	o := &l.opts
	switch {
	case l.full() && !(l.evictEnded() && !l.full()):
		return refusedConns
	case a.counts() && !l.perAddress.Take(a.peer.AddrPort("").Addr(), o.MaxConnsPerIP):
		return refusedPerIP // before the rate, which such an address shall not use up
	case o.AcceptRate != nil && !a.callHook("AcceptRate", o.AcceptRate.Allow, refusedRate):
		return refusedRate
	case o.Admit != nil &&
		!a.callHook("Admit", func() bool { return o.Admit(a.addrPort()) == nil }, refusedAdmit):
		return refusedAdmit
	}
	return admitted
}

// full reports whether MaxConns connections are open.
func (l *Listener) full() bool { return l.opts.MaxConns > 0 && l.Len() >= l.opts.MaxConns }

// counts reports whether the peer takes a place of its address. A proxy does not: its clients do,
// see countClientLocked.
func (a *accepting) counts() bool {
	l := a.lp.l
	proxy := l.entries[a.peer.Entry].preface != nil && l.isProxy(a.peer.AddrPort("").Addr())
	return l.opts.MaxConnsPerIP > 0 && a.peer.IsIP && !proxy
}

// addrPort is the peer's address.
func (a *accepting) addrPort() netip.AddrPort { return a.peer.AddrPort(a.zone.Name()) }

// callHook asks a hook of the user whether it admits the peer. If not, admission returns no; if the
// hook exits its goroutine, callHook refuses the peer for that reason.
func (a *accepting) callHook(in string, admits func() bool, no refusal) (ok bool) {
	return a.hook(in, a.addrPort(), func() { ok = admits() }, func() { a.refuse(no) }) && ok
}

// refuse ends the connection that has just been accepted, and gives back what admission took.
func (a *accepting) refuse(why refusal) {
	if a.counts() && why != refusedConns && why != refusedPerIP {
		a.lp.l.perAddress.Give(a.peer.AddrPort("").Addr())
	}
	a.lp.l.refuse(a.target, a.fd, a.peer, why)
}

// admit serves the connection that has just been accepted, or refuses it.
func (a *accepting) admit() error {
	l := a.lp.l
	a.zone = a.peer.Zone(a.fd)
	if why := a.admission(); why != admitted {
		a.refuse(why)
		return nil
	}
	c := l.newConn(a.target, a.fd, a.peer, accepted)
	if a.peer.Named() {
		remote, local := a.peer.Names(a.fd, a.zone)
		c.ext = &connExt{remote: remote, local: local}
	}
	if c.prefaced() {
		c.extLocked().counted = a.counts() // nobody else sees it yet
	}
	if err := l.register(c); err != nil {
		return err
	}
	if s := &l.socket; s.last.Load() {
		s.late = append(s.late, c)
	}
	if l.opts.NewActor != nil && !c.prefaced() { // else behind Preface
		a.askForActor(c)
	}
	return nil
}
