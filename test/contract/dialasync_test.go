//go:build linux

package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func dialAsync(t testing.TB, l *tcpio.Listener, r tcpio.DialRequest) (stop func() bool) {
	t.Helper()
	stop, err := l.DialAsync(r)
	if err != nil {
		t.Fatal(err)
	}
	return stop
}

// nobodyListens is an address where connections are refused.
func nobodyListens(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) }) // until then nobody else gets the port
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint("127.0.0.1:", sa.(*unix.SockaddrInet4).Port)
}

// isDialFailure checks that ev is the answer to a dial that failed for want.
func isDialFailure(t testing.TB, ev tcpio.Dialed, want error) {
	t.Helper()
	var oe *net.OpError
	if ev.Conn != nil || !errors.As(ev.Err, &oe) || want != nil && !errors.Is(ev.Err, want) {
		t.Errorf("Dialed{%v, %v}, want a *net.OpError around %v", ev.Conn, ev.Err, want)
	}
}

// client is a listener without an address, and its stream.
func client(t testing.TB) (*tcpio.Listener, <-chan tcpio.Event) {
	return harness.Manual(t, tcpio.ListenerOptions{Network: "none"})
}

// noDials waits until nothing is left of any dial.
func noDials(t testing.TB, l *tcpio.Listener) {
	t.Helper()
	testnet.WaitFor(t, "the end of the dials", func() bool { return l.Len() == 0 && l.Stats().Dialing == 0 })
}

func TestAnswerOfADialComesBeforeTheConnectionsEvents(t *testing.T) {
	for network, at := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		for _, route := range []string{"stream", "actor"} {
			t.Run(network+", "+route, func(t *testing.T) {
				addr, accepted := testnet.Upstream(t, network, at)
				l, events := client(t)
				r := tcpio.DialRequest{Network: network, Address: addr, Value: "mine"}
				if route == "actor" {
					got := make(chan tcpio.Event, 10)
					r.Actor = tcpio.ActorFunc(func(ev tcpio.Event) error { got <- ev; return nil })
					events = got
				}
				stop := dialAsync(t, l, r)
				peer := testnet.Await(t, "the connection", accepted)
				testnet.Send(t, peer, "first bytes")
				ev := harness.Expect[tcpio.Dialed](t, events)
				c := ev.Conn
				if c == nil || ev.Err != nil || ev.Value != "mine" || ev.To != nil || tcpio.ConnOf(ev) != c || !c.Dialed() {
					t.Fatalf("%+v", ev)
				}
				if stop() {
					t.Error("stop says that no answer comes, behind the answer")
				}
				if o := harness.Expect[tcpio.Opened](t, events); o.Conn != c {
					t.Errorf("Opened of %v, want %v", o.Conn, c)
				}
				buf := make([]byte, 100)
				harness.Expect[tcpio.Readable](t, events)
				testnet.WaitFor(t, "the bytes", func() bool {
					n, err := c.TryRead(buf)
					return err == nil && string(buf[:n]) == "first bytes"
				})
				if network == "tcp" && (c.LocalAddr().String() != peer.RemoteAddr().String()) || c.RemoteAddr().String() != addr {
					t.Errorf("addresses %v, %v", c.LocalAddr(), c.RemoteAddr())
				}
				if _, err := c.TryWrite([]byte("back")); err != nil {
					t.Fatal(err)
				}
				testnet.ExpectBytes(t, peer, "back")
				peer.Close()
				if got, err := harness.ReadStream(t, events, c, -1, len(buf)); len(got) != 0 || err != io.EOF {
					t.Errorf("at the end: %q, %v", got, err)
				}
				c.Close()
				if e := harness.Expect[tcpio.Closed](t, events); e.Conn.Err() != nil {
					t.Error(e.Conn.Err())
				}
				if s := l.Stats(); s.Accepted != 1 || s.Closed != 1 || s.Dialing != 0 || s.DialsFailed != 0 {
					t.Errorf("%+v", s.LoopStats)
				}
			})
		}
	}
}

