//go:build linux

package contract

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestIDsAreUniqueInTheProcessAndNotZero(t *testing.T) {
	l1, events1 := harness.Manual(t, tcpio.ListenerOptions{})
	l2, events2 := harness.Manual(t, tcpio.ListenerOptions{})
	seen := map[uint64]bool{0: true}
	for range 50 {
		c1, _ := harness.Open(t, l1, events1)
		c2, _ := harness.Open(t, l2, events2)
		for _, c := range []*tcpio.Conn{c1, c2} {
			if seen[c.ID()] {
				t.Fatalf("ID %d again", c.ID())
			}
			seen[c.ID()] = true
		}
		c1.Abort() // its descriptor and its slot are for others now
		harness.Expect[tcpio.Closed](t, events1)
	}
}

func TestDataOutlivesTheConnection(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	if v := c.Data(); v != nil {
		t.Errorf("Data of a new connection: %v", v)
	}
	c.SetData("state")
	c.Abort()
	if v := harness.Expect[tcpio.Closed](t, events).Conn.Data(); v != "state" {
		t.Errorf("Data at Closed: %v", v)
	}
	c.SetData(nil)
	if v := c.Data(); v != nil {
		t.Errorf("Data: %v", v)
	}
}

func TestAddressesAreThePeersViewAlsoAfterClose(t *testing.T) {
	for _, tc := range []struct{ name, network, addr, dial string }{
		{"IPv4", "tcp4", "127.0.0.1:0", ""},
		{"IPv6", "tcp6", "[::1]:0", ""},
		{"wildcard IPv4", "tcp4", "0.0.0.0:0", "127.0.0.7"},
		{"dual stack, IPv4 peer", "tcp", ":0", "127.0.0.9"},
		{"dual stack, IPv6 peer", "tcp", ":0", "::1"},
		{"unix", "unix", filepath.Join(t.TempDir(), "s"), ""},
		{"unix abstract", "unix", "@tcpio-" + filepath.Base(t.TempDir()) + t.Name(), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if strings.Contains(tc.name, "IPv6") {
				if ln, err := net.Listen("tcp6", "[::1]:0"); err != nil {
					t.Skip("no IPv6 here:", err)
				} else {
					ln.Close()
				}
			}
			l, events := harness.Manual(t, tcpio.ListenerOptions{Network: tc.network, Addr: tc.addr})
			target := l.Addr().String()
			if tc.dial != "" {
				_, port, err := net.SplitHostPort(target)
				if err != nil {
					t.Fatal(err)
				}
				target = net.JoinHostPort(tc.dial, port)
			}
			peer, err := net.Dial(l.Addr().Network(), target)
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			c := harness.Expect[tcpio.Opened](t, events).Conn
			check := func(when string) {
				t.Helper()
				local, remote := c.LocalAddr(), c.RemoteAddr()
				if local == nil || remote == nil {
					t.Fatalf("%s: local %v, remote %v", when, local, remote)
				}
				if local.Network() != peer.RemoteAddr().Network() || remote.Network() != peer.LocalAddr().Network() {
					t.Errorf("%s: networks %s and %s", when, local.Network(), remote.Network())
				}
				if local.String() != peer.RemoteAddr().String() {
					t.Errorf("%s: LocalAddr %v, the peer sees %v", when, local, peer.RemoteAddr())
				}
				if tc.network != "unix" && remote.String() != peer.LocalAddr().String() {
					t.Errorf("%s: RemoteAddr %v, the peer has %v", when, remote, peer.LocalAddr())
				}
			}
			check("open")
			c.Close()
			check("closing")
			peer.Close()
			harness.Expect[tcpio.Closed](t, events)
			check("closed")
		})
	}
}

func TestSetNoDelayChangesTheSocket(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	if v := testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY); v != 1 {
		t.Errorf("TCP_NODELAY is %d by default", v)
	}
	for want, on := range []bool{false, true} {
		if err := c.SetNoDelay(on); err != nil {
			t.Fatal(err)
		}
		if v := testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY); v != want {
			t.Errorf("TCP_NODELAY is %d after SetNoDelay(%v)", v, on)
		}
	}
	u, unixEvents := harness.Manual(t, tcpio.ListenerOptions{Network: "unix", Addr: filepath.Join(t.TempDir(), "s")})
	c, _ = harness.Open(t, u, unixEvents)
	if err := c.SetNoDelay(true); err != nil {
		t.Errorf("on a unix socket: %v", err)
	}
}

func TestConnsAndLenAreTheOpenConnections(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	if n := l.Len(); n != 0 {
		t.Errorf("Len = %d before anybody came", n)
	}
	want := make(map[*tcpio.Conn]bool)
	for range 10 {
		c, _ := harness.Open(t, l, events)
		want[c] = true
	}
	got := slices.Collect(l.Conns())
	if len(got) != len(want) || l.Len() != len(want) {
		t.Errorf("%d Conns, Len %d, want %d", len(got), l.Len(), len(want))
	}
	for _, c := range got {
		if !want[c] {
			t.Errorf("connection %d is none of ours", c.ID())
		}
	}
	n := 0
	for c := range l.Conns() { // no lock is held: the body may close, and may leave
		c.Abort()
		if n++; n == 4 {
			break
		}
	}
	for range 4 {
		harness.Expect[tcpio.Closed](t, events)
	}
	testnet.WaitFor(t, "a Len of 6", func() bool { return l.Len() == 6 })
	if n := len(slices.Collect(l.Conns())); n != 6 {
		t.Errorf("%d Conns, want 6", n)
	}
}

