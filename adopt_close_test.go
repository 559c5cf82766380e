//go:build linux

package tcpio

import (
	"context"
	"net"
	"runtime"
	"sync"
	"testing"
)

// The loop that asks for the actor of an adopted connection outlives the asking, and no other loop waits for an actor that
// nobody is to ask for.
func TestServeReturnsAtOnceThoughConnectionsAreAdoptedDuringClose(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for range 200 {
		l, err := Listen(&ListenerOptions{Addr: "127.0.0.1:0", Loops: 2, CloseTimeout: longestLimit, Actor: func(*Conn) Actor {
			return ActorFunc(func(Event) error { return nil })
		}})
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- l.Serve(context.Background()) }()
		waitFor(t, "Serve", func() bool { return l.mayAdd() == nil })
		first := dialTo(t, l) // Close has something to do
		defer first.Close()
		waitFor(t, "the first connection", func() bool { return l.Len() == 1 })
		var ncs []net.Conn
		for range 6 {
			peer, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			nc, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			ncs = append(ncs, nc)
		}
		var adopting sync.WaitGroup
		for _, nc := range ncs {
			adopting.Go(func() {
				if _, err := l.Adopt(nc); err != nil {
					nc.Close()
				}
			})
		}
		runtime.Gosched()
		l.Close()
		if err := receive(t, "the end of Serve", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
		adopting.Wait()
	}
}
