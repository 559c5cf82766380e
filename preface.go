package tcpio

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/sys"
)

// What comes before Opened, and before the TLS of TLSConfig: ListenerOptions.Preface looks at the
// first bytes of an accepted connection. They stay in the socket until it has said what they are,
// so that a connection that waits for more has no buffer. The edge of each further segment makes
// its loop look again.

var (
	errPrefaceEnd  = fmt.Errorf("tcpio: the peer ended within what Preface waits for: %w", io.ErrUnexpectedEOF)
	errPrefaceOver = errors.New("tcpio: Preface has returned, or there is none")
	errNoProxy     = errors.New("tcpio: the peer is in none of ListenerOptions.Proxies")
	errClientPerIP = errors.New("tcpio: the client's address has MaxConnsPerIP connections")
)

// SetRemoteAddr says for whom a proxy has connected. Only [ListenerOptions].Preface may call it,
// and only for a connection of a proxy (FromProxy): otherwise it fails and changes nothing. From
// then on RemoteAddr returns client, a *net.TCPAddr, and so do errors, logs and String. When
// Preface has returned nil, MaxConnsPerIP counts the connection for client, and refuses it if
// client has its connections already. The zero AddrPort keeps the proxy's own address.
//
// header is what ProxyHeader will return; it is kept as it is until the Conn goes. When it is
// called again, the last call counts.
func (c *Conn) SetRemoteAddr(client netip.AddrPort, header any) error {
	c.mu.Lock()
	defer c.unlock()
	switch {
	case c.ended():
		return c.endedLocked("set")
	case c.ext == nil || c.ext.preface == nil || !c.ext.preface.running:
		return c.opErrorLocked("set", errPrefaceOver)
	case !c.FromProxy():
		return c.opErrorLocked("set", errNoProxy)
	}
	c.ext.client.Store(&proxied{netip.AddrPortFrom(client.Addr().Unmap(), client.Port()), header})
	return nil
}

// ProxyHeader returns the header that SetRemoteAddr was given, nil without one. What it is says
// whoever made the Preface function; HeaderOf of the module proxyproto finds its own there. Any
// goroutine may call it; it works after Close.
func (c *Conn) ProxyHeader() any {
	if p := c.proxied(); p != nil {
		return p.header
	}
	return nil
}

// FromProxy reports whether the connection was accepted, with a Preface, from an address in
// [ListenerOptions].Proxies or from a unix socket, to which file permissions admit. Any goroutine
// may call it; it works after Close.
func (c *Conn) FromProxy() bool {
	return c.prefaced() && (!c.peer.IsIP || c.sh.isProxy(c.peer.AddrPort("").Addr()))
}