func TestDialThatFailsAnswersOnceWithTheCause(t *testing.T) {
	hole, closed := blackHole(t), nobodyListens(t)
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		r    tcpio.DialRequest
		want error
	}{
		"refused":    {tcpio.DialRequest{Address: closed}, syscall.ECONNREFUSED},
		"no socket":  {tcpio.DialRequest{Network: "unix", Address: filepath.Join(t.TempDir(), "none")}, syscall.ENOENT},
		"name":       {tcpio.DialRequest{Address: "name.invalid:80", Dialer: &net.Dialer{Resolver: nameServer(t, nil, nil)}}, nil},
		"timeout":    {tcpio.DialRequest{Address: hole, Dialer: &net.Dialer{Timeout: 20 * time.Millisecond}}, os.ErrDeadlineExceeded},
		"deadline":   {tcpio.DialRequest{Address: hole, Dialer: &net.Dialer{Deadline: time.Now().Add(-time.Second)}}, os.ErrDeadlineExceeded},
		"not ours":   {tcpio.DialRequest{Address: closed, Dialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}}}, syscall.EADDRNOTAVAIL},
		"Control":    {tcpio.DialRequest{Address: closed, Dialer: &net.Dialer{Control: func(string, string, syscall.RawConn) error { return boom }}}, boom},
		"panic":      {tcpio.DialRequest{Address: closed, Dialer: &net.Dialer{Control: func(string, string, syscall.RawConn) error { panic(boom) }}}, boom},
		"exit":       {tcpio.DialRequest{Address: closed, Dialer: &net.Dialer{Control: func(string, string, syscall.RawConn) error { runtime.Goexit(); return nil }}}, nil},
		"no TLS":     {tcpio.DialRequest{Address: hole, TLS: testnet.ClientTLS(), Dialer: &net.Dialer{Timeout: 20 * time.Millisecond}}, os.ErrDeadlineExceeded},
		"resolver":   {tcpio.DialRequest{Address: "name.invalid:80", Dialer: &net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { panic(boom) }}}}, nil},
		"resolution": {tcpio.DialRequest{Address: "127.0.0.1:no-such-service"}, nil},
	} {
		for _, route := range []string{"stream", "actor"} {
			t.Run(name+", "+route, func(t *testing.T) {
				l, events := client(t)
				tc.r.Value = name
				if route == "actor" {
					got := make(chan tcpio.Event, 10)
					tc.r.Actor = tcpio.ActorFunc(func(ev tcpio.Event) error { got <- ev; return errors.New("ignored") })
					events = got
				}
				dialAsync(t, l, tc.r)
				ev := harness.Expect[tcpio.Dialed](t, events)
				isDialFailure(t, ev, tc.want)
				if ev.Value != name || tcpio.ConnOf(ev) != nil || !strings.Contains(ev.String(), "dial") {
					t.Errorf("%v, value %v", ev, ev.Value)
				}
				var ne net.Error
				if errors.As(ev.Err, &ne) && ne.Timeout() != (tc.want == os.ErrDeadlineExceeded) {
					t.Errorf("Timeout() is %v: %v", ne.Timeout(), ev.Err)
				}
				noDials(t, l)
				if s := l.Stats(); s.DialsFailed != 1 || s.Accepted != 0 || s.Closed != 0 {
					t.Errorf("%+v", s.LoopStats)
				}
				harness.ExpectSilence(t, events, 20*time.Millisecond)
			})
		}
	}
}

