//go:build linux

package tls_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// echoTLS is a server on crypto/tls that sends back what it reads.
func echoTLS(t *testing.T, config *tls.Config) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(testnet.Limit))
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().String()
}

// clientOnly serves without an address.
func clientOnly(t *testing.T, opts tcpio.ListenerOptions) (l *tcpio.Listener, events <-chan tcpio.Event) {
	t.Helper()
	opts.Network = "none"
	l, err := tcpio.Listen(&opts)
	if err != nil {
		t.Fatal(err)
	}
	events = l.Events()
	stop := harness.Start(t, l)
	t.Cleanup(func() {
		go l.Close()
		for range events {
		}
		stop()
	})
	return l, events
}

// plainClients serves connections without a route.
func plainClients(t *testing.T, opts tcpio.ListenerOptions) *tcpio.Listener {
	t.Helper()
	opts.Network = "none"
	opts.NewActor = func(*tcpio.Conn) tcpio.Actor { return nil }
	l, err := tcpio.Listen(&opts)
	if err != nil {
		t.Fatal(err)
	}
	harness.Start(t, l)
	return l
}

func TestDialTLSSpeaksWithCryptoTLS(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			server := testnet.ServerTLS()
			server.MaxVersion = version
			addr := echoTLS(t, server)
			l := plainClients(t, tcpio.ListenerOptions{})
			config := testnet.ClientTLS()
			config.NextProtos = []string{"echo"}
			c, err := l.DialTLS(t.Context(), nil, "tcp", addr, config)
			if err != nil {
				t.Fatal(err)
			}
			st := c.TLS()
			if st == nil || st.Version != version || st.NegotiatedProtocol != "echo" || len(st.VerifiedChains) == 0 {
				t.Errorf("the state is %+v", st)
			}
			want := testnet.Pattern(300_000)
			go func() { _, _ = c.Write(want) }()
			testnet.ExpectBytes(t, c, want)
			if err := c.CloseWrite(); err != nil {
				t.Error(err)
			}
			testnet.ExpectEOF(t, c) // with a close_notify
			c.Close()
		})
	}
}

