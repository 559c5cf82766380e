//go:build linux

package tcpio

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
)

// What peers have sent before the Shutdown is handled before Draining, also if no loop has come to it yet: here their
// connections wait in the backlog.
func TestWhatWasSentBeforeTheShutdownIsHandledBeforeDraining(t *testing.T) {
	for range 5 {
		release, entered := make(chan struct{}), make(chan struct{}, 1)
		var once sync.Once
		l, err := Listen(&ListenerOptions{Addr: "127.0.0.1:0", Loops: 3, Admit: func(netip.AddrPort) error {
			once.Do(func() {
				entered <- struct{}{}
				<-release
			})
			return nil
		}, Actor: func(*Conn) Actor {
			return ActorFunc(func(ev Event) error {
				r, ok := ev.(Readable)
				if !ok {
					return nil
				}
				var b [16]byte
				n, err := r.Conn.TryRead(b[:])
				if errors.Is(err, ErrWouldBlock) {
					return nil
				}
				if err == nil {
					_, err = r.Conn.TryWrite(b[:n])
				}
				return err
			})
		}})
		if err != nil {
			t.Fatal(err)
		}
		served, down := make(chan error, 1), make(chan error, 1)
		go func() { served <- l.Serve(context.Background()) }()
		var peers []net.Conn
		for range 60 {
			peer := dialTo(t, l)
			write(t, peer, []byte("request"))
			if peers = append(peers, peer); len(peers) == 1 {
				receive(t, "the hook that blocks", entered)
			}
		}
		go func() { down <- l.Shutdown(context.Background()) }()
		waitFor(t, "the Shutdown", l.socket.last.Load)
		close(release)
		for i, peer := range peers {
			if answer, err := io.ReadAll(peer); string(answer) != "request" || err != nil {
				t.Errorf("peer %d got %q, %v", i, answer, err)
			}
			peer.Close()
		}
		if err := receive(t, "the end of Shutdown", down); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := receive(t, "the end of Serve", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}
