//go:build linux

package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestRelayRefusesWhatItCannotJoin(t *testing.T) {
	s := serve(t, "stream", tcpio.ListenerOptions{})
	x := join(t, s, s, nil)
	p, free := s.open(t)
	_, shut := s.open(t)
	if err := shut.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_, over := s.open(t)
	over.Abort()
	_, other := s.open(t)
	for name, tt := range map[string]struct {
		c, to *tcpio.Conn
		o     *tcpio.RelayOptions
		want  error // nil: any
	}{
		"nil":              {free, nil, nil, nil},
		"itself":           {free, free, nil, nil},
		"relayed":          {x.c, free, nil, tcpio.ErrRelayed},
		"to relayed":       {free, x.to, nil, tcpio.ErrRelayed},
		"the same again":   {x.c, x.to, nil, tcpio.ErrRelayed},
		"after CloseWrite": {free, shut, nil, syscall.EPIPE},
		"after Abort":      {free, over, nil, net.ErrClosed},
		"aborted first":    {over, free, nil, net.ErrClosed},
		"negative limit":   {free, other, &tcpio.RelayOptions{IdleTimeout: -1}, nil},
		"limit too long":   {free, other, &tcpio.RelayOptions{IdleTimeout: 1 << 62}, nil},
	} {
		if r, err := tt.c.Relay(tt.to, tt.o); r != nil || err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, %v, want the error %v", name, r, err, tt.want)
		}
	}
	// What was refused is as it was.
	free.SetData("mine")
	testnet.Send(t, p, "still here")
	got := make([]byte, 20)
	testnet.WaitFor(t, "the bytes", func() bool {
		n, err := free.TryRead(got)
		return err == nil && string(got[:n]) == "still here"
	})
	if _, err := free.TryWrite([]byte("answer")); err != nil {
		t.Error(err)
	}
	testnet.ExpectBytes(t, p, "answer")
	if free.Data() != "mine" {
		t.Errorf("Data is %v", free.Data())
	}
	testnet.Send(t, x.p, "and the relay goes on")
	testnet.ExpectBytes(t, x.q, "and the relay goes on")
}

