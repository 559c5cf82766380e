//go:build linux

package websocket

import (
	"runtime"
	"testing"
	"unsafe"

	"github.com/rabbit-backend/tcpio"
)

func TestConnSize(t *testing.T) {
	if size := unsafe.Sizeof(Conn{}); size > 208 {
		t.Errorf("a Conn has %d bytes", size)
	} else {
		t.Logf("a Conn has %d bytes", size)
	}
}

// What an idle peer costs above the connection under it, after a handshake and a message.
func TestIdleMemory(t *testing.T) {
	if raceEnabled || unsafe.Sizeof(uintptr(0)) < 8 {
		t.Skip("the race detector has memory of its own, and the bound is for 64 bits")
	}
	const peers = 2000
	heap := func() uint64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	core, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", NewActor: func(*tcpio.Conn) tcpio.Actor {
		buf := make([]byte, 8)
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if ev, ok := ev.(tcpio.Readable); ok {
				n, err := ev.Conn.TryRead(buf)
				if err != nil && err != tcpio.ErrWouldBlock {
					return err
				}
				ev.Conn.TryWrite(buf[:n])
			}
			return nil
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- core.Serve(t.Context()) }()
	defer func() { core.Close(); <-ended }()
	s := start(t, tcpio.ListenerOptions{}, Options{NewActor: echoActor, PingInterval: 1e12}, nil)

	measure := func(connect func() *peer) int {
		waitFor(t, func() bool { return core.Len() == 0 && s.Listener().Len() == 0 }) // what ended is garbage now
		all := make([]*peer, peers)
		before := heap()
		for i := range all {
			all[i] = connect()
			all[i].br = nil
		}
		after := heap()
		runtime.KeepAlive(all)
		for _, p := range all {
			p.Close()
		}
		return int(after-before) / peers
	}
	plain := func() *peer {
		p := dialRaw(t, core.Addr())
		p.send([]byte("x"))
		p.Read(make([]byte, 1))
		return p
	}
	ws := func() *peer {
		p := dialPeer(t, s, "")
		p.send(fr(opText, "x"))
		p.expect("text x")
		return p
	}
	measure(plain) // fills the pools
	a := measure(plain)
	measure(ws)
	b := measure(ws)
	t.Logf("a connection of tcpio with an actor: %d bytes, a WebSocket: %d, with the test's own end", a, b)
	if b-a > 400 {
		t.Errorf("an idle peer costs %d bytes above tcpio's connection", b-a)
	}
}
