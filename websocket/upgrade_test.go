//go:build linux

package websocket

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/rabbit-backend/tcpio"
)

// httpOn runs an http.Server on a NetListener.
func httpOn(t *testing.T, tcp tcpio.ListenerOptions, h http.HandlerFunc) *tcpio.Listener {
	t.Helper()
	tcp.Addr = "127.0.0.1:0"
	l, err := tcpio.Listen(&tcp)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	ln := l.NetListener()
	ended := make(chan error, 2)
	go func() { ended <- l.Serve(context.Background()) }()
	go func() { srv.Serve(ln); ended <- nil }()
	t.Cleanup(func() {
		srv.Close()
		l.Close()
		for range 2 {
			if err := <-ended; err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	})
	return l
}

// peerAt is a peer of a server that is not ours.
func peerAt(t *testing.T, addr net.Addr, header string, more ...byte) *peer {
	t.Helper()
	p := dialRaw(t, addr)
	p.send(append([]byte(handshakeOf+header+"\r\n"), more...))
	if resp := p.response(); resp.StatusCode != 101 {
		t.Fatal(resp.Status)
	}
	return p
}

func mustNew(t *testing.T, opts Options) *Server {
	t.Helper()
	s, err := New(&opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// On a NetListener a connection stays on its loops, with an actor of the options', one attached
// later, or a claim; pages come from the same port; Shutdown sends 1001.
func TestUpgradeOnNetListener(t *testing.T) {
	for _, deferred := range []bool{false, true} {
		r := newRecord()
		both := ActorFunc(func(ev Event) error { r.add(ev); return echo(ev) })
		plain := mustNew(t, Options{})
		withActor := mustNew(t, Options{NewActor: func(*Conn) Actor { return both }})
		l := httpOn(t, tcpio.ListenerOptions{DeferAccept: deferred}, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("X-Mine", "yes")
			switch req.Header.Get("X-Route") {
			case "":
				io.WriteString(w, "a page")
			case "actor":
				if _, err := withActor.Upgrade(w, req); err != nil {
					t.Error(err)
				}
			case "attach":
				c, err := plain.Upgrade(w, req)
				if err != nil {
					t.Error(err)
				}
				_ = c.Attach(both)
			case "events":
				c, err := Upgrade(w, req, nil)
				if err != nil {
					t.Error(err)
				}
				for ev := range c.Events() { // on the handler's goroutine
					_ = both(ev)
				}
			}
		})
		for _, route := range []string{"actor", "attach", "events"} {
			p := dialRaw(t, l.Addr())
			p.send([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
			if body, _ := io.ReadAll(io.LimitReader(p.response().Body, 6)); string(body) != "a page" {
				t.Fatalf("%q", body)
			}
			p.send(join([]byte(handshakeOf+"X-Route: "+route+"\r\n\r\n"), fr(opText, "early")))
			resp := p.response()
			if resp.StatusCode != 101 || resp.Header.Get("X-Mine") != "yes" {
				t.Fatal(resp.Status, resp.Header)
			}
			p.expect("text early")
			p.send(fr(opText, long))
			p.expect(big("text", len(long)))
			p.send(bye)
			p.expect("close 1000", "eof")
			lines := r.wait(t, "closed")
			if want := []string{"opened /x?y=z", "text early", "text " + long[:50], "closed 1000  Peer"}; !slices.Equal(lines, want) {
				t.Errorf("%s: %q", route, lines)
			}
			r.mu.Lock()
			r.lines = nil
			r.mu.Unlock()
		}
		p := peerAt(t, l.Addr(), "X-Route: actor\r\n")
		r.wait(t, "opened")
		done := make(chan error)
		go func() { done <- l.Shutdown(context.Background()) }()
		p.expect("close 1001")
		p.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.wait(t, "closed 1001  Local")
	}
}

// From a plain net/http server the connection moves to the Server's loops.
func TestUpgradeAdopts(t *testing.T) {
	for _, route := range []string{"stream", "actor", "mailbox"} {
		t.Run(route, func(t *testing.T) {
			s, r := watched(t, route, tcpio.ListenerOptions{}, Options{}, echo)
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				c, err := s.Upgrade(w, req)
				if err != nil {
					t.Error(err)
				}
				_ = c.Post("posted")
			}))
			defer web.Close()
			for range 50 {
				p := peerAt(t, web.Listener.Addr(), "", fr(opText, "early")...)
				p.expect("text early")
				p.send(fr(opText, "x"))
				p.expect("text x")
				p.send(bye)
				p.expect("close 1000", "eof")
				lines := slices.DeleteFunc(r.wait(t, "closed"), func(l string) bool { return l == "message posted" })
				if !slices.Equal(lines, []string{"opened /x?y=z", "text early", "text x", "closed 1000  Peer"}) {
					t.Fatalf("%q", lines)
				}
				r.mu.Lock()
				r.lines = nil
				r.mu.Unlock()
			}
		})
	}
}

func TestUpgradeRefuses(t *testing.T) {
	s := mustNew(t, Options{})
	l := httpOn(t, tcpio.ListenerOptions{}, func(w http.ResponseWriter, req *http.Request) {
		c, err := s.Upgrade(w, req)
		if refused := new(HandshakeError); !errors.As(err, &refused) || c != nil || refused.Error() == "" {
			t.Errorf("%v, %v", c, err)
		}
	})
	for request, status := range map[string]int{
		"GET / HTTP/1.1\r\nHost: x\r\n":                                                                 400,
		strings.Replace(handshakeOf, "Version: 13", "Version: 7", 1):                                    426,
		handshakeOf + "Origin: http://evil.com\r\n":                                                     403,
		strings.Replace(handshakeOf, "GET", "DELETE", 1):                                                405,
		strings.Replace(handshakeOf, "Host: ex", "Host: evil.ex", 1) + "Origin: http://example.com\r\n": 403,
	} {
		p := dialRaw(t, l.Addr())
		p.send([]byte(request + "\r\n"))
		resp := p.response()
		if body, err := io.ReadAll(resp.Body); resp.StatusCode != status || !strings.Contains(string(body), ": ") {
			t.Errorf("%q: %s %q %v, want %d and a reason", request, resp.Status, body, err, status)
		}
		p.Close()
	}
	// neither a NetListener nor a Server with a listener; TLS of net/http; no Hijacker
	for _, serve := range []func(*httptest.Server){(*httptest.Server).Start, (*httptest.Server).StartTLS} {
		failed := make(chan error, 1)
		web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			_, err := s.Upgrade(w, req)
			failed <- err
		}))
		serve(web)
		req, _ := http.NewRequest("GET", web.URL, nil)
		req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
		resp, err := web.Client().Do(req)
		if err != nil || resp.StatusCode != 500 {
			t.Error(resp, err)
		}
		if err == nil {
			resp.Body.Close()
		}
		if err := <-failed; err == nil {
			t.Error("no error")
		}
		web.Close()
	}
	req := httptest.NewRequest("GET", "/", nil)
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
	w := httptest.NewRecorder()
	if _, err := s.Upgrade(w, req); err == nil || w.Code != 500 {
		t.Error(err, w.Code)
	}
	if _, err := Upgrade(httptest.NewRecorder(), req, &Options{MaxRate: -1}); err == nil {
		t.Error("bad options are taken")
	}
}

