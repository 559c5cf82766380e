//go:build linux

package tls_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// TestAsyncDialIsAnsweredBehindTheHandshake also counts goroutines: an idle connection has none.
func TestAsyncDialIsAnsweredBehindTheHandshake(t *testing.T) {
	addr := echoTLS(t, testnet.ServerTLS())
	l, events := clientOnly(t, tcpio.ListenerOptions{})
	config := testnet.ClientTLS()
	config.ServerName = "" // that of the address
	_, port, _ := net.SplitHostPort(addr)
	const n = 50
	conns := map[*tcpio.Conn]bool{}
	buf := make([]byte, 100)
	for i := range n {
		if _, err := l.DialAsync(tcpio.DialRequest{Network: "tcp4", Address: "localhost:" + port, TLS: config, Value: i}); err != nil {
			t.Fatal(err)
		}
	}
	for answered, echoed := 0, 0; echoed < n; {
		switch ev := testnet.Receive(t, "an event", events).(type) {
		case tcpio.Dialed:
			if ev.Err != nil {
				t.Fatal(ev.Err)
			}
			if s := ev.Conn.TLS(); s == nil || !s.HandshakeComplete {
				t.Fatal("answered before the handshake")
			}
			conns[ev.Conn] = true
			answered++
			fmt.Fprintf(ev.Conn, "hello %d", answered)
		case tcpio.Opened:
			if !conns[ev.Conn] {
				t.Fatal("Opened before the answer")
			}
		case tcpio.Readable:
			if n, err := ev.Conn.TryRead(buf); err == nil && n > 0 {
				echoed++
			}
		case tcpio.Closed:
			t.Fatal(ev.Conn.Err())
		}
	}
	testnet.WaitFor(t, "the goroutines of the handshakes end", func() bool { return testnet.Goroutines("tcpio.(*Conn).handshake") == 0 })
	testnet.WaitFor(t, "no goroutines but the server's own, and a few", func() bool { return runtime.NumGoroutine() <= n+20 })
}

func TestAsyncDialTellsWhyTheHandshakeFailed(t *testing.T) {
	sealed := echoTLS(t, testnet.ServerTLS())
	silent, _ := testnet.Upstream(t, "tcp", "127.0.0.1:0")
	plain, accepted := testnet.Upstream(t, "tcp", "127.0.0.1:0")
	go func() { // it ends with the one connection that comes
		_, _ = (<-accepted).Write([]byte("220 hello, this is no TLS\r\n"))
	}()
	untrusting := &tls.Config{ServerName: "localhost"}
	for name, tc := range map[string]struct {
		addr   string
		config *tls.Config
		dialer *net.Dialer
		is     func(error) bool
	}{
		"untrusted": {sealed, untrusting, nil, func(err error) bool { return errors.As(err, new(*tls.CertificateVerificationError)) }},
		"plain":     {plain, testnet.ClientTLS(), nil, func(err error) bool { return errors.As(err, new(tls.RecordHeaderError)) }},
		"handshake": {silent, testnet.ClientTLS(), nil, func(err error) bool {
			var te *tcpio.TimeoutError
			return errors.As(err, &te) && te.Kind == tcpio.TimeoutHandshake
		}},
		"whole dial": {silent, testnet.ClientTLS(), &net.Dialer{Timeout: 20 * time.Millisecond}, func(err error) bool {
			ne, ok := err.(net.Error)
			return ok && ne.Timeout()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			o := tcpio.ListenerOptions{HandshakeTimeout: testnet.Limit, CloseTimeout: 50 * time.Millisecond}
			if name == "handshake" {
				o.HandshakeTimeout = 50 * time.Millisecond
			}
			l, events := clientOnly(t, o)
			if _, err := l.DialAsync(tcpio.DialRequest{Address: tc.addr, TLS: tc.config, Dialer: tc.dialer}); err != nil {
				t.Fatal(err)
			}
			ev := harness.Expect[tcpio.Dialed](t, events)
			if _, ok := ev.Err.(*net.OpError); !ok || ev.Conn != nil || !tc.is(ev.Err) {
				t.Errorf("%v, %v", ev.Conn, ev.Err)
			}
			testnet.WaitFor(t, "nothing is left", func() bool { return l.Len() == 0 && l.Stats().Dialing == 0 })
			harness.ExpectSilence(t, events, 20*time.Millisecond)
		})
	}
}

// stop during the handshake ends it.
func TestStopEndsAHandshake(t *testing.T) {
	silent, accepted := testnet.Upstream(t, "tcp", "127.0.0.1:0")
	l, events := clientOnly(t, tcpio.ListenerOptions{})
	stop, err := l.DialAsync(tcpio.DialRequest{Address: silent, TLS: testnet.ClientTLS()})
	if err != nil {
		t.Fatal(err)
	}
	peer := testnet.Await(t, "the connection", accepted)
	if n, err := peer.Read(make([]byte, 1)); n != 1 {
		t.Fatal(err)
	}
	if !stop() {
		t.Error("stop says that it is answered")
	}
	testnet.WaitFor(t, "nothing is left", func() bool { return l.Len() == 0 && l.Stats().Dialing == 0 })
	harness.ExpectSilence(t, events, 20*time.Millisecond)
}

// A handshake needs its loop. At MaxBlocked no handler that dials keeps it.
func TestHandlersThatDialDoNotKeepTheirLoopAtMaxBlocked(t *testing.T) {
	up := echoTLS(t, testnet.ServerTLS())
	var all sync.WaitGroup
	l := harness.Actor(t, tcpio.ListenerOptions{MaxBlocked: 1, HandshakeTimeout: testnet.Limit}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		o, ok := ev.(tcpio.Opened)
		if !ok {
			return nil
		}
		defer all.Done()
		c, err := o.Conn.Listener().DialTLS(t.Context(), nil, "tcp", up, testnet.ClientTLS())
		if err != nil {
			t.Error(err)
			return err
		}
		_, err = o.Conn.TryWrite([]byte("through"))
		c.Abort()
		return err
	}))
	const n = 12
	all.Add(n)
	var peers []net.Conn
	for range n {
		peers = append(peers, testnet.Dial(t, l))
	}
	for _, p := range peers {
		testnet.ExpectBytes(t, p, "through")
	}
	all.Wait()
}

// Without ServerName the host of the address is the name, also where nobody verifies it: servers
// choose by it.
func TestServerNameIsSentAlsoWithoutVerifying(t *testing.T) {
	names := make(chan string, 4)
	config := testnet.ServerTLS()
	config.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) { names <- h.ServerName; return nil, nil }
	_, port, _ := net.SplitHostPort(echoTLS(t, config))
	l, events := clientOnly(t, tcpio.ListenerOptions{})
	if _, err := l.DialAsync(tcpio.DialRequest{Address: "localhost:" + port, TLS: &tls.Config{InsecureSkipVerify: true}}); err != nil {
		t.Fatal(err)
	}
	if ev := harness.Expect[tcpio.Dialed](t, events); ev.Err != nil {
		t.Fatal(ev.Err)
	}
	if name := testnet.Receive(t, "the ClientHello", names); name != "localhost" {
		t.Errorf("the server was asked for %q", name)
	}
	c, err := l.DialTLS(t.Context(), nil, "tcp", "localhost:"+port, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	if name := testnet.Receive(t, "the ClientHello", names); name != "localhost" {
		t.Errorf("the server was asked for %q", name)
	}
}
