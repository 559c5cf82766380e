//go:build linux

package relay

import (
	"fmt"
	"net"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// rawSocket is a socket of no Go type, so that it costs the heap nothing. The caller closes it.
func rawSocket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// What a proxy has of an idle pair, dialed by a handler: both connections and the relay; and what
// making it leaves to the collector, which the heap grows by until that runs.
func TestAnIdlePairCostsLessThanAKilobyte(t *testing.T) {
	const pairs, limit, limitMade = 1000, 560, 2048
	fds := make([]int, 0, pairs+2)
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	upstream := rawSocket(t) // nobody accepts there: the kernel completes the connections
	fds = append(fds, upstream)
	loopback := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Bind(upstream, loopback); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(upstream, 2*pairs); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(upstream)
	if err != nil {
		t.Fatal(err)
	}
	to := fmt.Sprint("127.0.0.1:", sa.(*unix.SockaddrInet4).Port)
	joined := make(chan *tcpio.Conn, pairs)
	actor := tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			_, err := ev.Conn.Listener().DialAsync(tcpio.DialRequest{Address: to, To: ev.Conn})
			return err
		case tcpio.Dialed:
			if ev.Err != nil {
				return ev.Err
			}
			if _, err := ev.To.Relay(ev.Conn, nil); err != nil {
				return err
			}
			joined <- ev.Conn
		}
		return nil
	})
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1}, actor)
	port := l.Addr().(*net.TCPAddr).Port
	heap := func() (live, made int64) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc), int64(m.TotalAlloc)
	}
	connect := func() *tcpio.Conn {
		fd := rawSocket(t)
		fds = append(fds, fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: loopback.Addr, Port: port}); err != nil {
			t.Fatal(err)
		}
		return testnet.Receive(t, "a pair", joined)
	}
	connect() // what is made once
	before, madeBefore := heap()
	var last *tcpio.Conn
	for range pairs {
		last = connect()
	}
	local := last.LocalAddr()
	live, made := heap()
	grown, made := (live-before)/pairs, (made-madeBefore)/pairs
	t.Logf("an idle pair costs %d bytes, of %d that were allocated", grown, made)
	if (grown > limit || made > limitMade) && !testnet.Race {
		t.Errorf("an idle pair costs %d bytes, of %d that were allocated; want %d and %d at most", grown, made, limit, limitMade)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := last.LocalAddr(); got.String() != local.String() || last.RemoteAddr().String() != to {
		t.Errorf("after Close %v and %v, before %v and %s", got, last.RemoteAddr(), local, to)
	}
}
