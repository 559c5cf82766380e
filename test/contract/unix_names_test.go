//go:build linux

package contract

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// unixNames are the kinds of name that a unix socket can have; fresh gives one that is free.
var unixNames = map[string]func(t *testing.T) string{
	"none":     func(*testing.T) string { return "" },
	"path":     func(t *testing.T) string { return filepath.Join(t.TempDir(), "p") },
	"abstract": func(t *testing.T) string { return fmt.Sprintf("@tcpio-%s-%d", t.Name(), time.Now().UnixNano()) },
}

func unixAddr(name string) *net.UnixAddr {
	if name == "" {
		return nil
	}
	return &net.UnixAddr{Name: name, Net: "unix"}
}

// sameAddr compares an address with the one that the package net shows for the same socket.
func sameAddr(t *testing.T, what string, got, want net.Addr) {
	t.Helper()
	g, ok := got.(*net.UnixAddr)
	w, isUnix := want.(*net.UnixAddr)
	if !ok || !isUnix || *g != *w || got.String() != want.String() || got.Network() != want.Network() {
		t.Errorf("%s: %#v, the package net has %#v", what, got, want)
	}
}

// To see it fail: forget the name in parseAddr.
func TestUnixAddressesAreThePackageNets(t *testing.T) {
	for server, serverName := range unixNames {
		if server == "none" {
			continue
		}
		for client, clientName := range unixNames {
			t.Run(server+" from "+client, func(t *testing.T) {
				// What the package net shows, of the same names but for the number in an abstract one.
				name, peerName := serverName(t), clientName(t)
				ref, err := net.Listen("unix", name)
				if err != nil {
					t.Fatal(err)
				}
				refPeer, err := net.DialUnix("unix", unixAddr(peerName), unixAddr(name))
				if err != nil {
					t.Fatal(err)
				}
				refConn, err := ref.Accept()
				if err != nil {
					t.Fatal(err)
				}
				acceptedLocal, acceptedRemote := refConn.LocalAddr(), refConn.RemoteAddr()
				dialledLocal := refPeer.LocalAddr()
				refConn.Close()
				refPeer.Close()
				ref.Close()
				if client == "path" {
					peerName = clientName(t)
					acceptedRemote, dialledLocal = unixAddr(peerName), unixAddr(peerName)
				}

				asked := make(chan netip.AddrPort, 8)
				l, events := harness.Manual(t, tcpio.ListenerOptions{Network: "unix", Addr: name, Admit: func(ap netip.AddrPort) error {
					asked <- ap
					return nil
				}})
				check := func(when string, c *tcpio.Conn, local, remote net.Addr) {
					t.Helper()
					sameAddr(t, when+": LocalAddr", c.LocalAddr(), local)
					sameAddr(t, when+": RemoteAddr", c.RemoteAddr(), remote)
				}
				throughLife := func(kind string, c *tcpio.Conn, local, remote net.Addr) {
					t.Helper()
					check(kind+", open", c, local, remote)
					c.Abort()
					check(kind+", aborted", c, local, remote)
					harness.Expect[tcpio.Closed](t, events)
					check(kind+", closed", c, local, remote)
				}

				peer, err := net.DialUnix("unix", unixAddr(peerName), unixAddr(name))
				if err != nil {
					t.Fatal(err)
				}
				c := harness.Expect[tcpio.Opened](t, events).Conn
				if ap := testnet.Await(t, "Admit", asked); ap != (netip.AddrPort{}) {
					t.Errorf("Admit got %v, want the zero address", ap)
				}
				throughLife("accepted", c, acceptedLocal, acceptedRemote)
				peer.Close()

				if client == "path" {
					peerName = clientName(t)
					dialledLocal, acceptedRemote = unixAddr(peerName), unixAddr(peerName)
				}
				other := serverName(t)
				up, accepted := testnet.Upstream(t, "unix", other)
				d := net.Dialer{}
				if peerName != "" {
					d.LocalAddr = unixAddr(peerName)
				}
				c, err = l.DialWith(context.Background(), &d, "unix", up)
				if err != nil {
					t.Fatal(err)
				}
				harness.Expect[tcpio.Opened](t, events)
				nc := testnet.Await(t, "the dialled connection", accepted)
				throughLife("dialled", c, dialledLocal, nc.LocalAddr())

				// Both of an adopted one's names are those of the connection that it was.
				if client == "path" {
					peerName = clientName(t)
				}
				if peer, err = net.DialUnix("unix", unixAddr(peerName), unixAddr(up)); err != nil {
					t.Fatal(err)
				}
				defer peer.Close()
				nc = testnet.Await(t, "the connection to adopt", accepted)
				local, remote := nc.LocalAddr(), nc.RemoteAddr()
				if c, err = l.Adopt(nc); err != nil {
					t.Fatal(err)
				}
				harness.Expect[tcpio.Opened](t, events)
				throughLife("adopted", c, local, remote)
			})
		}
	}
}

// A client may be gone before anybody accepts it.
func TestTheNameOfAUnixPeerThatHasGoneIsKnown(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{Network: "unix", Addr: filepath.Join(t.TempDir(), "s")})
	events := l.Events()
	name := filepath.Join(t.TempDir(), "p")
	peer, err := net.DialUnix("unix", unixAddr(name), unixAddr(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	peer.Close()
	served := harness.Go(t.Context(), l)
	c := harness.Expect[tcpio.Opened](t, events).Conn
	sameAddr(t, "RemoteAddr", c.RemoteAddr(), unixAddr(name))
	go l.Close()
	for range events {
	}
	testnet.Await(t, "the end of Serve", served)
}