// wss on a port of its own, and under net/http on a NetListener with TLSConfig.
func TestTLS(t *testing.T) {
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	defer web.Close()
	config := &tls.Config{Certificates: web.TLS.Certificates}
	roots := web.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	roots.ServerName = "example.com"
	s := start(t, tcpio.ListenerOptions{TLSConfig: config}, Options{NewActor: func(*Conn) Actor {
		return ActorFunc(func(ev Event) error {
			if ev, ok := ev.(Opened); ok && ev.Request.TLS == nil {
				t.Error("the request has no TLS state")
			}
			return echo(ev)
		})
	}}, nil)
	up := mustNew(t, Options{NewActor: echoActor})
	l := httpOn(t, tcpio.ListenerOptions{TLSConfig: config}, func(w http.ResponseWriter, req *http.Request) { _, _ = up.Upgrade(w, req) })
	for _, addr := range []net.Addr{s.Listener().Addr(), l.Addr()} {
		p := dialRaw(t, addr)
		conn := tls.Client(p.Conn, roots)
		p.Conn = conn
		p.br.Reset(conn)
		p.send([]byte(handshakeOf + "\r\n"))
		p.response()
		p.send(join(fr(opText, "x"), fr(opBinary, long), bye))
		p.expect("text x", big("binary", len(long)), "close 1000", "eof")
	}
}

// A Server with TLSConfig refuses plain connections from elsewhere, before it answers.
func TestUpgradeOfPlainToTLS(t *testing.T) {
	s := start(t, tcpio.ListenerOptions{TLSConfig: &tls.Config{Certificates: make([]tls.Certificate, 1)}}, Options{}, func(Event) {})
	failed := make(chan error, 1)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, err := s.Upgrade(w, req)
		failed <- err
	}))
	defer web.Close()
	p := dialRaw(t, web.Listener.Addr())
	p.send([]byte(handshakeOf + "\r\n"))
	if resp := p.response(); resp.StatusCode != 500 {
		t.Error(resp.Status)
	}
	if err := <-failed; err == nil {
		t.Error("no error")
	}
}