// The same connection as an actor's, and a server of tcpio's own on the other side.
func TestDialTLSOnEveryRoute(t *testing.T) {
	server, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	addr := server.Addr().String()
	t.Run("stream", func(t *testing.T) {
		l, events := clientOnly(t, tcpio.ListenerOptions{})
		conns := make(chan *tcpio.Conn, 1)
		go func() {
			c, err := l.DialTLS(t.Context(), nil, "tcp", addr, testnet.ClientTLS())
			if err != nil {
				t.Error(err)
			}
			conns <- c
		}()
		c := harness.Expect[tcpio.Opened](t, events).Conn
		if c.TLS() == nil {
			t.Error("Opened before the handshake is done")
		}
		if x := testnet.Receive(t, "DialTLS", conns); x != c {
			t.Error("Opened of another connection")
		}
		if _, err := c.TryWrite([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if got, err := harness.ReadStream(t, events, c, 5, 100); string(got) != "hello" {
			t.Errorf("%q, %v", got, err)
		}
	})
	for _, route := range []string{"actor", "mailbox"} {
		t.Run(route, func(t *testing.T) {
			l := plainClients(t, tcpio.ListenerOptions{})
			c, err := l.DialTLS(t.Context(), nil, "tcp", addr, testnet.ClientTLS())
			if err != nil {
				t.Fatal(err)
			}
			got := make(chan string, 10)
			handle := func(ev tcpio.Event) error {
				switch ev.(type) {
				case tcpio.Opened:
					_, err := c.TryWrite([]byte("hello"))
					return err
				case tcpio.Readable:
					var p [100]byte
					if n, err := c.TryRead(p[:]); err == nil {
						got <- string(p[:n])
					}
				}
				return nil
			}
			if route == "actor" {
				if err := c.Attach(tcpio.ActorFunc(handle)); err != nil {
					t.Fatal(err)
				}
			} else {
				go func() {
					for ev := range c.Events() {
						_ = handle(ev)
					}
				}()
			}
			if s := testnet.Receive(t, "the echo", got); s != "hello" {
				t.Errorf("read %q", s)
			}
		})
	}
}

func TestDialTLSResumesSessionsAndHasCertificates(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server := testnet.ServerTLS()
		server.MaxVersion = version
		server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, testnet.ClientTLS().RootCAs
		addr := echoTLS(t, server)
		l := plainClients(t, tcpio.ListenerOptions{})
		config := testnet.ClientTLS()
		config.ClientSessionCache = tls.NewLRUClientSessionCache(10)
		config.Certificates = testnet.ServerTLS().Certificates
		config.Time = time.Now
		for i := range 3 {
			c, err := l.DialTLS(t.Context(), nil, "tcp", addr, config)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := c.TLS().DidResume, i > 0; got != want {
				t.Errorf("%s, connection %d: resumed %v", tls.VersionName(version), i, got)
			}
			testnet.Ping(t, c, "hello") // takes in the ticket of TLS 1.3
			c.Close()
		}
	}
}

// A cache of the user's that panics, also where a read takes in a ticket, ends nothing.
func TestAPanicInTheSessionCacheEndsNothing(t *testing.T) {
	addr := echoTLS(t, testnet.ServerTLS())
	l := plainClients(t, tcpio.ListenerOptions{})
	config := testnet.ClientTLS()
	config.ClientSessionCache = brokenCache{}
	config.Time = func() time.Time { panic("in Time") }
	c, err := l.DialTLS(t.Context(), nil, "tcp", addr, config)
	if err != nil {
		t.Fatal(err)
	}
	testnet.Ping(t, c, "hello")
	c.Close()
}

type brokenCache struct{}

func (brokenCache) Get(string) (*tls.ClientSessionState, bool) { panic("in Get") }
func (brokenCache) Put(string, *tls.ClientSessionState)        { panic("in Put") }

func TestDialTLSTellsWhyItFails(t *testing.T) {
	fails := func(t *testing.T, c *tcpio.Conn, err error, is func(error) bool) {
		t.Helper()
		var oe *net.OpError
		if c != nil || !errors.As(err, &oe) || !is(err) {
			t.Errorf("DialTLS = %v, %v", c, err)
		}
	}
	matches := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	says := func(s string) func(error) bool {
		return func(err error) bool { return strings.Contains(err.Error(), s) }
	}
	silent, _ := testnet.Upstream(t, "tcp", "127.0.0.1:0")
	addr := echoTLS(t, testnet.ServerTLS())
	l, events := clientOnly(t, tcpio.ListenerOptions{HandshakeTimeout: testnet.Limit, CloseTimeout: 100 * time.Millisecond})
	hasty, hastyEvents := clientOnly(t, tcpio.ListenerOptions{HandshakeTimeout: 50 * time.Millisecond, CloseTimeout: 100 * time.Millisecond})

	c, err := l.DialTLS(t.Context(), nil, "tcp", addr, &tls.Config{ServerName: "localhost", RootCAs: x509.NewCertPool()})
	fails(t, c, err, func(err error) bool { return errors.As(err, new(x509.UnknownAuthorityError)) })
	c, err = l.DialTLS(t.Context(), nil, "tcp", addr, nil) // whose name is 127.0.0.1
	fails(t, c, err, says("certificate"))
	c, err = hasty.DialTLS(t.Context(), nil, "tcp", silent, testnet.ClientTLS())
	fails(t, c, err, func(err error) bool {
		var limit *tcpio.TimeoutError
		ok := errors.As(err, &limit)
		return ok && limit.Kind.String() == "handshake" && errors.Is(err, os.ErrDeadlineExceeded)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	c, err = l.DialTLS(ctx, nil, "tcp", silent, testnet.ClientTLS())
	fails(t, c, err, matches(context.DeadlineExceeded))
	c, err = l.DialTLS(t.Context(), nil, "unix", "/none", nil)
	fails(t, c, err, says("ServerName"))
	c, err = l.DialTLS(t.Context(), nil, "tcp", addr, &tls.Config{Renegotiation: tls.RenegotiateOnceAsClient})
	fails(t, c, err, says("renegotiation"))
	plain := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if o, ok := ev.(tcpio.Opened); ok {
			_, _ = o.Conn.TryWrite([]byte("220 this is plain text\r\n"))
		}
		return nil
	}))
	c, err = l.DialTLS(t.Context(), nil, "tcp", plain.Addr().String(), testnet.ClientTLS())
	fails(t, c, err, says("tls"))
	if n, m := l.Stats().HandshakesFailed, hasty.Stats().HandshakesFailed; n != 3 || m != 1 { // the one that ctx ended did not fail
		t.Errorf("%d and %d failed handshakes are counted", n, m)
	}
	harness.ExpectSilence(t, events, 10*time.Millisecond) // nobody has heard of these connections
	harness.ExpectSilence(t, hastyEvents, 10*time.Millisecond)
	testnet.WaitFor(t, "they are gone", func() bool { return l.Len() == 0 && hasty.Len() == 0 })
	errs := make(chan error, 1)
	l2, _ := clientOnly(t, tcpio.ListenerOptions{})
	go func() {
		_, err := l2.DialTLS(t.Context(), nil, "tcp", silent, testnet.ClientTLS())
		errs <- err
	}()
	testnet.WaitFor(t, "the connection", func() bool { return l2.Len() == 1 })
	l2.Close()
	if err := testnet.Receive(t, "the end of DialTLS", errs); !errors.Is(err, net.ErrClosed) {
		t.Errorf("at Close: %v", err)
	}
}

