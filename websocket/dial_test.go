//go:build linux

package websocket

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	coder "github.com/coder/websocket"

	"github.com/rabbit-backend/tcpio"
)

// dialler is a server that dials, on the stream or for its caller to attach, whose connections'
// events are recorded.
func dialler(t *testing.T, route string, tcp tcpio.ListenerOptions, opts Options) (dial func(url string) (*Conn, error), r *record) {
	r = newRecord()
	answer := func(ev Event) error { r.add(ev); return nil }
	if route == "stream" {
		s := start(t, tcp, opts, func(ev Event) { _ = answer(ev) })
		return func(url string) (*Conn, error) { return s.Dial(t.Context(), url, nil) }, r
	}
	opts.NewActor = func(*Conn) Actor { t.Error("a dialed connection asks for an actor"); return nil }
	s := start(t, tcp, opts, nil)
	return func(url string) (*Conn, error) {
		c, err := s.Dial(t.Context(), url, nil)
		if err == nil {
			err = c.Attach(ActorFunc(answer))
		}
		return c, err
	}, r
}

func TestDial(t *testing.T) {
	for _, compress := range []bool{false, true} {
		opts := Options{Compress: compress, CompressMin: 10, Subprotocols: []string{"b", "a"}}
		servers := routes(t, opts)
		for _, clients := range []string{"stream", "actor"} {
			r := newRecord()
			answer := func(ev Event) error { r.add(ev); return nil }
			own := Options{Compress: compress, CompressMin: 10, Subprotocols: []string{"a", "b"}}
			var cs *Server
			if clients == "stream" {
				cs = start(t, tcpio.ListenerOptions{}, own, func(ev Event) { _ = answer(ev) })
			} else {
				own.NewActor = echoActor
				cs = start(t, tcpio.ListenerOptions{}, own, nil)
			}
			for _, s := range servers {
				c, err := cs.Dial(t.Context(), "ws://"+s.Listener().Addr().String()+"/path", http.Header{"X-A": {"b"}})
				if err != nil {
					t.Fatal(err)
				}
				if clients == "actor" {
					if err := c.Attach(ActorFunc(answer)); err != nil {
						t.Fatal(err)
					}
				}
				if c.Subprotocol() != "b" || c.Compressed() != compress || !c.Addr().IsLoopback() {
					t.Error(c.Subprotocol(), c.Compressed(), c.Addr())
				}
				r.wait(t, "opened")
				for _, msg := range []string{"x", strings.Repeat("long ", 40)} {
					if err := c.WriteText([]byte(msg)); err != nil {
						t.Error(err)
					}
				}
				r.wait(t, "text long")
				var g Group
				g.Join(c)
				g.WriteText([]byte("by a group"))
				r.wait(t, "text by a group")
				if err := c.Ping([]byte("p")); err != nil {
					t.Error(err)
				}
				if err := c.Close(4004, "done"); err != nil {
					t.Error(err)
				}
				r.wait(t, "closed 4004 done Local")
				if err := c.Ping(nil); !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				r.mu.Lock()
				r.lines = nil
				r.mu.Unlock()
			}
		}
	}
}

