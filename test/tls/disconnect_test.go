//go:build linux

package tls_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A client may disappear behind any byte of its handshake: nothing is told, nothing is left, the next one is served.
func TestTLSDisconnectAtEveryByteOfTheHello(t *testing.T) {
	hello := testnet.ClientHello()
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
		t.Errorf("an event for a failed handshake: %T", ev)
		return nil
	})
	for i := 0; i <= len(hello); i++ {
		c := testnet.Dial(t, l)
		if _, err := c.Write(hello[:i]); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	want := uint64(len(hello) + 1)
	for limit := time.Now().Add(60 * time.Second); l.Stats().HandshakesFailed < want || l.Len() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%d of %d handshakes have failed, %d connections are left", l.Stats().HandshakesFailed, want, l.Len())
		}
	}
}

// cutter is a proxy that passes on a number of bytes from the client, or from the server, and then cuts both off.
type cutter struct {
	raw   net.Conn // the client's end of the real connection
	left  int
	reads bool // it is the server's bytes that are counted
	reset bool
}

func (p *cutter) cut() {
	if p.reset {
		_ = p.raw.(*net.TCPConn).SetLinger(0)
	}
	p.raw.Close()
}

func (p *cutter) Write(b []byte) (int, error) {
	if p.reads {
		return p.raw.Write(b)
	}
	n := min(p.left, len(b))
	m, err := p.raw.Write(b[:n])
	p.left -= n
	if err == nil && p.left == 0 {
		p.cut()
		err = io.ErrClosedPipe
	}
	return m, err
}

func (p *cutter) Read(b []byte) (int, error) {
	if p.reads {
		b = b[:min(len(b), p.left)]
	}
	n, err := p.raw.Read(b)
	if p.reads {
		if p.left -= n; p.left == 0 {
			p.cut()
		}
	}
	return n, err
}

func (p *cutter) Close() error                     { return p.raw.Close() }
func (p *cutter) LocalAddr() net.Addr              { return p.raw.LocalAddr() }
func (p *cutter) RemoteAddr() net.Addr             { return p.raw.RemoteAddr() }
func (p *cutter) SetDeadline(time.Time) error      { return nil }
func (p *cutter) SetReadDeadline(time.Time) error  { return nil }
func (p *cutter) SetWriteDeadline(time.Time) error { return nil }

// A client may disappear behind any byte of a handshake, its own or the server's, in order or with a reset: nothing is
// told of one that did not send all of its own, nothing is left, and the next one is served.
func TestTLSDisconnectAtEveryByteOfTheHandshake(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, reads := range []bool{false, true} {
			for _, reset := range []bool{false, true} {
				if reads && !reset {
					continue // the server notices less of it
				}
				name := fmt.Sprintf("%s/of server %v/reset %v", tls.VersionName(version), reads, reset)
				t.Run(name, func(t *testing.T) { disconnects(t, version, reads, reset) })
			}
		}
	}
}

func disconnects(t *testing.T, version uint16, reads, reset bool) {
	var opened, closed atomic.Int64
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
		switch ev.(type) {
		case tcpio.Opened:
			opened.Add(1)
		case tcpio.Closed:
			closed.Add(1)
		}
		return harness.EchoActor(ev)
	})
	first := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Ping(t, first, "x")
	first.Close()
	testnet.WaitFor(t, "the end of the first one", func() bool { return closed.Load() == 1 })
	opened.Store(0)
	closed.Store(0)
	before := runtime.NumGoroutine() // the loops have theirs by now
	config := testnet.ClientTLS()
	config.MinVersion, config.MaxVersion = version, version
	config.CurvePreferences = []tls.CurveID{tls.X25519} // short, and cheap
	attempt := func(i int) (finished bool) {
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		p := &cutter{raw: raw, left: i, reads: reads, reset: reset}
		err = tls.Client(p, config).Handshake()
		finished = err == nil
		p.cut()
		return finished
	}
	n, finished := 1, 0
	for finished < 3 { // a few bytes behind the first success: signatures differ in length
		if attempt(n) {
			finished++
		}
		n++
	}
	testnet.WaitFor(t, "the ends", func() bool {
		return l.Len() == 0 && int(l.Stats().HandshakesFailed+uint64(opened.Load())) == n-1 && opened.Load() == closed.Load()
	})
	// A cut behind the last byte is one that the client takes for a failure and the server does not. In TLS 1.2 the server is
	// done before the client has read its last flight.
	if o := opened.Load(); (!reads || version == tls.VersionTLS13) && o > int64(finished)+1 {
		t.Errorf("%d connections were opened; %d handshakes were complete", o, finished)
	}
	testnet.WaitFor(t, "the goroutines", func() bool { return runtime.NumGoroutine() <= before+2 })
	raw := testnet.Dial(t, l)
	c := tls.Client(raw, config)
	testnet.Ping(t, c, "x")
	t.Logf("%d byte counts, %d opened, %d goroutines before and %d after", n-1, opened.Load(), before, runtime.NumGoroutine())
}
