//go:build linux

package contract

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// dialing starts a listener to dial from.
func dialing(t *testing.T, opts tcpio.ListenerOptions) *tcpio.Listener {
	t.Helper()
	l, events := harness.Manual(t, opts)
	harness.Open(t, l, events) // Serve is there
	return l
}

func dialWith(t *testing.T, l *tcpio.Listener, d *net.Dialer, network, addr string) *tcpio.Conn {
	t.Helper()
	c, err := l.DialWith(t.Context(), d, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDialWithConnectsFromTheDialersAddress(t *testing.T) {
	l := dialing(t, tcpio.ListenerOptions{})
	addr, accepted := tcpUpstream(t)
	c := dialWith(t, l, &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}}, "tcp", addr)
	peer := testnet.Await(t, "the connection", accepted)
	if ip := peer.RemoteAddr().(*net.TCPAddr).IP; !ip.Equal(net.IPv4(127, 0, 0, 77)) || c.LocalAddr().String() != peer.RemoteAddr().String() {
		t.Errorf("it comes from %v and says %v", peer.RemoteAddr(), c.LocalAddr())
	}
	// An address of the wrong kind is the package net's error.
	if c, err := l.DialWith(t.Context(), &net.Dialer{LocalAddr: &net.UnixAddr{Name: "x", Net: "unix"}}, "tcp", addr); c != nil || err == nil {
		t.Errorf("from a unix address: %v, %v", c, err)
	}
	upath, uaccepted := testnet.Upstream(t, "unix", filepath.Join(t.TempDir(), "s"))
	from := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "c"), Net: "unix"}
	c = dialWith(t, l, &net.Dialer{LocalAddr: from}, "unix", upath)
	peer = testnet.Await(t, "the connection", uaccepted)
	sameAddr(t, "the peer's view", peer.RemoteAddr(), from)
	sameAddr(t, "LocalAddr", c.LocalAddr(), from)
}

// To see it fail: run Control behind the listener's options, or drop one of the two kinds.
func TestDialWithRunsTheDialersControl(t *testing.T) {
	l := dialing(t, tcpio.ListenerOptions{TCPUserTimeout: 9 * time.Second, KeepAlive: net.KeepAliveConfig{Enable: true, Idle: 33 * time.Second}})
	addr, _ := tcpUpstream(t)
	type key struct{}
	var before [3]int // what Control finds, set by nobody yet
	look := func(raw syscall.RawConn) (err error) {
		ctlErr := raw.Control(func(fd uintptr) {
			before[0], err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			before[1], _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY)
			before[2], _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, 77),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, 0x10))
		})
		if errors.Is(err, unix.EPERM) {
			err = nil // a mark needs a privilege
		}
		return errors.Join(ctlErr, err)
	}
	var plain, withCtx int
	check := func(d *net.Dialer, wantPlain, wantCtx int) {
		t.Helper()
		plain, withCtx = 0, 0
		c, err := l.DialWith(context.WithValue(t.Context(), key{}, "value"), d, "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if plain != wantPlain || withCtx != wantCtx {
			t.Errorf("Control ran %d times, ControlContext %d, want %d and %d", plain, withCtx, wantPlain, wantCtx)
		}
		if before != [3]int{} {
			t.Errorf("Control found options set: %v", before)
		}
		for what, v := range map[string][2]int{
			"TCP_USER_TIMEOUT": {testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT), 9000},
			"TCP_NODELAY":      {testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY), 1},
			"SO_KEEPALIVE":     {testnet.Sockopt(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE), 1},
			"TCP_KEEPIDLE":     {testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE), 33},
			"IP_TOS":           {testnet.Sockopt(t, c, unix.IPPROTO_IP, unix.IP_TOS), 0x10},
		} {
			if v[0] != v[1] {
				t.Errorf("%s is %d, want %d", what, v[0], v[1])
			}
		}
	}
	control := func(network, address string, raw syscall.RawConn) error {
		plain++
		if network != "tcp4" || address != addr {
			t.Errorf("Control of %s %s", network, address)
		}
		return look(raw)
	}
	controlContext := func(ctx context.Context, network, address string, raw syscall.RawConn) error {
		withCtx++
		if network != "tcp4" || address != addr || ctx.Value(key{}) != "value" {
			t.Errorf("ControlContext of %s %s with %v", network, address, ctx.Value(key{}))
		}
		return look(raw)
	}
	check(&net.Dialer{Control: control}, 1, 0)
	check(&net.Dialer{ControlContext: controlContext}, 0, 1)
	check(&net.Dialer{Control: control, ControlContext: controlContext}, 0, 1) // as net.Dialer has it

	boom := errors.New("boom")
	for name, d := range map[string]*net.Dialer{
		"Control":        {Control: func(string, string, syscall.RawConn) error { return boom }},
		"ControlContext": {ControlContext: func(context.Context, string, string, syscall.RawConn) error { return boom }},
	} {
		for _, network := range []string{"tcp", "unix"} {
			to := addr
			if network == "unix" {
				to, _ = testnet.Upstream(t, "unix", filepath.Join(t.TempDir(), "s"))
			}
			c, err := l.DialWith(t.Context(), d, network, to)
			var oe *net.OpError
			if c != nil || !errors.Is(err, boom) || !errors.As(err, &oe) || oe.Op != "dial" {
				t.Errorf("%s, %s: %v, %v, want its error", name, network, c, err)
			}
		}
	}
}