// Whatever a Relay that fails has met: input is announced, and can be read.
func TestAFailedRelayLosesNoReadable(t *testing.T) {
	for range 50 {
		l, events := harness.Manual(t, tcpio.ListenerOptions{})
		c, peer := harness.Open(t, l, events)
		over, _ := harness.Open(t, l, events)
		go over.Abort() // before the call, within it or behind it
		testnet.Send(t, peer, "x")
		if _, err := c.Relay(over, nil); err == nil {
			continue
		} else if !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		for {
			ev := testnet.Receive(t, "Readable", events)
			if r, ok := ev.(tcpio.Readable); ok && r.Conn == c {
				break
			}
		}
		if n, err := c.TryRead(make([]byte, 10)); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
}

func TestWhoElseReadsOrWritesGetsErrRelayed(t *testing.T) {
	x := simple(t, tcpio.ListenerOptions{})
	for name, op := range map[string]func(c *tcpio.Conn) error{
		"TryRead":    func(c *tcpio.Conn) error { _, err := c.TryRead(make([]byte, 1)); return err },
		"Read":       func(c *tcpio.Conn) error { _, err := c.Read(make([]byte, 1)); return err },
		"TryWrite":   func(c *tcpio.Conn) error { _, err := c.TryWrite([]byte("x")); return err },
		"TryWritev":  func(c *tcpio.Conn) error { _, err := c.TryWritev(net.Buffers{[]byte("x")}); return err },
		"Write":      func(c *tcpio.Conn) error { _, err := c.Write([]byte("x")); return err },
		"CloseWrite": (*tcpio.Conn).CloseWrite,
		"WriteTo":    func(c *tcpio.Conn) error { _, err := c.WriteTo(io.Discard); return err },
		"Hijack":     func(c *tcpio.Conn) error { _, err := c.Hijack(); return err },
		"StartTLS":   func(c *tcpio.Conn) error { return c.StartTLS(testnet.ServerTLS()) },
		"ReadFrom": func(c *tcpio.Conn) error {
			_, err := c.ReadFrom(&net.Buffers{[]byte("x")})
			return err
		},
		"Frames": func(c *tcpio.Conn) error {
			for _, err := range c.Frames(bufio.ScanLines) {
				return err
			}
			return nil
		},
	} {
		for _, c := range []*tcpio.Conn{x.c, x.to} {
			if err := op(c); !errors.Is(err, tcpio.ErrRelayed) {
				t.Errorf("%s: %v, want ErrRelayed", name, err)
			}
		}
	}
	var g tcpio.Group
	g.Join(x.c)
	if _, err := g.Write([]byte("x")); err != nil || g.Skipped() != 0 {
		t.Error(err, g.Skipped())
	}
	testnet.Send(t, x.p, "nothing in between")
	testnet.ExpectBytes(t, x.q, "nothing in between")
	testnet.Send(t, x.q, "nor here")
	testnet.ExpectBytes(t, x.p, "nor here")
}

func TestABlockedReadLearnsOfTheRelay(t *testing.T) {
	s := serve(t, "none", tcpio.ListenerOptions{})
	p, c := s.open(t)
	q, to := s.open(t)
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	time.Sleep(10 * time.Millisecond) // most of the time it blocks then
	if _, err := c.Relay(to, nil); err != nil {
		t.Fatal(err)
	}
	if err := testnet.Await(t, "Read", read); !errors.Is(err, tcpio.ErrRelayed) {
		t.Errorf("Read: %v", err)
	}
	testnet.Send(t, p, "x")
	testnet.ExpectBytes(t, q, "x")
}

// The rest of a blocked write, and what is queued, comes before the other peer's bytes.
func TestAWriteThatIsUnderWayComesFirst(t *testing.T) {
	s := serve(t, "none", tcpio.ListenerOptions{WriteBuffer: 64 << 10})
	p, c := s.open(t)
	q, to := s.open(t)
	testnet.ShrinkSendBuffer(t, to)
	const size = 4 << 20
	wrote := make(chan error, 1)
	go func() {
		_, err := to.Write(testnet.Pattern(size))
		wrote <- err
	}()
	testnet.WaitFor(t, "a full queue", func() bool { return to.Buffered() > 32<<10 })
	if _, err := c.Relay(to, nil); err != nil {
		t.Fatal(err)
	}
	testnet.Send(t, p, "behind it")
	testnet.FIN(t, p)
	got, err := io.ReadAll(q)
	if err != nil || len(got) != size+9 || testnet.FirstDifference(got[:size], testnet.Pattern(size)) >= 0 || string(got[size:]) != "behind it" {
		t.Fatalf("%d bytes arrived, %v", len(got), err)
	}
	if err := testnet.Await(t, "Write", wrote); err != nil {
		t.Error(err)
	}
}

func TestWhatFramesHasReadGoesFirst(t *testing.T) {
	for name, inside := range map[string]bool{"within the loop": true, "behind it": false} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, "stream", tcpio.ListenerOptions{})
			q, to := s.open(t)
			joined := make(chan error, 1)
			front := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
				r, ok := ev.(tcpio.Readable)
				if !ok {
					return nil
				}
				found := false
				for line, err := range r.Conn.Frames(bufio.ScanLines) {
					if err != nil {
						return err
					}
					if found = string(line) == "CONNECT"; !found {
						t.Errorf("got %q", line)
					}
					if inside {
						_, err := r.Conn.Relay(to, nil)
						joined <- err
						if string(line) != "CONNECT" {
							t.Errorf("the frame has become %q", line)
						}
					}
					break
				}
				if found && !inside {
					_, err := r.Conn.Relay(to, nil)
					joined <- err
				}
				return nil
			}))
			p := testnet.DialTCP(t, front)
			testnet.Send(t, p, "CONNECT\nfirst\nsec")
			if err := testnet.Await(t, "Relay", joined); err != nil {
				t.Fatal(err)
			}
			testnet.ExpectBytes(t, q, "first\nsec")
			testnet.Send(t, p, "ond")
			testnet.FIN(t, p)
			testnet.ExpectBytes(t, q, "ond")
			testnet.ExpectEOF(t, q)
		})
	}
}

