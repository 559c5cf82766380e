//go:build linux

package tls_test

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A function of the TLS config that does not return ends its handshake and nothing else, with
// whatever locks of crypto/tls it is called.
func TestTLSAConfigFunctionThatPanicsOrExitsEndsItsHandshakeOnly(t *testing.T) {
	cert := testnet.ServerTLS().Certificates[0]
	for _, name := range []string{"GetCertificate", "GetConfigForClient", "VerifyConnection", "KeyLogWriter", "Rand", "Time"} {
		for how, misdeed := range testnet.Misdeeds {
			t.Run(name+"/"+how, func(t *testing.T) {
				var bad atomic.Bool
				do := func(here string) {
					if here == name && bad.Load() {
						misdeed()
					}
				}
				config := &tls.Config{
					GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
						do("GetCertificate")
						return &cert, nil
					},
					GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { do("GetConfigForClient"); return nil, nil },
					VerifyConnection:   func(tls.ConnectionState) error { do("VerifyConnection"); return nil },
					Time:               func() time.Time { do("Time"); return time.Now() },
				}
				switch name { // what there is a copy for
				case "KeyLogWriter":
					config.KeyLogWriter = writerFunc(func(p []byte) (int, error) { do("KeyLogWriter"); return len(p), nil })
				case "Rand":
					config.Rand = readerFunc(func(p []byte) (int, error) { do("Rand"); return rand.Read(p) })
				}
				log := new(testnet.Log)
				l, _ := harness.TLS(t, tcpio.ListenerOptions{TLSConfig: config, MaxHandshakes: 1, Logger: slog.New(log)}, harness.EchoActor)
				old := testnet.DialTLS(t, l, testnet.ClientTLS())
				testnet.Ping(t, old, "x")
				bad.Store(true)
				for i := range 3 {
					c := tls.Client(testnet.Dial(t, l), testnet.ClientTLS())
					if c.Handshake() == nil { // it may be over for the client before the server's last step
						_, err := c.Read(make([]byte, 1))
						if err == nil {
							t.Error("the client got bytes")
						}
					}
					testnet.WaitFor(t, "it has failed", func() bool { return l.Stats().HandshakesFailed == uint64(i+1) })
				}
				bad.Store(false)
				testnet.Ping(t, old, "x")
				testnet.Ping(t, testnet.DialTLS(t, l, testnet.ClientTLS()), "x")
				log.Await(t, "handler panicked", 3)
			})
		}
	}
}

// With CBC the source of randomness is part of every write, which a connection makes under its
// lock.
func TestTLSAConfigsRandThatPanicsOrExitsFailsTheWrite(t *testing.T) {
	cert := testnet.ServerTLS().Certificates[0]
	for how, misdeed := range testnet.Misdeeds {
		t.Run(how, func(t *testing.T) {
			var bad atomic.Bool
			config := &tls.Config{
				Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12,
				CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA},
				Rand: readerFunc(func(p []byte) (int, error) {
					if bad.Load() {
						misdeed()
					}
					return rand.Read(p)
				}),
			}
			l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 1, TLSConfig: config})
			client := tls.Client(testnet.Dial(t, l), testnet.ClientTLS())
			shaken := make(chan error, 1)
			go func() { shaken <- client.Handshake() }()
			c := harness.Expect[tcpio.Opened](t, events).Conn
			if err := testnet.Await(t, "the handshake", shaken); err != nil {
				t.Fatal(err)
			}
			bad.Store(true)
			var p *tcpio.PanicError
			if n, err := c.TryWrite([]byte("x")); n != 0 || !errors.As(err, &p) {
				t.Errorf("TryWrite = %d, %v, want a *PanicError", n, err)
			}
			if n, err := c.Write([]byte("x")); n != 0 || err == nil {
				t.Errorf("Write = %d, %v", n, err)
			}
			c.Close()
			client.NetConn().Close()
			for closed := false; !closed; {
				_, closed = testnet.Await(t, "Closed", events).(tcpio.Closed)
			}
		})
	}
}

type (
	writerFunc func([]byte) (int, error)
	readerFunc func([]byte) (int, error)
)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
func (f readerFunc) Read(p []byte) (int, error)  { return f(p) }
