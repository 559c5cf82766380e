//go:build linux

package tls_test

import (
	"bytes"
	"crypto/tls"
	"errors"
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

// A client may disappear behind any byte of its handshake: no event comes, nothing is left,
// and the next client is served.
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

// cutter is a proxy that passes on a number of bytes from the client, or from the server, and then
// cuts both off.
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

// A client may disappear behind any byte of a handshake, its own or the server's, in order or with
// a reset: no event comes of one that did not send all of its own, nothing is left, and the next
// client is served.
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
	before := harness.Goroutines(t, l)
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
	// A cut behind the last byte is one that the client takes for a failure and the server does
	// not. In TLS 1.2 the server is done before the client has read its last flight.
	if o := opened.Load(); (!reads || version == tls.VersionTLS13) && o > int64(finished)+1 {
		t.Errorf("%d connections were opened; %d handshakes were complete", o, finished)
	}
	testnet.WaitFor(t, "the goroutines", func() bool { return runtime.NumGoroutine() <= before+2 })
	raw := testnet.Dial(t, l)
	c := tls.Client(raw, config)
	testnet.Ping(t, c, "x")
	t.Logf("%d byte counts, %d opened, %d goroutines before and %d after", n-1, opened.Load(), before, runtime.NumGoroutine())
}

// A missing close_notify cannot pass as an end.
func TestTLSTruncationIsUnexpectedEOF(t *testing.T) {
	reads := make(chan error, 10)
	l, ended := harness.TLS(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
		if r, ok := ev.(tcpio.Readable); ok {
			_, err := r.Conn.TryRead(make([]byte, 100))
			if err != nil && !errors.Is(err, tcpio.ErrWouldBlock) {
				reads <- err
			}
		}
		return nil
	})
	raw := testnet.Dial(t, l)
	c := tls.Client(raw, testnet.ClientTLS())
	if _, err := c.Write([]byte("half a story")); err != nil {
		t.Fatal(err)
	}
	raw.Close()
	if err := testnet.Receive(t, "the read's error", reads); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		t.Errorf("the read says %v", err)
	}
	if err := testnet.Receive(t, "Closed", ended).Err(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Err is %v", err)
	}
}

func TestTLSCloseSendsCloseNotifyBehindEverything(t *testing.T) {
	want := bytes.Repeat([]byte("all of it"), 200000)
	l, ended := harness.TLS(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
		if o, ok := ev.(tcpio.Opened); ok {
			if _, err := o.Conn.TryWrite(want); err != nil {
				return err
			}
			o.Conn.Close()
		}
		return nil
	})
	c := testnet.DialTLS(t, l, testnet.ClientTLS())
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; want %d and close_notify", len(got), err, len(want))
	}
	c.Close()
	if err := testnet.Receive(t, "Closed", ended).Err(); err != nil {
		t.Errorf("Err is %v", err)
	}
}

// A client that has hung up before its handshake's turn costs no handshake, whether by a FIN or a
// reset.
func TestTLSNothingIsComputedForClientsThatHaveGone(t *testing.T) {
	for _, reset := range []bool{false, true} {
		t.Run(map[bool]string{false: "FIN", true: "reset"}[reset], func(t *testing.T) {
			var begun atomic.Int64
			config := testnet.ServerTLS()
			config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				begun.Add(1)
				return nil, nil
			}
			l := harness.Listen(t, tcpio.ListenerOptions{TLSConfig: config, HandshakeTimeout: time.Hour,
				NewActor: func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(silent(t)) }})
			const n = 50
			for range n {
				c := testnet.Dial(t, l)
				testnet.Send(t, c, testnet.ClientHello())
				if reset {
					testnet.RST(t, c)
				} else {
					testnet.FIN(t, c)
				}
			}
			served := harness.Go(t.Context(), l)
			// The kernel does not hand out those that were reset within the backlog, or does; both
			// are right.
			testnet.WaitFor(t, "the ends of all of them", func() bool {
				s := l.Stats()
				return s.Open == 0 && (s.HandshakesFailed == n || reset && s.HandshakesFailed == s.Accepted && s.Accepted > 0)
			})
			if begun.Load() != 0 {
				t.Errorf("%d handshakes were begun for clients that had gone", begun.Load())
			}
			l.Close()
			if err := testnet.Await(t, "the end of Serve", served); err != nil {
				t.Error(err)
			}
		})
	}
}

// Beside thousands of clients that send a ClientHello and hang up an honest one is served.
func TestTLSHonestClientsAreServedBesideHangUps(t *testing.T) {
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	hello := testnet.ClientHello()
	stop, done := make(chan struct{}), make(chan struct{})
	var sent atomic.Int64
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				continue
			}
			_, _ = c.Write(hello)
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
			sent.Add(1)
		}
	}()
	testnet.WaitFor(t, "the flood", func() bool { return sent.Load() > 200 })
	var worst time.Duration
	for range 20 {
		begin := time.Now()
		c := testnet.DialTLS(t, l, testnet.ClientTLS())
		testnet.Ping(t, c, "x")
		worst = max(worst, time.Since(begin))
		c.Close()
	}
	close(stop)
	<-done
	t.Logf("beside %d hang-ups the slowest of 20 handshakes took %v", sent.Load(), worst)
}