func TestOtherEventsStayOnTheRoute(t *testing.T) {
	for _, route := range []string{"stream", "claimed", "actor"} {
		t.Run(route, func(t *testing.T) {
			s := serve(t, route, tcpio.ListenerOptions{DrainTimeout: testnet.Limit})
			x := join(t, s, s, nil)
			x.c.SetData("data")
			if err := x.c.Post("posted"); err != nil {
				t.Fatal(err)
			}
			if m := testnet.Receive(t, "Message", s.messages); m.Conn != x.c || m.Value != "posted" {
				t.Errorf("%v", m)
			}
			x.to.After(time.Millisecond, "timed")
			if m := testnet.Receive(t, "Message", s.messages); m.Conn != x.to || m.Value != "timed" {
				t.Errorf("%v", m)
			}
			go s.l.Shutdown(context.Background())
			testnet.Receive(t, "Draining", s.draining)
			testnet.RST(t, x.p)
			x.expectEnd(t, x.c, syscall.ECONNRESET)
			for range 2 {
				testnet.Receive(t, "Closed", s.closed)
			}
			if x.c.Data() != "data" {
				t.Errorf("Data is %v", x.c.Data())
			}
		})
	}
}

// RelayEnded comes once, to the first connection's route, which may change, before its Closed.
func TestRelayEndedComesBeforeClosed(t *testing.T) {
	for _, first := range []bool{true, false} {
		s := serve(t, "none", tcpio.ListenerOptions{})
		x := join(t, s, s, nil)
		events, others := x.c.Events(), x.to.Events()
		harness.Expect[tcpio.Opened](t, events)
		harness.Expect[tcpio.Opened](t, others)
		if first {
			testnet.RST(t, x.p)
		} else {
			testnet.RST(t, x.q)
		}
		if ev := harness.Expect[tcpio.RelayEnded](t, events); ev.Conn != x.c || ev.Conn.Relayed() != x.relay || x.to.Relayed() != x.relay {
			t.Errorf("%v", ev)
		}
		harness.Expect[tcpio.Closed](t, events)
		harness.Expect[tcpio.Closed](t, others)
		if a, b := x.relay.Conns(); a != x.c || b != x.to {
			t.Error("Conns are others")
		}
	}
}

// unixPeer connects to a new listener on a unix socket.
func unixPeer(t *testing.T) (*net.UnixConn, *tcpio.Conn) {
	s := serve(t, "stream", tcpio.ListenerOptions{Network: "unix", Addr: filepath.Join(t.TempDir(), "s")})
	peer := testnet.Dial(t, s.l)
	return peer.(*net.UnixConn), testnet.Receive(t, "a connection", s.opened)
}

func TestARelayToAUnixSocket(t *testing.T) {
	s := serve(t, "stream", tcpio.ListenerOptions{})
	p, c := s.open(t)
	q, to := unixPeer(t)
	r, err := c.Relay(to, nil)
	if err != nil {
		t.Fatal(err)
	}
	const size = 3 << 20
	go send(p, size)
	if err := receive(q, size); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = q.Write(testnet.Pattern(size))
		_ = q.CloseWrite()
	}()
	if err := receive(p, size); err != nil {
		t.Fatal(err)
	}
	testnet.AwaitClosed(t, "the end", r.Done())
	if end, _ := r.End(); end.Err != nil {
		t.Error(end.Err)
	}
}

