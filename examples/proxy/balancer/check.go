package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// A checker looks at what a configuration means, once its form is right. It goes on behind a
// mistake, so that one run shows all of them.
type checker struct {
	cfg    *config
	folder string
	file   *ast.File // nil for flags
	faults []*fault
}

func (c *checker) bad(p place, format string, args ...any) {
	f := &fault{text: p.String() + ": " + fmt.Sprintf(format, args...)}
	if c.file != nil {
		f.line, f.column = p.find(c.file)
	}
	c.faults = append(c.faults, f)
}

func (c *checker) check() {
	cfg := c.cfg
	if len(cfg.Listeners) == 0 {
		c.bad(place{"listeners"}, "there is none")
	}
	if len(cfg.Pools) == 0 {
		c.bad(place{"pools"}, "there is none")
	}
	c.positive(place{"drain"}, cfg.Drain)
	if cfg.Admin != "" {
		c.address(place{"admin"}, cfg.Admin)
	}
	taken := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(cfg.Listeners)) {
		at, l := place{"listeners", name}, cfg.Listeners[name]
		if l == nil {
			c.bad(at, "is empty")
			continue
		}
		if other, ok := taken[l.Listen]; ok && l.Listen != "" && !strings.HasSuffix(l.Listen, ":0") {
			c.bad(at.at("listen"), "the listener %q has this address already", other)
		}
		taken[l.Listen] = name
		c.listener(at, l)
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Pools)) {
		at, p := place{"pools", name}, cfg.Pools[name]
		if p == nil {
			c.bad(at, "is empty")
			continue
		}
		c.pool(at, p)
	}
}

func (c *checker) listener(at place, l *listenerConfig) {
	c.address(at.at("listen"), l.Listen)
	if l.To != "" || len(l.Routes) == 0 {
		c.to(at.at("to"), l.To)
	}
	for i, r := range l.Routes {
		at := at.at("routes", i)
		c.to(at.at("to"), r.To)
		if len(r.Names) == 0 && len(r.ALPN) == 0 {
			c.bad(at, "names or alpn has to say which connections it takes")
		}
		for i, n := range r.Names {
			bare := strings.TrimPrefix(n, "*.")
			if bare == "" || strings.ContainsAny(bare, "*:/ ") {
				c.bad(at.at("names", i), "%q is no server name, nor one behind \"*.\"", n)
			}
		}
		c.alpn(at.at("alpn"), r.ALPN)
		if l.TLS != nil && len(r.ALPN) > 0 && !slices.ContainsFunc(r.ALPN, func(p string) bool { return slices.Contains(l.TLS.ALPN, p) }) {
			c.bad(at.at("alpn"), "tls.alpn has none of these, so that none is agreed on")
		}
	}
	c.positive(at.at("hello_timeout"), l.HelloTimeout)
	c.notNegative(at.at("idle_timeout"), l.IdleTimeout)
	c.count(at.at("max_conns"), l.MaxConns, 0)
	c.count(at.at("max_conns_per_client"), l.MaxConnsPerClient, 0)
	if l.TLS != nil {
		c.serverTLS(at.at("tls"), l.TLS)
	}
}

