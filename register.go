package tcpio

import (
	"errors"
	"net"
	"sync/atomic"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// lastID numbers the connections of the process.
var lastID atomic.Uint64

// mayAdd returns why l cannot serve one more connection, nil if it can.
func (l *Listener) mayAdd() error {
	if l.stopping.Load() {
		return net.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.polling {
		return errors.New("Serve is not running")
	}
	return nil
}

// newConn makes a connection of fd on lp. register adds it there.
func (l *Listener) newConn(lp *loop, fd int32, peer sys.Addr, from origin) *Conn {
	c := &Conn{sh: &lp.shard, id: lastID.Add(1), peer: peer, origin: from, fd: fd}
	c.stream = l.streamFor(lp)
	if !peer.IsIP {
		c.sock.add(sockUnsure)
	} else if c.entry().multipath && sys.Multipath(fd) {
		c.sock.add(sockUnsure)
	}
	switch {
	case l.opts.NewActor != nil: // register asks for it
	case l.callbacks != nil:
		c.actor = l.callbacks
	case l.netListener != nil:
		c.claim = unclaimed
		if l.opts.DeferAccept {
			c.claim = unheard
		}
	}
	return c
}

// register gives c to its loop. It emits Opened for adopted and dialed connections, which may have
// no edge until the peer sends. For an accepted one the loop emits it at the first edge: there is
// one, since the socket is writable, and that saves a wake-up of the loop. On an error the
// descriptor is closed. A connection that gets its actor from the user's hook has no turn before
// employ.
func (l *Listener) register(c *Conn) error {
	served := c.origin != refused
	arrived := c.origin == accepted || !served
	if served {
		c.sh.live.Add(1)
	} else {
		l.refusing.Add(1)
	}
	if l.tooLate(c, arrived) {
		l.unadmit(c)
		l.connClosed(c)
		return net.ErrClosed
	}
	// From add on other goroutines see c, and it may end at any moment. sockNew keeps the
	// descriptor until register returns, routeRunning the events until employ.
	c.sock.add(sockNew)
	asks := l.asksForActor(c)
	if asks {
		c.route.add(routeRunning)
	}
	if served {
		c.prepare()
	}
	c.sh.conns.Add(c, &c.key)
	err := c.sh.p.add(int(c.fd), c.key, pollConn)
	c.mu.Lock()
	defer c.unlock()
	c.sock.drop(sockNew)
	if served && !c.dialing() {
		c.sh.count.accepted.Add(1)
	}
	if err != nil {
		if !c.opened() {
			c.claim = unclaimed // no event of it was sent
		}
		if !arrived {
			c.extLocked().given = true // the caller keeps its own
		}
		if asks {
			c.endTurnLocked()
		}
		c.releaseLocked(err)
		return err
	}
	if !arrived && !c.released() && !c.opened() && !c.isEarly() {
		c.emitLocked(pendOpened)
	}
	// Shutdown and Close set ending and then visit the connections. They may have missed this one.
	switch l.ending.Load() {
	case endTold:
		if !arrived { // else see late
			c.announceDrainingLocked()
		}
	case endClosed:
		c.endDrainLocked()
	case endCut:
		c.abortLocked(net.ErrClosed)
	}
	return nil
}

// tooLate reports whether l has stopped before c was registered. c's descriptor is closed then.
func (l *Listener) tooLate(c *Conn, arrived bool) bool {
	switch {
	case arrived && !l.socket.arrived():
		return true // and has closed it
	case !l.stopping.Load() || arrived && l.ending.Load() != endCut:
		return false // the loops wait for one that was accepted, see checkAllClosed
	case arrived:
		sys.Close(c.fd, false)
	default:
		sys.CloseFD(c.fd) // the caller keeps its own
	}
	return true
}

// prepare begins what comes before c's first event, Preface or TLS, and the time limits.
func (c *Conn) prepare() {
	c.mu.Lock()
	defer c.unlock()
	if c.dialing() {
		return // it comes when c is connected
	}
	switch config := c.entry().tls; {
	case c.prefaced():
		c.beginPrefaceLocked() // TLS comes behind it
	case config != nil && c.origin != dialed:
		c.beginTLSLocked(config, false)
	}
	c.beginLimitsLocked() // before anybody can set others
}

// asksForActor reports whether the user's hook makes c's actor. c is not registered yet.
func (l *Listener) asksForActor(c *Conn) bool {
	return l.opts.NewActor != nil && (c.origin == accepted || c.origin == adopted)
}

// employ gives c its actor, unless c was claimed meanwhile, and begins its turns. A nil actor
// refuses c.
func (c *Conn) employ(actor Actor) {
	c.mu.Lock()
	defer c.unlock()
	if c.stream == nil && c.actor == nil {
		if c.actor = actor; actor == nil {
			c.claim = unclaimed // there is no route for Closed
			c.abortLocked(net.ErrClosed)
		}
	}
	c.endTurnLocked()
}

// refuse ends a connection that is not to be served. If there is a reply, a Conn without events
// sends it and discards input, which would turn the reply into a reset.
func (l *Listener) refuse(lp *loop, fd int32, peer sys.Addr, why refusal) {
	lp.count.refused[why].Add(1)
	if len(l.opts.RefuseReply) == 0 || l.entries[peer.Entry].tls != nil || l.refusing.Load() >= maxRefusing {
		l.socket.turnAway()
		return
	}
	c := &Conn{sh: &lp.shard, peer: peer.Unnamed(), origin: refused, fd: fd, claim: unclaimed}
	if !peer.IsIP {
		c.sock.add(sockUnsure)
	}
	if l.register(c) != nil {
		return
	}
	c.mu.Lock()
	_, _ = c.writeLocked(l.opts.RefuseReply) // a peer that is gone needs none
	c.closeLocked(nil)
	c.unlock()
}

// maxRefusing bounds the refused connections that stay open until their peer has the reply. Any
// more are refused without a reply.
const maxRefusing = 256
