//go:build linux

package tls_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestTLSEchoesInEveryVersion(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			l, ended := harness.TLS(t, tcpio.ListenerOptions{WriteBuffer: 100000}, harness.EchoActor)
			config := testnet.ClientTLS()
			config.MinVersion, config.MaxVersion, config.NextProtos = version, version, []string{"echo"}
			c := testnet.DialTLS(t, l, config)
			if p := c.ConnectionState().NegotiatedProtocol; p != "echo" {
				t.Errorf("ALPN chose %q", p)
			}
			want := make([]byte, 5<<20)
			_, _ = rand.Read(want)
			go func() {
				_, _ = c.Write(want)
				_ = c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes came back, %v; want %d and close_notify", len(got), err, len(want))
			}
			c.Close()
			sc := testnet.Receive(t, "Closed", ended)
			if err := sc.Err(); err != nil {
				t.Errorf("Err is %v after an orderly end", err)
			}
			if st := sc.TLS(); st == nil || st.Version != version || st.NegotiatedProtocol != "echo" {
				t.Errorf("TLS() is %+v", st)
			}
		})
	}
}

// crypto/tls offers a key of the first curve alone, so a server that wants another one has the client
// say hello again, RFC 8446, section 4.1.4.
func TestTLSHelloRetryRequest(t *testing.T) {
	config := testnet.ServerTLS()
	config.MinVersion, config.CurvePreferences = tls.VersionTLS13, []tls.CurveID{tls.CurveP384}
	client := testnet.ClientTLS()
	client.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP384}

	l, ended := harness.TLS(t, tcpio.ListenerOptions{TLSConfig: config}, harness.EchoActor)
	peer := testnet.DialTLS(t, l, client)
	testnet.Ping(t, peer, "accepted")
	peer.Close()
	accepted := testnet.Receive(t, "Closed", ended)

	dialed, err := plainClients(t, tcpio.ListenerOptions{}).DialTLS(t.Context(), nil, "tcp", echoTLS(t, config), client)
	if err != nil {
		t.Fatal(err)
	}
	testnet.Ping(t, dialed, "dialed")
	for name, c := range map[string]*tcpio.Conn{"accepted": accepted, "dialed": dialed} {
		if st := c.TLS(); st == nil || st.CurveID != tls.CurveP384 {
			t.Errorf("%s: TLS() is %+v", name, st)
		}
	}
}

func TestTLSSessionsResume(t *testing.T) {
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	config := testnet.ClientTLS()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		c := testnet.DialTLS(t, l, config)
		testnet.Ping(t, c, "x")
		if resumed := c.ConnectionState().DidResume; resumed != (i == 1) {
			t.Errorf("connection %d: resumed %v", i, resumed)
		}
		c.Close()
	}
}

func TestTLSClientCertificatesAreSeen(t *testing.T) {
	config := testnet.ServerTLS()
	cert := config.Certificates[0]
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, testnet.ClientTLS().RootCAs
	l, ended := harness.TLS(t, tcpio.ListenerOptions{TLSConfig: config}, harness.EchoActor)
	withCert := testnet.ClientTLS()
	withCert.Certificates = []tls.Certificate{cert}
	c := testnet.DialTLS(t, l, withCert)
	testnet.Ping(t, c, "x")
	c.Close()
	if st := testnet.Receive(t, "Closed", ended).TLS(); len(st.PeerCertificates) != 1 {
		t.Errorf("%d certificates of the client", len(st.PeerCertificates))
	}
	bare := tls.Client(testnet.Dial(t, l), testnet.ClientTLS())
	_ = bare.Handshake() // in TLS 1.3 the client learns of it by its first read
	if _, err := bare.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("a client without a certificate sees %v", err)
	}
}

func TestTLSPlainTextClientGetsAnAlert(t *testing.T) {
	log := make(chan error, 10)
	opts := tcpio.ListenerOptions{OnErrorEvent: func(err error) { log <- err }}
	l, _ := harness.TLS(t, opts, silent(t))
	c := testnet.Dial(t, l)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || len(got) != 7 || got[0] != 21 || got[5] != 2 {
		t.Errorf("a plain-text client got % x, %v; want a fatal alert and the end", got, err)
	}
	if err := testnet.Receive(t, "Failed", log); !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("Failed says %v", err)
	}
	if n := l.Stats().HandshakesFailed; n != 1 {
		t.Errorf("%d failed handshakes counted", n)
	}
}

