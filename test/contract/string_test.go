//go:build linux

package contract

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/test/harness"
)

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
