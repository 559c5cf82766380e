//go:build linux

package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	pp "github.com/pires/go-proxyproto"
)

func TestTLSEndsHereAndBeginsAnewToTheUpstream(t *testing.T) {
	folder := t.TempDir()
	trust := writePair(t, folder, "front.example", "back.example")
	pair, err := tls.LoadX509KeyPair(folder+"/cert.pem", folder+"/key.pem")
	if err != nil {
		t.Fatal(err)
	}
	plain := named(t, "plain")[0]
	sealed := newBackend(t, "sealed", "", func(b *backend, c net.Conn) {
		answer(b, tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}}))
	})
	s := start(t, fmt.Sprintf(`
listeners:
  main:
    listen: 127.0.0.1:0
    to: plain
    tls:
      certificates: [{cert: %[1]s/cert.pem, key: %[1]s/key.pem}]
      alpn: [one, two]
    routes:
      - {names: ["back.example"], to: sealed}
pools:
  plain: {upstreams: [{addr: '%[2]s'}]}
  sealed: {upstreams: [{addr: '%[3]s'}], tls: {server_name: back.example, ca: %[1]s/cert.pem}, health: {send: "x\n", expect: "sealed x", interval: 50ms, timeout: 5s}}
`, folder, plain.addr(), sealed.addr()))
	for name, want := range map[string]string{"front.example": "plain hello", "back.example": "sealed hello"} {
		c, err := tls.Dial("tcp", s.addrs["main"], &tls.Config{RootCAs: trust, ServerName: name, NextProtos: []string{"two"}})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || got != want+"\n" || c.ConnectionState().NegotiatedProtocol != "two" {
			t.Errorf("%q, %v, %q", got, err, c.ConnectionState().NegotiatedProtocol)
		}
		c.Close()
	}
	// One that fails its handshake is no connection, and holds no place.
	for _, say := range []string{"GET / HTTP/1.0\r\n\r\n", ""} {
		c := s.dial("main")
		_, _ = io.WriteString(c, say)
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	s.when("no connection is left", func(st *status) bool { return st.Listeners[0].Open == 0 && st.Listeners[0].Accepted == 2 })
	s.when("the check of the sealed one", func(st *status) bool { u := st.find(t, sealed.addr()); return u.Checked && u.State == "up" })
	// A reload takes in another certificate of the same name, without another socket.
	trust = writePair(t, folder, "front.example")
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	s.reload(string(text))
	c, err := tls.Dial("tcp", s.addrs["main"], &tls.Config{RootCAs: trust, ServerName: "front.example"})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// The upstreams have the key, and the balancer has none.
func TestRoutesByServerNameWithoutTheKey(t *testing.T) {
	folder := t.TempDir()
	trust := writePair(t, folder, "a.example", "x.b.example", "c.example", "other.example")
	pair, err := tls.LoadX509KeyPair(folder+"/cert.pem", folder+"/key.pem")
	if err != nil {
		t.Fatal(err)
	}
	sealed := func(b *backend, c net.Conn) {
		answer(b, tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}))
	}
	var addrs []any
	for _, name := range []string{"a", "b", "h2", "rest"} {
		serve := sealed
		if name == "rest" {
			serve = func(b *backend, c net.Conn) { // TLS or plain text
				in := bufio.NewReader(c)
				if p, err := in.Peek(1); err == nil && p[0] == 22 {
					sealed(b, &peeked{c, in})
				} else {
					answer(b, &peeked{c, in})
				}
			}
		}
		addrs = append(addrs, newBackend(t, name, "", serve).addr())
	}
	s := start(t, fmt.Sprintf(`
listeners:
  main:
    listen: 127.0.0.1:0
    to: rest
    routes:
      - {names: [A.example], to: a}
      - {names: ["*.b.example"], to: b}
      - {alpn: [h2], to: h2}
pools:
  a: {upstreams: [{addr: '%s'}]}
  b: {upstreams: [{addr: '%s'}]}
  h2: {upstreams: [{addr: '%s'}]}
  rest: {upstreams: [{addr: '%s'}]}
`, addrs...))
	for _, c := range []struct {
		name string
		alpn []string
		want string
	}{
		{"a.example", nil, "a"}, {"x.b.example", nil, "b"}, {"c.example", []string{"h2"}, "h2"},
		{"other.example", nil, "rest"}, {"a.example", []string{"h2"}, "a"},
	} {
		raw := s.dial("main")
		tc := tls.Client(&slow{raw}, &tls.Config{RootCAs: trust, ServerName: c.name, NextProtos: c.alpn})
		if _, err := io.WriteString(tc, "hello\n"); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got, err := bufio.NewReader(tc).ReadString('\n'); err != nil || got != c.want+" hello\n" {
			t.Errorf("%s: %q, %v, want %s", c.name, got, err, c.want)
		}
		raw.Close()
	}
	if got := s.once("main"); got != "rest" {
		t.Errorf("plain text goes to %s", got)
	}
}

// slow sends the first kilobyte byte by byte.
type slow struct{ *client }

