//go:build linux

package contract

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// To see it fail: count the refused connections in live, or yield them.
func TestNobodySeesARefusedConnection(t *testing.T) {
	for name, end := range map[string]func(l *tcpio.Listener) error{
		"Close":    func(l *tcpio.Listener) error { return l.Close() },
		"Shutdown": func(l *tcpio.Listener) error { return l.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 1, MaxConns: 1, RefuseReply: []byte("full"),
				CloseTimeout: testnet.Limit}) // so long a refused one is there, its peer does not close
			served, _ := harness.Open(t, l, events)
			stop := make(chan struct{})
			var watching sync.WaitGroup
			watching.Go(func() {
				for {
					if n := l.Len(); n != 1 {
						t.Errorf("Len is %d with one connection", n)
					}
					if n := l.Stats().Open; n != 1 {
						t.Errorf("Stats().Open is %d with one connection", n)
					}
					if got := slices.Collect(l.Conns()); len(got) != 1 || got[0] != served {
						t.Errorf("%d connections, want the one that is served", len(got))
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
			const refused = 20
			for range refused {
				peer := testnet.DialTCP(t, l)
				if _, err := io.ReadFull(peer, make([]byte, 4)); err != nil {
					t.Errorf("the reply: %v", err)
				}
			}
			if n := l.Stats().Refusing; n == 0 {
				t.Error("no refused connection is left for the test")
			}
			close(stop)
			watching.Wait()
			// They end with the listener all the same.
			if err := end(l); err != nil {
				t.Error(err)
			}
			if n := l.Stats().Refusing; n != 0 {
				t.Errorf("%d refused connections are left", n)
			}
		})
	}
}

// refused reads what a refused peer gets.
func refused(t *testing.T, c net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("a refused peer sees %v", err)
	}
	return string(b)
}

func TestMaxConnsRefusesWithAReplyAndServesAgain(t *testing.T) {
	s := serveLimited(t, tcpio.ListenerOptions{MaxConns: 2, RefuseReply: []byte("full\n")}, readAll)
	c1, c2 := s.dial(t), s.dial(t)
	echoed(t, c1)
	echoed(t, c2)
	c3 := s.dial(t)
	if _, err := c3.Write([]byte("unread input does not cost the reply")); err != nil {
		t.Fatal(err)
	}
	if got := refused(t, c3); got != "full\n" {
		t.Errorf("a refused peer got %q", got)
	}
	if n := s.l.Stats().Refused.Conns; n != 1 {
		t.Errorf("%d refusals counted, want 1", n)
	}
	c1.Close()
	<-s.closed
	echoed(t, s.dial(t))
}

func TestRefusedConnectionIsCountedAsRefusedOnly(t *testing.T) {
	s := serveLimited(t, tcpio.ListenerOptions{MaxConns: 1, RefuseReply: []byte("full\n")}, readAll)
	echoed(t, s.dial(t))
	c := s.dial(t)
	refused(t, c)
	c.Close()
	testnet.WaitFor(t, "the refused connection is gone", func() bool { return s.l.Stats().Refusing == 0 })
	if st := s.l.Stats(); st.Accepted != 1 || st.Closed != 0 || st.Refused.Conns != 1 {
		t.Errorf("%d accepted, %d closed, %d refused, want 1, 0, 1", st.Accepted, st.Closed, st.Refused.Conns)
	}
}

func TestMaxConnsPerIPCountsAddressesApart(t *testing.T) {
	s := serveLimited(t, tcpio.ListenerOptions{MaxConnsPerIP: 1}, readAll)
	from := func(ip string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: testnet.Limit}
		c, err := d.Dial("tcp", s.l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(testnet.Limit))
		return c
	}
	a := from("127.0.0.2")
	echoed(t, a)
	if got := refused(t, from("127.0.0.2")); got != "" {
		t.Errorf("a refused peer got %q", got)
	}
	echoed(t, from("127.0.0.3"))
	a.Close()
	<-s.closed
	echoed(t, from("127.0.0.2"))
	if n := s.l.Stats().Refused.PerIP; n != 1 {
		t.Errorf("%d refusals counted, want 1", n)
	}
}

type allow func() bool

func (a allow) Allow() bool { return a() }

func TestAcceptRateAndAdmitRefuse(t *testing.T) {
	rate, bad := true, netip.AddrPort{}
	decide := make(chan func(), 1)
	s := serveLimited(t, tcpio.ListenerOptions{
		AcceptRate: allow(func() bool { (<-decide)(); return rate }),
		Admit: func(peer netip.AddrPort) error {
			if !peer.Addr().IsLoopback() || peer.Port() == 0 {
				t.Errorf("the peer is %v", peer)
			}
			if bad.IsValid() {
				return errors.New("not you")
			}
			return nil
		},
	}, readAll)
	decide <- func() {}
	echoed(t, s.dial(t))
	decide <- func() { rate = false }
	refused(t, s.dial(t))
	decide <- func() { rate, bad = true, netip.AddrPortFrom(netip.IPv4Unspecified(), 1) }
	refused(t, s.dial(t))
	decide <- func() { bad = netip.AddrPort{} }
	echoed(t, s.dial(t))
	if r := s.l.Stats().Refused; r != (tcpio.RefusedStats{Rate: 1, Admit: 1}) {
		t.Errorf("refused: %+v", r)
	}
}

// One address that is over its bound does not use up what others may have.
func TestMaxConnsPerIPIsAskedBeforeAcceptRate(t *testing.T) {
	var asked atomic.Int64
	s := serveLimited(t, tcpio.ListenerOptions{
		MaxConnsPerIP: 1,
		AcceptRate:    allow(func() bool { return asked.Add(1) != 2 }),
	}, readAll)
	first := s.dial(t)
	echoed(t, first)
	for range 5 {
		refused(t, s.dial(t))
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("AcceptRate was asked %d times for one connection that it could admit", n)
	}
	first.Close()
	testnet.Await(t, "the end of the first", s.closed)
	refused(t, s.dial(t)) // by the rate, which leaves the address its place
	echoed(t, s.dial(t))
	if r := s.l.Stats().Refused; r != (tcpio.RefusedStats{PerIP: 5, Rate: 1}) {
		t.Errorf("refused: %+v", r)
	}
}
