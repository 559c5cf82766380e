//go:build linux

package harness

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

func TestOrderFindsWhatIsOutOfOrder(t *testing.T) {
	l, events := Manual(t, tcpio.ListenerOptions{})
	c, _ := Open(t, l, events)
	opened, readable, closed := tcpio.Opened{Conn: c}, tcpio.Readable{Conn: c}, tcpio.Closed{Conn: c}
	for _, row := range []struct {
		events []tcpio.Event
		wrong  int // the index of the event that is, or -1
	}{
		{[]tcpio.Event{opened, readable, closed}, -1},
		{[]tcpio.Event{tcpio.Failed{Err: io.EOF}}, -1},
		{[]tcpio.Event{readable}, 0},
		{[]tcpio.Event{closed}, 0},
		{[]tcpio.Event{opened, opened}, 1},
		{[]tcpio.Event{opened, closed, readable}, 2},
		{[]tcpio.Event{opened, closed, closed}, 2},
	} {
		var o Order
		wrong := -1
		for i, ev := range row.events {
			if o.Check(ev) != nil {
				wrong = i
				break
			}
		}
		if wrong != row.wrong {
			t.Errorf("%v: event %d is wrong, want %d", row.events, wrong, row.wrong)
		}
	}
}

func TestAloneFindsTwoInside(t *testing.T) {
	var a Alone
	var found fakeTB
	leave := a.Enter(&found)
	if found.errors != 0 {
		t.Error("one alone is two")
	}
	a.Enter(&found)()
	leave()
	if found.errors != 1 {
		t.Error("the second was not seen")
	}
	a.Enter(t)()
}

// fakeTB counts errors.
type fakeTB struct {
	testing.TB
	errors int
}

func (f *fakeTB) Error(...any) { f.errors++ }

func TestEveryWayToServeEchoes(t *testing.T) {
	all := map[string]func(*testing.T) *tcpio.Listener{
		"Stream": func(t *testing.T) *tcpio.Listener { return Stream(t, tcpio.ListenerOptions{}, Echo(t)) },
		"Actor":  func(t *testing.T) *tcpio.Listener { return Actor(t, tcpio.ListenerOptions{}, EchoActor) },
	}
	for _, route := range Routes {
		all["Route "+route] = func(t *testing.T) *tcpio.Listener {
			l, _, _ := Route(t, route, tcpio.ListenerOptions{}, EchoActor)
			return l
		}
	}
	for name, serve := range all {
		t.Run(name, func(t *testing.T) {
			l := serve(t)
			for i := range 3 {
				testnet.Ping(t, testnet.Dial(t, l), fmt.Sprint("ping ", i))
			}
			if n := len(Conns(t, l, 3)); n != 3 {
				t.Errorf("%d connections", n)
			}
		})
	}
	t.Run("TLS", func(t *testing.T) {
		l, ended := TLS(t, tcpio.ListenerOptions{}, EchoActor)
		peer := testnet.DialTLS(t, l, testnet.ClientTLS())
		testnet.Ping(t, peer, "secret")
		peer.Close()
		if c := testnet.Receive(t, "Closed", ended); c.TLS() == nil {
			t.Error("it spoke no TLS")
		}
	})
}

func TestRouteHandsOverEachConnectionTwice(t *testing.T) {
	for _, route := range Routes {
		l, opened, closed := Route(t, route, tcpio.ListenerOptions{}, EchoActor)
		peer := testnet.Dial(t, l)
		c := testnet.Receive(t, "Opened", opened)
		testnet.RST(t, peer)
		if got := testnet.Receive(t, "Closed", closed); got != c {
			t.Errorf("%s: Closed of %v, Opened of %v", route, got, c)
		}
	}
}

func TestManualLeavesEventsToTheTest(t *testing.T) {
	l, events := Manual(t, tcpio.ListenerOptions{WriteBuffer: 100 << 10})
	c, peer := Open(t, l, events)
	ExpectSilence(t, events, 10*time.Millisecond)
	testnet.ShrinkSendBuffer(t, c)
	filled := Fill(t, c, 10<<10)
	testnet.ExpectBytes(t, peer, filled)
	testnet.Send(t, peer, "question")
	testnet.FIN(t, peer)
	for { // Writable may come between
		if _, ok := testnet.Receive(t, "Readable", events).(tcpio.Readable); ok {
			break
		}
	}
	var got bytes.Buffer
	if _, err := io.Copy(&got, onlyReader{c}); err != nil || got.String() != "question" {
		t.Errorf("read %q, %v", &got, err)
	}
}

type onlyReader struct{ io.Reader }

func TestStartStopsOnce(t *testing.T) {
	l := Listen(t, tcpio.ListenerOptions{})
	ln := l.NetListener()
	stop := Start(t, l)
	stop()
	stop()
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("it is still there")
	}
}
