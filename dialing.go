package tcpio

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// A dialing is one Dial or DialAsync. It goes on in steps, which its loop makes when its timer is
// due, one at a time: whatever happens (an address has answered, a look-up is over, a time has
// come, To has closed) makes the timer due at once (poke) or calls step. Its states:
//
//	looking     a worker looks up the name; without a name it begins with the next state
//	connecting  in one or two lanes; each has a socket under way, or a worker that makes one for it
//	securing    the first socket that was connected is the winner, and does its TLS handshake
//	over        answered or stopped: nothing of it is left
//
// A socket that is connecting is a Conn already, registered with the loop, that nobody knows of
// (Conn.dialing): it has no route, and an edge only pokes. The winner keeps its registration.
type dialing struct {
	// Immutable after start.
	l      *Listener
	config *tls.Config // nil: no TLS

	dialAnswer
	timer timer
	steps atomic.Int32 // steps asked for since the running one began, itself included

	// Guarded by mu, which is taken under a Conn's mu.
	gone  error // why nobody waits for the answer any more
	found *foundAddrs
	made  [2]*madeSocket // for each lane

	// Owned by the step.
	dialPlan
	lanes    [2]lane
	looking  bool
	fallback int64 // when the second lane begins
	winner   *Conn
	ended    bool
}

// A lane tries its addresses one after the other. The second one has those of the other family.
type lane struct {
	next    int32
	retries int32 // of the same address
	conn    *Conn // the attempt under way
	making  bool  // a worker makes its socket
	begun   bool
	limit   int64 // when the attempt has had its share of the time; 0: never
	err     error // of the first address that failed
}

// foundAddrs is what a look-up found, madeSocket what a worker made.
type foundAddrs struct {
	ips  []netip.Addr
	port int
	err  error
}

type madeSocket struct {
	fd  int32
	err error
}

// start makes the dial known. From then on it ends by itself. For a caller it makes the first step
// at once, behind which a connection within the machine is often there.
func (d *dialing) start(ctx context.Context) error {
	d.begin(ctx)
	if err := d.expect(d); err != nil {
		return err
	}
	d.sh.count.dialing.Add(1)
	if !d.l.dials.add(d) {
		d.sh.count.dialing.Add(-1)
		if d.to != nil {
			d.tell(d, nil)
		}
		return net.ErrClosed
	}
	if d.caller != nil {
		d.step()
	} else {
		d.poke()
	}
	return nil
}

// letGo implements membership: To has begun to close.
func (d *dialing) letGo(*Conn) {
	d.leave(net.ErrClosed)
	d.poke()
}

// leave notes that nobody waits for the answer any more. The next step ends the dial.
func (d *dialing) leave(why error) {
	d.mu.Lock()
	d.gone = why
	d.mu.Unlock()
}

func (d *dialing) poke() { d.sh.addTimer(&d.timer, 0) }

// step does what can be done now. While another goroutine is inside, that one does it.
func (d *dialing) step() {
	if d.steps.Add(1) != 1 {
		return
	}
	for n := int32(1); ; {
		d.advance()
		if d.steps.CompareAndSwap(n, 0) {
			return
		}
		n = d.steps.Load()
	}
}

// stop gives the dial up. It reports whether no answer comes.
func (d *dialing) stop() bool {
	if !d.take() {
		return false
	}
	d.step()
	return true
}

func (d *dialing) advance() {
	d.mu.Lock()
	over, gone, found, made := d.over, d.gone, d.found, d.made
	d.found, d.made = nil, [2]*madeSocket{}
	d.mu.Unlock()
	for i, m := range made {
		switch {
		case m == nil:
		case !d.ended:
			d.lanes[i].making = false
			d.register(i, *m)
		case m.err == nil:
			sys.CloseFD(m.fd)
		}
	}
	if d.ended {
		return
	}
	t := now()
	switch {
	case over:
		d.end(nil)
	case d.l.stopping.Load():
		d.fail(d.opError(net.ErrClosed))
	case gone != nil:
		d.fail(d.opError(gone))
	case d.deadline != 0 && t >= d.deadline:
		d.fail(d.opError(context.DeadlineExceeded))
	case d.winner != nil:
		d.secure()
	default:
		d.connect(found, t)
	}
	if !d.ended {
		d.sleep()
	}
}