// A client upgrades behind the server's answer. What was injected behind that answer fails the
// handshake.
func TestStartTLSClientUpgradesAPlainConnection(t *testing.T) {
	for _, injected := range []string{"", "INJECTED\n"} {
		t.Run(injected, func(t *testing.T) {
			server := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
				r, ok := ev.(tcpio.Readable)
				if !ok {
					return nil
				}
				for line, err := range r.Conn.Frames(bufio.ScanLines) {
					switch {
					case err != nil:
						return err
					case string(line) == "STARTTLS":
						_, _ = r.Conn.TryWrite([]byte("go ahead\n" + injected))
						if err := r.Conn.StartTLS(testnet.ServerTLS()); err != nil {
							t.Error(err)
						}
					default:
						fmt.Fprintf(r.Conn, "%s, secure %v\n", line, r.Conn.TLS() != nil)
					}
				}
				return nil
			}))
			l := plainClients(t, tcpio.ListenerOptions{})
			c, err := l.Dial(t.Context(), "tcp", server.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			greeted := false
			said, ended := make(chan string, 10), make(chan error, 1)
			if err := c.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error {
				switch ev.(type) {
				case tcpio.Opened:
					_, _ = c.TryWrite([]byte("STARTTLS\n"))
				case tcpio.Closed:
					ended <- c.Err()
				case tcpio.Readable:
					for line, err := range c.Frames(bufio.ScanLines) {
						if err != nil {
							return err
						}
						if string(line) != "go ahead" {
							said <- string(line)
						} else if err := c.StartTLSClient(testnet.ClientTLS()); err != nil {
							t.Error(err)
						}
					}
					if c.TLS() != nil && !greeted {
						greeted = true
						_, _ = c.TryWrite([]byte("hello\n"))
					}
				}
				return nil
			})); err != nil {
				t.Fatal(err)
			}
			if injected != "" {
				if err := testnet.Receive(t, "the end", ended); err == nil {
					t.Error("Err is nil behind what was injected")
				}
				return
			}
			if s := testnet.Receive(t, "an answer", said); s != "hello, secure true" {
				t.Errorf("%q", s)
			}
		})
	}
}

func TestIdleTLSClientsHaveNoGoroutine(t *testing.T) {
	const n = 50
	server, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	l := plainClients(t, tcpio.ListenerOptions{})
	dial := func() {
		t.Helper()
		c, err := l.DialTLS(t.Context(), nil, "tcp", server.Addr().String(), testnet.ClientTLS())
		if err != nil {
			t.Fatal(err)
		}
		testnet.Ping(t, c, "x")
	}
	dial()
	testnet.WaitFor(t, "the loops of both", func() bool {
		return testnet.Goroutines("tcpio.(*loop).drive(") >= len(l.Stats().Loops)+len(server.Stats().Loops)
	})
	before := runtime.NumGoroutine()
	for range n {
		dial()
	}
	testnet.WaitFor(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= before+5 })
}

func TestStartTLSClientFailsWithoutEffect(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	for _, config := range []*tls.Config{nil, {}, {ServerName: "x", Renegotiation: tls.RenegotiateFreelyAsClient}} {
		if err := c.StartTLSClient(config); err == nil {
			t.Errorf("%+v is taken", config)
		}
	}
	testnet.Send(t, peer, "plain")
	if got, err := harness.ReadStream(t, events, c, 5, 100); !bytes.Equal(got, []byte("plain")) {
		t.Errorf("%q, %v", got, err)
	}
	c.Abort()
	if err := c.StartTLSClient(testnet.ClientTLS()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Abort: %v", err)
	}
}
