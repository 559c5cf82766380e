//go:build linux

package hazards

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A vanishing is one connection whose peer is about to vanish.
type vanishing struct {
	l      *tcpio.Listener
	c      *tcpio.Conn
	closed chan time.Time
}

// A peer whose link goes down says nothing, neither end nor reset. Each limit that is for this ends
// its connection in its time, and says so; Shutdown takes CloseTimeout and no longer.
//
// To see it fail: leave out TCP_USER_TIMEOUT in tuneListener, or the timer in closeLocked.
func TestPeersThatVanishAreGivenUpInTime(t *testing.T) {
	testnet.Program(t, "ip") // of iproute2
	t.Parallel()
	server, client := testnet.NewNetns(t), testnet.NewNetns(t)
	server.IP(t, client, "link add tcpio0 address 02:00:00:00:00:01 type veth peer name tcpio1 address 02:00:00:00:00:02")
	server.IP(t, client, "link set tcpio1 netns /peer")
	for i, n := range []testnet.Netns{server, client} {
		me, other := i+1, 2-i
		n.IP(t, n, fmt.Sprintf("address add 10.77.0.%d/24 dev tcpio%d", me, i))
		n.IP(t, n, fmt.Sprintf("link set tcpio%d up", i))
		// Otherwise the kernel finds out by itself that the neighbour has gone, and the error is
		// another one.
		n.IP(t, n, fmt.Sprintf("neighbour replace 10.77.0.%d lladdr 02:00:00:00:00:0%d nud permanent dev tcpio%d", other, other, i))
	}

	begin := func(opts tcpio.ListenerOptions) *vanishing {
		t.Helper()
		server.Do(t, func() (err error) {
			var lc net.ListenConfig
			lc.SetMultipathTCP(false) // an MPTCP socket has no TCP_USER_TIMEOUT
			opts.Listener, err = lc.Listen(t.Context(), "tcp4", "10.77.0.1:0")
			return err
		})
		opened := make(chan *tcpio.Conn, 1)
		v := &vanishing{closed: make(chan time.Time, 1)}
		v.l = harness.Stream(t, opts, func(ev tcpio.Event) {
			switch ev := ev.(type) {
			case tcpio.Opened:
				opened <- ev.Conn
			case tcpio.Readable:
				if _, err := ev.Conn.TryRead(make([]byte, 100)); err == io.EOF {
					t.Error("an orderly end")
				}
			case tcpio.Closed:
				v.closed <- time.Now()
			}
		})
		client.Do(t, func() error {
			peer, err := net.DialTimeout("tcp4", v.l.Addr().String(), testnet.Limit)
			if err == nil {
				t.Cleanup(func() {
					peer.(*net.TCPConn).SetLinger(0)
					peer.Close()
				})
			}
			return err
		})
		v.c = testnet.Await(t, "Opened", opened)
		return v
	}
	off := net.KeepAliveConfig{Idle: -1}
	lost := begin(tcpio.ListenerOptions{TCPUserTimeout: 500 * time.Millisecond, KeepAlive: off})
	silent := begin(tcpio.ListenerOptions{KeepAlive: net.KeepAliveConfig{
		Enable: true, Idle: time.Second, Interval: time.Second, Count: 1,
	}})
	stuck := begin(tcpio.ListenerOptions{WriteStallTimeout: time.Second, WriteBuffer: 8 << 20, KeepAlive: off})
	idle := begin(tcpio.ListenerOptions{IdleTimeout: time.Second, CloseTimeout: 500 * time.Millisecond, KeepAlive: off})
	const closeTimeout = 700 * time.Millisecond
	closing := begin(tcpio.ListenerOptions{CloseTimeout: closeTimeout, KeepAlive: off})
	full := begin(tcpio.ListenerOptions{CloseTimeout: closeTimeout, WriteBuffer: 8 << 20, KeepAlive: off})
	untimed := begin(tcpio.ListenerOptions{KeepAlive: off})

	down := time.Now() // from here on nothing arrives, or a little later
	client.IP(t, client, "link set tcpio1 down")
	for _, w := range []struct {
		c    *tcpio.Conn
		size int
	}{{lost.c, 100}, {stuck.c, 8 << 20}, {full.c, 8 << 20}, {untimed.c, 100}} {
		// A machine that is busy may need longer than WriteStallTimeout to queue so much.
		if _, err := w.c.TryWrite(make([]byte, w.size)); err != nil && !(w.c == stuck.c && errors.Is(err, net.ErrClosed)) {
			t.Fatal(err)
		}
	}

	stop := func(name string, v *vanishing) {
		t.Helper()
		start := time.Now()
		if err := v.l.Shutdown(context.Background()); err != nil {
			t.Errorf("%s: Shutdown: %v", name, err)
		}
		// A connection that has sent everything is given the time to hear the peer's end, no more.
		if d := time.Since(start); d < closeTimeout/2 || d > closeTimeout+10*time.Second {
			t.Errorf("%s: Shutdown took %v, CloseTimeout is %v", name, d, closeTimeout)
		}
		testnet.Await(t, name+" closed", v.closed)
	}
	stop("nothing queued", closing)
	if err := closing.c.Err(); err != tcpio.ErrDrainTimeout {
		t.Errorf("nothing queued: %v, want ErrDrainTimeout: the peer has not ended", err)
	}
	stop("output queued", full)
	if err := full.c.Err(); err != tcpio.ErrCloseTimeout {
		t.Errorf("output queued: %v, want ErrCloseTimeout", err)
	}
	limitError := func(name string) func(error) bool {
		return func(err error) bool {
			limit := new(tcpio.TimeoutError)
			return errors.As(err, &limit) && limit.Kind.String() == name && errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
	timedOut := func(err error) bool { return errors.Is(err, syscall.ETIMEDOUT) }
	for _, w := range []struct {
		name        string
		v           *vanishing
		right       func(error) bool
		least, most time.Duration // after the link went down; most is generous, the system's own limit is a quarter of an hour
	}{
		{"TCPUserTimeout", lost, timedOut, 400 * time.Millisecond, 10 * time.Second},
		{"KeepAlive", silent, timedOut, 900 * time.Millisecond, 10 * time.Second},
		{"WriteStallTimeout", stuck, limitError("write"), time.Second, 10 * time.Second},
		{"IdleTimeout", idle, limitError("idle"), -testnet.Limit, 10 * time.Second}, // it counts from begin on
	} {
		at := testnet.Await(t, w.name+" ends the connection", w.v.closed)
		if d := at.Sub(down); d < w.least || d > w.most {
			t.Errorf("%s ended the connection after %v, want %v to %v", w.name, d, w.least, w.most)
		}
		if err := w.v.c.Err(); !w.right(err) {
			t.Errorf("%s ended the connection with %v", w.name, err)
		}
	}
	// And it is those limits that did it.
	select {
	case <-untimed.closed:
		t.Errorf("a connection without limits ended with %v", untimed.c.Err())
	default:
	}
}