func TestDialAsyncRefusesABadRequest(t *testing.T) {
	l, _ := client(t)
	withActor := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(tcpio.Event) error { return nil }))
	early := harness.Listen(t, tcpio.ListenerOptions{})
	over := harness.Listen(t, tcpio.ListenerOptions{})
	over.Events()
	over.Close()
	nothing := tcpio.ActorFunc(func(tcpio.Event) error { return nil })
	addr := nobodyListens(t)
	other, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, other, events)
	gone, _ := harness.Open(t, other, events)
	gone.Abort()
	harness.Expect[tcpio.Closed](t, events)
	cancel := new(net.Dialer)
	//lint:ignore SA1019 it is refused
	cancel.Cancel = make(chan struct{})
	for name, tc := range map[string]struct {
		l    *tcpio.Listener
		r    tcpio.DialRequest
		says string
	}{
		"network":       {l, tcpio.DialRequest{Network: "udp", Address: addr}, "udp"},
		"address":       {l, tcpio.DialRequest{Address: "127.0.0.1"}, "missing port"},
		"port":          {l, tcpio.DialRequest{Address: "127.0.0.1:70000"}, "port"},
		"family":        {l, tcpio.DialRequest{Network: "tcp6", Address: addr}, "no suitable address"},
		"Cancel":        {l, tcpio.DialRequest{Address: addr, Dialer: cancel}, "Cancel"},
		"Timeout":       {l, tcpio.DialRequest{Address: addr, Dialer: &net.Dialer{Timeout: -1}}, "Timeout"},
		"LocalAddr":     {l, tcpio.DialRequest{Address: addr, Dialer: &net.Dialer{LocalAddr: &net.UnixAddr{Name: "x", Net: "unix"}}}, "local address"},
		"both":          {l, tcpio.DialRequest{Address: addr, To: c, Actor: nothing}, "both"},
		"no route":      {withActor, tcpio.DialRequest{Address: addr}, "To or Actor"},
		"before Events": {early, tcpio.DialRequest{Address: addr, Actor: nothing}, "before Events"},
		"closed To":     {l, tcpio.DialRequest{Address: addr, To: gone}, "closed"},
		"stopped":       {over, tcpio.DialRequest{Address: addr}, "closed"},
	} {
		stop, err := tc.l.DialAsync(tc.r)
		var oe *net.OpError
		if stop != nil || !errors.As(err, &oe) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
		if closed := tc.says == "closed"; errors.Is(err, net.ErrClosed) != closed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// On every route the answer is among the events of the connection that asked, and the new
// connection loses nothing until it has a route.
func TestAnswerComesToTheConnectionThatAsked(t *testing.T) {
	for _, route := range harness.Routes {
		t.Run(route, func(t *testing.T) {
			addr, accepted := tcpUpstream(t)
			answers, later := make(chan tcpio.Dialed, 1), make(chan tcpio.Event, 10)
			var order []string // of the one connection's events
			var l *tcpio.Listener
			l, opened, _ := harness.Route(t, route, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
				switch ev := ev.(type) {
				case tcpio.Message:
					order = append(order, fmt.Sprint(ev.Value))
				case tcpio.Dialed:
					order = append(order, "dialed")
					answers <- ev
				}
				return nil
			})
			testnet.Dial(t, l)
			c := testnet.Receive(t, "the connection", opened)
			_ = c.Post("before")
			dialAsync(t, l, tcpio.DialRequest{Address: addr, To: c, Value: 7})
			ev := testnet.Receive(t, "the answer", answers)
			if ev.Conn == nil || ev.Value != 7 || ev.To != c || tcpio.ConnOf(ev) != c {
				t.Fatalf("%+v", ev)
			}
			if fmt.Sprint(order) != "[before dialed]" {
				t.Errorf("in the order %v", order)
			}
			peer := testnet.Await(t, "the upstream's side", accepted)
			testnet.Send(t, peer, "hello")
			waitUnread(t, ev.Conn, 5)
			if err := ev.Conn.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error { later <- ev; return nil })); err != nil {
				t.Fatal(err)
			}
			harness.Expect[tcpio.Opened](t, later)
			harness.Expect[tcpio.Readable](t, later)
			buf := make([]byte, 10)
			if n, err := ev.Conn.TryRead(buf); err != nil || string(buf[:n]) != "hello" {
				t.Errorf("%q, %v", buf[:n], err)
			}
			// A failure comes there too.
			dialAsync(t, l, tcpio.DialRequest{Address: nobodyListens(t), To: c})
			isDialFailure(t, testnet.Receive(t, "the answer", answers), syscall.ECONNREFUSED)
		})
	}
}

func TestDialEndsWithTheConnectionThatAsked(t *testing.T) {
	hole := blackHole(t)
	addr, accepted := tcpUpstream(t)
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	dialAsync(t, l, tcpio.DialRequest{Address: hole, To: c})
	testnet.WaitFor(t, "the attempt", func() bool { return l.Len() == 2 })
	c.Abort()
	harness.Expect[tcpio.Closed](t, events)
	noDials(t, l)
	// Together with the answer, or a little before.
	for i := range 50 {
		c, _ := harness.Open(t, l, events)
		dialAsync(t, l, tcpio.DialRequest{Address: addr, To: c})
		time.Sleep(time.Duration(i) * 10 * time.Microsecond)
		c.Abort()
		for over := false; !over; {
			switch ev := testnet.Receive(t, "an event", events).(type) {
			case tcpio.Dialed:
				if ev.Conn != nil {
					ev.Conn.Abort() // it was answered before
				}
			case tcpio.Closed:
				over = ev.Conn == c
			}
		}
		noDials(t, l)
		for more := true; more; {
			select {
			case <-accepted:
			default:
				more = false
			}
		}
	}
}

func TestPlaceForTheAnswerIsTakenAtTheRequest(t *testing.T) {
	addr, _ := tcpUpstream(t)
	hold, got := make(chan struct{}), make(chan tcpio.Event, 10)
	l := harness.Actor(t, tcpio.ListenerOptions{MailboxSize: 2}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if _, ok := ev.(tcpio.Opened); ok {
			got <- ev
			<-hold
			return nil
		}
		got <- ev
		return nil
	}))
	testnet.Dial(t, l)
	c := harness.Expect[tcpio.Opened](t, got).Conn
	dialAsync(t, l, tcpio.DialRequest{Address: addr, To: c, Value: 1})
	if err := c.Post(2); err != nil {
		t.Fatal(err)
	}
	if err := c.Post(3); err != tcpio.ErrMailboxFull {
		t.Errorf("a post that takes the answer's place: %v", err)
	}
	if _, err := l.DialAsync(tcpio.DialRequest{Address: addr, To: c}); err != tcpio.ErrMailboxFull {
		t.Errorf("a request without a place: %v", err)
	}
	testnet.WaitFor(t, "the answer is on its way", func() bool { return l.Stats().Dialing == 0 })
	if err := c.Post(3); err != tcpio.ErrMailboxFull {
		t.Errorf("a post while the answer waits: %v", err)
	}
	close(hold)
	answers, posts := 0, 0
	for range 2 {
		switch ev := testnet.Receive(t, "an event", got).(type) {
		case tcpio.Dialed:
			answers++
			ev.Conn.Abort()
		case tcpio.Message:
			posts++
		}
	}
	if answers != 1 || posts != 1 {
		t.Errorf("%d answers and %d posts", answers, posts)
	}
	if err := c.Post(4); err != nil {
		t.Errorf("the place is not given back: %v", err)
	}
}

