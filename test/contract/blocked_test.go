//go:build linux

package contract

import (
	"net"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// actors serves n connections with one loop and handle as their actor, which Opened does not reach.
func actors(t *testing.T, n int, handle func(tcpio.Event) error) []*tcpio.Conn {
	t.Helper()
	opened := make(chan *tcpio.Conn, n)
	l := harness.Serve(t, tcpio.ListenerOptions{Loops: 1, Actor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if o, ok := ev.(tcpio.Opened); ok {
				opened <- o.Conn
				return nil
			}
			return handle(ev)
		})
	}})
	conns := make([]*tcpio.Conn, n)
	for i := range conns {
		testnet.DialTCP(t, l)
		conns[i] = testnet.Receive(t, "Opened", opened)
	}
	return conns
}

// Two connections wait for a turn, and the handler of the first blocks. The second must not wait for it.
// To see it fail: let takeOver not set kicked.
func TestBlockedHandlerDoesNotHoldTheQueuedTurnsOfOthers(t *testing.T) {
	release, got := make(chan struct{}), make(chan any, 1)
	defer close(release)
	var conns []*tcpio.Conn
	conns = actors(t, 3, func(ev tcpio.Event) error {
		m, ok := ev.(tcpio.Message)
		if !ok {
			return nil
		}
		switch m.Conn {
		case conns[0]: // inside this turn both of the others are queued behind it
			conns[1].Post("block")
			conns[2].Post("hello")
		case conns[1]:
			<-release
		case conns[2]:
			got <- m.Value
		}
		return nil
	})
	conns[0].Post("go")
	testnet.Receive(t, "the message of the third connection", got)
}

// Handlers blocked in Read wait for their loop, so the loop must not wait for them, at MaxBlocked neither.
// To see it fail: let takeOver keep to the bound for willBlock too.
func TestHandlersThatBlockInReadGoOnAtMaxBlocked(t *testing.T) {
	opened, reading, got := make(chan *tcpio.Conn, 3), make(chan struct{}, 3), make(chan byte, 3)
	l := harness.Serve(t, tcpio.ListenerOptions{Loops: 1, MaxBlocked: 1, Actor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Opened:
				opened <- ev.Conn
			case tcpio.Message:
				reading <- struct{}{}
				var b [1]byte
				if _, err := ev.Conn.Read(b[:]); err == nil {
					got <- b[0]
				}
			}
			return nil
		})
	}})
	var peers [3]*net.TCPConn
	for i := range peers {
		peers[i] = testnet.DialTCP(t, l)
		testnet.Receive(t, "Opened", opened).Post("read")
		testnet.Receive(t, "the handler", reading)
	}
	for i, peer := range peers {
		testnet.Send(t, peer, []byte{byte(i)})
		if b := testnet.Receive(t, "the byte", got); int(b) != i {
			t.Errorf("got %d, want %d", b, i)
		}
	}
}