// connect looks up the name and goes on in the lanes.
func (d *dialing) connect(found *foundAddrs, t int64) {
	switch {
	case found != nil:
		d.looking = false
		err := found.err
		if err == nil {
			err = d.setAddrs(found.ips, found.port)
		}
		if err != nil {
			d.fail(&net.OpError{Op: "dial", Net: d.network, Err: err})
			return
		}
	case len(d.addrs[0]) == 0:
		if !d.looking {
			d.looking = true
			f := &foundAddrs{}
			d.runElsewhere("Dialer.Resolver", func() (err error) {
				f.ips, f.port, err = d.resolve()
				return err
			}, func(err error) { f.err, d.found = err, f })
		}
		return
	}
	first, second := &d.lanes[0], &d.lanes[1]
	if !first.begun {
		first.begun = true
		delay := d.dialer.FallbackDelay
		if delay <= 0 {
			delay = 300 * time.Millisecond // as net.Dialer
		}
		d.fallback = t + int64(delay)
	}
	d.drive(0, t)
	if d.winner == nil && (t >= d.fallback || d.done(0)) {
		second.begun = true
		d.drive(1, t)
	}
	if d.winner == nil && d.done(0) && d.done(1) {
		d.fail(first.err)
	}
}

// done reports whether the lane i has no address left.
func (d *dialing) done(i int) bool {
	ln := &d.lanes[i]
	return ln.conn == nil && !ln.making && int(ln.next) == len(d.addrs[i])
}

// drive looks at the attempt of the lane i, and begins the next one if that has failed.
func (d *dialing) drive(i int, t int64) {
	ln := &d.lanes[i]
	for d.winner == nil && !ln.making {
		if ln.conn != nil {
			done, err := ln.conn.lookConnected(d.mayBeSelf(), d.caller != nil)
			switch {
			case done && err == nil:
				d.winner, ln.conn = ln.conn, nil
				d.won()
				return
			case !done && ln.limit != 0 && t >= ln.limit:
				err = errDialTimeout
			case !done:
				return
			}
			d.drop(ln.conn)
			ln.conn = nil
			d.setback(i, err)
		}
		if int(ln.next) == len(d.addrs[i]) {
			return
		}
		a := d.addrs[i][ln.next]
		ln.next++
		ln.limit = d.share(t, len(d.addrs[i])-int(ln.next)+1)
		if d.hasControl() {
			ln.making = true
			d.openElsewhere(i, a)
			return
		}
		fd, err := d.open(a)
		d.register(i, madeSocket{fd, err})
	}
}

// openElsewhere is open for the lane i.
func (d *dialing) openElsewhere(i int, a net.Addr) {
	m := &madeSocket{fd: -1}
	open := func() (err error) {
		m.fd, err = d.open(a)
		return err
	}
	d.runElsewhere("Dialer.Control", open, func(err error) { m.err, d.made[i] = err, m })
}

// runElsewhere runs f, which calls what may block, and has note take in its error under mu: also
// when f panics or exits. A caller has taken a goroutine already: its look-up need not wait for
// others'.
func (d *dialing) runElsewhere(what string, f func() error, note func(error)) {
	run := func() {
		err := d.ctx.Err()
		hand := func() {
			d.mu.Lock()
			note(err)
			d.mu.Unlock()
			d.step()
		}
		if err != nil || guard(what, func() { err = f() }, func(p *PanicError, _ bool) {
			err = p
			d.sh.logPanic("a function of a Dialer", p, "address", net.JoinHostPort(d.host, d.service))
			hand()
		}) {
			hand()
		}
	}
	if d.caller != nil {
		go run() // it ends with f
	} else {
		d.l.dialWorkers.Do(run)
	}
}

// setback notes why the attempt at the last address of the lane i failed, or has it tried again.
func (d *dialing) setback(i int, err error) {
	ln := &d.lanes[i]
	call, ok := err.(*os.SyscallError) // not errors.Is: Control's error has methods of the user's
	if ok && (call == errSelf || call.Err == syscall.EADDRNOTAVAIL) && ln.retries < 2 && !d.mayBeSelf() {
		ln.retries++
		ln.next--
		return
	}
	ln.retries = 0
	if ln.err == nil {
		ln.err = &net.OpError{Op: "dial", Net: d.network, Source: d.dialer.LocalAddr, Addr: d.addrs[i][ln.next-1], Err: err}
	}
}

// register makes a Conn of a socket that is connecting, or notes why there is none.
func (d *dialing) register(i int, m madeSocket) {
	if m.err != nil {
		d.setback(i, m.err)
		return
	}
	ln := &d.lanes[i]
	a := d.addrs[i][ln.next-1]
	c := &Conn{sh: d.sh, id: lastID.Add(1), peer: sys.AddrOf(a), origin: dialed, fd: m.fd, claim: unclaimed}
	x := c.extLocked() // nobody else sees c yet
	x.remote, x.dial, x.connecting = a, d, true
	if !c.peer.IsIP || d.dialer.MultipathTCP() && sys.Multipath(m.fd) {
		c.sock.add(sockUnsure) // a short read of it proves nothing
	}
	if err := d.l.register(c); err != nil {
		d.setback(i, err)
		return
	}
	ln.conn = c // an edge pokes, if it is not connected already
}

