//go:build linux

package contract

import (
	"context"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
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
		l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", Loops: 2, CloseTimeout: time.Hour, Actor: func(*tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(tcpio.Event) error { return nil })
		}})
		if err != nil {
			t.Fatal(err)
		}
		served := harness.Go(context.Background(), l)
		first := testnet.Connect(t, l) // Close has something to do
		defer first.Close()
		testnet.WaitFor(t, "the first connection", func() bool { return l.Len() == 1 })
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
		if err := testnet.Receive(t, "the end of Serve", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
		adopting.Wait()
	}
}
