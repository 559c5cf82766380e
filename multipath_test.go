//go:build linux

package tcpio

import (
	"context"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// net.Listen's sockets speak multipath TCP since Go 1.24, and so may adopted and dialled ones.
// To see it fail: take every IP socket for one of plain TCP.
func TestAShortReadOfMultipathTCPProvesNothing(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skip("no multipath TCP here:", err)
	}
	unix.Close(fd)
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	mp := func() net.Listener {
		ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	r := listen(t, ListenerOptions{Listener: mp()})
	events := r.Events()
	r.serve()
	var multi net.Dialer
	multi.SetMultipathTCP(true)
	for _, on := range []bool{false, true} {
		var d net.Dialer
		if on {
			d = multi
		}
		peer, err := d.Dial("tcp", r.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		if c := receiveAs[Opened](t, events).Conn; markedSock(c, sockUnsure) != on {
			t.Errorf("accepted, multipath %v: distrusted %v", on, !on)
		}
	}
	up := mp()
	defer up.Close()
	c, err := r.DialWith(context.Background(), &multi, "tcp", up.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	receiveAs[Opened](t, events)
	if !markedSock(c, sockUnsure) {
		t.Error("a dialled one is trusted")
	}
	nc, err := up.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if c, err = r.Adopt(nc); err != nil {
		t.Fatal(err)
	}
	receiveAs[Opened](t, events)
	if !markedSock(c, sockUnsure) {
		t.Error("an adopted one is trusted")
	}
}
