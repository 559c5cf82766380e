//go:build linux

package tls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// silent is for listeners whose handshakes all fail.
func silent(t testing.TB) func(tcpio.Event) error {
	return func(ev tcpio.Event) error {
		t.Errorf("an event for a failed handshake: %T", ev)
		return nil
	}
}

// unfinished connects n clients that stop within their handshake: a third each silent, in the
// middle of the ClientHello, and behind it.
func unfinished(t testing.TB, l *tcpio.Listener, n int) []net.Conn {
	t.Helper()
	hello := testnet.ClientHello()
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = testnet.Dial(t, l)
		if _, err := conns[i].Write(hello[:len(hello)*(i%3)/2]); err != nil {
			t.Fatal(err)
		}
	}
	return conns
}

// An honest client is served within 100 ms beside 1,000 that never finish. The bound here is for
// slow machines; the time is logged.
func TestTLSUnfinishedHandshakesDoNotHoldUpOthers(t *testing.T) {
	l, _ := harness.TLS(t, tcpio.ListenerOptions{HandshakeTimeout: time.Hour}, harness.EchoActor) // nobody makes room
	const n = 1000
	unfinished(t, l, n)
	var took []time.Duration
	for range 20 {
		begin := time.Now()
		c := testnet.DialTLS(t, l, testnet.ClientTLS())
		testnet.Ping(t, c, "x")
		took = append(took, time.Since(begin))
		c.Close()
	}
	slices.Sort(took)
	t.Logf("connect, handshake and a round trip: median %v, longest %v", took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > 10*time.Second {
		t.Errorf("an honest client waited %v", took[len(took)/2])
	}
	if l.Len() < n {
		t.Errorf("%d connections are left of %d that are in their handshakes", l.Len(), n)
	}
}

// HandshakeTimeout ends a client wherever it stops, and one that waits for a place or inside a
// function of the config.
func TestTLSHandshakeTimeoutAtEachStage(t *testing.T) {
	t.Parallel()
	hello := testnet.ClientHello()
	stuck := testnet.ServerTLS()
	stuck.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		<-hello.Context().Done()
		return nil, hello.Context().Err()
	}
	stuck.Certificates = nil
	for _, tt := range []struct {
		name   string
		send   []byte
		config *tls.Config
		first  []byte // of a client that has the only place
	}{
		{"silent", nil, nil, nil},
		{"one byte", hello[:1], nil, nil},
		{"header", hello[:5], nil, nil},
		{"half a ClientHello", hello[:len(hello)/2], nil, nil},
		{"all but a byte", hello[:len(hello)-1], nil, nil},
		{"behind the ClientHello", hello, nil, nil},
		{"waiting for a place", hello, nil, hello},
		{"in GetCertificate", hello, stuck, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := make(chan error, 10)
			l, _ := harness.TLS(t, tcpio.ListenerOptions{
				HandshakeTimeout: 20 * time.Millisecond, CloseTimeout: 20 * time.Millisecond, MaxHandshakes: 1,
				TLSConfig: tt.config, OnErrorEvent: func(err error) { log <- err },
			}, silent(t))
			want := uint64(1)
			for _, part := range [][]byte{tt.first, tt.send} {
				if _, err := testnet.Dial(t, l).Write(part); err != nil && !testnet.Benign(err) { // cut off already
					t.Fatal(err)
				}
			}
			want++
			testnet.WaitFor(t, "the limit", func() bool { return l.Stats().Timeouts.Handshake == want && l.Len() == 0 })
			err := testnet.Await(t, "Failed", log)
			var limit *tcpio.TimeoutError
			if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &limit) || limit.Kind.String() != "handshake" {
				t.Errorf("Failed says %v", err)
			}
			if n := l.Stats().HandshakesFailed; n != want {
				t.Errorf("%d failed handshakes counted, want %d", n, want)
			}
		})
	}
}

