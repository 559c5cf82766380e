package tcpio

import (
	"net/netip"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// lingering bounds the refused connections that are kept until their peer has the reply; more are refused without one.
const lingering = 256

// refusal says why a connection that was accepted is not served.
type refusal int

const (
	refusedConns refusal = iota // MaxConns
	refusedPerIP                // MaxConnsPerIP
	refusedRate                 // AcceptRate
	refusedAdmit                // Admit
	refusals
	admitted refusal = -1
)

// admission decides about a peer before anything is allocated for it. If the answer is admitted, a place of its address
// is taken where addresses are counted.
func (a *accepting) admission() refusal {
	l := a.lp.l
	o := &l.opts
	switch {
	case l.full() && !(l.evictEnded() && !l.full()):
		return refusedConns
	case a.counts() && !l.perAddress.Take(a.peer.AddrPort("").Addr(), o.MaxConnsPerIP):
		return refusedPerIP // before the rate: an address over its bound does not use up what others may have
	case o.AcceptRate != nil && !a.asks("AcceptRate", o.AcceptRate.Allow, refusedRate):
		return refusedRate
	case o.Admit != nil && !a.asks("Admit", func() bool { return o.Admit(a.addrPort()) == nil }, refusedAdmit):
		return refusedAdmit
	}
	return admitted
}

// full reports whether MaxConns connections are open.
func (l *Listener) full() bool { return l.opts.MaxConns > 0 && l.Len() >= l.opts.MaxConns }

// counts says whether the peer takes a place of its address.
func (a *accepting) counts() bool { return a.lp.l.opts.MaxConnsPerIP > 0 && a.peer.IsIP }

// addrPort is the peer's address.
func (a *accepting) addrPort() netip.AddrPort { return a.peer.AddrPort(a.zone.Name()) }

// asks asks a hook of the user's. A panic refuses the peer, and so does runtime.Goexit; both are logged.
func (a *accepting) asks(in string, admits func() bool, no refusal) (ok bool) {
	return a.hook(in, in, a.addrPort(), func() { ok = admits() }, func() { a.refuse(no) }) && ok
}

// refuse ends the connection that has just been accepted, and gives back what admission took.
func (a *accepting) refuse(why refusal) {
	if a.counts() && why != refusedConns && why != refusedPerIP {
		a.lp.l.perAddress.Give(a.peer.AddrPort("").Addr())
	}
	a.lp.l.refuse(a.target, a.fd, a.peer, why)
}

// refuse ends a connection that is not to be served, with the reply if there is one: as a connection without events, so
// that input does not turn the reply into a reset.
func (l *Listener) refuse(lp *loop, fd int32, peer sys.Addr, why refusal) {
	lp.count.refused[why].Add(1)
	if len(l.opts.RefuseReply) == 0 || l.opts.TLSConfig != nil || l.refusing.Load() >= lingering {
		l.socket.turnAway()
		return
	}
	c := &Conn{sh: &lp.shard, peer: peer.Unnamed(), origin: refused, fd: fd, flags: fMute}
	if !peer.IsIP {
		c.flags |= fDistrust
	}
	if l.register(c) != nil {
		return
	}
	c.mu.Lock()
	_, _ = c.writeLocked(l.opts.RefuseReply) // a peer that is gone needs none
	c.closeLocked(nil)
	c.unlock()
}

// longestBacklog is the default of net.core.somaxconn. Peers that keep coming do not keep Shutdown from its end.
const longestBacklog = 4096

// welcome serves the connection that has just been accepted, or refuses it.
func (a *accepting) welcome() error {
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
	if err := l.register(c); err != nil {
		return err
	}
	if s := &l.socket; s.last.Load() {
		s.late = append(s.late, c)
	}
	if l.opts.Actor != nil {
		a.askForActor(c)
	}
	return nil
}

// dismiss gives back what admission took.
func (sh *shared) dismiss(c *Conn) {
	if c.origin == accepted && sh.opts.MaxConnsPerIP > 0 && c.peer.IsIP {
		sh.perAddress.Give(c.peer.AddrPort("").Addr())
	}
}