// isProxy reports whether ip is in Proxies.
func (sh *shared) isProxy(ip netip.Addr) bool {
	for _, p := range sh.opts.Proxies {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// beginPrefaceLocked makes a new connection wait for Preface, which is called at its first edge.
func (c *Conn) beginPrefaceLocked() {
	tm := &timer{kind: timerPreface, c: c}
	c.ext.preface = &preface{timer: tm, seen: -1}
	c.sh.addTimer(tm, c.sh.opts.PrefaceTimeout)
}

// prefaceReadyLocked takes in an edge. Preface is called out of the loop's queue, on a goroutine of
// the loop's: the edge may have been found by a consumer's.
func (c *Conn) prefaceReadyLocked(bits uint32) {
	if bits&(pollHup|pollErr|pollRdHup) != 0 {
		c.ext.preface.over = true
	}
	c.wantLocked(wantPreface)
}

// lookAhead returns what has arrived, if Preface is to be called with it, and marks that it runs.
// The caller gives the block to endPreface.
func (c *Conn) lookAhead() (b *buf.Block, head []byte) {
	c.mu.Lock()
	defer c.unlock()
	if c.ended() || c.ext.preface == nil {
		return nil, nil
	}
	p := c.ext.preface
	if p.running {
		p.again = true
		return nil, nil
	}
	most := c.sh.opts.MaxPreface
	b = c.sh.pool.Get(most)
	n, err := c.lookLocked(b.Buf[:most])
	failed := err != nil && err != ErrWouldBlock && err != io.EOF
	p.over = p.over || failed || err == io.EOF // the edge that says so may be still to come
	if !failed && n > p.seen {
		p.seen, p.running, p.again = n, true, false
		return b, b.Buf[:n:n]
	}
	c.sh.pool.Put(b)
	if failed {
		c.refusePrefaceLocked(err)
	} else if p.over {
		if err = c.socketErrorLocked(); err == nil {
			err = errPrefaceEnd
		}
		c.refusePrefaceLocked(err)
	}
	return nil, nil
}

// endPreface acts on what Preface has returned for head. It reports whether the connection is
// through, so that it may have its actor.
func (c *Conn) endPreface(b *buf.Block, head []byte, n int, err error) (through bool) {
	c.mu.Lock()
	defer c.unlock()
	defer c.sh.pool.Put(b)
	if c.ended() {
		return false
	}
	p := c.ext.preface
	p.running = false
	switch {
	case err == ErrShortPreface && len(head) == c.sh.opts.MaxPreface:
		c.refusePrefaceLocked(fmt.Errorf("tcpio: longer than MaxPreface (%d bytes)", len(head)))
	case err == ErrShortPreface:
		if p.again || p.over {
			c.wantLocked(wantPreface)
		}
	case err != nil:
		c.refusePrefaceLocked(err)
	case n < 0 || n > len(head):
		c.refusePrefaceLocked(fmt.Errorf("tcpio: Preface has taken %d bytes of %d", n, len(head)))
	default:
		return c.discardPrefaceLocked(head[:n]) && c.countClientLocked() && c.prefaceDoneLocked()
	}
	return false
}

// discardPrefaceLocked takes out of the socket what Preface has taken, into p.
func (c *Conn) discardPrefaceLocked(p []byte) (ok bool) {
	for len(p) > 0 {
		n, err := c.receivedLocked(sys.Recv(c.fd, p))
		if err != nil { // somebody else has read: see SyscallConn
			c.refusePrefaceLocked(err)
			return false
		}
		c.sh.count.bytesIn.Add(uint64(n))
		p = p[n:]
	}
	return true
}

// countClientLocked counts the connection for its client, and refuses it if there are too many.
func (c *Conn) countClientLocked() (ok bool) {
	o := &c.sh.opts
	addr, told := c.clientAddr()
	if !told || o.MaxConnsPerIP == 0 {
		return true
	}
	if c.ext.counted = c.sh.perAddress.Take(addr.Addr(), o.MaxConnsPerIP); c.ext.counted {
		return true
	}
	c.sh.count.refused[refusedPerIP].Add(1)
	if len(o.RefuseReply) == 0 || c.entry().tls != nil {
		c.abortLocked(errClientPerIP)
		return false
	}
	_ = c.rawWriteLocked(o.RefuseReply) // a peer that is gone needs none
	c.closeLocked(errClientPerIP)
	return false
}

// prefaceDoneLocked begins TLS, or opens the connection.
func (c *Conn) prefaceDoneLocked() bool {
	p := c.ext.preface
	c.sh.timers.Remove(p.timer)
	c.ext.preface = nil
	if c.sock.has(sockTimed) {
		c.limit.lastIn = c.sh.coarse() // the limits begin here
		c.armLimitLocked()
	}
	if config := c.entry().tls; config != nil {
		c.beginTLSLocked(config, false)
		bits := uint32(pollIn) // the edge of what is there has gone
		if p.over {
			bits |= pollRdHup
		}
		c.handshakeReadyLocked(bits)
		return true
	}
	c.ext.waits.openSend()
	ready, _ := c.peekLocked()
	if ready || !c.isUnheard() {
		c.emitLocked(pendOpened)
	}
	if c.mailReady() > 0 && c.isClaimed() {
		c.queueLocked()
	}
	c.todo.add(todoProgress)
	if ready {
		c.noteEdgeLocked(pollIn)
		c.announceReadableLocked()
	}
	return true
}

// refusePrefaceLocked resets a connection for what Preface, or what has kept it from an answer,
// says. A peer that has only connected, as a health check does, is counted and not reported.
func (c *Conn) refusePrefaceLocked(err error) {
	c.sh.count.refused[refusedPreface].Add(1)
	opErr := c.opErrorLocked("preface", err)
	if p := c.ext.preface; p.seen > 0 || !p.over {
		c.sh.report(ofPeer, opErr)
	}
	c.abortLocked(opErr)
}

// prefaceTimedOutLocked refuses a connection that has taken too long.
func (c *Conn) prefaceTimedOutLocked() {
	if !c.ended() && c.ext.preface != nil {
		c.sh.count.timeouts[TimeoutPreface].Add(1)
		c.refusePrefaceLocked(&TimeoutError{TimeoutPreface, c.sh.opts.PrefaceTimeout})
	}
}

// unadmit gives back what admission took.
func (sh *shared) unadmit(c *Conn) {
	if c.origin != accepted || sh.opts.MaxConnsPerIP == 0 {
		return
	}
	if c.prefaced() && c.ext.counted || !c.prefaced() && c.peer.IsIP {
		sh.perAddress.Give(c.addrPort().Addr())
	}
}