// Clients that stop within their handshakes do not keep the places that others wait for, whatever
// HandshakeTimeout is.
func TestTLSStalledHandshakesMakeRoom(t *testing.T) {
	t.Parallel()
	l, _ := harness.TLS(t, tcpio.ListenerOptions{MaxHandshakes: 2, HandshakeTimeout: time.Hour, CloseTimeout: 10 * time.Millisecond}, harness.EchoActor)
	testnet.Ping(t, testnet.DialTLS(t, l, testnet.ClientTLS()), "x")
	for i, c := range unfinished(t, l, 6) {
		if i%3 != 2 {
			continue // silent, or in the middle of the ClientHello
		}
		if _, err := c.Read(make([]byte, 1)); err != nil { // the answer: it has a place
			t.Fatal(err)
		}
	}
	testnet.Ping(t, testnet.DialTLS(t, l, testnet.ClientTLS()), "x")
	if n := l.Stats().Timeouts.Handshake; n < 1 || n > 2 {
		t.Errorf("%d handshakes were ended by time", n)
	}
}

// A function of the config that waits holds up its own connection alone, also on a machine with one
// processor.
func TestTLSWaitingConfigFunctionHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	cert := testnet.ServerTLS().Certificates[0]
	held := make(chan struct{})
	config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "slow" {
			<-held
		}
		return &cert, nil
	}}
	l, _ := harness.TLS(t, tcpio.ListenerOptions{TLSConfig: config}, harness.EchoActor)
	done := make(chan error, 20)
	for range cap(done) {
		c := tls.Client(testnet.Dial(t, l), &tls.Config{InsecureSkipVerify: true, ServerName: "slow"})
		go func() { done <- c.Handshake() }()
	}
	c := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Ping(t, c, "x")
	close(held)
	for range cap(done) {
		if err := testnet.Await(t, "a handshake", done); err != nil {
			t.Error(err)
		}
	}
}

// A function of the config that panics, or ends its goroutine, ends its connection and takes
// nothing along.
func TestTLSPanicInAConfigFunctionEndsItsConnection(t *testing.T) {
	cert := testnet.ServerTLS().Certificates[0]
	config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		switch hello.ServerName {
		case "panic":
			panic("no certificate today")
		case "goexit":
			runtime.Goexit()
		}
		return &cert, nil
	}}
	log := make(chan error, 10)
	// With one place a handshake that took it along would be the last.
	opts := tcpio.ListenerOptions{TLSConfig: config, MaxHandshakes: 1, OnErrorEvent: func(err error) { log <- err }}
	l, _ := harness.TLS(t, opts, harness.EchoActor)
	for _, name := range []string{"panic", "goexit", "panic", "goexit"} {
		c := tls.Client(testnet.Dial(t, l), &tls.Config{InsecureSkipVerify: true, ServerName: name})
		if err := c.Handshake(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: the client sees %v", name, err)
		}
	}
	testnet.Ping(t, testnet.DialTLS(t, l, testnet.ClientTLS()), "x")
	var p *tcpio.PanicError
	if err := testnet.Await(t, "Failed", log); !errors.As(err, &p) || p.Value != "no certificate today" {
		t.Errorf("Failed says %v", err)
	}
	if n := l.Stats().HandshakesFailed; n != 4 {
		t.Errorf("%d failed handshakes counted", n)
	}
}

// Close and Shutdown end handshakes wherever they are, also the wait of a config function that
// looks at its context.
func TestTLSHandshakesEndWithTheListener(t *testing.T) {
	cert := testnet.ServerTLS().Certificates[0]
	for _, tt := range []struct {
		name string
		stop func(l *tcpio.Listener) error
	}{
		{"Close", (*tcpio.Listener).Close},
		{"Shutdown", func(l *tcpio.Listener) error { return l.Shutdown(context.Background()) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			waiting, over := make(chan struct{}, 10), make(chan struct{}, 10)
			config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				if hello.ServerName == "slow" {
					waiting <- struct{}{}
					<-hello.Context().Done()
					over <- struct{}{}
				}
				return &cert, nil
			}}
			opts := tcpio.ListenerOptions{TLSConfig: config, MaxHandshakes: 10, CloseTimeout: 50 * time.Millisecond, HandshakeTimeout: time.Hour}
			l, _ := harness.TLS(t, opts, silent(t))
			slow := tls.Client(testnet.Dial(t, l), &tls.Config{InsecureSkipVerify: true, ServerName: "slow"})
			ended := make(chan error, 1)
			go func() { ended <- slow.Handshake() }()
			testnet.Await(t, "GetCertificate", waiting)
			unfinished(t, l, 60) // of whom 20 want the nine places that are left
			// When they have waited for a second the first ones have to make room for others.
			testnet.WaitFor(t, "the connections", func() bool { return l.Stats().Accepted == 61 })
			if err := tt.stop(l); err != nil {
				t.Error(err)
			}
			if l.Len() != 0 {
				t.Errorf("%d connections are left", l.Len())
			}
			testnet.Await(t, "the end of GetCertificate", over)
			if err := testnet.Await(t, "the slow client's end", ended); err == nil {
				t.Error("the handshake has succeeded")
			}
		})
	}
}

