//go:build linux

package tls_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
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
	if g := runtime.NumGoroutine(); g > n+20 { // the server's own, and a few
		t.Errorf("%d goroutines", g)
	}
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
