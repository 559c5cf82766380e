//go:build linux

package contract

import (
	"errors"
	"math"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// bounds are the number options with the largest value that each documents.
var bounds = []struct {
	field string
	most  int64
	set   func(*tcpio.ListenerOptions, int64)
}{
	{"Loops", 1 << 10, func(o *tcpio.ListenerOptions, v int64) { o.Loops = int(v) }},
	{"EventBuffer", 1 << 20, func(o *tcpio.ListenerOptions, v int64) { o.EventBuffer = int(v) }},
	{"MailboxSize", 1 << 20, func(o *tcpio.ListenerOptions, v int64) { o.MailboxSize = int(v) }},
	{"WriteBuffer", 1 << 30, func(o *tcpio.ListenerOptions, v int64) { o.WriteBuffer = int(v) }},
	{"MaxBuffered", 1 << (30 + 10*(strconv.IntSize/64)), func(o *tcpio.ListenerOptions, v int64) { o.MaxBuffered = int(v) }},
	{"MaxFrame", 1 << 30, func(o *tcpio.ListenerOptions, v int64) { o.MaxFrame = int(v) }},
	{"MaxBlocked", 1 << 20, func(o *tcpio.ListenerOptions, v int64) { o.MaxBlocked = int(v) }},
	{"MaxConns", 1 << 30, func(o *tcpio.ListenerOptions, v int64) { o.MaxConns = int(v) }},
	{"MaxConnsPerIP", 1 << 30, func(o *tcpio.ListenerOptions, v int64) { o.MaxConnsPerIP = int(v) }},
	{"MaxHandshakes", 1 << 20, func(o *tcpio.ListenerOptions, v int64) { o.MaxHandshakes = int(v) }},
	{"CloseTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.CloseTimeout = time.Duration(v) }},
	{"DrainTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.DrainTimeout = time.Duration(v) }},
	{"EOFTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.EOFTimeout = time.Duration(v) }},
	{"IdleTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.IdleTimeout = time.Duration(v) }},
	{"ReadTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.ReadTimeout = time.Duration(v) }},
	{"WriteTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.WriteTimeout = time.Duration(v) }},
	{"UserTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.UserTimeout = time.Duration(v) }},
	{"HandshakeTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.HandshakeTimeout = time.Duration(v) }},
	{"KeepAlive", int64(32767 * time.Second), func(o *tcpio.ListenerOptions, v int64) {
		o.KeepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Duration(v)}
	}},
	{"KeepAlive", int64(32767 * time.Second), func(o *tcpio.ListenerOptions, v int64) {
		o.KeepAlive = net.KeepAliveConfig{Enable: true, Interval: time.Duration(v)}
	}},
	{"KeepAlive", 127, func(o *tcpio.ListenerOptions, v int64) {
		o.KeepAlive = net.KeepAliveConfig{Enable: true, Count: int(v)}
	}},
	{"RefuseReply", 64 << 10, func(o *tcpio.ListenerOptions, v int64) { o.RefuseReply = make([]byte, v) }},
}

const days20 = 20 * 24 * time.Hour

func TestEveryNumberHasABoundThatListenChecks(t *testing.T) {
	for _, b := range bounds {
		o := tcpio.ListenerOptions{Addr: "127.0.0.1:0"}
		b.set(&o, b.most)
		if l, err := tcpio.Listen(&o); err != nil {
			t.Errorf("%s of %d: %v", b.field, b.most, err)
		} else {
			l.Close()
		}
		over := []int64{b.most + 1, math.MaxInt32, math.MaxInt}
		if b.field == "RefuseReply" {
			over = over[:1]
		} else if b.most > math.MaxInt32 {
			over = append(over, math.MaxInt64) // a duration
		}
		for _, v := range over {
			if v <= b.most {
				continue
			}
			o := tcpio.ListenerOptions{Addr: "127.0.0.1:0"}
			b.set(&o, v)
			l, err := tcpio.Listen(&o)
			if err == nil {
				l.Close()
				t.Errorf("%s of %d was taken", b.field, v)
			} else if !strings.HasPrefix(err.Error(), "tcpio: ListenerOptions."+b.field+": ") {
				t.Errorf("%s of %d: the error does not name the field: %v", b.field, v, err)
			} else if errors.As(err, new(syscall.Errno)) {
				t.Errorf("%s of %d: only the kernel refused it: %v", b.field, v, err)
			}
		}
	}
}

func TestTheLargestOptionsTogetherServe(t *testing.T) {
	var o tcpio.ListenerOptions
	for _, b := range bounds {
		if b.field != "KeepAlive" && b.field != "Loops" { // a loop has two descriptors
			b.set(&o, b.most)
		}
	}
	o.CloseTimeout = 0
	o.KeepAlive = net.KeepAliveConfig{Enable: true, Idle: 32767 * time.Second, Interval: 32767 * time.Second, Count: 127}
	l := harness.Stream(t, o, harness.Echo(t))
	testnet.Ping(t, testnet.Dial(t, l), testnet.Pattern(10000))
}

func TestNegativeKeepAliveTimesLeaveTheSystems(t *testing.T) {
	for _, d := range []time.Duration{-1, math.MinInt64} {
		l := harness.Listen(t, tcpio.ListenerOptions{KeepAlive: net.KeepAliveConfig{Enable: true, Idle: d, Interval: d, Count: math.MinInt}})
		l.Close()
	}
}

func TestExtremeTimesDoNotOverflow(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	c.After(math.MaxInt64, "never")
	c.After(math.MaxInt64-1, "never")
	c.After(math.MinInt64, "now")
	if m := harness.Expect[tcpio.Message](t, events); m.Value != "now" {
		t.Fatalf("Message %v", m.Value)
	}
	for _, d := range []time.Duration{math.MaxInt64, math.MinInt64, -1, days20 + 1} {
		if err := c.SetIdleTimeout(d); err == nil {
			t.Errorf("an idle timeout of %v was taken", d)
		}
	}
	if err := c.SetIdleTimeout(days20); err != nil {
		t.Error(err)
	}
	far := time.Now().Add(math.MaxInt64)
	for _, set := range []func(time.Time) error{c.SetDeadline, c.SetReadDeadline, c.SetWriteDeadline} {
		if err := set(far); err != nil {
			t.Error(err)
		}
	}
	testnet.Send(t, peer, "xy")
	if n, err := c.Read(make([]byte, 2)); n != 2 || err != nil {
		t.Errorf("Read with a deadline in 292 years = %d, %v", n, err)
	}
	if err := c.SetDeadline(time.Now().Add(math.MinInt64)); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("Read with a deadline 292 years ago")
	}
}

// tcp(7) says so of TCP_USER_TIMEOUT, and UserTimeout's comment with it.
func TestUserTimeoutCutsAPeerThatKeepsItsWindowClosed(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{UserTimeout: 200 * time.Millisecond})
	c, _ := harness.Open(t, l, events)
	testnet.ShrinkSendBuffer(t, c)
	harness.Fill(t, c, 64<<10) // the peer reads nothing
	for {
		if _, ok := testnet.Await(t, "Closed", events).(tcpio.Closed); ok {
			break
		}
		_, _ = c.TryRead(make([]byte, 1)) // the error is met by reading
	}
	if !errors.Is(c.Err(), syscall.ETIMEDOUT) {
		t.Errorf("Err is %v, want ETIMEDOUT", c.Err())
	}
}
