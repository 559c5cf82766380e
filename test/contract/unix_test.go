//go:build linux

package contract

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// reaches fails the test unless somebody listens at path.
func reaches(t *testing.T, path string) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("nobody is at the path any more: %v", err)
	}
	c.Close()
}

// To see it fail: close the socket before the removal.
func TestCloseNeverRemovesTheSocketOfASuccessor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	open := func() (*tcpio.Listener, error) {
		return tcpio.Listen(&tcpio.ListenerOptions{Network: "unix", Addr: path})
	}
	l, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { l.Close() }()
	for range 1500 {
		bound := make(chan error, 1)
		var next *tcpio.Listener
		go func() {
			for {
				// As soon as nobody answers: a file that was left behind is in the way, and goes.
				c, err := net.Dial("unix", path)
				switch {
				case err == nil:
					c.Close()
					continue
				case errors.Is(err, syscall.ECONNREFUSED):
					_ = os.Remove(path)
				}
				if next, err = open(); !errors.Is(err, syscall.EADDRINUSE) {
					bound <- err
					return
				}
			}
		}()
		l.Close()
		if err := testnet.Await(t, "the successor", bound); err != nil {
			t.Fatal(err)
		}
		l = next
		reaches(t, path)
	}
}

// A successor need not wait: it may put its own socket in our place while we serve. Ours then is
// anywhere but there.
func TestCloseLeavesAloneWhatHasTakenItsPath(t *testing.T) {
	takeOver := map[string]func(t *testing.T, path string){
		"remove and bind": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			testnet.Upstream(t, "unix", path)
		},
		"remove, bind, many times": func(t *testing.T, path string) { // an inode may be used again
			for range 50 {
				ln, err := net.Listen("unix", path)
				if err == nil {
					ln.(*net.UnixListener).SetUnlinkOnClose(false)
					ln.Close()
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
			testnet.Upstream(t, "unix", path)
		},
		"rename": func(t *testing.T, path string) {
			testnet.Upstream(t, "unix", path+".new")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, take := range takeOver {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l := harness.Listen(t, tcpio.ListenerOptions{Network: "unix", Addr: path})
			take(t, path)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			reaches(t, path)
		})
	}
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l := harness.Listen(t, tcpio.ListenerOptions{Network: "unix", Addr: path})
		if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("mine"), 0o600)); err != nil {
			t.Fatal(err)
		}
		l.Close()
		if b, err := os.ReadFile(path); string(b) != "mine" {
			t.Errorf("the file: %q, %v", b, err)
		}
	})
	t.Run("nothing has", func(t *testing.T) {
		dir := t.TempDir()
		l := harness.Listen(t, tcpio.ListenerOptions{Network: "unix", Addr: filepath.Join(dir, "s")})
		l.Close()
		if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

// To see it fail: unlink at once what was seen to be ours.
func TestSuccessorMayRenameItsSocketIntoPlaceDuringClose(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	for range 1000 {
		l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "unix", Addr: path})
		if err != nil {
			t.Fatal(err)
		}
		next, err := net.Listen("unix", path+".new")
		if err != nil {
			t.Fatal(err)
		}
		renamed := make(chan error, 1)
		go func() { renamed <- os.Rename(path+".new", path) }()
		l.Close()
		if err := testnet.Await(t, "the rename", renamed); err != nil {
			t.Fatal(err)
		}
		reaches(t, path)
		next.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

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
				// What the package net shows, of the same names but for the number in an abstract
				// one.
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
				dialedLocal := refPeer.LocalAddr()
				refConn.Close()
				refPeer.Close()
				ref.Close()
				if client == "path" {
					peerName = clientName(t)
					acceptedRemote, dialedLocal = unixAddr(peerName), unixAddr(peerName)
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
					dialedLocal, acceptedRemote = unixAddr(peerName), unixAddr(peerName)
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
				nc := testnet.Await(t, "the dialed connection", accepted)
				throughLife("dialed", c, dialedLocal, nc.LocalAddr())

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
func TestNameOfAUnixPeerThatHasGoneIsKnown(t *testing.T) {
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