func (s *slow) Write(p []byte) (int, error) {
	if len(p) > 1024 {
		return s.client.Write(p)
	}
	for i := range p {
		if _, err := s.client.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// peeked is a connection of which a part was read into in.
type peeked struct {
	net.Conn
	in *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.in.Read(b) }

// headed answers each line with the client's address that the PROXY header has, and the line.
func headed(b *backend, c net.Conn) {
	in := bufio.NewReader(c)
	h, err := pp.Read(in)
	if err != nil {
		return
	}
	at := "nobody"
	if h.Command == pp.PROXY {
		at = h.SourceAddr.String() + ">" + h.DestinationAddr.String()
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, at+" "+line); err != nil {
			return
		}
	}
}

func TestPROXYHeadersComeInAndGoOut(t *testing.T) {
	folder := t.TempDir()
	writePair(t, folder, "back.example")
	pair, err := tls.LoadX509KeyPair(folder+"/cert.pem", folder+"/key.pem")
	if err != nil {
		t.Fatal(err)
	}
	plain := newBackend(t, "plain", "", headed)
	sealed := newBackend(t, "sealed", "", func(_ *backend, c net.Conn) { // the header comes in plain text
		in := bufio.NewReader(c)
		h, err := pp.Read(in)
		if err != nil || h.Command != pp.PROXY {
			return
		}
		answer(&backend{name: h.SourceAddr.String()}, tls.Server(&peeked{c, in}, &tls.Config{Certificates: []tls.Certificate{pair}}))
	})
	s := start(t, fmt.Sprintf(`
listeners:
  proxies: {listen: '127.0.0.1:0', to: plain, accept_proxy_from: [127.0.0.0/8]}
  sealed: {listen: '127.0.0.1:0', to: sealed, accept_proxy_from: [127.0.0.1]}
  clients: {listen: '127.0.0.1:0', to: plain}
  nobody: {listen: '127.0.0.1:0', to: plain, accept_proxy_from: [10.0.0.0/8]}
pools:
  plain: {upstreams: [{addr: '%[1]s'}], send_proxy: true, health: {interval: 50ms, timeout: 5s, send: "x\n", expect: "nobody x"}}
  sealed: {upstreams: [{addr: '%[2]s'}], send_proxy: true, tls: {server_name: back.example, ca: %[3]s/cert.pem}, health: {interval: -1s}}
`, plain.addr(), sealed.addr(), folder))
	c := s.dial("clients")
	if got, want := c.ask("hello"), c.LocalAddr().String()+">"+s.addrs["clients"]+" hello"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	header := func(c *client) {
		h := pp.Header{Version: 2, Command: pp.PROXY, TransportProtocol: pp.TCPv4,
			SourceAddr:      &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1000},
			DestinationAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 443}}
		p, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&slow{c}).Write(p); err != nil {
			t.Fatal(err)
		}
	}
	c = s.dial("proxies")
	header(c)
	if got := c.ask("hello"); got != "192.0.2.1:1000>192.0.2.2:443 hello" {
		t.Errorf("version 2: %q", got)
	}
	c = s.dial("sealed")
	header(c)
	if got := c.ask("hello"); got != "192.0.2.1:1000 hello" {
		t.Errorf("with TLS: %q", got)
	}
	c = s.dial("proxies")
	if got := c.ask("PROXY TCP4 192.0.2.7 192.0.2.8 7 8\r\nhello"); got != "192.0.2.7:7>192.0.2.8:8 hello" {
		t.Errorf("version 1: %q", got)
	}
	c = s.dial("proxies")
	_, _ = io.WriteString(c, "no header\n")
	c.expectReset()
	s.refused("nobody")
	s.when("the check says LOCAL", func(st *status) bool { u := st.find(t, plain.addr()); return u.Checked && u.State == "up" })
}

func TestAClientIsHashedByItsOwnAddress(t *testing.T) {
	bs := named(t, "a", "b", "c", "d")
	s := start(t, strings.Replace(onePool(bs, "    balance: client_hash\n"), "to: main}", "to: main, accept_proxy_from: [127.0.0.1]}", 1))
	seen := make(map[string]bool)
	const clients = 120 // so many that none of the four is without one
	for i := range clients {
		var names []string
		for range 2 {
			c := s.dial("main")
			names = append(names, first(c.ask(fmt.Sprintf("PROXY TCP4 192.0.2.%d 192.0.2.200 7 8\r\nhello", i))))
			c.Close()
		}
		if names[0] != names[1] {
			t.Errorf("client %d is at %v", i, names)
		}
		seen[names[0]] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d clients are at %v alone", clients, seen)
	}
}

// An upstream that connects and then says nothing is given up within connect_timeout, with a PROXY
// header before the handshake or without.
func TestAHandshakeThatHangsIsTriedElsewhere(t *testing.T) {
	folder := t.TempDir()
	writePair(t, folder, "back.example")
	pair, err := tls.LoadX509KeyPair(folder+"/cert.pem", folder+"/key.pem")
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range []bool{false, true} {
		silent := newBackend(t, "silent", "", func(_ *backend, c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		refusing := newBackend(t, "refusing", "", func(_ *backend, c net.Conn) { _, _ = io.WriteString(c, "no TLS here\n") })
		good := newBackend(t, "good", "", func(b *backend, c net.Conn) {
			in := bufio.NewReader(c)
			if header {
				if _, err := pp.Read(in); err != nil {
					return
				}
			}
			answer(b, tls.Server(&peeked{c, in}, &tls.Config{Certificates: []tls.Certificate{pair}}))
		})
		s := start(t, onePool([]*backend{refusing, silent, good}, fmt.Sprintf(
			"    connect_timeout: 2s\n    health: {interval: -1s}\n    send_proxy: %v\n    tls: {server_name: back.example, ca: %s/cert.pem}\n", header, folder)))
		for range 3 {
			if got := s.once("main"); got != "good" {
				t.Errorf("header %v: the answer is of %s", header, got)
			}
		}
		if st := s.status(); st.find(t, silent.addr()).Failures == 0 || st.find(t, refusing.addr()).Failures == 0 {
			t.Errorf("header %v: %+v", header, st.Pools[0])
		}
		s.stop()
	}
}