// named are the events of c, by what they are called in a log.
func named(c *tcpio.Conn) map[string]tcpio.Event {
	return map[string]tcpio.Event{
		"Opened(%s)":                       tcpio.Opened{Conn: c},
		"Readable(%s)":                     tcpio.Readable{Conn: c},
		"Writable(%s)":                     tcpio.Writable{Conn: c},
		"Message(%s, *contract.valueOnly)": tcpio.Message{Conn: c, Value: (*valueOnly)(nil)},
		"Draining(%s)":                     tcpio.Draining{Conn: c},
		"Closed(%s)":                       tcpio.Closed{Conn: c},
	}
}

// valueOnly is a value whose methods must not be called.
type valueOnly struct{}

func (*valueOnly) Error() string { panic("called") }

func (*valueOnly) String() string { panic("called") }

func checkNames(t *testing.T, c *tcpio.Conn, want string) {
	t.Helper()
	if got := c.String(); got != want {
		t.Errorf("Conn.String() = %q, want %q", got, want)
	}
	for format, ev := range named(c) {
		want := fmt.Sprintf(format, want)
		for _, verb := range []string{"%v", "%+v", "%s"} {
			if got := fmt.Sprintf(verb, ev); got != want {
				t.Errorf("%s of a %T is %q, want %q", verb, ev, got, want)
			}
		}
	}
}

func TestEveryEventNamesItsConnection(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	want := fmt.Sprintf("conn %d, %v", c.ID(), peer.LocalAddr())
	checkNames(t, c, want)

	c.Abort()
	harness.Expect[tcpio.Closed](t, events)
	checkNames(t, c, want)
	checkNames(t, nil, "no conn")
	checkNames(t, new(tcpio.Conn), "conn 0, unix")
}

func TestFailedNamesItsError(t *testing.T) {
	for want, err := range map[string]error{
		"Failed(accept: too many)": errors.New("accept: too many"),
		"Failed(<nil>)":            nil,
	} {
		if got := fmt.Sprint(tcpio.Failed{Err: err}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := (tcpio.Failed{Err: (*valueOnly)(nil)}).String(); !strings.HasPrefix(got, "Failed(") {
		t.Errorf("with an error whose method panics: %q", got)
	}
}

func TestConnOfIsTheEventsConnection(t *testing.T) {
	c := new(tcpio.Conn)
	for _, ev := range named(c) {
		if tcpio.ConnOf(ev) != c {
			t.Errorf("ConnOf(%T) is another", ev)
		}
	}
	for _, ev := range []tcpio.Event{nil, tcpio.Failed{Err: errors.New("accept")}} {
		if c := tcpio.ConnOf(ev); c != nil {
			t.Errorf("ConnOf(%v) = %v, want nil", ev, c)
		}
	}
}

func TestConnLogsItsIDAndBothAddresses(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Addr: "0.0.0.0:0"})
	peer, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	c := harness.Expect[tcpio.Opened](t, events).Conn
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key != slog.MessageKey {
			return slog.Attr{}
		}
		return a
	}}))
	want := fmt.Sprintf("msg=m c.id=%d c.peer=%v c.local=%v\n", c.ID(), peer.LocalAddr(), peer.RemoteAddr())
	log.Info("m", "c", c)
	c.Abort()
	harness.Expect[tcpio.Closed](t, events)
	log.Info("m", "c", c)
	if got := text.String(); got != want+want {
		t.Errorf("got\n%swant twice\n%s", got, want)
	}
	for _, c := range []*tcpio.Conn{nil, new(tcpio.Conn)} {
		if got := c.LogValue(); got.String() != c.String() {
			t.Errorf("got %v, want %v", got, c)
		}
	}
}

func TestSlowPolicyHasNames(t *testing.T) {
	for p, want := range map[tcpio.SlowPolicy]string{tcpio.SkipSlow: "SkipSlow", tcpio.CloseSlow: "CloseSlow", -1: "SlowPolicy(-1)", 2: "SlowPolicy(2)"} {
		if got := fmt.Sprint(p); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTimeoutKindHasNames(t *testing.T) {
	t.Parallel()
	for k, want := range map[tcpio.TimeoutKind]string{
		tcpio.TimeoutIdle: "idle", tcpio.TimeoutReadStall: "read", tcpio.TimeoutInput: "input", tcpio.TimeoutFrame: "frame",
		tcpio.TimeoutWriteStall: "write", tcpio.TimeoutHandshake: "handshake", tcpio.TimeoutClose: "close",
		0: "TimeoutKind(0)", -1: "TimeoutKind(-1)", 99: "TimeoutKind(99)",
	} {
		if got := k.String(); got != want {
			t.Errorf("TimeoutKind(%d) is %q, want %q", int(k), got, want)
		}
	}
}
