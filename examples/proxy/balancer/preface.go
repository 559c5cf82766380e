package main

import (
	"errors"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/proxyproto"
)

// A hello is what a client's ClientHello says: the server's name, and the protocols it offers.
type hello struct {
	name string
	alpn []string
}

// setPreface has o look at the first bytes of connections, where cfg needs that: for the header of
// a proxy in front, and behind it for the ClientHello of TLS that is passed on.
func setPreface(o *tcpio.ListenerOptions, cfg *listenerConfig) {
	var header func(*tcpio.Conn, []byte) (int, error)
	if len(cfg.AcceptProxyFrom) > 0 {
		header = proxyproto.Accept(proxyproto.Options{})
		for _, p := range cfg.AcceptProxyFrom {
			o.Proxies = append(o.Proxies, p.Prefix)
		}
	}
	passing := cfg.TLS == nil && len(cfg.Routes) > 0
	if header == nil && !passing {
		return
	}
	o.PrefaceTimeout = cfg.HelloTimeout.Duration
	o.Preface = func(c *tcpio.Conn, head []byte) (n int, err error) {
		if header != nil {
			if n, err = header(c, head); err != nil {
				return 0, err
			}
		}
		if !passing {
			return n, nil
		}
		info, err := tcpio.ParseClientHello(head[n:])
		switch {
		case errors.Is(err, tcpio.ErrNotTLS):
			return n, nil // no route takes it, but it may have a pool
		case err != nil:
			return 0, err
		}
		c.SetData(&hello{name: info.ServerName, alpn: info.SupportedProtos})
		return n, nil
	}
}