func TestDialFails(t *testing.T) {
	refuses := start(t, tcpio.ListenerOptions{}, Options{NewActor: echoActor, Check: func(*http.Request) int { return 403 }}, nil)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, opts := range []Options{{}, {NewActor: echoActor}} {
		opts.HandshakeTimeout = testLimit
		var handle func(Event)
		if opts.NewActor == nil {
			handle = func(ev Event) { t.Error(ev) }
		}
		s := start(t, tcpio.ListenerOptions{}, opts, handle)
		_, err := s.Dial(t.Context(), "ws://"+refuses.Listener().Addr().String(), nil)
		if refused := new(HandshakeError); !errors.As(err, &refused) || refused.Status != 403 {
			t.Error(err)
		}
		opts.HandshakeTimeout = 100 * time.Millisecond
		hasty := start(t, tcpio.ListenerOptions{}, opts, handle)
		if _, err := hasty.Dial(t.Context(), "ws://"+silent.Addr().String(), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		for _, bad := range []string{"http://x", "ws://me:secret@127.0.0.1:1", "ws://127.0.0.1:1", "wss://127.0.0.1:1", ":", "//x"} {
			if _, err := s.Dial(t.Context(), bad, nil); err == nil {
				t.Error(bad)
			}
		}
	}
	if _, err := mustNew(t, Options{}).Dial(t.Context(), "ws://127.0.0.1:1", nil); err == nil {
		t.Error("a Server without a listener dials")
	}
}

// A header's Host takes the place of the URL's; what the handshake has itself is an error, and so
// is what no request can have.
func TestDialHeader(t *testing.T) {
	s, r := watched(t, "stream", tcpio.ListenerOptions{}, Options{}, func(ev Event) error {
		if ev, ok := ev.(Opened); ok && ev.Request != nil {
			return ev.Conn.TryWriteText([]byte(ev.Request.Host + " " + ev.Request.Header.Get("X") + " " + ev.Request.UserAgent()))
		}
		return nil
	})
	url := "ws://" + s.Listener().Addr().String()
	header := http.Header{"Host": {"virtual.example"}, "X": {"a\r\nEvil: b"}, "User-Agent": {"me"}}
	c, err := s.Dial(t.Context(), url, header)
	if err != nil {
		t.Fatal(err)
	}
	r.wait(t, "text virtual.example a  Evil: b me")
	if header.Get("Host") == "" {
		t.Error("Dial changes the header")
	}
	c.Close(Normal, "")
	for _, name := range []string{"Upgrade", "Connection", "Sec-WebSocket-Key", "sec-websocket-version", "Sec-WebSocket-Protocol",
		"Content-Length", "X Y", "X\r\nEvil"} {
		if c, err := s.Dial(t.Context(), url, http.Header{name: {"x"}}); err == nil || !strings.Contains(strings.ToLower(err.Error()), "header") {
			t.Error(name, c, err)
		}
	}
	if _, err := s.Dial(t.Context(), url, http.Header{"Host": {"a", "b"}}); err == nil {
		t.Error("two hosts")
	}
}

// wss: to our own server and to coder's, which prefers HTTP/2; the URL's host is the name that is
// asked for and checked; the server may ask for a certificate. The server that dials may itself
// have a TLSConfig, which is for those that it accepts.
func TestDialTLS(t *testing.T) {
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := coder.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		for {
			kind, p, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, p) != nil {
				return
			}
		}
	}))
	web.EnableHTTP2 = true
	web.StartTLS()
	defer web.Close()
	client := web.Client().Transport.(*http.Transport).TLSClientConfig
	names := make(chan string, 100)
	config := &tls.Config{
		Certificates: web.TLS.Certificates,
		ClientAuth:   tls.RequireAnyClientCert,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			names <- hello.ServerName
			return nil, nil
		},
	}
	ours := start(t, tcpio.ListenerOptions{TLSConfig: config}, Options{NewActor: func(c *Conn) Actor {
		return ActorFunc(func(ev Event) error {
			if ev, ok := ev.(Opened); ok && len(ev.Request.TLS.PeerCertificates) != 1 {
				t.Error("the client has shown no certificate")
			}
			return echo(ev)
		})
	}}, nil)
	_, port, _ := net.SplitHostPort(ours.Listener().Addr().String())
	for _, route := range []string{"stream", "actor"} {
		t.Run(route, func(t *testing.T) {
			for _, tcp := range []tcpio.ListenerOptions{{Network: "none"}, {TLSConfig: config}} {
				dial, r := dialler(t, route, tcp, Options{ClientTLS: &tls.Config{RootCAs: client.RootCAs, Certificates: config.Certificates}})
				for _, url := range []string{"wss" + strings.TrimPrefix(web.URL, "https"), "wss://127.0.0.1:" + port + "/x"} {
					c, err := dial(url)
					if err != nil {
						t.Fatal(err)
					}
					if c.Underlying().TLS() == nil {
						t.Error("the connection is plain")
					}
					r.wait(t, "opened")
					if err := c.WriteText([]byte(long[:20000])); err != nil {
						t.Error(err)
					}
					r.wait(t, "text ***")
					c.Close(Normal, "")
					r.wait(t, "closed 1000")
					r.mu.Lock()
					r.lines = nil
					r.mu.Unlock()
				}
				for len(names) > 0 {
					<-names
				}
				if _, err := dial("wss://localhost:" + port); !errors.As(err, new(x509.HostnameError)) {
					t.Errorf("a name that is not the certificate's: %v", err)
				}
				if name := <-names; name != "localhost" {
					t.Errorf("the server was asked for %q", name)
				}
			}
			dial, r := dialler(t, route, tcpio.ListenerOptions{Network: "none"}, Options{})
			if _, err := dial("wss://127.0.0.1:" + port); !errors.As(err, new(x509.UnknownAuthorityError)) {
				t.Errorf("a certificate that nobody knows: %v", err)
			}
			dial, r2 := dialler(t, route, tcpio.ListenerOptions{Network: "none"}, Options{ClientTLS: &tls.Config{RootCAs: client.RootCAs}})
			if _, err := dial("wss://127.0.0.1:" + port); err == nil {
				t.Error("the server takes a client without a certificate")
			}
			for _, r := range []*record{r, r2} {
				r.mu.Lock()
				if len(r.lines) > 0 {
					t.Errorf("events of connections that failed: %q", r.lines)
				}
				r.mu.Unlock()
			}
		})
	}
}