// drop ends a connection that is not wanted.
func (d *dialing) drop(c *Conn) {
	c.mu.Lock()
	c.ext.dial = nil
	c.releaseLocked(net.ErrClosed)
	c.unlock()
}

// won begins what follows when the winner is connected.
func (d *dialing) won() {
	for i := range d.lanes {
		if c := d.lanes[i].conn; c != nil {
			d.lanes[i].conn = nil
			d.drop(c)
		}
	}
	c := d.winner
	c.mu.Lock()
	if !c.ended() {
		c.ext.connecting = false
		c.sh.count.accepted.Add(1)
		if peer, local, ok := sys.LinkLocalAddrs(c.fd, c.ext.remote); ok {
			c.ext.remote, c.ext.local = peer, local
			c.peer = sys.AddrOf(peer) // nobody has seen c yet
		}
		if d.config != nil {
			c.beginTLSLocked(d.config, true)
		}
		c.beginLimitsLocked()
		if d.config != nil {
			c.beginClientLocked()
		}
	}
	c.unlock()
	d.secure()
}

// secure answers when the winner's handshake is done, or it has none.
func (d *dialing) secure() {
	c := d.winner
	c.mu.Lock()
	if !c.ended() && c.handshaking() {
		c.unlock()
		return // which pokes
	}
	if c.ended() || !d.take() {
		err := c.ext.err
		if err == nil {
			err = net.ErrClosed
		}
		c.unlock()
		d.fail(err)
		return
	}
	answer := d.beginLocked(c)
	c.unlock()
	d.end(answer)
}

// fail answers with err, unless the dial was stopped.
func (d *dialing) fail(err error) {
	if !d.take() {
		d.end(nil)
		return
	}
	d.sh.count.dialsFailed.Add(1)
	if _, ok := err.(*net.OpError); !ok {
		err = d.opError(err)
	}
	d.end(d.failed(err))
}

// end lets go of everything, and sends To or a caller the answer, if there is one. The loops run
// until then.
func (d *dialing) end(answer *Dialed) {
	d.ended = true
	d.sh.timers.Remove(&d.timer)
	if d.cancel != nil {
		d.cancel()
	}
	for i := range d.lanes {
		if c := d.lanes[i].conn; c != nil {
			d.lanes[i].conn = nil
			d.drop(c)
		}
	}
	delivered := answer != nil && answer.Conn != nil
	if d.to != nil && !d.tell(d, answer) {
		delivered = false
	}
	if c := d.winner; c != nil && !delivered {
		d.giveUp(c)
	}
	d.sh.count.dialing.Add(-1)
	d.l.dials.remove(d)
	if d.l.stopping.Load() {
		d.l.checkAllClosed()
	}
	if d.caller != nil {
		d.caller <- answer
	}
}

// giveUp ends the winner of a dial that was stopped. One whose handshake has failed is closing, and
// sends its alert.
func (d *dialing) giveUp(c *Conn) {
	c.mu.Lock()
	c.ext.dial = nil
	if !c.ended() {
		c.abortLocked(net.ErrClosed)
	}
	c.unlock()
}

// sleep has the next step made in time.
func (d *dialing) sleep() {
	next := d.deadline
	consider := func(at int64) {
		if at != 0 && (next == 0 || at < next) {
			next = at
		}
	}
	if d.winner == nil && d.lanes[0].begun {
		for i := range d.lanes {
			if d.lanes[i].conn != nil {
				consider(d.lanes[i].limit)
			}
		}
		if !d.lanes[1].begun && len(d.addrs[1]) > 0 {
			consider(d.fallback)
		}
	}
	if next != 0 {
		d.sh.addTimer(&d.timer, time.Duration(next-now()))
	}
}

// opError is err with the address that was tried last.
func (d *dialing) opError(err error) error {
	if err == context.DeadlineExceeded {
		err = errDialTimeout
	}
	op := &net.OpError{Op: "dial", Net: d.network, Source: d.dialer.LocalAddr, Err: err}
	if addrs := d.addrs[0]; len(addrs) > 0 {
		op.Addr = addrs[max(d.lanes[0].next-1, 0)]
	}
	return op
}
