package main

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"time"
)

// A config is a configuration file, read and checked, with the defaults filled in. It is not
// changed afterwards: a reload makes a new one.
type config struct {
	// Admin is the address of the status page and of /metrics; without a host 127.0.0.1.
	// Empty: neither is served. Read once, when the program starts.
	Admin string `yaml:"admin"`
	// Drain is how long connections may go on at the end. Default 30s.
	Drain duration `yaml:"drain"`

	Listeners map[string]*listenerConfig `yaml:"listeners"`
	Pools     map[string]*poolConfig     `yaml:"pools"`
}

// A listenerConfig says where clients connect, and which pool a connection goes to.
type listenerConfig struct {
	// Listen is the address. A reload keeps the socket of an address that stays.
	Listen string `yaml:"listen"`
	// To is the pool of connections that no route takes. Empty: those are closed.
	To string `yaml:"to"`
	// Routes are tried in their order. They are about TLS: without TLS in this file the
	// ClientHello is read and passed on as it came, and the upstream does the TLS.
	Routes []routeConfig `yaml:"routes"`
	// TLS ends here if it has a certificate, and the upstream gets plain text.
	TLS *tlsConfig `yaml:"tls"`
	// AcceptProxyFrom are the proxies in front, by their addresses. Each of their connections has to
	// begin with a PROXY header, v1 or v2, which says who the client is; others are refused.
	AcceptProxyFrom []prefix `yaml:"accept_proxy_from"`
	// HelloTimeout bounds the PROXY header, the ClientHello and the handshake. Default 10s.
	HelloTimeout duration `yaml:"hello_timeout"`
	// IdleTimeout ends a pair on which nothing moves. Default 0: never.
	IdleTimeout duration `yaml:"idle_timeout"`
	// MaxConns bounds the connections of this address, MaxConnsPerClient those of one client's
	// address. More are closed at once. Default 0: no bound but the descriptors.
	MaxConns          count `yaml:"max_conns"`
	MaxConnsPerClient count `yaml:"max_conns_per_client"`
}

// A routeConfig takes connections by what their ClientHello says.
type routeConfig struct {
	// Names are server names; "*.example.org" is every name one or more labels below it. Empty: any.
	Names []string `yaml:"names"`
	// ALPN are protocols of which the client has to offer one. Empty: any.
	ALPN []string `yaml:"alpn"`
	To   string   `yaml:"to"`
}

type tlsConfig struct {
	// Certificates are chosen by the name that the client asks for; the first is the default.
	Certificates []certificate `yaml:"certificates"`
	// ALPN are the protocols to agree on, the best first.
	ALPN []string `yaml:"alpn"`

	server *tls.Config // made of the above
}

// A certificate is two PEM files. Their paths are relative to the configuration file's folder.
type certificate struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// A poolConfig is a set of upstreams that can stand for each other.
type poolConfig struct {
	// Balance chooses among those that are usable: "round_robin" (default), "least_conns" or
	// "client_hash".
	Balance   string           `yaml:"balance"`
	Upstreams []upstreamConfig `yaml:"upstreams"`
	// ConnectTimeout bounds one attempt to connect. Default 2s.
	ConnectTimeout duration `yaml:"connect_timeout"`
	// Retries is how many other upstreams are tried behind a failed attempt. Default 2.
	Retries count `yaml:"retries"`
	// Queue is how many clients may wait while every usable upstream is at its max_conns, and
	// QueueTimeout how long. Defaults 1024 and 5s.
	Queue        count    `yaml:"queue"`
	QueueTimeout duration `yaml:"queue_timeout"`
	// SendProxy has each connection begin with a PROXY v2 header that names the client.
	SendProxy bool `yaml:"send_proxy"`
	// TLS has the connections to the upstreams encrypted.
	TLS *upstreamTLS `yaml:"tls"`
	// WhenDown says what happens to the connections of an upstream that health checks find down:
	// "keep" (default), or "reset", so that clients connect anew.
	WhenDown string       `yaml:"when_down"`
	Health   healthConfig `yaml:"health"`
	Eject    ejectConfig  `yaml:"eject"`
}

