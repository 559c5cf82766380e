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
	sh := c.sh
	served := c.origin != refused
	arrived := c.origin == accepted || !served
	if served {
		sh.live.Add(1)
	} else {
		l.refusing.Add(1)
	}
	if arrived && !l.socket.arrived() {
		l.unadmit(c)
		l.connClosed(c)
		return net.ErrClosed
	}
	if l.stopping.Load() && (!arrived || l.ending.Load() == endCut) {
		// The loops may have ended; for one that was accepted they wait, see checkAllClosed.
		if arrived {
			sys.Close(c.fd, false)
		} else {
			sys.CloseFD(c.fd) // the caller keeps its own
		}
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
		c.mu.Lock()
		switch {
		case c.dialing(): // the rest comes when it is connected
		case c.prefaced():
			c.beginPrefaceLocked() // TLS comes behind it
		case c.entry().tls != nil && c.origin != dialed:
			c.beginTLSLocked(c.entry().tls, false)
		}
		if !c.dialing() {
			c.beginLimitsLocked() // before anybody can set others
		}
		c.unlock()
	}
	sh.conns.Add(c, &c.key)
	err := sh.p.add(int(c.fd), c.key, pollConn)
	c.mu.Lock()
	defer c.unlock()
	c.sock.drop(sockNew)
	if served && !c.dialing() {
		sh.count.accepted.Add(1)
	}
	if !arrived && err == nil && !c.released() && !c.opened() && !c.isEarly() {
		c.emitLocked(pendOpened)
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
