//go:build linux

package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
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

func TestAsyncDialHasTheDialersSourceAndControl(t *testing.T) {
	l, events := client(t)
	addr, accepted := tcpUpstream(t)
	var controls atomic.Int32
	for _, control := range []bool{false, true} {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}, KeepAlive: 50 * time.Second}
		if control {
			d.ControlContext = func(_ context.Context, network, address string, raw syscall.RawConn) (err error) {
				controls.Add(1)
				if network != "tcp4" || address != addr {
					t.Errorf("Control of %s %s", network, address)
				}
				ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, 0x10) })
				return errors.Join(ctlErr, err)
			}
		}
		dialAsync(t, l, tcpio.DialRequest{Address: addr, Dialer: d})
		c := harness.Expect[tcpio.Dialed](t, events).Conn
		if c == nil {
			t.Fatal("no connection")
		}
		harness.Expect[tcpio.Opened](t, events)
		peer := testnet.Await(t, "the connection", accepted)
		if ip := peer.RemoteAddr().(*net.TCPAddr).IP; !ip.Equal(net.IPv4(127, 0, 0, 77)) {
			t.Errorf("it comes from %v", ip)
		}
		if idle := testnet.Sockopt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); idle != 50 {
			t.Errorf("keep-alive after %d s", idle)
		}
		if tos := testnet.Sockopt(t, c, unix.IPPROTO_IP, unix.IP_TOS); control && tos != 0x10 {
			t.Errorf("IP_TOS is %#x", tos)
		}
	}
	if controls.Load() != 1 {
		t.Errorf("Control ran %d times", controls.Load())
	}
	// Both ends of a unix socket with a name.
	path, uaccepted := testnet.Upstream(t, "unix", filepath.Join(t.TempDir(), "s"))
	from := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "c"), Net: "unix"}
	dialAsync(t, l, tcpio.DialRequest{Network: "unix", Address: path, Dialer: &net.Dialer{LocalAddr: from}})
	c := harness.Expect[tcpio.Dialed](t, events).Conn
	sameAddr(t, "the peer's view", testnet.Await(t, "the connection", uaccepted).RemoteAddr(), from)
	sameAddr(t, "LocalAddr", c.LocalAddr(), from)
}

// A port of the dynamic range that nobody listens on can be given to the very socket that connects
// to it. Here the range has that one port.
func TestDialDoesNotConnectToItself(t *testing.T) {
	const ipLocalPortRange = 51 // IP_LOCAL_PORT_RANGE, ip(7)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, p := ln.Addr().String(), uint32(ln.Addr().(*net.TCPAddr).Port)
	ln.Close() // the port is free, for the socket that connects
	l, events := client(t)
	dialAsync(t, l, tcpio.DialRequest{Address: addr, Dialer: &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		ctlErr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, ipLocalPortRange, int(p<<16|p))
		})
		return errors.Join(ctlErr, err)
	}}})
	ev := harness.Expect[tcpio.Dialed](t, events)
	if errors.Is(ev.Err, unix.ENOPROTOOPT) {
		t.Skip("the kernel is too old for IP_LOCAL_PORT_RANGE")
	}
	isDialFailure(t, ev, nil)
	noDials(t, l)
}

