package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// A front is one listening address and the clients that have connected there.
type front struct {
	name  string
	log   *slog.Logger
	shape shape
	l     *tcpio.Listener
	spare *tcpio.Listener // the proxy's, without an address

	routing  atomic.Pointer[routing] // the configuration's of the moment
	clients  atomic.Int64            // sessions
	accepted atomic.Uint64           // sessions that there ever were; tcpio counts the upstreams' connections too
	ends     [endKinds]atomic.Uint64
}

// A shape is what a tcpio.Listener is made of. For another shape the socket moves to another one,
// and the connections stay with the first until they end.
type shape struct {
	name, listen  string
	tls, routes   bool
	proxies       string // accept_proxy_from, in one text
	hello, idle   time.Duration
	most, perPeer int
}

// A routing says where connections go. It does not change.
type routing struct {
	to     *pool // nil: nowhere
	routes []route
	tls    *tls.Config
}

type route struct {
	names, alpn []string
	to          *pool
}

func shapeOf(name string, cfg *listenerConfig) shape {
	return shape{
		name: name, listen: cfg.Listen, tls: cfg.TLS != nil, routes: len(cfg.Routes) > 0,
		proxies: fmt.Sprint(cfg.AcceptProxyFrom), hello: cfg.HelloTimeout.Duration,
		idle: cfg.IdleTimeout.Duration, most: cfg.MaxConns.n, perPeer: cfg.MaxConnsPerClient.n,
	}
}

// openFront listens as cfg says, on the socket of old if there is one. Nobody is served before
// route and serve.
func (p *proxy) openFront(name string, cfg *listenerConfig, old *front) (*front, error) {
	f := &front{name: name, spare: p.spare, log: p.log.With("listener", name), shape: shapeOf(name, cfg)}
	o := &tcpio.ListenerOptions{
		Addr:             cfg.Listen,
		MaxConns:         2 * cfg.MaxConns.n, // those to upstreams count too
		Admit:            f.admit,
		MaxConnsPerIP:    cfg.MaxConnsPerClient.n,
		HandshakeTimeout: cfg.HelloTimeout.Duration,
		EOFTimeout:       maxTime, // an upstream may think for long about what a client has sent
		DrainTimeout:     maxTime, // end has a limit of its own
		NewActor:         f.newSession,
		Logger:           f.log,
	}
	if cfg.TLS != nil {
		o.TLSConfig = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return f.routing.Load().tls, nil
		}}
	}
	setPreface(o, cfg)
	if old != nil {
		file, err := old.l.File()
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if o.Listener, err = net.FileListener(file); err != nil {
			return nil, err
		}
		o.Addr = ""
	}
	l, err := tcpio.Listen(o)
	if err != nil {
		if o.Listener != nil {
			o.Listener.Close()
		}
		return nil, fmt.Errorf("listeners.%s: %w", name, err)
	}
	f.l = l
	return f, nil
}

// admit holds max_conns. A session counts from Opened on: a client may fail before that.
func (f *front) admit(netip.AddrPort) error {
	if most := f.shape.most; most > 0 && f.clients.Load() >= int64(most) {
		return errFull
	}
	return nil
}

func (f *front) newSession(c *tcpio.Conn) tcpio.Actor { return &session{front: f, client: c} }

// route has connections that come from now on go where cfg says.
func (f *front) route(cfg *listenerConfig, pools map[string]*pool) {
	r := &routing{to: pools[cfg.To]}
	for _, rc := range cfg.Routes {
		r.routes = append(r.routes, route{names: rc.Names, alpn: rc.ALPN, to: pools[rc.To]})
	}
	if cfg.TLS != nil {
		r.tls = cfg.TLS.server
	}
	f.routing.Store(r)
}

// dial dials on a loop of the front's own, so that a pair crosses none. One that has stopped
// accepting dials no more, but its clients may still wait for an upstream.
func (f *front) dial(r tcpio.DialRequest) (stop func() bool, err error) {
	if stop, err = f.l.DialAsync(r); errors.Is(err, net.ErrClosed) {
		return f.spare.DialAsync(r)
	}
	return stop, err
}

// end stops accepting, lets connections go on until ctx ends, and then resets those that are left.
func (f *front) end(ctx context.Context) {
	if err := f.l.Shutdown(ctx); err != nil {
		f.log.Warn("connections were cut off", "err", err)
	}
}

// pick returns the pool of a connection, nil if there is none. h may be nil: without TLS.
func (r *routing) pick(h *hello) *pool {
	if h != nil {
		for _, route := range r.routes {
			if route.takes(h) {
				return route.to
			}
		}
	}
	return r.to
}

func (r *route) takes(h *hello) bool {
	if len(r.names) > 0 && !slices.ContainsFunc(r.names, func(n string) bool { return covers(n, h.name) }) {
		return false
	}
	return len(r.alpn) == 0 || slices.ContainsFunc(r.alpn, func(p string) bool { return slices.Contains(h.alpn, p) })
}

// covers reports whether pattern, a name or "*." in front of one, takes name.
func covers(pattern, name string) bool {
	pattern, name = strings.ToLower(pattern), strings.TrimSuffix(strings.ToLower(name), ".")
	if below, ok := strings.CutPrefix(pattern, "*"); ok {
		return len(name) > len(below) && strings.HasSuffix(name, below)
	}
	return name == pattern
}

// clientOf is the client's address for client_hash.
func clientOf(c *tcpio.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

var (
	errNoRoute = errors.New("no route takes it")
	errFull    = errors.New("max_conns is reached")
)

// An end is how a client's connection ended.
type end int

const (
	endDone     end = iota // both sides have ended in order
	endClient              // a reset or a failure on the client's side
	endUpstream            // on the upstream's side
	endIdle                // idle_timeout
	endRefused             // there was no upstream for it
	endCut                 // by when_down, or by the end of the program
	endKinds
)

var endNames = [endKinds]string{"done", "client_failed", "upstream_failed", "idle", "refused", "cut"}

type endCount struct {
	Name string `json:"name"`
	N    uint64 `json:"n"`
}

func (f *front) status(leaving bool) listenerStatus {
	stats := f.l.Stats()
	s := listenerStatus{
		Name: f.name, Addr: f.l.Addr().String(), Leaving: leaving,
		Open: int(f.clients.Load()), Accepted: f.accepted.Load(),
		Refused: stats.Refused.Conns + stats.Refused.PerIP + stats.Refused.Admit,
	}
	for i := range f.ends {
		s.Ends = append(s.Ends, endCount{endNames[i], f.ends[i].Load()})
	}
	return s
}