// TLS is at the front, at the back as its client, or at both.
func TestARelayWithTLS(t *testing.T) {
	const size = 2 << 20
	for _, where := range []string{"front", "back", "both"} {
		t.Run(where, func(t *testing.T) {
			upstream, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { upstream.Close() })
			served := make(chan error, 1)
			go func() { // sends back what it gets, behind its end
				nc, err := upstream.Accept()
				if err != nil {
					served <- err
					return
				}
				defer nc.Close()
				if where != "front" {
					nc = tls.Server(nc, testnet.ServerTLS())
				}
				got, err := io.ReadAll(nc)
				if err == nil {
					_, err = nc.Write(got)
				}
				served <- errors.Join(err, nc.(interface{ CloseWrite() error }).CloseWrite())
			}()
			opts := tcpio.ListenerOptions{}
			if where != "back" {
				opts.TLSConfig = testnet.ServerTLS()
			}
			front := serve(t, "stream", opts)
			nc := testnet.Dial(t, front.l)
			if where != "back" {
				nc = tls.Client(nc, testnet.ClientTLS())
			}
			testnet.Send(t, nc, "x") // with TLS the handshake comes first
			c := testnet.Receive(t, "a connection", front.opened)
			var to *tcpio.Conn
			if where == "front" {
				to, err = front.l.Dial(testnet.Context(t), "tcp", upstream.Addr().String())
			} else {
				to, err = front.l.DialTLS(testnet.Context(t), nil, "tcp", upstream.Addr().String(), testnet.ClientTLS())
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := c.Relay(to, nil)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = nc.Write(testnet.Pattern(size))
				_ = nc.(interface{ CloseWrite() error }).CloseWrite()
			}()
			testnet.ExpectBytes(t, nc, append([]byte("x"), testnet.Pattern(size)...))
			testnet.ExpectEOF(t, nc)
			if err := testnet.Await(t, "the upstream", served); err != nil {
				t.Error(err)
			}
			nc.Close()
			testnet.AwaitClosed(t, "the end", r.Done())
			if end, _ := r.End(); end.Err != nil {
				t.Error(end.Err)
			}
		})
	}
}

// A TLS peer that is cut off has not ended its stream.
func TestAFINWithoutCloseNotifyIsNoEnd(t *testing.T) {
	front := serve(t, "stream", tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS()})
	back := serve(t, "stream", tcpio.ListenerOptions{})
	nc := testnet.DialTCP(t, front.l)
	client := tls.Client(nc, testnet.ClientTLS())
	testnet.Send(t, client, "half a message")
	c := testnet.Receive(t, "a connection", front.opened)
	q, to := back.open(t)
	if _, err := c.Relay(to, nil); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, q, "half a message")
	testnet.FIN(t, nc)
	expectReset(t, q)
}

func TestMaxBufferedHoldsForRelays(t *testing.T) {
	const most = 256 << 10
	front := serve(t, "stream", tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS()}) // no splice
	s := serve(t, "stream", tcpio.ListenerOptions{MaxBuffered: most})
	const pairs = 64 // what waits of each is a part of a record
	for range pairs {
		p := testnet.DialTLS(t, front.l, testnet.ClientTLS())
		c := testnet.Receive(t, "a connection", front.opened)
		q, to := s.open(t)
		testnet.ShrinkSendBuffer(t, to)
		_ = q.SetReadBuffer(4 << 10)
		if _, err := c.Relay(to, nil); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(p, &zeros{}) }()
	}
	testnet.WaitFor(t, "much output that waits", func() bool { return s.l.Stats().Buffered > most/2 })
	for range 100 {
		// A connection with nothing queued may queue a little in any case.
		if n := s.l.Stats().Buffered; n > most+pairs*4<<10 {
			t.Fatalf("%d bytes wait", n)
		}
		time.Sleep(time.Millisecond)
	}
}

type zeros struct{}

func (*zeros) Read(p []byte) (int, error) { return len(p), nil }

// A Writable that is owed when Relay is called, and fails, comes all the same.
func TestAFailedRelayLosesNoWritable(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{WriteBuffer: 64 << 10})
	c, peer := harness.Open(t, l, events)
	over, _ := harness.Open(t, l, events)
	over.Abort()
	harness.Expect[tcpio.Closed](t, events)
	block := make([]byte, 32<<10)
	for {
		if _, err := c.TryWrite(block); err == tcpio.ErrWouldBlock {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Relay(over, nil); !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, peer)
	harness.Expect[tcpio.Writable](t, events)
}

// A Read that is blocked goes on behind a Relay that fails.
func TestAFailedRelayLeavesABlockedReadAlone(t *testing.T) {
	s := serve(t, "none", tcpio.ListenerOptions{})
	for range 20 {
		p, c := s.open(t)
		_, over := s.open(t)
		over.Abort()
		read := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(c, make([]byte, 1))
			read <- err
		}()
		for range 20 {
			if _, err := c.Relay(over, nil); !errors.Is(err, net.ErrClosed) {
				t.Fatal(err)
			}
			runtime.Gosched()
		}
		testnet.Send(t, p, "x")
		if err := testnet.Receive(t, "the end of Read", read); err != nil {
			t.Fatal(err)
		}
	}
}
