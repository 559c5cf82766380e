//go:build linux

package contract

import (
	"net"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// Who has an actor or callbacks for the connections may read failures from Streams, whichever is called first.
func TestStreamsCarriesFailedBesideAnActor(t *testing.T) {
	for name, o := range map[string]tcpio.ListenerOptions{
		"actor":     {Loops: 2, Actor: func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(func(tcpio.Event) error { return nil }) }},
		"callbacks": {ConcurrentCallbacks: true, Loops: 2, OnConnEvent: func(net.Conn) error { return nil }},
	} {
		for _, when := range []string{"before Serve", "beside Serve", "after Close"} {
			t.Run(name+" "+when, func(t *testing.T) {
				o.TLSConfig = testnet.ServerTLS()
				l := harness.Listen(t, o)
				var streams []<-chan tcpio.Event
				if when == "before Serve" {
					streams = l.Streams()
				}
				served := harness.Go(t.Context(), l)
				var peers []net.Conn
				peers = append(peers, testnet.Dial(t, l))
				if when == "beside Serve" {
					testnet.WaitFor(t, "the connection is accepted", func() bool { return l.Len() == 1 })
					streams = l.Streams()
				}
				if when == "after Close" {
					l.Close()
					testnet.Await(t, "the end of Serve", served)
					streams = l.Streams()
				}
				if len(streams) != 2 || len(l.Streams()) != 2 || l.Streams()[0] != streams[0] {
					t.Fatalf("%d streams, then %d", len(streams), len(l.Streams()))
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
