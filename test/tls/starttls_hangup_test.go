//go:build linux

package tls_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// StartTLS behind a hang-up ends the connection at once, whatever has come before it, and
// HandshakeTimeout is not waited for.
func TestStartTLSBehindAHangUpFailsAtOnce(t *testing.T) {
	hello := testnet.ClientHello()
	for _, tt := range []struct {
		name string
		send []byte
	}{{"nothing", nil}, {"half a ClientHello", hello[:len(hello)/2]}, {"a ClientHello", hello}} {
		for _, reset := range []bool{false, true} {
			for _, before := range []bool{true, false} {
				name := tt.name + map[bool]string{false: ", FIN", true: ", reset"}[reset] + map[bool]string{false: " after", true: " before"}[before]
				t.Run(name, func(t *testing.T) {
					l, events := harness.Manual(t, tcpio.ListenerOptions{HandshakeTimeout: time.Hour})
					c, peer := harness.Open(t, l, events)
					hangUp := func() {
						testnet.Send(t, peer, tt.send)
						if reset {
							testnet.WaitFor(t, "the bytes", func() bool { return !before || unread(t, c) == len(tt.send) })
							testnet.RST(t, peer)
						} else {
							testnet.FIN(t, peer)
						}
					}
					if before {
						hangUp()
						// The loop has seen it: a Readable, which nobody answers.
						harness.Expect[tcpio.Readable](t, events)
					}
					if err := c.StartTLS(testnet.ServerTLS()); err != nil {
						t.Logf("StartTLS: %v", err)
						c.Close()
					}
					if !before {
						hangUp()
					}
					for ev := range events {
						if _, ok := ev.(tcpio.Closed); ok {
							break
						}
					}
					if err := c.Err(); err == nil || errors.Is(err, net.ErrClosed) {
						t.Errorf("Err is %v", err)
					} else if reset && len(tt.send) == 0 && !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("behind a reset Err is %v", err)
					}
				})
			}
		}
	}
}

// What was sent in plain text and a hang-up behind it: the command is answered, the connection ends
// at once.
func TestStartTLSFromAHandlerBehindAHangUp(t *testing.T) {
	l := harness.Serve(t, tcpio.ListenerOptions{HandshakeTimeout: time.Hour, NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if r, ok := ev.(tcpio.Readable); ok {
				if _, err := r.Conn.TryRead(make([]byte, 9)); err == nil {
					_, _ = r.Conn.TryWrite([]byte("go ahead\n"))
					return r.Conn.StartTLS(testnet.ServerTLS())
				}
			}
			return nil
		})
	}})
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, append([]byte("STARTTLS\n"), testnet.ClientHello()[:50]...))
	testnet.FIN(t, peer)
	if line, err := bufio.NewReader(peer).ReadString('\n'); err != nil || !strings.HasPrefix(line, "go ahead") {
		t.Errorf("%q, %v", line, err)
	}
	if _, err := io.ReadAll(peer); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	testnet.WaitFor(t, "the end", func() bool { return l.Len() == 0 })
}
