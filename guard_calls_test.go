//go:build linux

package tcpio_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// OnErrorEvent, and OnConnEvent of one connection, are nothing to any other, also while that one's callback
// is running and they wait for it.
func TestACallbackThatPanicsOrExitsIsNothingToOtherConnections(t *testing.T) {
	errRefused := errors.New("refused")
	for _, where := range []string{"OnConnEvent", "OnErrorEvent"} {
		for how, misdeed := range misdeeds {
			for _, concurrent := range []bool{false, true} {
				t.Run(fmt.Sprint(where, "/", how, "/concurrent=", concurrent), func(t *testing.T) {
					log := new(actLog)
					inside, release := make(chan struct{}, 10), make(chan struct{})
					told := make(chan error, 10)
					l := startLegacy(t, tcpio.ListenerOptions{
						Loops: 1, ConcurrentCallbacks: concurrent, Logger: slog.New(log),
						OnConnEvent: func(conn net.Conn) error {
							var b [1]byte
							if _, err := conn.Read(b[:]); err != nil {
								return err
							}
							switch b[0] {
							case 'w':
								inside <- struct{}{}
								<-release
							case 'e':
								if where == "OnConnEvent" {
									misdeed()
								}
								return errRefused
							}
							_, err := conn.Write([]byte("OK\n"))
							return err
						},
						OnErrorEvent: func(err error) {
							told <- err
							if where == "OnErrorEvent" {
								misdeed()
							}
						},
					})
					waits, bad, next := dial(t, l), dial(t, l), dial(t, l)
					send(t, waits, []byte("w"))
					receive(t, "the callback that blocks", inside)
					send(t, bad, []byte("e"))
					if !concurrent {
						waitFor(t, "its read is left to the others", func() bool { return l.Stats().Events >= 6 })
					}
					close(release)
					expectBytes(t, waits, []byte("OK\n"))
					var p *tcpio.PanicError
					switch err := receive(t, "OnErrorEvent", told); {
					case where == "OnErrorEvent" && err != errRefused:
						t.Errorf("OnErrorEvent got %v", err)
					case where == "OnConnEvent" && !errors.As(err, &p):
						t.Errorf("OnErrorEvent got %v, want a *PanicError", err)
					}
					if _, err := bad.Read(make([]byte, 1)); err == nil || where == "OnErrorEvent" && err != io.EOF {
						t.Errorf("the peer of the bad one read %v", err)
					}
					for _, c := range []net.Conn{waits, next} {
						send(t, c, []byte("x"))
						expectBytes(t, c, []byte("OK\n"))
					}
					waitFor(t, "the line", func() bool { return log.count("panicked") == 1 })
					if n := log.count(""); n != 1 {
						t.Errorf("%d lines", n)
					}
				})
			}
		}
	}
}

// badError is an error whose methods misbehave.
type badError struct{ misdeed func() }

func (e badError) Error() string        { e.misdeed(); return "" }
func (e badError) Is(error) bool        { e.misdeed(); return false }
func (e badError) As(any) bool          { e.misdeed(); return false }
func (e badError) LogValue() slog.Value { e.misdeed(); return slog.Value{} }

func TestAnErrorWhoseMethodsPanicOrExitEndsItsConnectionOnly(t *testing.T) {
	cert, _ := testPKI()
	for how, misdeed := range misdeeds {
		bad := badError{misdeed}
		t.Run("OnConnEvent/"+how, func(t *testing.T) {
			l := startLegacy(t, tcpio.ListenerOptions{Loops: 1, OnConnEvent: func(conn net.Conn) error {
				var b [1]byte
				if _, err := conn.Read(b[:]); err != nil {
					return err
				}
				if b[0] == 'e' {
					return bad
				}
				_, err := conn.Write(b[:])
				return err
			}})
			c := dial(t, l)
			send(t, c, []byte("e"))
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("the peer got bytes")
			}
			ping(t, dial(t, l), []byte("x"))
		})
		t.Run("Closed/"+how, func(t *testing.T) {
			closed := make(chan struct{}, 2)
			r := actServeAll(t, tcpio.ListenerOptions{Loops: 1, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))},
				tcpio.ActorFunc(func(ev tcpio.Event) error {
					switch ev := ev.(type) {
					case tcpio.Readable:
						ev.Conn.Abort()
					case tcpio.Closed:
						closed <- struct{}{}
						return bad
					}
					return nil
				}))
			for range 2 {
				send(t, r.dial(), []byte("x"))
				receive(t, "Closed", closed)
			}
		})
		t.Run("TLS/"+how, func(t *testing.T) {
			config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				if hello.ServerName == "bad" {
					return nil, bad
				}
				return &cert, nil
			}}
			l, _ := tlsServe(t, tcpio.ListenerOptions{TLSConfig: config, MaxHandshakes: 1}, tlsEcho)
			for range 2 {
				c := tls.Client(hookDial(t, l), &tls.Config{InsecureSkipVerify: true, ServerName: "bad"})
				if err := c.Handshake(); err == nil {
					t.Error("the handshake has succeeded")
				}
			}
			tlsPing(t, tlsDial(t, l, clientTLS()))
		})
	}
}

