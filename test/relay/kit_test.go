//go:build linux

package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A pair is two peers and the connections that join them: p talks to c, q to to.
type pair struct {
	p, q  *net.TCPConn
	c, to *tcpio.Conn
	relay *tcpio.Relay
	ended <-chan tcpio.RelayEnded // of c's route
	gone  <-chan *tcpio.Conn      // connections whose Closed has come
}

// A side serves connections on one route.
type side struct {
	l                        *tcpio.Listener
	opened, closed, draining <-chan *tcpio.Conn
	ended                    <-chan tcpio.RelayEnded
	messages                 <-chan tcpio.Message
}

// serve serves on a route, or on none.
func serve(t testing.TB, route string, opts tcpio.ListenerOptions) *side {
	t.Helper()
	if route == "none" {
		l := harness.Listen(t, opts)
		ln := l.NetListener()
		harness.Start(t, l)
		opened := make(chan *tcpio.Conn, 100)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				opened <- c.(*tcpio.Conn)
			}
		}()
		return &side{l: l, opened: opened}
	}
	opened, closed := make(chan *tcpio.Conn, 20000), make(chan *tcpio.Conn, 20000)
	ended := make(chan tcpio.RelayEnded, 10000)
	draining, messages := make(chan *tcpio.Conn, 20000), make(chan tcpio.Message, 100)
	handle := func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			opened <- ev.Conn
		case tcpio.Draining:
			draining <- ev.Conn
		case tcpio.Message:
			messages <- ev
		case tcpio.RelayEnded:
			ended <- ev
		case tcpio.Closed:
			closed <- ev.Conn
		}
		return nil
	}
	consume := func(events <-chan tcpio.Event) {
		var order harness.Order
		for ev := range events {
			if err := order.Check(ev); err != nil {
				t.Error(err)
			}
			_ = handle(ev)
		}
	}
	switch route {
	case "claimed":
		opts.NewActor = func(c *tcpio.Conn) tcpio.Actor {
			go consume(c.Events())
			return nil
		}
	case "actor":
		opts.NewActor = func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(handle) }
	}
	l := harness.Listen(t, opts)
	if route == "stream" {
		go consume(l.Events())
	}
	harness.Start(t, l)
	return &side{l, opened, closed, draining, ended, messages}
}

// open connects a peer.
func (s *side) open(t testing.TB) (*net.TCPConn, *tcpio.Conn) {
	t.Helper()
	peer := testnet.DialTCP(t, s.l)
	return peer, testnet.Receive(t, "a connection", s.opened)
}

// join makes a pair of connections of front and back.
func join(t testing.TB, front, back *side, o *tcpio.RelayOptions) *pair {
	t.Helper()
	x := &pair{ended: front.ended, gone: front.closed}
	x.p, x.c = front.open(t)
	x.q, x.to = back.open(t)
	r, err := x.c.Relay(x.to, o)
	if err != nil {
		t.Fatalf("Relay: %v", err)
	}
	x.relay = r
	return x
}

// simple is a pair on the stream.
func simple(t testing.TB, opts tcpio.ListenerOptions) *pair {
	t.Helper()
	s := serve(t, "stream", opts)
	return join(t, s, s, nil)
}

// bothWays runs f with each peer as the first, as the connection whose Relay was called and as the
// other.
func bothWays(t *testing.T, opts tcpio.ListenerOptions, f func(t *testing.T, x *pair)) {
	t.Helper()
	for _, first := range []string{"c", "to"} {
		t.Run(first+" first", func(t *testing.T) {
			t.Parallel()
			x := simple(t, opts)
			if first == "to" {
				x.p, x.q, x.c, x.to = x.q, x.p, x.to, x.c
			}
			f(t, x)
		})
	}
}

// expectEnd waits for the end of the relay.
func (x *pair) expectEnd(t *testing.T, by *tcpio.Conn, err error) {
	t.Helper()
	testnet.AwaitClosed(t, "the end of the relay", x.relay.Done())
	end, ok := x.relay.End()
	if !ok || end.By != by || !errors.Is(end.Err, err) {
		t.Fatalf("the relay ended by %v with %v, want %v and %v", end.By, end.Err, by, err)
	}
	if x.ended == nil {
		return
	}
	if ev := testnet.Receive(t, "RelayEnded", x.ended); ev.Conn.Relayed() != x.relay {
		t.Fatalf("RelayEnded of another relay")
	}
}

// expectReset reads until the peer's connection is reset.
func expectReset(t testnet.T, peer net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the peer read %v, want a reset", err)
	}
}

// fill writes until nothing more is taken for as long as stand, and returns how much was.
func fill(t testnet.T, peer *net.TCPConn, stand time.Duration) (sent int64) {
	t.Helper()
	defer peer.SetWriteDeadline(time.Now().Add(testnet.Limit))
	block := testnet.Pattern(256 << 10)
	for {
		_ = peer.SetWriteDeadline(time.Now().Add(stand))
		n, err := peer.Write(block[sent%65521:][:128<<10])
		sent += int64(n)
		switch {
		case err == nil:
		case n == 0 && testTimeout(err):
			return sent
		case !testTimeout(err):
			t.Fatalf("the peer's write: %v", err)
		}
	}
}

func testTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// A flow checks bytes as testnet.Pattern makes them.
type flow struct{ at int }

var pattern = testnet.Pattern(65521 + 256<<10)

func (f *flow) next(n int) []byte {
	p := pattern[f.at%65521:][:n]
	f.at += n
	return p
}

func (f *flow) check(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), 128<<10)
		at := f.at
		if i := testnet.FirstDifference(p[:n], f.next(n)); i >= 0 {
			return fmt.Errorf("byte %d is not the one that was sent", at+i)
		}
		p = p[n:]
	}
	return nil
}

// send sends n bytes and then an end of stream.
func send(peer *net.TCPConn, n int) error {
	var f flow
	for f.at < n {
		if _, err := peer.Write(f.next(min(n-f.at, 100<<10))); err != nil {
			return err
		}
	}
	return peer.CloseWrite()
}

// receive reads n bytes and an end of stream.
func receive(peer io.Reader, n int) error {
	var f flow
	p := make([]byte, 64<<10)
	for {
		m, err := peer.Read(p)
		if err := f.check(p[:m]); err != nil {
			return err
		}
		switch {
		case err == io.EOF && f.at == n:
			return nil
		case err != nil:
			return fmt.Errorf("%d bytes of %d, then %w", f.at, n, err)
		}
	}
}