func TestDialersKeepAliveComesBeforeTheListeners(t *testing.T) {
	of := func(t *testing.T, c *tcpio.Conn) [4]int {
		return [4]int{
			testnet.Sockopt(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE), testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE),
			testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL), testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPCNT),
		}
	}
	l := dialing(t, tcpio.ListenerOptions{KeepAlive: net.KeepAliveConfig{
		Enable: true, Idle: 33 * time.Second, Interval: 7 * time.Second, Count: 4,
	}})
	addr, _ := tcpUpstream(t)
	byNet := func(d *net.Dialer) [4]int {
		nc, err := d.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		var v [4]int
		onSocket(t, nc, func(fd int) error {
			for i, o := range [4][2]int{{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
				{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT}} {
				if v[i], err = unix.GetsockoptInt(fd, o[0], o[1]); err != nil {
					return err
				}
			}
			return nil
		})
		return v
	}
	listeners := [4]int{1, 33, 7, 4}
	for name, tc := range map[string]struct {
		d      *net.Dialer
		theirs bool
	}{
		"nil":                   {nil, false},
		"zero":                  {&net.Dialer{}, false},
		"KeepAlive":             {&net.Dialer{KeepAlive: 50 * time.Second}, true},
		"negative":              {&net.Dialer{KeepAlive: -1}, true},
		"config":                {&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 20 * time.Second, Count: 2}}, true},
		"config and negative":   {&net.Dialer{KeepAlive: -1, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Interval: 3 * time.Second}}, true},
		"config without Enable": {&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Idle: 20 * time.Second}}, false},
		"config off, KeepAlive": {&net.Dialer{KeepAlive: 9 * time.Second, KeepAliveConfig: net.KeepAliveConfig{Idle: time.Second}}, true},
		"negative, and by Control": {&net.Dialer{KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) (err error) {
			ctlErr := raw.Control(func(fd uintptr) {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 11))
			})
			return errors.Join(ctlErr, err)
		}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			want := listeners
			if tc.theirs {
				want = byNet(tc.d)
			}
			if got := of(t, dialWith(t, l, tc.d, "tcp", addr)); got != want {
				t.Errorf("keep-alive %v, want %v", got, want)
			}
		})
	}
	if got := of(t, dialWith(t, dialing(t, tcpio.ListenerOptions{KeepAlive: net.KeepAliveConfig{Idle: -1}}), &net.Dialer{}, "tcp", addr)); got[0] != 0 {
		t.Errorf("keep-alive %v though the listener has it off", got)
	}
}