// badHandler is a slog.Handler that misbehaves.
type badHandler struct {
	actLog
	misdeed func()
}

func (h *badHandler) Handle(ctx context.Context, r slog.Record) error {
	_ = h.actLog.Handle(ctx, r)
	h.misdeed()
	return nil
}

func TestALoggerThatPanicsExitsOrBlocksIsNothingToTheListener(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	for how, misdeed := range map[string]func(){
		"panic": misdeeds["panic"], "Goexit": misdeeds["Goexit"], "block": func() { <-release },
	} {
		for _, where := range []string{"Receive", "Closed", "Actor", "Admit", "OnErrorEvent"} {
			t.Run(how+"/"+where, func(t *testing.T) {
				log := &badHandler{misdeed: misdeed}
				o := tcpio.ListenerOptions{Loops: 1, CloseTimeout: 50 * time.Millisecond, Logger: slog.New(log)}
				var bad atomic.Bool
				do := func(here string) {
					if here == where && bad.Load() {
						panic("for the log")
					}
				}
				o.Admit = func(netip.AddrPort) error { do("Admit"); return nil }
				if where == "OnErrorEvent" {
					o.OnConnEvent = func(conn net.Conn) error {
						b := make([]byte, 10)
						n, err := conn.Read(b)
						if err != nil {
							return err
						}
						_, err = conn.Write(b[:n])
						return err
					}
					o.OnErrorEvent = func(error) { do("OnErrorEvent") }
				} else {
					o.Actor = func(*tcpio.Conn) tcpio.Actor {
						do("Actor")
						return tcpio.ActorFunc(func(ev tcpio.Event) error {
							switch ev := ev.(type) {
							case tcpio.Opened:
								do("Receive")
							case tcpio.Closed:
								do("Closed")
								_ = ev
							}
							return okActor(ev)
						})
					}
				}
				l := hookServe(t, o)
				old := hookDial(t, l)
				ping(t, old, []byte("before"))
				bad.Store(true)
				for range 25 {
					if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
						c.Close()
					}
				}
				waitFor(t, "a line", func() bool { return log.count("panicked") > 0 })
				bad.Store(false)
				ping(t, old, []byte("after"))
				ping(t, hookDial(t, l), []byte("next"))
			})
		}
	}
}

// A line whose values misbehave is lost, and the next one says so.
func TestALineWhoseValuesPanicOrExitIsCounted(t *testing.T) {
	for how, misdeed := range misdeeds {
		t.Run(how, func(t *testing.T) {
			log := new(syncBuffer)
			var value atomic.Value
			r := actServeAll(t, tcpio.ListenerOptions{Loops: 1, Logger: slog.New(resolving{slog.NewTextHandler(log, nil)})},
				tcpio.ActorFunc(func(ev tcpio.Event) error {
					if _, ok := ev.(tcpio.Readable); ok {
						panic(value.Load())
					}
					return nil
				}))
			value.Store(any(badError{misdeed}))
			send(t, r.dial(), []byte("x"))
			waitFor(t, "the first is gone", func() bool { return r.l.Stats().Closed == 1 })
			value.Store(any(badError{func() {}}))
			send(t, r.dial(), []byte("x"))
			waitFor(t, "the second line", func() bool { return strings.Contains(log.String(), "suppressed=1") })
		})
	}
}

// resolving is a handler that asks the values outside the protection that the ones of the package slog have.
type resolving struct{ slog.Handler }

func (h resolving) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool { a.Value.Any(); callLogValue(a.Value); return true })
	return h.Handler.Handle(ctx, r)
}

func callLogValue(v slog.Value) {
	if lv, ok := v.Any().(slog.LogValuer); ok {
		lv.LogValue()
	}
}

// Start tells OnErrorEvent on the way out, under the same guard.
func TestStartReturnsThoughOnErrorEventPanics(t *testing.T) {
	log := new(actLog)
	l := listen(t, tcpio.ListenerOptions{Logger: slog.New(log), OnErrorEvent: func(error) { panic("misdeed") }})
	l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Start()
	}()
	receive(t, "the end of Start", done)
	if log.count("OnErrorEvent panicked") != 1 {
		t.Error("not logged")
	}
}
