//go:build linux

package contract

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestAnExistingListenerIsAdopted(t *testing.T) {
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

func TestTheUnixPathIsRemovedAtClose(t *testing.T) {
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

func TestABadOptionIsAnErrorThatNamesTheField(t *testing.T) {
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