func (c *checker) pool(at place, p *poolConfig) {
	if _, ok := balancers[p.Balance]; !ok {
		c.bad(at.at("balance"), "%q is none of %s", p.Balance, quoted(slices.Sorted(maps.Keys(balancers))))
	}
	if p.WhenDown != keepConns && p.WhenDown != resetConns {
		c.bad(at.at("when_down"), "%q is neither %q nor %q", p.WhenDown, keepConns, resetConns)
	}
	if len(p.Upstreams) == 0 {
		c.bad(at.at("upstreams"), "there is none")
	}
	seen := make(map[string]bool)
	for i, u := range p.Upstreams {
		at := at.at("upstreams", i)
		c.upstream(at.at("addr"), u.Addr)
		if seen[u.Addr] {
			c.bad(at.at("addr"), "%q is in this pool already", u.Addr)
		}
		seen[u.Addr] = true
		c.count(at.at("max_conns"), u.MaxConns, 0)
	}
	c.positive(at.at("connect_timeout"), p.ConnectTimeout)
	c.count(at.at("retries"), p.Retries, 0)
	c.count(at.at("queue"), p.Queue, 0)
	c.positive(at.at("queue_timeout"), p.QueueTimeout)

	h, e := p.Health, p.Eject
	if h.Interval.Duration >= 0 {
		if h.Interval.Duration < 10*time.Millisecond {
			c.bad(at.at("health", "interval"), "is below 10ms; -1s is no checks")
		}
		c.positive(at.at("health", "timeout"), h.Timeout)
	}
	c.count(at.at("health", "rise"), h.Rise, 1)
	c.count(at.at("health", "fall"), h.Fall, 1)
	if len(h.Expect) > 1024 {
		c.bad(at.at("health", "expect"), "is longer than 1024 bytes")
	}
	c.count(at.at("eject", "failures"), e.Failures, 1)
	c.positive(at.at("eject", "for"), e.For)
	if e.Max.Duration < e.For.Duration {
		c.bad(at.at("eject", "max"), "is shorter than for")
	}
	if p.TLS != nil && p.TLS.CA != "" {
		pem, err := os.ReadFile(c.path(p.TLS.CA))
		p.TLS.roots = x509.NewCertPool()
		switch {
		case err != nil:
			c.bad(at.at("tls", "ca"), "%v", err)
		case !p.TLS.roots.AppendCertsFromPEM(pem):
			c.bad(at.at("tls", "ca"), "%s holds no certificate", p.TLS.CA)
		}
	}
}

func (c *checker) serverTLS(at place, t *tlsConfig) {
	if len(t.Certificates) == 0 {
		c.bad(at.at("certificates"), "there is none; to pass TLS on to the upstreams, leave tls out")
	}
	t.server = &tls.Config{NextProtos: t.ALPN}
	for i, pair := range t.Certificates {
		cert, err := tls.LoadX509KeyPair(c.path(pair.Cert), c.path(pair.Key))
		if err != nil {
			c.bad(at.at("certificates", i), "%v", err)
			continue
		}
		t.server.Certificates = append(t.server.Certificates, cert)
	}
	c.alpn(at.at("alpn"), t.ALPN)
}

// path makes a path of the file one of the process.
func (c *checker) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(c.folder, p)
}

func (c *checker) to(at place, name string) {
	switch _, ok := c.cfg.Pools[name]; {
	case name == "":
		c.bad(at, "has to name a pool")
	case !ok:
		c.bad(at, "there is no pool %q", name)
	}
}

// address checks host:port, where the host may be empty.
func (c *checker) address(at place, addr string) {
	_, port, err := net.SplitHostPort(addr)
	_, perr := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil:
		c.bad(at, "%q is not of the form host:port", addr)
	case perr != nil:
		c.bad(at, "%q is no port from 0 to 65535", port)
	}
}

func (c *checker) upstream(at place, addr string) {
	host, port, err := net.SplitHostPort(addr)
	switch n, perr := strconv.ParseUint(port, 10, 16); {
	case err != nil || host == "":
		c.bad(at, "%q is not of the form host:port", addr)
	case perr != nil || n == 0:
		c.bad(at, "%q is no port from 1 to 65535", port)
	}
}

func (c *checker) alpn(at place, protocols []string) {
	for i, p := range protocols {
		if len(p) == 0 || len(p) > 255 {
			c.bad(at.at(i), "a protocol's name has 1 to 255 bytes")
		}
	}
}

func (c *checker) positive(at place, d duration) {
	if d.Duration <= 0 {
		c.bad(at, "has to be above 0")
	}
}

func (c *checker) notNegative(at place, d duration) {
	if d.Duration < 0 {
		c.bad(at, "has to be 0 or more")
	}
}

func (c *checker) count(at place, number count, least int) {
	if number.n < least || number.n > maxCount {
		c.bad(at, "has to be from %d to %d", least, maxCount)
	}
}
