//go:build linux

package contract

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestExistingListenerIsAdopted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, tc := range []struct{ network, addr string }{{"tcp", "127.0.0.1:0"}, {"unix", path}} {
		t.Run(tc.network, func(t *testing.T) {
			ln, err := net.Listen(tc.network, tc.addr)
			if err != nil {
				t.Fatal(err)
			}
			early, err := net.Dial(tc.network, ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer early.Close()
			early.SetDeadline(time.Now().Add(testnet.Limit))
			l := harness.Stream(t, tcpio.ListenerOptions{Listener: ln}, harness.Echo(t))
			if l.Addr().String() != ln.Addr().String() {
				t.Errorf("Addr = %v, want %v", l.Addr(), ln.Addr())
			}
			if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the original's Accept: %v, want net.ErrClosed", err)
			}
			testnet.Ping(t, early, "early")
			testnet.Ping(t, testnet.Dial(t, l), "late")
		})
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the adopted socket's path: %v, want it left alone", err)
	}
}

func TestUnixPathIsRemovedAtClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l := harness.Listen(t, tcpio.ListenerOptions{Network: "unix", Addr: path})
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the path after Close: %v", err)
	}
}

func TestBadOptionIsAnErrorThatNamesTheField(t *testing.T) {
	if _, err := tcpio.Listen(nil); err == nil {
		t.Error("nil options were taken")
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	ok := func(o tcpio.ListenerOptions) tcpio.ListenerOptions { o.Addr = "127.0.0.1:0"; return o }
	for _, tc := range []struct {
		field string
		opts  tcpio.ListenerOptions
	}{
		{"Addr", tcpio.ListenerOptions{}},
		{"Addr", tcpio.ListenerOptions{Addr: "x", Listener: tcp}},
		{"Network", tcpio.ListenerOptions{Network: "tcp", Listener: tcp}},
		{"Network", ok(tcpio.ListenerOptions{Network: "udp"})},
		{"Listener", tcpio.ListenerOptions{Listener: (*net.TCPListener)(nil)}},
		{"Listener", tcpio.ListenerOptions{Listener: (*net.UnixListener)(nil)}},
		{"Listener", tcpio.ListenerOptions{Listener: struct{ net.Listener }{tcp}}},
		{"Loops", ok(tcpio.ListenerOptions{Loops: -1})},
		{"EventBuffer", ok(tcpio.ListenerOptions{EventBuffer: -1})},
		{"MailboxSize", ok(tcpio.ListenerOptions{MailboxSize: -1})},
		{"WriteBuffer", ok(tcpio.ListenerOptions{WriteBuffer: -1})},
		{"MaxFrame", ok(tcpio.ListenerOptions{MaxFrame: -1})},
		{"MaxBlocked", ok(tcpio.ListenerOptions{MaxBlocked: -1})},
		{"CloseTimeout", ok(tcpio.ListenerOptions{CloseTimeout: -1})},
		{"Proxies", ok(tcpio.ListenerOptions{Proxies: localhost})}, // without a Preface
		{"Proxies", ok(tcpio.ListenerOptions{Preface: readHeader, Proxies: make([]netip.Prefix, 1)})},
		{"Proxies", ok(tcpio.ListenerOptions{Preface: readHeader, Proxies: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}})},
		{"KeepAlive", ok(tcpio.ListenerOptions{KeepAlive: net.KeepAliveConfig{Idle: time.Second}})},
	} {
		l, err := tcpio.Listen(&tc.opts)
		if err == nil {
			l.Close()
			t.Errorf("%s: %+v was taken", tc.field, tc.opts)
		} else if !strings.Contains(err.Error(), "ListenerOptions."+tc.field+":") {
			t.Errorf("the error does not name %s: %v", tc.field, err)
		}
	}
	if c, err := net.Dial("tcp", tcp.Addr().String()); err != nil {
		t.Errorf("a refused Listen closed the listener: %v", err)
	} else {
		c.Close()
	}
	if _, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: tcp.Addr().String()}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("an address in use: %v", err)
	}
}

func TestListenCopiesItsOptions(t *testing.T) {
	opts := tcpio.ListenerOptions{Addr: "127.0.0.1:0"}
	l, err := tcpio.Listen(&opts)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if opts.EventBuffer != 0 || opts.CloseTimeout != 0 || opts.Network != "" || opts.KeepAlive.Enable {
		t.Errorf("Listen wrote into the caller's struct: %+v", opts)
	}
}

