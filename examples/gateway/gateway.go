package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
)

type config struct {
	listen, to     string
	conns          int           // of each pool
	private        int           // connections for one client each
	timeout        time.Duration // of a dial, and of a reply
	maxRequest     int           // bytes
	clientBuffer   int           // bytes of replies that wait for a client
	maxBuffered    int           // bytes that wait for all
	maxClients     int
	drain          time.Duration
	user, password string
}

func (c *config) network() string {
	if strings.HasPrefix(c.to, "/") {
		return "unix"
	}
	return "tcp"
}

// A gateway has all state. The goroutine that runs it receives every event of every connection, so
// that nothing here has a lock.
type gateway struct {
	cfg   config
	l     *tcpio.Listener
	log   io.Writer
	pools [2]*pool // for the protocol's versions 2 and 3

	clients  int
	idle     [2][]*upstream         // connections for one client each that nobody has
	privates map[*upstream]struct{} // such connections, idle or not
	dirty    []*upstream            // have something to send
	woken    []*client              // may go on with what they hold
	now      time.Time              // of the batch
	draining bool

	retries  chan *upstream // are to be dialed again
	over     chan struct{}  // closed at the end
	watchdog *time.Timer    // runs while a reply is to come
	watching bool
	buf      [64 << 10]byte
	logged   time.Time
	silent   int // lines that were left out since
}

// run serves until ctx ends, and returns when every connection has ended.
func run(ctx context.Context, out, log io.Writer, cfg config) error {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:         cfg.listen,
		MaxConns:     cfg.maxClients,
		WriteBuffer:  cfg.clientBuffer,
		MaxFrame:     cfg.maxRequest + 64<<10, // the splitter's bound comes first, and is answered
		EOFTimeout:   time.Hour,               // a client that has sent its last byte may wait for Redis
		DrainTimeout: cfg.drain,
		MaxBuffered:  cfg.maxBuffered,
	})
	if err != nil {
		return err
	}
	g := &gateway{cfg: cfg, l: l, log: log, retries: make(chan *upstream), over: make(chan struct{}), privates: map[*upstream]struct{}{}, watchdog: time.NewTimer(time.Hour)}
	g.watchdog.Stop()
	for i := range g.pools {
		p := &pool{proto: i + 2}
		for range cfg.conns {
			p.ups = append(p.ups, &upstream{g: g, proto: p.proto, pool: p})
		}
		g.pools[i] = p
	}
	events := l.Events()
	var group errgroup.Group
	group.Go(func() error { return l.Serve(ctx) })
	group.Go(func() error {
		g.loop(events)
		return nil
	})
	fmt.Fprintln(out, "listening on", l.Addr())
	return group.Wait()
}

// most is how many events are handled before what they have gathered is sent.
const most = 256

func (g *gateway) loop(events <-chan tcpio.Event) {
	defer close(g.over)
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				return
			}
			g.now = time.Now()
			g.handle(ev)
			for n := 1; n < most && len(events) > 0; n++ {
				if ev, ok = <-events; ok {
					g.handle(ev)
				}
			}
		case u := <-g.retries:
			g.now = time.Now()
			u.dial()
		case <-g.watchdog.C:
			g.now = time.Now()
			g.lookForLate()
		}
		g.settle()
	}
}

func (g *gateway) handle(ev tcpio.Event) {
	switch ev := ev.(type) {
	case tcpio.Dialed:
		ev.Value.(*upstream).dialed(ev)
		return
	case tcpio.Failed:
		g.logf("%v", ev.Err)
		return
	}
	c := tcpio.ConnOf(ev)
	if _, ok := ev.(tcpio.Opened); ok && !c.Dialed() {
		g.clients++
		c.SetData(&client{g: g, conn: c, proto: 2, splitter: splitter{max: g.cfg.maxRequest}})
		return
	}
	switch of := c.Data().(type) {
	case *client:
		of.handle(ev)
	case *upstream:
		of.handle(ev)
	}
	g.mayStop()
}

