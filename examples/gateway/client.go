package main

import (
	"bytes"
	"fmt"
	"io"
	"net"

	"github.com/rabbit-backend/tcpio"
)

// A client is a connection of a client of Redis. Its requests go to one upstream at a time, so that
// its replies come in order: before it changes to another one, or is answered by the gateway
// itself, all of them must be there.
type client struct {
	g     *gateway
	conn  *tcpio.Conn
	proto int
	up    *upstream // of a pool
	lease *upstream // of its own, instead of up

	outstanding int // replies to come
	splitter    splitter
	held        []byte // a request that cannot be sent yet; nothing is read meanwhile
	holding     bool
	many        bool // it is held for the number of replies to come
	multi       bool // a transaction is open, or keys are watched, on lease
	watch       bool
	relayed     bool // to lease, for life
	ended       bool // the client has sent its last byte
	closing     bool
	draining    bool
}

const (
	mostOutstanding = 1024 // replies to come, of one client; then it is not read until half of them are there
	keptRequest     = 4 << 10
)

// pump carries out requests, as far as that is possible now.
func (c *client) pump() {
	if c.closing || c.relayed {
		return
	}
	if c.holding {
		if !c.request(c.held) {
			return
		}
		if c.holding = false; cap(c.held) > keptRequest {
			c.held = nil
		}
	}
	for request, err := range c.conn.Frames(c.splitter.split) {
		switch {
		case c.closing || c.relayed:
			return
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			c.ended = true
			c.mayClose()
			return
		case err != nil:
			return // Closed follows
		case !c.request(request):
			c.held, c.holding = append(c.held[:0], request...), true
			return
		}
		if c.closing || c.relayed {
			return
		}
	}
}

// request carries out a request. It returns false if that is not possible yet; what may make it
// possible calls pump.
func (c *client) request(request []byte) bool {
	if c.splitter.bad != nil {
		return c.alone(func() {
			c.write(fmt.Appendf(nil, "-ERR %v\r\n", c.splitter.bad))
			c.close()
		})
	}
	var few [4][]byte
	args, ok := few[:0], true
	if request[0] == '*' {
		args = arguments(args, request, len(few))
	} else if args, ok = words(bytes.TrimRight(request, "\r\n")); ok && len(args) > 0 {
		request = appendRequest(nil, args...)
	}
	switch {
	case !ok:
		c.splitter.bad = protocolError("unbalanced quotes in request")
		return c.request(request)
	case len(args) == 0:
		return true // an empty line
	case c.outstanding >= mostOutstanding:
		c.many = true
		return false
	}
	var upper [32]byte
	name := ""
	if len(args[0]) <= len(upper) {
		name = string(bytes.ToUpper(args[0]))
	}
	if name == "XREAD" || name == "XREADGROUP" || name == "HELLO" {
		args = arguments(nil, request, 1<<20)
	}
	class := classify(name, args)
	if class == local && c.multi && name != "QUIT" && name != "HELLO" {
		class = lease // it is queued, as in Redis
	}
	switch {
	case class == refused:
		return c.alone(func() { c.write([]byte("-ERR " + name + " is not possible through the gateway\r\n")) })
	case class == local:
		return c.answer(name, args)
	case class == forLife:
		return c.relay(request)
	case class == lease || c.lease != nil:
		if c.lease == nil && !c.takeLease() {
			return c.outstanding == 0 // then it was answered
		}
		if !c.lease.room(c) {
			return false
		}
		c.transaction(name)
		c.outstanding++
		c.lease.push(c, request, class == lease && name != "MULTI" && name != "WATCH" && !c.multi)
		return true
	}
	if c.up == nil || c.up.state != ready {
		if c.up = c.g.pools[c.proto-2].take(c.up); c.up == nil {
			c.write(upstreamLost(c.g.pools[c.proto-2].why))
			return true
		}
	}
	if !c.up.room(c) {
		return false
	}
	c.outstanding++
	c.up.push(c, request, false)
	return true
}

// take is pick for a client that has used old.
func (p *pool) take(old *upstream) *upstream {
	u := p.pick()
	if old != nil {
		old.clients--
	}
	if u != nil {
		u.clients++
	}
	return u
}

// alone calls f when no reply is to come: what the gateway answers by itself has its turn too.
func (c *client) alone(f func()) bool {
	if c.outstanding > 0 {
		return false
	}
	f()
	return true
}

// answer carries out a request that needs no Redis.
func (c *client) answer(name string, args [][]byte) bool {
	if c.outstanding > 0 {
		return false
	}
	sub := ""
	if len(args) > 1 {
		sub = string(bytes.ToUpper(args[1]))
	}
	switch {
	case name == "QUIT":
		c.write([]byte("+OK\r\n"))
		c.close()
	case name == "HELLO":
		return c.sayHello(sub)
	case sub == "GETNAME" && c.proto == 3:
		c.write([]byte("_\r\n"))
	case sub == "GETNAME":
		c.write([]byte("$-1\r\n"))
	case sub == "ID":
		c.write(fmt.Appendf(nil, ":%d\r\n", c.conn.ID()))
	case sub == "MAINT_NOTIFICATIONS":
		c.write([]byte("-ERR unknown subcommand 'MAINT_NOTIFICATIONS'\r\n"))
	default: // SELECT 0, CLIENT SETINFO and SETNAME
		c.write([]byte("+OK\r\n"))
	}
	return true
}

