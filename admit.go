package tcpio

import (
	"net/netip"
	"runtime/debug"
	"sync"
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

// peers counts the connections of each address, if MaxConnsPerIP is set.
type peers struct {
	mu sync.Mutex
	// Guarded by mu.
	conns map[netip.Prefix]int
}

// network is what counts as one address: an IPv4 address, or the /64 of an IPv6 one, which is what one customer has.
func (a *sockaddr) network() netip.Prefix {
	ip := a.addrPort("").Addr()
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return p
}

// take counts one more connection of a, unless there are max.
func (ps *peers) take(a *sockaddr, max int) bool {
	p := a.network()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.conns[p] >= max {
		return false
	}
	if ps.conns == nil {
		ps.conns = make(map[netip.Prefix]int)
	}
	ps.conns[p]++
	return true
}

func (ps *peers) give(a *sockaddr) {
	p := a.network()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.conns[p]--; ps.conns[p] <= 0 {
		delete(ps.conns, p)
	}
}

// admission decides about a peer before anything is allocated for it. If the answer is admitted, a place of its address
// is taken where addresses are counted. zone is the name of peer's.
func (l *Listener) admission(peer *sockaddr, zone string) refusal {
	o := &l.opts
	counted := o.MaxConnsPerIP > 0 && peer.isIP
	why := admitted
	switch {
	case o.MaxConns > 0 && l.Len() >= o.MaxConns:
		return refusedConns
	case counted && !l.peers.take(peer, o.MaxConnsPerIP):
		return refusedPerIP // before the rate: an address over its bound does not use up what others may have
	case o.AcceptRate != nil && !l.asks("AcceptRate", peer.addrPort(zone), o.AcceptRate.Allow):
		why = refusedRate
	case o.Admit != nil && !l.asks("Admit", peer.addrPort(zone), func() bool { return o.Admit(peer.addrPort(zone)) == nil }):
		why = refusedAdmit
	}
	if why != admitted && counted {
		l.peers.give(peer)
	}
	return why
}

// asks asks a hook of the user's. A panic refuses the peer and is logged.
func (l *Listener) asks(hook string, peer netip.AddrPort, admits func() bool) (ok bool) {
	defer func() {
		if v := recover(); v != nil {
			l.log("tcpio: "+hook+" panicked", "peer", peer.String(), "panic", v, "stack", string(debug.Stack()))
		}
	}()
	return admits()
}

// refuse ends a connection that is not to be served, with the reply if there is one: as a connection without events, so
// that input does not turn the reply into a reset.
func (l *Listener) refuse(lp *loop, fd int32, peer sockaddr, why refusal) {
	lp.count.refused[why].Add(1)
	if len(l.opts.RefuseReply) == 0 || l.opts.TLSConfig != nil || l.refusing.Load() >= lingering {
		sysClose(fd)
		return
	}
	peer.zone = 0 // nobody is shown its address
	c := &Conn{lp: lp, peer: peer, fd: fd, flags: fMute}
	if !peer.isIP {
		c.flags |= fUnix | fDistrust
	}
	if l.register(c, true) != nil {
		return
	}
	c.mu.Lock()
	_, _ = c.writeLocked(l.opts.RefuseReply) // a peer that is gone needs none
	c.closeLocked(nil)
	c.unlock()
}

// longestBacklog is the default of net.core.somaxconn. Peers that keep coming do not keep Shutdown from its end.
const longestBacklog = 4096

// acceptRest takes what the kernel has accepted already, so that closing the listening socket resets nobody.
func (l *Listener) acceptRest() {
	for range longestBacklog {
		fd, peer, errno := l.socket.accept()
		switch {
		case errno == 0:
			l.welcome(l.leastBusy(true), int32(fd), peer)
		case !retryable(errno):
			return
		}
	}
}

// welcome gives an accepted descriptor to lp, or refuses it.
func (l *Listener) welcome(lp *loop, fd int32, peer sockaddr) error {
	defer func() {
		l.socket.arrived()
		if l.stopping.Load() {
			l.checkGone() // Close may have waited for this one alone
		}
	}()
	z := zone{}
	if peer.isIP && peer.named() {
		z = sysZone(int(fd), peer.zone)
	}
	if why := l.admission(&peer, z.name); why != admitted {
		l.refuse(lp, fd, peer, why)
		return nil
	}
	c := l.newConn(lp, fd, peer)
	if peer.named() {
		c.ext = peer.names(fd, z)
	}
	if l.opts.MaxConnsPerIP > 0 && peer.isIP {
		c.flags |= fCounted
	}
	return l.register(c, true)
}

// refused says whether the connection is only kept until its peer has the reply. Such a one has no ID: nobody sees it.
func (c *Conn) refused() bool { return c.id == 0 }

// dismiss gives back what admission took.
func (l *Listener) dismiss(c *Conn, f flags) {
	if f&fCounted != 0 {
		l.peers.give(&c.peer)
	}
}