// A connection that the actor hook has claimed, and whose handshake fails, ends its channel: its
// goroutine must not wait for ever. Nothing comes on it.
func TestTLSClaimedChannelEndsWhenTheHandshakeFails(t *testing.T) {
	chans := make(chan (<-chan tcpio.Event), 1)
	l := harness.Serve(t, tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS(), NewActor: func(c *tcpio.Conn) tcpio.Actor {
		chans <- c.Events()
		return nil
	}})
	for _, send := range []string{"", "\x16", "plain text"} {
		c := testnet.Dial(t, l)
		if _, err := io.WriteString(c, send); err != nil {
			t.Fatal(err)
		}
		events := testnet.Await(t, "the hook", chans)
		c.Close()
		testnet.AwaitClosed(t, fmt.Sprintf("the handshake that %q fails", send), events)
	}
	c := testnet.Dial(t, l)
	events := testnet.Await(t, "the hook", chans)
	client := tls.Client(c, testnet.ClientTLS())
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	client.Close()
	var got []string
	for ev := range events {
		if r, ok := ev.(tcpio.Readable); ok {
			_, _ = r.Conn.TryRead(make([]byte, 10))
			r.Conn.Close()
		}
		got = append(got, fmt.Sprintf("%T", ev))
	}
	if got[0] != "tcpio.Opened" || got[len(got)-1] != "tcpio.Closed" {
		t.Errorf("a handshake that succeeds gives %q", got)
	}
}

// What is posted before Opened comes behind it, on every route.
func TestTLSPostsComeBehindOpened(t *testing.T) {
	events := make(chan tcpio.Event, 100)
	for name, hook := range map[string]func(c *tcpio.Conn) tcpio.Actor{
		"actor": func(c *tcpio.Conn) tcpio.Actor {
			_ = c.Post(1)
			return tcpio.ActorFunc(func(ev tcpio.Event) error { events <- ev; return nil })
		},
		"claimed": func(c *tcpio.Conn) tcpio.Actor {
			_ = c.Post(1)
			ch := c.Events()
			go func() {
				for ev := range ch {
					events <- ev
				}
			}()
			return nil
		},
		"attached": func(c *tcpio.Conn) tcpio.Actor {
			a := tcpio.ActorFunc(func(ev tcpio.Event) error { events <- ev; return nil })
			_ = c.Post(1)
			_ = c.Attach(a)
			return a
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := harness.Serve(t, tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS(), NewActor: hook})
			raw := testnet.Dial(t, l)
			testnet.WaitFor(t, "the connection", func() bool { return l.Stats().Posted == 1 })
			c := tls.Client(raw, testnet.ClientTLS())
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			harness.Expect[tcpio.Opened](t, events)
			for {
				ev := testnet.Await(t, "the message", events)
				if m, ok := ev.(tcpio.Message); ok {
					if m.Value != 1 {
						t.Errorf("posted 1, got %v", m.Value)
					}
					break
				}
			}
			c.Close()
			l.Close()
			for ev := range events {
				if _, ok := ev.(tcpio.Closed); ok {
					break
				}
			}
		})
	}
}