// sayHello changes the protocol. Redis's own greeting is that of one of the connections that speak
// it.
func (c *client) sayHello(version string) bool {
	proto := c.proto
	switch version {
	case "":
	case "2", "3":
		proto = int(version[0] - '0')
	default:
		c.write([]byte("-NOPROTO unsupported protocol version\r\n"))
		return true
	}
	u := c.g.pools[proto-2].pick()
	switch {
	case u == nil:
		c.write(upstreamLost(c.g.pools[proto-2].why))
		return true
	case !u.room(c):
		return false
	case c.lease != nil && proto != c.proto:
		c.write([]byte("-ERR HELLO is not possible in a transaction through the gateway\r\n"))
		return true
	}
	if proto != c.proto {
		if c.up != nil {
			c.up.clients--
			c.up = nil
		}
		c.proto = proto
	}
	c.write(u.hello)
	return true
}

// takeLease gives the client a connection of its own. It returns false if there is none, and
// answers that if no reply is to come.
func (c *client) takeLease() bool {
	if c.outstanding > 0 {
		return false
	}
	u := c.g.private(c.proto)
	switch {
	case u == nil:
		c.write([]byte("-ERR too many clients with a connection of their own\r\n"))
		return false
	case u.state == gone:
		c.write(upstreamLost(net.ErrClosed)) // the gateway is stopping
		return false
	}
	c.lease, u.owner = u, c
	return true
}

// relay joins the client to a connection of its own, from this request on.
func (c *client) relay(request []byte) bool {
	if c.outstanding > 0 {
		return false
	}
	if c.lease == nil && !c.takeLease() {
		return true
	}
	if !c.lease.room(c) {
		return false
	}
	u := c.lease
	if _, err := u.conn.TryWrite(append(u.out, request...)); err != nil {
		c.cut(err.Error())
		return true
	}
	u.out = nil
	c.relayed = true
	if _, err := c.conn.Relay(u.conn, nil); err != nil {
		c.cut(err.Error())
	}
	return true
}

// write sends a reply, or a part of one. A client that does not read is cut: its replies are in
// nobody's way.
func (c *client) write(p []byte) {
	if c.closing {
		return
	}
	if _, err := c.conn.TryWrite(p); err == tcpio.ErrWouldBlock {
		c.cut("it does not read its replies")
	}
	// After any other error Closed comes.
}

// answered is called behind so many replies.
func (c *client) answered(n int) {
	if n == 0 {
		return
	}
	c.outstanding -= n
	if c.outstanding == 0 {
		c.endLease()
	}
	c.mayClose()
	if c.holding && (c.outstanding == 0 || c.many && c.outstanding <= mostOutstanding/2) {
		c.many = false
		c.g.woken = append(c.g.woken, c)
	}
}

// endLease gives the connection back that the client had to itself, if nothing is left of it there.
func (c *client) endLease() {
	if u := c.lease; u != nil && u.state == ready && !c.multi && !c.watch && !c.relayed {
		c.lease = nil
		c.g.giveBack(u)
	}
}

// leaseLost is called when the client's own connection is lost. A transaction cannot go on.
func (c *client) leaseLost(why error) {
	c.lease = nil
	if c.closing {
		return
	}
	if c.holding { // the request that the connection was for
		c.write(upstreamLost(why))
		c.holding = false
		c.g.woken = append(c.g.woken, c)
	}
	if c.multi || c.watch {
		c.close()
	}
}

// mayClose ends a client that has ended, or is to be drained, once it has its replies. A blocking
// command of one that has ended is given up, as Redis does: a client that is gone must not take an
// element along.
func (c *client) mayClose() {
	if u := c.lease; u != nil && c.ended && !u.part && u.head < len(u.pending) && u.pending[u.head].blocks {
		c.lease, u.owner = nil, nil
		u.abandon()
		c.close()
	}
	if (c.ended || c.draining && !c.multi) && c.outstanding == 0 && !c.holding && !c.relayed {
		c.close()
	}
}

func (c *client) close() {
	c.closing = true
	c.conn.Close()
}

// cut ends a client that cannot get what it is to get.
func (c *client) cut(why string) {
	if !c.closing {
		c.g.logf("client %v cut off: %s", c.conn.RemoteAddr(), why)
	}
	c.closing = true
	c.conn.Abort()
}

// closed lets go of what the client had.
func (c *client) closed() {
	c.closing = true
	if c.up != nil {
		c.up.clients--
		c.up = nil
	}
	if u := c.lease; u != nil {
		u.owner, c.lease = nil, nil
		if u.state == ready && c.outstanding == 0 && !c.multi && !c.watch && !c.relayed {
			c.g.giveBack(u)
		} else {
			u.abandon()
		}
	}
}