// To see it fail: let end answer although stop was first.
func TestStopAtEveryMoment(t *testing.T) {
	addrs := make(chan net.Conn, 100)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				close(addrs)
				return
			}
			c.Close()
		}
	}()
	l, events := client(t)
	n := 300
	if testnet.Long {
		n = 3000
	}
	stopped, answered := 0, map[int]int{}
	waiting := 0
	var came atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ev := range events {
			switch ev := ev.(type) {
			case tcpio.Dialed:
				if ev.Conn != nil {
					ev.Conn.Abort()
				} else if ev.Err != nil && !errors.Is(ev.Err, syscall.ECONNRESET) {
					t.Error(ev.Err)
				}
				answered[ev.Value.(int)]++
				came.Add(1)
			}
		}
	}()
	wasStopped := map[int]bool{}
	for i := range n {
		stop := dialAsync(t, l, tcpio.DialRequest{Address: ln.Addr().String(), Value: i})
		for start := time.Now(); time.Since(start) < time.Duration(i%60)*3*time.Microsecond; {
		}
		if stop() {
			stopped++
			wasStopped[i] = true
			if stop() {
				t.Error("stop stopped twice")
			}
		} else {
			waiting++
		}
	}
	testnet.WaitFor(t, "the answers", func() bool { return came.Load() == int64(waiting) })
	noDials(t, l)
	l.Close()
	testnet.AwaitClosed(t, "the end of the stream", done)
	for i := range n {
		if want := 1; wasStopped[i] && answered[i] != 0 || !wasStopped[i] && answered[i] != want {
			t.Errorf("dial %d: stopped %v, %d answers", i, wasStopped[i], answered[i])
		}
	}
	t.Logf("%d stopped, %d answered", stopped, waiting)
	if stopped == 0 || waiting == 0 {
		t.Log("only one of the two was seen")
	}
}

func TestShutdownAndCloseAnswerTheDialsUnderWay(t *testing.T) {
	hole := blackHole(t)
	slow := &net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}}
	for name, end := range map[string]func(*tcpio.Listener) error{
		"Shutdown": func(l *tcpio.Listener) error { return l.Shutdown(context.Background()) },
		"Close":    (*tcpio.Listener).Close,
	} {
		for _, serve := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, Serve %v", name, serve), func(t *testing.T) {
				l := harness.Listen(t, tcpio.ListenerOptions{Network: "none"})
				events := l.Events()
				if serve {
					harness.Start(t, l)
				}
				const n = 40
				for i := range n {
					r := tcpio.DialRequest{Address: hole, Value: i}
					if i%2 == 0 {
						r = tcpio.DialRequest{Address: "name.invalid:1", Dialer: slow, Value: i}
					}
					dialAsync(t, l, r)
				}
				if serve {
					testnet.WaitFor(t, "the attempts", func() bool { return l.Len() == n/2 })
					for c := range l.Conns() {
						t.Errorf("Conns shows %v, which is not connected", c)
					}
				}
				ended := make(chan error, 1)
				go func() { ended <- end(l) }()
				got := map[any]bool{}
				for ev := range events {
					if d, ok := ev.(tcpio.Dialed); ok {
						isDialFailure(t, d, net.ErrClosed)
						got[d.Value] = true
					}
				}
				if err := testnet.Receive(t, "the end", ended); err != nil || len(got) != n {
					t.Errorf("%v, %d answers, want %d", err, len(got), n)
				}
			})
		}
	}
}

func TestDialsMayComeBeforeServe(t *testing.T) {
	addr, accepted := tcpUpstream(t)
	l := harness.Listen(t, tcpio.ListenerOptions{Network: "none"})
	got := make(chan tcpio.Event, 10)
	dialAsync(t, l, tcpio.DialRequest{Address: addr, Actor: tcpio.ActorFunc(func(ev tcpio.Event) error { got <- ev; return nil })})
	harness.Start(t, l)
	if ev := harness.Expect[tcpio.Dialed](t, got); ev.Err != nil {
		t.Error(ev.Err)
	}
	testnet.Await(t, "the connection", accepted)
}