func (c *client) handle(ev tcpio.Event) {
	switch ev.(type) {
	case tcpio.Readable:
		c.pump()
	case tcpio.Draining:
		c.g.draining, c.draining = true, true
		c.mayClose()
	case tcpio.Closed:
		c.g.clients--
		c.closed()
	}
}

func (u *upstream) handle(ev tcpio.Event) {
	switch ev := ev.(type) {
	case tcpio.Readable:
		u.readable(u.g.buf[:])
	case tcpio.Writable:
		u.writable()
	case tcpio.Draining:
		u.g.draining = true
	case tcpio.Closed:
		if c := u.owner; c != nil && c.relayed {
			u.owner, c.lease = nil, nil // the relay has ended it
			u.state = gone
			delete(u.g.privates, u)
			return
		}
		err := ev.Conn.Err()
		if err == nil {
			err = io.EOF
		}
		u.lost(err)
	}
}

// settle does what the events of a batch have left to do, until nothing is left.
func (g *gateway) settle() {
	for len(g.woken) > 0 || len(g.dirty) > 0 {
		woken := g.woken
		g.woken = nil
		for _, c := range woken {
			c.pump()
		}
		dirty := g.dirty
		g.dirty = nil
		for _, u := range dirty {
			if u.dirty = false; !u.stalled {
				u.flush()
			}
		}
	}
}

// private returns a connection that nobody has, nil if there are too many.
func (g *gateway) private(proto int) *upstream {
	idle := &g.idle[proto-2]
	for n := len(*idle); n > 0; n = len(*idle) {
		u := (*idle)[n-1]
		*idle = (*idle)[:n-1]
		if u.state == ready { // it has not been lost meanwhile
			return u
		}
	}
	if len(g.privates) >= g.cfg.private {
		return nil
	}
	u := &upstream{g: g, proto: proto}
	g.privates[u] = struct{}{}
	u.dial()
	return u
}

// mostIdle is how many connections wait for a client that needs one.
const mostIdle = 32

// giveBack takes a connection back that its client has left as it was.
func (g *gateway) giveBack(u *upstream) {
	u.owner = nil
	if len(g.idle[u.proto-2]) >= mostIdle {
		u.abandon()
		return
	}
	g.idle[u.proto-2] = append(g.idle[u.proto-2], u)
}

// abandon ends a connection that no other client may have.
func (u *upstream) abandon() {
	if u.state == gone {
		return
	}
	u.state = gone
	delete(u.g.privates, u)
	if u.conn != nil {
		u.conn.SetData(nil)
		u.conn.Abort()
	}
}

// after has u dialed again.
func (g *gateway) after(pause time.Duration, u *upstream) {
	time.AfterFunc(pause, func() {
		select {
		case g.retries <- u:
		case <-g.over:
		}
	})
}

// watch has the watchdog look for replies that do not come.
func (g *gateway) watch() {
	if !g.watching {
		g.watching = true
		g.watchdog.Reset(g.cfg.timeout / 4)
	}
}

func (g *gateway) lookForLate() {
	g.watching = false
	look := func(u *upstream) {
		if u.late() {
			u.lost(fmt.Errorf("no reply within %v", g.cfg.timeout))
		}
		if u.timed() {
			g.watch()
		}
	}
	for _, p := range g.pools {
		for _, u := range p.ups {
			look(u)
		}
	}
	for u := range g.privates {
		look(u)
	}
}

// mayStop closes the connections to Redis when Shutdown has begun and the last client has gone.
func (g *gateway) mayStop() {
	if !g.draining || g.clients > 0 {
		return
	}
	for c := range g.l.Conns() {
		if c.Dialed() {
			c.Close()
		}
	}
}

// logf writes a line, one a second at most.
func (g *gateway) logf(format string, args ...any) {
	if g.now.Sub(g.logged) < time.Second {
		g.silent++
		return
	}
	line := fmt.Sprintf(format, args...)
	if g.silent > 0 {
		line += fmt.Sprintf(" (%d lines left out)", g.silent)
	}
	g.logged, g.silent = g.now, 0
	fmt.Fprintln(g.log, "gateway:", line)
}