func TestTCPUserTimeoutThatControlHasSetStays(t *testing.T) {
	l := dialing(t, tcpio.ListenerOptions{TCPUserTimeout: 9 * time.Second})
	addr, _ := tcpUpstream(t)
	c := dialWith(t, l, &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		ctlErr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1234)
		})
		return errors.Join(ctlErr, err)
	}}, "tcp", addr)
	if v := testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); v != 1234 {
		t.Errorf("TCP_USER_TIMEOUT is %d, want Control's 1234", v)
	}
}

func TestDialersTimeLimitsHold(t *testing.T) {
	hole := blackHole(t)
	l := dialing(t, tcpio.ListenerOptions{})
	cancelled := make(chan struct{})
	close(cancelled)
	if c, err := l.DialWith(t.Context(), &net.Dialer{Timeout: -1}, "tcp", hole); c != nil || err == nil || !strings.Contains(err.Error(), "Dialer.Timeout") {
		t.Errorf("a negative Timeout: %v, %v", c, err)
	}
	for name, d := range map[string]*net.Dialer{
		"Timeout":  {Timeout: 20 * time.Millisecond},
		"Deadline": {Deadline: time.Now().Add(20 * time.Millisecond)},
		"Cancel":   {Cancel: cancelled}, // deprecated, and it holds all the same
	} {
		start := time.Now()
		c, err := l.DialWith(context.Background(), d, "tcp", hole)
		if c != nil || err == nil || time.Since(start) > testnet.Limit/2 {
			t.Errorf("%s: %v, %v after %v", name, c, err, time.Since(start))
			continue
		}
		var ne net.Error
		if name != "Cancel" && (!errors.As(err, &ne) || !ne.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded)) {
			t.Errorf("%s: %v is no timeout", name, err)
		}
		if name == "Cancel" && !errors.Is(err, context.Canceled) {
			t.Errorf("Cancel: %v", err)
		}
	}
}

func TestDialWithUsesTheDialersResolver(t *testing.T) {
	l := dialing(t, tcpio.ListenerOptions{})
	asked := errors.New("the resolver was asked")
	var n atomic.Int32
	d := &net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		n.Add(1)
		return nil, asked
	}}}
	if _, err := l.DialWith(t.Context(), d, "tcp", "name.invalid:1"); err == nil || n.Load() == 0 {
		t.Errorf("the resolver was asked %d times: %v", n.Load(), err)
	}
}

// Run it with -race: a write to the Dialer shows.
func TestDialerMayBeShared(t *testing.T) {
	l := dialing(t, tcpio.ListenerOptions{})
	addr, _ := tcpUpstream(t)
	var controls atomic.Int32
	d := &net.Dialer{Control: func(string, string, syscall.RawConn) error { controls.Add(1); return nil }}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if i%2 == 0 {
				nc, err := d.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				nc.Close()
				return
			}
			c, err := l.DialWith(t.Context(), d, "tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			c.Abort()
		})
	}
	all.Wait()
	if n := controls.Load(); n != 8 {
		t.Errorf("Control ran %d times in 8 dials", n)
	}
	if d.KeepAlive != 0 || d.ControlContext != nil || d.Control == nil || d.MultipathTCP() {
		t.Errorf("the Dialer was changed: %+v", d)
	}
}

func TestMultipathTCPIsUsedWhenTheDialerSaysSo(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skip("no multipath TCP here:", err)
	}
	unix.Close(fd)
	l := dialing(t, tcpio.ListenerOptions{TCPUserTimeout: 9 * time.Second})
	addr, accepted := tcpUpstream(t)
	for _, on := range []bool{false, true} {
		d := new(net.Dialer)
		want := unix.IPPROTO_TCP
		if on {
			d.SetMultipathTCP(true)
			want = unix.IPPROTO_MPTCP
		}
		c := dialWith(t, l, d, "tcp", addr)
		if got := testnet.Sockopt(t, c, unix.SOL_SOCKET, unix.SO_PROTOCOL); got != want {
			t.Errorf("protocol %d, want %d", got, want)
		}
		peer := testnet.Await(t, "the connection", accepted)
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		testnet.ExpectBytes(t, peer, "hello")
	}
}