// Dial waits for Serve, on every route, as long as its ctx allows.
func TestDialWaitsForServe(t *testing.T) {
	to := start(t, tcpio.ListenerOptions{}, Options{NewActor: echoActor}, nil)
	for _, opts := range []Options{{}, {NewActor: echoActor}} {
		s, err := Listen(&tcpio.ListenerOptions{Network: "none"}, &opts)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := s.Dial(ctx, "ws://"+to.Listener().Addr().String(), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without Serve: %v", err)
		}
		dialed := make(chan error)
		go func() {
			_, err := s.Dial(t.Context(), "ws://"+to.Listener().Addr().String(), nil)
			dialed <- err
		}()
		served := make(chan error)
		events := func(func(Event) bool) {}
		if opts.NewActor == nil {
			events = s.Events()
		}
		go func() { served <- s.Serve(context.Background()) }()
		if err := <-dialed; err != nil {
			t.Error(err)
		}
		s.Listener().Close()
		for range events {
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// A server that does not keep to the handshake: Dial fails, and nothing of it becomes an event, nor
// is it ever taken for a client.
func TestDialOfBadServers(t *testing.T) {
	const accept = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
	for what, answer := range map[string]string{
		"401 with a body":           "HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nno\n",
		"a page in chunks":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"HTTP/1.0":                  "HTTP/1.0 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
		"a line without end":        accept + "X: " + strings.Repeat("x", 1<<20),
		"lines without end":         accept + strings.Repeat("X: x\r\n", 1<<17),
		"an extension of its own":   accept + "Sec-WebSocket-Extensions: x\r\n",
		"speaks first, as a client": handshakeOf + "\r\n",
		"not HTTP":                  "SSH-2.0-OpenSSH_9.0\r\n\r\n",
		"wrong key":                 accept + "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
		"no key":                    accept + "\r\n",
		"a redirect":                "HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:1/\r\n\r\n",
		"half an answer":            accept,
		"nothing":                   "",
	} {
		for _, route := range []string{"stream", "actor"} {
			t.Run(what+", "+route, func(t *testing.T) {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				go func() {
					nc, err := ln.Accept()
					if err != nil {
						return
					}
					defer nc.Close()
					_, _ = io.WriteString(nc, answer)
					_ = nc.(*net.TCPConn).CloseWrite()
					_, _ = io.Copy(io.Discard, nc)
				}()
				dial, r := dialler(t, route, tcpio.ListenerOptions{Network: "none"}, Options{})
				if c, err := dial("ws://" + ln.Addr().String()); err == nil {
					t.Errorf("dialed %v", c)
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				if len(r.lines) > 0 {
					t.Errorf("events %q", r.lines)
				}
			})
		}
	}
}

// The end of the listener ends a Dial that waits for its server.
func TestDialEndsWithTheListener(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, opts := range []Options{{}, {NewActor: echoActor}} {
		s, err := Listen(&tcpio.ListenerOptions{Network: "none"}, &opts)
		if err != nil {
			t.Fatal(err)
		}
		var events func(func(Event) bool)
		if opts.NewActor == nil {
			events = s.Events()
		}
		served, dialed := make(chan error), make(chan error)
		go func() { served <- s.Serve(context.Background()) }()
		go func() {
			_, err := s.Dial(t.Context(), "ws://"+silent.Addr().String(), nil)
			dialed <- err
		}()
		nc, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		s.Listener().Close()
		if err := <-dialed; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if events != nil {
			for ev := range events {
				t.Error(ev)
			}
		}
	}
}