type upstreamConfig struct {
	Addr string `yaml:"addr"`
	// MaxConns bounds the connections to it. Default 0: no bound.
	MaxConns count `yaml:"max_conns"`
	// Drain has it take no new connection.
	Drain bool `yaml:"drain"`
}

type upstreamTLS struct {
	// ServerName is what the certificate has to be for. Default: the host of the address.
	ServerName string `yaml:"server_name"`
	// CA is a PEM file with the authorities to trust. Default: those of the system.
	CA string `yaml:"ca"`

	roots *x509.CertPool
}

// A healthConfig is about active checks. A check connects; if Send or Expect are set it also sends
// the one and waits for the other at the beginning of what comes.
type healthConfig struct {
	// Interval is from check to check. Default 2s. A negative one turns checks off.
	Interval duration `yaml:"interval"`
	// Timeout bounds one check. Default: the interval, at most 2s.
	Timeout duration `yaml:"timeout"`
	// Rise and Fall are how many checks in a row bring an upstream up or down. Defaults 2 and 2.
	Rise   count   `yaml:"rise"`
	Fall   count   `yaml:"fall"`
	Send   payload `yaml:"send"`
	Expect payload `yaml:"expect"`
}

// An ejectConfig is about what clients' connections show.
type ejectConfig struct {
	// Failures is how many failed attempts in a row eject an upstream. Default 3.
	Failures count `yaml:"failures"`
	// For is how long it is passed over, the first time. Each ejection that follows without a
	// success in between takes twice as long, up to Max. Defaults 5s and 2m.
	For duration `yaml:"for"`
	Max duration `yaml:"max"`
}

// A duration is written as in Go: "1m30s". A count is a whole number. Both know whether the file has
// them: a zero that is written is no default. A prefix may be a single address. A payload is a text,
// or bytes as "hex:0a 0b": in YAML "\xff" is a character, which is two bytes.
type (
	duration struct {
		time.Duration
		given bool
	}
	count struct {
		n     int
		given bool
	}
	prefix  struct{ netip.Prefix }
	payload string
)

// Bounds that hold whatever the file says.
const (
	maxTime  = 24 * time.Hour
	maxCount = 1 << 20
)

func (d *duration) orElse(otherwise time.Duration) {
	if d.Duration == 0 && !d.given {
		d.Duration = otherwise
	}
}

func (c *count) orElse(otherwise int) {
	if c.n == 0 && !c.given {
		c.n = otherwise
	}
}

// fill sets what the file leaves out.
func (c *config) fill() {
	c.Drain.orElse(30 * time.Second)
	for _, l := range c.Listeners {
		if l != nil {
			l.HelloTimeout.orElse(10 * time.Second)
		}
	}
	for _, p := range c.Pools {
		if p != nil {
			p.fill()
		}
	}
}

func (p *poolConfig) fill() {
	if p.Balance == "" {
		p.Balance = roundRobin
	}
	if p.WhenDown == "" {
		p.WhenDown = keepConns
	}
	p.Retries.orElse(2)
	p.Queue.orElse(1024)
	p.ConnectTimeout.orElse(2 * time.Second)
	p.QueueTimeout.orElse(5 * time.Second)
	h, e := &p.Health, &p.Eject
	h.Interval.orElse(2 * time.Second)
	h.Timeout.orElse(min(h.Interval.Duration, 2*time.Second))
	e.For.orElse(5 * time.Second)
	e.Max.orElse(max(2*time.Minute, e.For.Duration))
	h.Rise.orElse(2)
	h.Fall.orElse(2)
	e.Failures.orElse(3)
}

// simple is the configuration of the flags -listen and -to.
func simple(listen string, to []string, admin string, drain time.Duration) *config {
	pool := &poolConfig{}
	for _, addr := range to {
		pool.Upstreams = append(pool.Upstreams, upstreamConfig{Addr: addr})
	}
	c := &config{
		Admin:     admin,
		Drain:     duration{drain, true},
		Listeners: map[string]*listenerConfig{"main": {Listen: listen, To: "main"}},
		Pools:     map[string]*poolConfig{"main": pool},
	}
	c.fill()
	return c
}
