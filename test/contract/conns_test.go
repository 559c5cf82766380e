//go:build linux

package contract

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// To see it fail: count the refused connections in live, or yield them.
func TestNobodySeesARefusedConnection(t *testing.T) {
	for name, end := range map[string]func(l *tcpio.Listener) error{
		"Close":    func(l *tcpio.Listener) error { return l.Close() },
		"Shutdown": func(l *tcpio.Listener) error { return l.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 1, MaxConns: 1, RefuseReply: []byte("full"),
				CloseTimeout: 200 * time.Millisecond})
			served, _ := harness.Open(t, l, events)
			stop := make(chan struct{})
			var watching sync.WaitGroup
			watching.Go(func() {
				for {
					if n := l.Len(); n != 1 {
						t.Errorf("Len is %d with one connection", n)
					}
					if n := l.Stats().Open; n != 1 {
						t.Errorf("Stats().Open is %d with one connection", n)
					}
					if got := slices.Collect(l.Conns()); len(got) != 1 || got[0] != served {
						t.Errorf("%d connections, want the one that is served", len(got))
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
			const refused = 20
			for range refused {
				peer := testnet.DialTCP(t, l)
				if _, err := io.ReadFull(peer, make([]byte, 4)); err != nil {
					t.Errorf("the reply: %v", err)
				}
			}
			if n := l.Stats().Refusing; n == 0 {
				t.Error("no refused connection is left for the test")
			}
			close(stop)
			watching.Wait()
			// They end with the listener all the same.
			if err := end(l); err != nil {
				t.Error(err)
			}
			if n := l.Stats().Refusing; n != 0 {
				t.Errorf("%d refused connections are left", n)
			}
		})
	}
}
