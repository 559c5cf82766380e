//go:build linux

package hazards

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// linkLocal runs f in a network namespace with the addresses fe80::1 and fe80::2 on an interface
// tcpio0. Sockets that f opens on its own goroutine are there.
func linkLocal(t *testing.T, f func(t *testing.T)) {
	ip, err := exec.LookPath("ip")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and ip(8)")
	}
	done := make(chan string, 1)
	go func() {
		skipped := "the test ended early"
		defer func() { done <- skipped }()
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			skipped = "no network namespace: " + err.Error()
			return
		}
		for _, args := range []string{
			"link set lo up",
			"link add tcpio0 index 4711 type bridge", // an index that no other namespace has: package net keeps names
			"link set tcpio0 up",
			"addr add fe80::1/64 dev tcpio0 nodad",
			"addr add fe80::2/64 dev tcpio0 nodad",
			"addr add fd00::1/64 dev tcpio0 nodad",
		} {
			if out, err := exec.Command(ip, strings.Fields(args)...).CombinedOutput(); err != nil {
				skipped = "ip " + args + ": " + err.Error() + ": " + string(out)
				return
			}
		}
		skipped = ""
		f(t)
	}()
	if skipped := testnet.Receive(t, "the end in the namespace", done); skipped != "" && !t.Failed() {
		t.Skip(skipped)
	}
}

// To see it fail: leave the zone's name to sys.LocalAddr without one.
func TestLinkLocalAddressesAreThePackageNets(t *testing.T) {
	for _, listenAt := range []string{"[fe80::1%tcpio0]:0", "[::]:0"} {
		t.Run(listenAt, func(t *testing.T) {
			linkLocal(t, func(t *testing.T) { linkLocalAddresses(t, listenAt) })
		})
	}
}

func linkLocalAddresses(t *testing.T, listenAt string) {
	asked := make(chan netip.AddrPort, 8)
	o := tcpio.ListenerOptions{Network: "tcp6", Addr: listenAt, MaxConnsPerIP: 10, Admit: func(ap netip.AddrPort) error {
		asked <- ap
		return nil
	}}
	l, err := tcpio.Listen(&o)
	if err != nil {
		t.Error(err)
		return
	}
	events := l.Events()
	served := make(chan error, 1)
	go func() { served <- l.Serve(context.Background()) }()
	defer func() {
		go l.Close()
		for range events {
		}
		<-served
	}()
	port := l.Addr().(*net.TCPAddr).Port
	check := func(what string, got, want net.Addr) {
		t.Helper()
		g, _ := got.(*net.TCPAddr)
		w, _ := want.(*net.TCPAddr)
		if g == nil || w == nil || !g.IP.Equal(w.IP) || g.Port != w.Port || g.Zone != w.Zone || g.String() != w.String() {
			t.Errorf("%s: %v, the package net has %v", what, got, want)
		}
	}
	next := func() tcpio.Event {
		select {
		case ev := <-events:
			return ev
		case <-time.After(testnet.Limit):
			t.Error("no event")
			return nil
		}
	}
	opened := func() *tcpio.Conn {
		t.Helper()
		o, ok := next().(tcpio.Opened)
		if !ok {
			t.Error("no Opened")
			runtime.Goexit()
		}
		return o.Conn
	}
	throughLife := func(what string, c *tcpio.Conn, local, remote net.Addr) {
		t.Helper()
		check(what+", local", c.LocalAddr(), local)
		check(what+", remote", c.RemoteAddr(), remote)
		_ = c.CloseWrite()
		var oe *net.OpError
		if _, err := c.TryWrite([]byte("x")); !errors.As(err, &oe) {
			t.Error(err)
		} else {
			check(what+", an error's source", oe.Source, local)
			check(what+", an error's peer", oe.Addr, remote)
		}
		c.Abort()
		if _, ok := next().(tcpio.Closed); !ok {
			t.Error("no Closed")
		}
		check(what+", closed, local", c.LocalAddr(), local)
		check(what+", closed, remote", c.RemoteAddr(), remote)
	}
	for _, from := range []*net.TCPAddr{
		{IP: net.ParseIP("fe80::2"), Zone: "tcpio0"},
		{IP: net.ParseIP("fd00::1")},
	} {
		d := net.Dialer{LocalAddr: from, Timeout: testnet.Limit}
		to := net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: port, Zone: "tcpio0"}
		peer, err := d.Dial("tcp6", to.String())
		if err != nil {
			t.Error(err)
			return
		}
		c := opened()
		if ap := <-asked; ap != peer.LocalAddr().(*net.TCPAddr).AddrPort() {
			t.Errorf("Admit got %v of %v", ap, peer.LocalAddr())
		}
		local := peer.RemoteAddr()
		if from.Zone == "" && listenAt[1] == ':' { // the kernel keeps no zone of it, and the package net has none to show
			local = &net.TCPAddr{IP: to.IP, Port: port}
		}
		throughLife("accepted from "+from.String(), c, local, peer.LocalAddr())
		peer.Close()
	}

	ln, err := net.Listen("tcp6", "[fe80::1%tcpio0]:0")
	if err != nil {
		t.Error(err)
		return
	}
	defer ln.Close()
	c, err := l.DialWith(context.Background(), &net.Dialer{
		LocalAddr: &net.TCPAddr{IP: net.ParseIP("fe80::2"), Zone: "tcpio0"},
	}, "tcp6", ln.Addr().String())
	if err != nil {
		t.Error(err)
		return
	}
	nc, err := ln.Accept()
	if err != nil {
		t.Error(err)
		return
	}
	opened()
	throughLife("dialed", c, nc.RemoteAddr(), nc.LocalAddr())
	nc.Close()

	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("fe80::2"), Zone: "tcpio0"}, Timeout: testnet.Limit}
	peer, err := d.Dial("tcp6", ln.Addr().String())
	if err != nil {
		t.Error(err)
		return
	}
	defer peer.Close()
	if nc, err = ln.Accept(); err != nil {
		t.Error(err)
		return
	}
	local, remote := nc.LocalAddr(), nc.RemoteAddr()
	if c, err = l.Adopt(nc); err != nil {
		t.Error(err)
		return
	}
	opened()
	throughLife("adopted", c, local, remote)
}