// A member of a group that is in its handshake is passed over, whatever Slow says.
func TestTLSGroupPassesOverHandshakes(t *testing.T) {
	t.Parallel()
	g := tcpio.Group{Slow: tcpio.CloseSlow, Notice: []byte("too slow")}
	joined := make(chan struct{}, 1)
	l := harness.Serve(t, tcpio.ListenerOptions{NewActor: func(c *tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if _, ok := ev.(tcpio.Opened); ok {
				testnet.ShrinkSendBuffer(t, c)
				_, _ = c.TryWrite(make([]byte, 1<<20)) // so that something is queued
				if err := c.StartTLS(testnet.ServerTLS()); err != nil {
					return err
				}
				g.Join(c)
				joined <- struct{}{}
			}
			return nil
		})
	}})
	raw := testnet.Dial(t, l)
	testnet.Await(t, "the member", joined)
	testnet.Send(t, &g, "lost") // before the ClientHello
	if _, err := io.ReadFull(raw, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, testnet.ClientTLS())
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	testnet.WaitFor(t, "the handshake", func() bool {
		for sc := range l.Conns() {
			return sc.TLS() != nil
		}
		return false
	})
	testnet.Send(t, &g, "found")
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "found" {
		t.Errorf("the member got %q, %v", got, err)
	}
}

// A first record that claims to be longer than any is refused at once, not when HandshakeTimeout is
// over.
func TestTLSOversizeHelloIsRefusedAtOnce(t *testing.T) {
	l, _ := harness.TLS(t, tcpio.ListenerOptions{HandshakeTimeout: time.Hour}, silent(t))
	c := testnet.Dial(t, l)
	if _, err := c.Write(append([]byte{22, 3, 1, 255, 255}, make([]byte, 32<<10)...)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || len(got) < 7 || got[0] != 21 {
		t.Errorf("the client got % x, %v; want an alert and the end", got, err)
	}
}

// Handshakes that fail give back the place of their address, whichever way they fail.
func TestTLSFailedHandshakesGiveTheirPlaceBack(t *testing.T) {
	l, ended := harness.TLS(t, tcpio.ListenerOptions{MaxConnsPerIP: 1}, harness.EchoActor)
	for i, send := range []string{"", "plain text", "\x16\x03", string(testnet.ClientHello())} {
		c := testnet.Dial(t, l)
		if _, err := io.WriteString(c, send); err != nil {
			t.Fatal(err)
		}
		c.Close()
		testnet.WaitFor(t, "the end of the failed one", func() bool { return l.Stats().Closed == uint64(i+1) && l.Len() == 0 })
	}
	c := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Ping(t, c, "x")
	c.Close()
	testnet.Await(t, "Closed", ended)
}

// A flood of handshakes leaves established connections their share of the processor.
func TestTLSHandshakeFloodDoesNotStarveEstablishedConnections(t *testing.T) {
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	c := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Ping(t, c, "x")
	stop := make(chan struct{})
	var flood sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); flood.Wait() })
	defer end() // before the listener's, also when something fails
	var done atomic.Int64
	hello := testnet.ClientHello()
	for range 50 {
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// The client computes nothing, the server its signature.
				raw, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = raw.Write(hello)
				_, _ = raw.Read(make([]byte, 1))
				_ = raw.(*net.TCPConn).SetLinger(0)
				raw.Close()
				done.Add(1)
			}
		})
	}
	testnet.WaitFor(t, "the flood", func() bool { return done.Load() > 100 })
	var took []time.Duration
	for range 60 {
		_ = c.SetDeadline(time.Now().Add(testnet.Limit))
		begin := time.Now()
		testnet.Ping(t, c, "x")
		took = append(took, time.Since(begin))
	}
	end()
	slices.Sort(took)
	t.Logf("a round trip within %d handshakes: median %v, 95th percentile %v, longest %v",
		done.Load(), took[30], took[57], took[59])
	if took[57] > 10*time.Second {
		t.Errorf("of the round trips of an established connection one in twenty took over %v", took[57])
	}
}

// Who reads ServerName gets the certificate for it.
func TestTLSGetCertificateSeesTheServerName(t *testing.T) {
	cert := testnet.ServerTLS().Certificates[0]
	names := make(chan string, 1)
	config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		names <- hello.ServerName + " " + hello.Conn.RemoteAddr().String()
		return &cert, nil
	}}
	l, _ := harness.TLS(t, tcpio.ListenerOptions{TLSConfig: config}, harness.EchoActor)
	c := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Ping(t, c, "x")
	if got, want := testnet.Await(t, "GetCertificate", names), "localhost "+c.LocalAddr().String(); got != want {
		t.Errorf("GetCertificate saw %q, want %q", got, want)
	}
	if !strings.Contains(c.ConnectionState().PeerCertificates[0].Subject.String(), "localhost") {
		t.Error("another certificate came")
	}
}