// nameServer answers every question with v4 and v6, or if there is none, that there is no such name.
func nameServer(t *testing.T, v4, v6 net.IP) *net.Resolver {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			end := 12
			for end < n && buf[end] != 0 {
				end += int(buf[end]) + 1
			}
			question := buf[12 : end+5] // name, type, class
			if v4 == nil {
				_, _ = pc.WriteTo(append([]byte{buf[0], buf[1], 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0}, question...), from)
				continue
			}
			ip := v4.To4()
			if question[len(question)-3] == 28 {
				ip = v6
			}
			reply := append([]byte{buf[0], buf[1], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0}, question...)
			reply = append(reply, 0xc0, 12, 0, question[len(question)-3], 0, 1, 0, 0, 0, 60, 0, byte(len(ip)))
			_, _ = pc.WriteTo(append(reply, ip...), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

func TestDialByNameTakesTheFamilyThatAnswers(t *testing.T) {
	addr, accepted := tcpUpstream(t)
	_, port, _ := net.SplitHostPort(addr)
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Skip("no IPv6 here:", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	var p int
	fmt.Sscan(port, &p)
	if err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
		unix.Bind(fd, &unix.SockaddrInet6{Port: p, Addr: [16]byte{15: 1}}), unix.Listen(fd, 0)); err != nil {
		t.Skip("no IPv6 loopback here:", err)
	}
	for range 16 { // until its backlog is full, and it is silent
		c, err := net.DialTimeout("tcp", net.JoinHostPort("::1", port), 100*time.Millisecond)
		if err != nil {
			break
		}
		t.Cleanup(func() { c.Close() })
	}
	l, events := client(t)
	d := &net.Dialer{Resolver: nameServer(t, net.IPv4(127, 0, 0, 1), net.IPv6loopback), FallbackDelay: 10 * time.Millisecond}
	const n = 100 // more than there are goroutines for look-ups
	for range n {
		dialAsync(t, l, tcpio.DialRequest{Address: "both.example:" + port, Dialer: d})
	}
	for opened := 0; opened < n; {
		switch ev := testnet.Receive(t, "an event", events).(type) {
		case tcpio.Dialed:
			if ev.Err != nil {
				t.Fatal(ev.Err)
			}
			if ev.Conn.RemoteAddr().String() != addr {
				t.Errorf("connected to %v", ev.Conn.RemoteAddr())
			}
			ev.Conn.Abort()
			opened++
			testnet.Await(t, "the connection", accepted)
		}
	}
	noDials(t, l) // the other family's sockets are gone
	// With the first family refused, the other one does not wait for the delay.
	unix.Close(fd)
	fd, _ = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	d.FallbackDelay = time.Hour
	dialAsync(t, l, tcpio.DialRequest{Address: "both.example:" + port, Dialer: d})
	for {
		if ev, ok := testnet.Receive(t, "an event", events).(tcpio.Dialed); ok {
			if ev.Err != nil {
				t.Error(ev.Err)
			}
			break
		}
	}
}

// 10,000 connections are dialed at once, and no goroutine is there for any of them. Their peers
// wait in the backlogs of sockets that nobody accepts from.
func TestManyDialsAtOnceHaveNoGoroutine(t *testing.T) {
	n := 500
	if testnet.Long {
		n = 10000
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < uint64(n+200) {
		n = int(limit.Cur) - 200
	}
	var addrs []string
	for range 100 { // the least that a system has is 128
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		addrs = append(addrs, ln.Addr().String())
	}
	l, events := client(t)
	before := harness.Goroutines(t, l)
	for i := range n {
		dialAsync(t, l, tcpio.DialRequest{Address: addrs[i%len(addrs)], Value: i})
	}
	conns := make([]*tcpio.Conn, 0, n)
	most := 0
	for len(conns) < n {
		if ev, ok := testnet.Receive(t, "an event", events).(tcpio.Dialed); ok {
			if ev.Err != nil {
				t.Fatal(ev.Err)
			}
			conns = append(conns, ev.Conn)
			most = max(most, runtime.NumGoroutine())
		}
	}
	if most > before+10 { // a feeder of the stream, a watchdog
		t.Errorf("%d goroutines for %d dials, %d before", most, n, before)
	}
	var closed sync.WaitGroup
	closed.Add(1)
	go func() {
		defer closed.Done()
		for _, c := range conns {
			c.Abort()
		}
	}()
	for over := 0; over < n; {
		if _, ok := testnet.Receive(t, "an event", events).(tcpio.Closed); ok {
			over++
		}
	}
	closed.Wait()
	noDials(t, l)
}

// The peer's bytes and its end may be there before the answer is: the socket's only edge is then
// that of the connect.
func TestWhatAPeerSendsAtOnceIsReadBehindTheAnswer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("bye"))
			c.Close()
		}
	}()
	// With it the socket is made beside the loop.
	slowly := &net.Dialer{Control: func(string, string, syscall.RawConn) error { return nil }}
	for _, to := range []bool{false, true} {
		l, events := harness.Manual(t, tcpio.ListenerOptions{})
		var c *tcpio.Conn
		if to {
			c, _ = harness.Open(t, l, events)
		}
		n := 300
		for range n {
			r := tcpio.DialRequest{Address: ln.Addr().String(), Dialer: slowly}
			for r.To = c; ; {
				_, err := l.DialAsync(r)
				if err == nil {
					break
				}
				if err != tcpio.ErrMailboxFull {
					t.Fatal(err)
				}
				runtime.Gosched()
			}
		}
		read := map[*tcpio.Conn]string{}
		for ended := 0; ended < n; {
			switch ev := testnet.Receive(t, "an event", events).(type) {
			case tcpio.Dialed:
				if ev.Err != nil {
					t.Fatal(ev.Err)
				}
				read[ev.Conn] = ""
				if to {
					later := ev.Conn.Events()
					if _, ok := testnet.Receive(t, "the first event", later).(tcpio.Opened); !ok {
						t.Fatal("Opened is not the first event")
					}
					buf := make([]byte, 2)
					for got := ""; ; {
						n, err := ev.Conn.TryRead(buf)
						got += string(buf[:n])
						if err == io.EOF {
							if got != "bye" {
								t.Errorf("read %q", got)
							}
							break
						}
						if err == tcpio.ErrWouldBlock {
							testnet.Receive(t, "a Readable", later)
						}
					}
					ev.Conn.Abort()
					ended++
				}
			case tcpio.Readable:
				buf := make([]byte, 10)
				n, err := ev.Conn.TryRead(buf)
				read[ev.Conn] += string(buf[:n])
				if err == io.EOF {
					if read[ev.Conn] != "bye" {
						t.Errorf("read %q", read[ev.Conn])
					}
					ev.Conn.Close()
					ended++
				}
			}
		}
	}
}
