//go:build linux

package tls_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A client that has hung up before its handshake's turn costs no handshake, whether by a FIN or a reset.
func TestTLSNothingIsComputedForClientsThatHaveGone(t *testing.T) {
	for _, reset := range []bool{false, true} {
		t.Run(map[bool]string{false: "FIN", true: "reset"}[reset], func(t *testing.T) {
			var begun atomic.Int64
			config := testnet.ServerTLS()
			config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				begun.Add(1)
				return nil, nil
			}
			l := harness.Listen(t, tcpio.ListenerOptions{TLSConfig: config, HandshakeTimeout: time.Hour,
				Actor: func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(silent(t)) }})
			const n = 50
			for range n {
				c := testnet.Dial(t, l)
				testnet.Send(t, c, testnet.ClientHello())
				if reset {
					testnet.RST(t, c)
				} else {
					testnet.FIN(t, c)
				}
			}
			served := harness.Go(t.Context(), l)
			// The kernel does not hand out those that were reset within the backlog, or does; both are right.
			testnet.WaitFor(t, "the ends of all of them", func() bool {
				s := l.Stats()
				return s.Open == 0 && (s.HandshakesFailed == n || reset && s.HandshakesFailed == s.Accepted && s.Accepted > 0)
			})
			if begun.Load() != 0 {
				t.Errorf("%d handshakes were begun for clients that had gone", begun.Load())
			}
			l.Close()
			if err := testnet.Await(t, "the end of Serve", served); err != nil {
				t.Error(err)
			}
		})
	}
}

// StartTLS behind a hang-up ends the connection at once, whatever has come before it, and HandshakeTimeout is not waited for.
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

// Beside thousands of clients that send a ClientHello and hang up an honest one is served.
func TestTLSHonestClientsAreServedBesideHangUps(t *testing.T) {
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	hello := testnet.ClientHello()
	stop, done := make(chan struct{}), make(chan struct{})
	var sent atomic.Int64
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				continue
			}
			_, _ = c.Write(hello)
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
			sent.Add(1)
		}
	}()
	testnet.WaitFor(t, "the flood", func() bool { return sent.Load() > 200 })
	var worst time.Duration
	for range 20 {
		begin := time.Now()
		c := testnet.DialTLS(t, l, testnet.ClientTLS())
		testnet.Ping(t, c, "x")
		worst = max(worst, time.Since(begin))
		c.Close()
	}
	close(stop)
	<-done
	t.Logf("beside %d hang-ups the slowest of 20 handshakes took %v", sent.Load(), worst)
}

// What was sent in plain text and a hang-up behind it: the command is answered, the connection ends at once.
func TestStartTLSFromAHandlerBehindAHangUp(t *testing.T) {
	l := harness.Serve(t, tcpio.ListenerOptions{HandshakeTimeout: time.Hour, Actor: func(*tcpio.Conn) tcpio.Actor {
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