func TestTLSOnTheOtherRoutes(t *testing.T) {
	roundTrip := func(t *testing.T, l *tcpio.Listener) {
		t.Helper()
		c := testnet.DialTLS(t, l, testnet.ClientTLS())
		want := bytes.Repeat([]byte("0123456789"), 30000)
		go func() { _, _ = c.Write(want) }()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v, equal %v", err, bytes.Equal(got, want))
		}
		c.Close()
	}
	t.Run("stream", func(t *testing.T) {
		roundTrip(t, harness.Stream(t, tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS()}, func(ev tcpio.Event) {
			if err := harness.EchoActor(ev); err == io.EOF {
				ev.(tcpio.Readable).Conn.Close()
			} else if err != nil {
				t.Error(err)
			}
		}))
	})
	t.Run("callback", func(t *testing.T) {
		roundTrip(t, harness.Serve(t, tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS(), OnConnEvent: func(c net.Conn) error {
			buf := make([]byte, 1000)
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			_, err = c.Write(buf[:n])
			return err
		}}))
	})
	t.Run("net.Listener", func(t *testing.T) {
		l := harness.Listen(t, tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS(), DeferAccept: true})
		ln := l.NetListener()
		done := make(chan error, 1)
		harness.Start(t, l)
		go func() {
			c, err := ln.Accept()
			if err == nil {
				_, _ = io.Copy(c, c)
				c.Close()
			}
			done <- err
		}()
		roundTrip(t, l)
		if err := testnet.Receive(t, "the end of the copy", done); err != nil {
			t.Error(err)
		}
	})
	t.Run("group", func(t *testing.T) {
		var g tcpio.Group
		l, _ := harness.TLS(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
			if o, ok := ev.(tcpio.Opened); ok {
				g.Join(o.Conn)
			}
			return nil
		})
		a, b := testnet.DialTLS(t, l, testnet.ClientTLS()), testnet.DialTLS(t, l, testnet.ClientTLS())
		testnet.WaitFor(t, "both members", func() bool { return g.Len() == 2 })
		if _, err := g.Write([]byte("to all")); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*tls.Conn{a, b} {
			testnet.ExpectBytes(t, c, "to all")
		}
	})
}

// What is queued counts in plain-text bytes, and a slow reader gets every one of them.
func TestTLSWriteBufferIsOfPlainText(t *testing.T) {
	t.Parallel()
	const buffer = 64 << 10
	took := make(chan int, 1)
	l, _ := harness.TLS(t, tcpio.ListenerOptions{WriteBuffer: buffer}, func(ev tcpio.Event) error {
		if o, ok := ev.(tcpio.Opened); ok {
			testnet.ShrinkSendBuffer(t, o.Conn)
			total := 0
			// The sockets may take something of the queue before one can look at it; it is full
			// again soon.
			testnet.WaitFor(t, "a full queue", func() bool {
				n, err := o.Conn.TryWrite(make([]byte, 100)) // a record each, a quarter larger
				for total += n; err == nil; total += n {
					n, err = o.Conn.TryWrite(make([]byte, 100))
				}
				if !errors.Is(err, tcpio.ErrWouldBlock) {
					t.Error(err)
					return true
				}
				q := o.Conn.Buffered()
				if q > buffer {
					t.Errorf("%d bytes are queued at the limit of %d", q, buffer)
				}
				return q >= buffer-2000
			})
			took <- total
			o.Conn.Close()
		}
		return nil
	})
	raw := testnet.Dial(t, l)
	if err := raw.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, testnet.ClientTLS())
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	want := <-took // nothing is read before, so that little is enough
	got, err := io.ReadAll(c)
	if err != nil || len(got) != want {
		t.Errorf("%d bytes, %v; want %d", len(got), err, want)
	}
}
