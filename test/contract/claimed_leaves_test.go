//go:build linux

package contract

import (
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// The goroutine that claimed a connection reads until EOF, closes it and is done: nothing waits for it to receive the rest,
// however often what it read filled its buffer. A goroutine for each such connection would stay until Serve's end, and
// hold that up by CloseTimeout.
//
// To see it fail: announce a Readable while the last one is still in the channel.
func TestWhoClaimedAConnectionMayLeaveBehindItsOwnClose(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{CloseTimeout: 2 * testnet.Limit})
	events := l.Events()
	served := harness.Go(t.Context(), l)
	serve := func(ch <-chan tcpio.Event) {
		buf := make([]byte, 1000)
		for ev := range ch {
			r, ok := ev.(tcpio.Readable)
			for ok {
				switch _, err := r.Conn.TryRead(buf); err {
				case nil:
				case tcpio.ErrWouldBlock:
					ok = false
				default:
					r.Conn.Close()
					return
				}
			}
		}
	}
	go func() {
		for ev := range events {
			if o, ok := ev.(tcpio.Opened); ok {
				go serve(o.Conn.Events())
			}
		}
	}()
	for range 5 {
		peer := testnet.Dial(t, l)
		testnet.Send(t, peer, make([]byte, 50_000))
		testnet.FIN(t, peer)
		testnet.ExpectEOF(t, peer)
		peer.Close()
	}
	testnet.WaitFor(t, "no connection", func() bool { return l.Len() == 0 })
	l.Close()
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Errorf("Serve: %v", err)
	}
}
