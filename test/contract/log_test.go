//go:build linux

package contract

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

var suppressedAttr = regexp.MustCompile(`suppressed=(\d+)`)

// A thousand failures are a few lines, and the lines say how many more there were. To see it fail:
// let LogLimit.Take always answer true, or leave logRest out of finish.
func TestAFloodOfFailuresIsAFewLinesThatCountTheRest(t *testing.T) {
	t.Parallel()
	const conns = 1000
	for name, tc := range map[string]struct {
		opts func(failed *atomic.Int64) tcpio.ListenerOptions
		line string
	}{
		"panics in Receive": {func(failed *atomic.Int64) tcpio.ListenerOptions {
			return tcpio.ListenerOptions{Actor: func(*tcpio.Conn) tcpio.Actor {
				return tcpio.ActorFunc(func(ev tcpio.Event) error {
					if _, ok := ev.(tcpio.Opened); ok {
						failed.Add(1)
						panic("flood")
					}
					return nil
				})
			}}
		}, "handler panicked"},
		"errors at Closed": {func(failed *atomic.Int64) tcpio.ListenerOptions {
			return tcpio.ListenerOptions{Actor: func(*tcpio.Conn) tcpio.Actor {
				return tcpio.ActorFunc(func(ev tcpio.Event) error {
					switch ev := ev.(type) {
					case tcpio.Opened:
						ev.Conn.Abort()
					case tcpio.Closed:
						failed.Add(1)
						return errors.New("too late")
					}
					return nil
				})
			}}
		}, "failed at Closed"},
		"panics in Actor": {func(failed *atomic.Int64) tcpio.ListenerOptions {
			return tcpio.ListenerOptions{Actor: func(*tcpio.Conn) tcpio.Actor { failed.Add(1); panic("flood") }}
		}, "handler panicked"},
		"panics in Admit": {func(failed *atomic.Int64) tcpio.ListenerOptions {
			return tcpio.ListenerOptions{
				Admit: func(netip.AddrPort) error { failed.Add(1); panic("flood") },
				Actor: func(*tcpio.Conn) tcpio.Actor { return nil },
			}
		}, "Admit panicked"},
		"panics in a callback": {func(failed *atomic.Int64) tcpio.ListenerOptions {
			return tcpio.ListenerOptions{OnConnEvent: func(net.Conn) error { failed.Add(1); panic("flood") }}
		}, "handler panicked"},
	} {
		t.Run(name, func(t *testing.T) {
			log := new(testnet.Log)
			var failed atomic.Int64
			opts := tc.opts(&failed)
			opts.Logger = slog.New(log)
			l := harness.Listen(t, opts)
			served := harness.Go(t.Context(), l)
			began := time.Now()
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for range conns / 8 {
						c, err := net.Dial("tcp", l.Addr().String())
						if err != nil {
							continue // reset before connect returned
						}
						_ = c.SetDeadline(time.Now().Add(testnet.Limit))
						_, _ = c.Write([]byte("secret"))
						_, _ = c.Read(make([]byte, 1)) // until it is closed
						_ = c.(*net.TCPConn).SetLinger(0)
						c.Close()
					}
				})
			}
			wg.Wait()
			l.Close()
			if err := testnet.Await(t, "the end of Serve", served); err != nil {
				t.Errorf("Serve: %v", err)
			}
			most := 12 + int(time.Since(began)/time.Second) // ten, one a second, and one at the end
			lines, told := log.Count(tc.line), 0
			for line := range strings.Lines(log.String()) {
				if m := suppressedAttr.FindStringSubmatch(line); m != nil {
					n, _ := strconv.Atoi(m[1])
					told += n
				}
			}
			if n := int(failed.Load()); n < conns/2 || lines+told != n {
				t.Errorf("%d failures are %d lines and %d suppressed", n, lines, told)
			}
			if n := log.Count(""); n > most || lines < 10 {
				t.Errorf("%d lines, %d of them of failures; want ten of them and %d at most", n, lines, most)
			}
			if log.Count("secret") != 0 {
				t.Error("what a peer sent is in the log")
			}
		})
	}
}