func TestAcceptedSocketsHaveTheirOptionsFromBirth(t *testing.T) {
	type values map[string]int
	read := func(c *tcpio.Conn) values {
		v := values{
			"NODELAY":   testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY),
			"KEEPALIVE": testnet.Sockopt(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE),
			"IDLE":      testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE),
			"INTERVAL":  testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL),
			"COUNT":     testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPCNT),
		}
		testnet.Control(t, c, func(fd int) error {
			status, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			if err != nil {
				return err
			}
			v["NONBLOCK"] = status & unix.O_NONBLOCK / unix.O_NONBLOCK
			v["CLOEXEC"], err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			return err
		})
		return v
	}
	base := values{"NODELAY": 1, "CLOEXEC": unix.FD_CLOEXEC, "NONBLOCK": 1}
	for _, tc := range []struct {
		name string
		ka   net.KeepAliveConfig
		want values
	}{
		{"default", net.KeepAliveConfig{}, values{"KEEPALIVE": 1, "IDLE": 15, "INTERVAL": 15, "COUNT": 9}},
		{"given", net.KeepAliveConfig{Enable: true, Idle: 40 * time.Second, Interval: 7 * time.Second, Count: 3},
			values{"KEEPALIVE": 1, "IDLE": 40, "INTERVAL": 7, "COUNT": 3}},
		{"off", net.KeepAliveConfig{Idle: -1}, values{"KEEPALIVE": 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, events := harness.Manual(t, tcpio.ListenerOptions{KeepAlive: tc.ka})
			c, _ := harness.Open(t, l, events)
			got := read(c)
			for _, want := range []values{base, tc.want} {
				for name, v := range want {
					if got[name] != v {
						t.Errorf("%s is %d, want %d", name, got[name], v)
					}
				}
			}
		})
	}
}

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
	{"MaxPreface", 64 << 10, func(o *tcpio.ListenerOptions, v int64) { o.MaxPreface = int(v) }},
	{"MaxHandshakes", 1 << 20, func(o *tcpio.ListenerOptions, v int64) { o.MaxHandshakes = int(v) }},
	{"CloseTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.CloseTimeout = time.Duration(v) }},
	{"DrainTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.DrainTimeout = time.Duration(v) }},
	{"EOFTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.EOFTimeout = time.Duration(v) }},
	{"IdleTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.IdleTimeout = time.Duration(v) }},
	{"ReadStallTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.ReadStallTimeout = time.Duration(v) }},
	{"InputTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.InputTimeout = time.Duration(v) }},
	{"WriteStallTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.WriteStallTimeout = time.Duration(v) }},
	{"TCPUserTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.TCPUserTimeout = time.Duration(v) }},
	{"HandshakeTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.HandshakeTimeout = time.Duration(v) }},
	{"PrefaceTimeout", int64(days20), func(o *tcpio.ListenerOptions, v int64) { o.PrefaceTimeout = time.Duration(v) }},
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

func TestLargestOptionsTogetherServe(t *testing.T) {
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

// tcp(7) says so of TCP_USER_TIMEOUT, and TCPUserTimeout's comment with it.
func TestTCPUserTimeoutCutsAPeerThatKeepsItsWindowClosed(t *testing.T) {
	t.Parallel()
	l, events := harness.Manual(t, tcpio.ListenerOptions{TCPUserTimeout: 200 * time.Millisecond})
	c, _ := harness.Open(t, l, events)
	testnet.ShrinkSendBuffer(t, c)
	for err := error(nil); err == nil; { // the peer reads nothing; a machine that stands still meets the limit here already
		_, err = c.TryWrite(make([]byte, 64<<10))
	}
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

func TestBadLimitsAreErrorsThatNameTheField(t *testing.T) {
	for name, opts := range map[string]tcpio.ListenerOptions{
		"IdleTimeout":       {IdleTimeout: -1},
		"ReadStallTimeout":  {ReadStallTimeout: 21 * 24 * time.Hour},
		"InputTimeout":      {InputTimeout: 21 * 24 * time.Hour},
		"WriteStallTimeout": {WriteStallTimeout: -1},
		"TCPUserTimeout":    {TCPUserTimeout: -1},
		"MaxConns":          {MaxConns: -1},
		"MaxConnsPerIP":     {MaxConnsPerIP: -1},
	} {
		opts.Addr = "127.0.0.1:0"
		if l, err := tcpio.Listen(&opts); err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
		} else if want := "tcpio: ListenerOptions." + name + ":"; len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
			t.Errorf("%s: the error is %q", name, err)
		}
	}
}

// MaxBuffered has a bound where nobody has set one, by the memory that the process may use.
func TestMaxBufferedIsAQuarterOfMemoryByDefault(t *testing.T) {
	bound := func(o tcpio.ListenerOptions) int64 {
		o.Addr = "127.0.0.1:0"
		l, err := tcpio.Listen(&o)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Stats().MaxBuffered
	}
	if n := bound(tcpio.ListenerOptions{}); n < 1<<20 || n > 1<<40 {
		t.Errorf("the bound is %d bytes", n)
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(256 << 20))
	for _, tc := range []struct{ limit, most, want int64 }{{256 << 20, 0, 64 << 20}, {256 << 20, 5000, 5000}, {1 << 20, 0, 1 << 20}} {
		debug.SetMemoryLimit(tc.limit)
		if n := bound(tcpio.ListenerOptions{MaxBuffered: int(tc.most)}); n != tc.want {
			t.Errorf("with %d bytes of memory and MaxBuffered %d the bound is %d, want %d", tc.limit, tc.most, n, tc.want)
		}
	}
}

// They are taken as they are, bound what peers may take, and serve.
func TestPublicDefaultsServe(t *testing.T) {
	o := tcpio.PublicDefaults()
	if o.MaxConns < 1 || o.MaxConns > 100_000 || o.MaxConnsPerIP != 1000 || o.WriteBuffer != 256<<10 || o.MaxBuffered < 1<<20 ||
		o.IdleTimeout == 0 || o.ReadStallTimeout == 0 || o.FrameTimeout == 0 || o.WriteStallTimeout == 0 || o.TCPUserTimeout == 0 {
		t.Errorf("%+v", o)
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(64 << 20))
	if o := tcpio.PublicDefaults(); o.MaxConns != 1024 || o.MaxBuffered != 16<<20 {
		t.Errorf("with 64 MiB of memory: %d connections, %d bytes", o.MaxConns, o.MaxBuffered)
	}
	l := harness.Stream(t, o, harness.Echo(t))
	testnet.Ping(t, testnet.Dial(t, l), "hello")
}
