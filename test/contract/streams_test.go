//go:build linux

package contract

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// Who has an actor or callbacks for the connections may read failures from EventsPerLoop, whichever
// is called first.
func TestStreamsCarriesFailedBesideAnActor(t *testing.T) {
	for name, o := range map[string]tcpio.ListenerOptions{
		"actor":     {Loops: 2, NewActor: func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(func(tcpio.Event) error { return nil }) }},
		"callbacks": {ConcurrentCallbacks: true, Loops: 2, OnConnEvent: func(net.Conn) error { return nil }},
	} {
		for _, when := range []string{"before Serve", "beside Serve", "after Close"} {
			t.Run(name+" "+when, func(t *testing.T) {
				o.TLSConfig = testnet.ServerTLS()
				l := harness.Listen(t, o)
				var streams []<-chan tcpio.Event
				if when == "before Serve" {
					streams = l.EventsPerLoop()
				}
				served := harness.Go(t.Context(), l)
				var peers []net.Conn
				peers = append(peers, testnet.Dial(t, l))
				if when == "beside Serve" {
					testnet.WaitFor(t, "the connection is accepted", func() bool { return l.Len() == 1 })
					streams = l.EventsPerLoop()
				}
				if when == "after Close" {
					l.Close()
					testnet.Await(t, "the end of Serve", served)
					streams = l.EventsPerLoop()
				}
				if len(streams) != 2 || len(l.EventsPerLoop()) != 2 || l.EventsPerLoop()[0] != streams[0] {
					t.Fatalf("%d streams, then %d", len(streams), len(l.EventsPerLoop()))
				}
				if when != "after Close" {
					testnet.Send(t, peers[0], "no TLS at all")
					harness.Expect[tcpio.Failed](t, streams[0])
					l.Close()
					testnet.Await(t, "the end of Serve", served)
				}
				for _, s := range streams {
					testnet.AwaitClosed(t, "the stream", s)
				}
			})
		}
	}
}

func TestEventsAndStreamsExcludeEachOther(t *testing.T) {
	panics := func(name string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s did not panic", name)
			}
		}()
		f()
	}
	l := harness.Listen(t, tcpio.ListenerOptions{})
	l.Events()
	panics("EventsPerLoop after Events", func() { l.EventsPerLoop() })
	l = harness.Listen(t, tcpio.ListenerOptions{})
	l.EventsPerLoop()
	l.EventsPerLoop()
	panics("Events after EventsPerLoop", func() { l.Events() })
}

func TestStreamsSpreadTheConnectionsEvenly(t *testing.T) {
	const loops, each = 4, 10
	l := harness.Listen(t, tcpio.ListenerOptions{Loops: loops})
	streams := l.EventsPerLoop()
	if len(streams) != loops {
		t.Fatalf("%d streams, want %d", len(streams), loops)
	}
	served := harness.Go(t.Context(), l)
	var peers []net.Conn
	for range loops * each {
		peers = append(peers, testnet.Dial(t, l))
	}
	opened := make([]int, loops)
	var wg sync.WaitGroup
	for i, stream := range streams {
		handle := harness.Echo(t)
		wg.Go(func() {
			var order harness.Order // a connection stays where it is
			for ev := range stream {
				if err := order.Check(ev); err != nil {
					t.Errorf("stream %d: %v", i, err)
				}
				handle(ev)
			}
			opened[i] = order.Seen
		})
	}
	for _, peer := range peers {
		testnet.Ping(t, peer, testnet.Pattern(1000))
	}
	for _, peer := range peers {
		peer.Close()
	}
	if err := l.Shutdown(testnet.Context(t)); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
	for i, n := range opened {
		if n != each {
			t.Errorf("stream %d had %d connections, want %d", i, n, each)
		}
	}
}

func TestSeveralConsumersOfOneChannelLoseAndDoubleNothing(t *testing.T) {
	const conns, size = 20, 100_000
	l := harness.Listen(t, tcpio.ListenerOptions{EventBuffer: 3})
	events := l.Events()
	served := harness.Go(t.Context(), l)
	var got, opened, closed atomic.Int64
	var consumers sync.WaitGroup
	for range 4 {
		consumers.Go(func() {
			buf := make([]byte, 777)
			for ev := range events {
				switch ev := ev.(type) {
				case tcpio.Opened:
					opened.Add(1)
				case tcpio.Readable:
					n, err := ev.Conn.TryRead(buf)
					got.Add(int64(n))
					if err == io.EOF {
						ev.Conn.Close()
					}
				case tcpio.Closed:
					closed.Add(1)
					if err := ev.Conn.Err(); err != nil {
						t.Errorf("Err = %v", err)
					}
				}
			}
		})
	}
	var peers []net.Conn
	for range conns {
		peers = append(peers, testnet.Dial(t, l))
	}
	var sending sync.WaitGroup
	for _, p := range peers {
		sending.Go(func() {
			if _, err := p.Write(testnet.Pattern(size)); err != nil {
				t.Error(err)
			}
			if err := p.(*net.TCPConn).CloseWrite(); err != nil {
				t.Error(err)
			}
			if n, err := p.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("the peer read %d, %v, want the end of stream", n, err)
			}
		})
	}
	sending.Wait()
	testnet.WaitFor(t, "every Closed", func() bool { return closed.Load() == conns })
	l.Close()
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Error(err)
	}
	consumers.Wait()
	if o, n := opened.Load(), got.Load(); o != conns || n != conns*size {
		t.Errorf("%d connections opened and %d bytes read, want %d and %d", o, n, conns, conns*size)
	}
}
