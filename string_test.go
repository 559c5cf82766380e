//go:build linux

package tcpio

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
)

// named are the events of c, by what they are called in a log.
func named(c *Conn) map[string]Event {
	return map[string]Event{
		"Opened(%s)":                    Opened{c},
		"Readable(%s)":                  Readable{c},
		"Writable(%s)":                  Writable{c},
		"Message(%s, *tcpio.valueOnly)": Message{Conn: c, Value: (*valueOnly)(nil)},
		"Draining(%s)":                  Draining{c},
		"Closed(%s)":                    Closed{c},
	}
}

// valueOnly is a value whose methods must not be called.
type valueOnly struct{}

func (*valueOnly) Error() string  { panic("called") }
func (*valueOnly) String() string { panic("called") }

func checkNames(t *testing.T, c *Conn, want string) {
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
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	want := fmt.Sprintf("conn %d, %v", c.ID(), peer.LocalAddr())
	checkNames(t, c, want)

	// With the connection's lock held, as by a goroutine in a long write.
	c.mu.Lock()
	checkNames(t, c, want)
	c.mu.Unlock()

	c.Abort()
	receiveAs[Closed](t, events)
	checkNames(t, c, want)
	checkNames(t, nil, "no conn")
	checkNames(t, new(Conn), "conn 0, unix")
}

func TestFailedNamesItsError(t *testing.T) {
	for want, err := range map[string]error{
		"Failed(accept: too many)": errors.New("accept: too many"),
		"Failed(<nil>)":            nil,
	} {
		if got := fmt.Sprint(Failed{err}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := (Failed{(*valueOnly)(nil)}).String(); !strings.HasPrefix(got, "Failed(") {
		t.Errorf("with an error whose method panics: %q", got)
	}
}

func TestConnOfIsTheEventsConnection(t *testing.T) {
	c := new(Conn)
	for _, ev := range named(c) {
		if ConnOf(ev) != c {
			t.Errorf("ConnOf(%T) is another", ev)
		}
	}
	for _, ev := range []Event{nil, Failed{errors.New("accept")}} {
		if c := ConnOf(ev); c != nil {
			t.Errorf("ConnOf(%v) = %v, want nil", ev, c)
		}
	}
}

func TestConnLogsItsIDAndBothAddresses(t *testing.T) {
	r := listen(t, ListenerOptions{Addr: "0.0.0.0:0"})
	events := r.Events()
	r.serve()
	peer, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", r.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	c := receiveAs[Opened](t, events).Conn
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
	receiveAs[Closed](t, events)
	log.Info("m", "c", c)
	if got := text.String(); got != want+want {
		t.Errorf("got\n%swant twice\n%s", got, want)
	}
	for _, c := range []*Conn{nil, new(Conn)} {
		if got := c.LogValue(); got.String() != c.String() {
			t.Errorf("got %v, want %v", got, c)
		}
	}
}

func TestSlowPolicyHasNames(t *testing.T) {
	for p, want := range map[SlowPolicy]string{SkipSlow: "SkipSlow", CloseSlow: "CloseSlow", -1: "SlowPolicy(-1)", 2: "SlowPolicy(2)"} {
		if got := fmt.Sprint(p); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
