package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/rabbit-backend/tcpio/proxyproto"
)

// watch checks u until ctx ends.
func (p *pool) watch(ctx context.Context, u *upstream, cfg *poolConfig) {
	h := cfg.Health
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		begun := time.Now()
		err := check(ctx, u.addr, cfg)
		if ctx.Err() != nil {
			return // not u's fault
		}
		p.mu.Lock()
		p.checkedLocked(u, err)
		p.mu.Unlock()
		// A tenth more or less, so that checks of many upstreams do not come at once.
		every := h.Interval.Duration
		every += time.Duration((rand.Float64() - 0.5) / 5 * float64(every))
		timer.Reset(every - time.Since(begun))
	}
}

// check connects to addr as a client's connection would, and returns why it is not fit for one.
func check(ctx context.Context, addr string, cfg *poolConfig) error {
	h := cfg.Health
	ctx, cancel := context.WithTimeout(ctx, h.Timeout.Duration)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer func() { c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if cfg.SendProxy {
		header, err := proxyproto.AppendV2(nil, nil, nil) // LOCAL: it stands for no client
		if err != nil {
			return err
		}
		if _, err := c.Write(header); err != nil {
			return err
		}
	}
	if cfg.TLS != nil {
		secure := tls.Client(c, cfg.TLS.config(addr))
		if err := secure.HandshakeContext(ctx); err != nil {
			return err
		}
		c = secure
	}
	if h.Send != "" {
		if _, err := io.WriteString(c, string(h.Send)); err != nil {
			return err
		}
	}
	want := []byte(h.Expect)
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		m, err := c.Read(got[n:])
		n += m
		if !bytes.HasPrefix(want, got[:n]) {
			return fmt.Errorf("the answer begins with %q", got[:n])
		}
		if err != nil && n < len(got) {
			return fmt.Errorf("waiting for the answer: %w", err)
		}
	}
	return nil
}

// config is that of a client of addr.
func (t *upstreamTLS) config(addr string) *tls.Config {
	name := t.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(addr)
	}
	return &tls.Config{ServerName: name, RootCAs: t.roots}
}
