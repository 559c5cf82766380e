//go:build linux

package contract

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
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

// OnErrorEvent, and OnConnEvent of one connection, are nothing to any other, also while that one's
// callback is running and they wait for it.
func TestCallbackThatPanicsOrExitsIsNothingToOtherConnections(t *testing.T) {
	errRefused := errors.New("refused")
	for _, where := range []string{"OnConnEvent", "OnErrorEvent"} {
		for how, misdeed := range testnet.Misdeeds {
			for _, concurrent := range []bool{false, true} {
				t.Run(fmt.Sprint(where, "/", how, "/concurrent=", concurrent), func(t *testing.T) {
					log := new(testnet.Log)
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
					waits, bad, next := testnet.Dial(t, l), testnet.Dial(t, l), testnet.Dial(t, l)
					testnet.Send(t, waits, "w")
					testnet.Await(t, "the callback that blocks", inside)
					testnet.Send(t, bad, "e")
					if !concurrent {
						testnet.WaitFor(t, "its read is left to the others", func() bool { return l.Stats().Events >= 6 })
					}
					close(release)
					testnet.ExpectBytes(t, waits, "OK\n")
					var p *tcpio.PanicError
					switch err := testnet.Await(t, "OnErrorEvent", told); {
					case where == "OnErrorEvent" && err != errRefused:
						t.Errorf("OnErrorEvent got %v", err)
					case where == "OnConnEvent" && !errors.As(err, &p):
						t.Errorf("OnErrorEvent got %v, want a *PanicError", err)
					}
					if _, err := bad.Read(make([]byte, 1)); err == nil || where == "OnErrorEvent" && err != io.EOF {
						t.Errorf("the peer of the bad one read %v", err)
					}
					for _, c := range []net.Conn{waits, next} {
						testnet.Send(t, c, "x")
						testnet.ExpectBytes(t, c, "OK\n")
					}
					testnet.WaitFor(t, "the line", func() bool { return log.Count("panicked") == 1 })
					if n := log.Count(""); n != 1 {
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

func TestErrorWhoseMethodsPanicOrExitEndsItsConnectionOnly(t *testing.T) {
	cert := testnet.ServerTLS().Certificates[0]
	for how, misdeed := range testnet.Misdeeds {
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
			c := testnet.Dial(t, l)
			testnet.Send(t, c, "e")
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("the peer got bytes")
			}
			testnet.Ping(t, testnet.Dial(t, l), "x")
		})
		t.Run("Closed/"+how, func(t *testing.T) {
			closed := make(chan struct{}, 2)
			l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))},
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
				testnet.Send(t, testnet.DialTCP(t, l), "x")
				testnet.Await(t, "Closed", closed)
			}
		})
		t.Run("TLS/"+how, func(t *testing.T) {
			config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				if hello.ServerName == "bad" {
					return nil, bad
				}
				return &cert, nil
			}}
			l, _ := harness.TLS(t, tcpio.ListenerOptions{TLSConfig: config, MaxHandshakes: 1}, harness.EchoActor)
			for range 2 {
				c := tls.Client(testnet.Dial(t, l), &tls.Config{InsecureSkipVerify: true, ServerName: "bad"})
				if err := c.Handshake(); err == nil {
					t.Error("the handshake has succeeded")
				}
			}
			testnet.Ping(t, testnet.DialTLS(t, l, testnet.ClientTLS()), "x")
		})
	}
}

// badHandler is a slog.Handler that misbehaves.
type badHandler struct {
	testnet.Log
	misdeed func()
}

func (h *badHandler) Handle(ctx context.Context, r slog.Record) error {
	_ = h.Log.Handle(ctx, r)
	h.misdeed()
	return nil
}

func TestLoggerThatPanicsExitsOrBlocksIsNothingToTheListener(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	for how, misdeed := range map[string]func(){
		"panic": testnet.Misdeeds["panic"], "Goexit": testnet.Misdeeds["Goexit"], "block": func() { <-release },
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
					o.NewActor = func(*tcpio.Conn) tcpio.Actor {
						do("Actor")
						return tcpio.ActorFunc(func(ev tcpio.Event) error {
							switch ev := ev.(type) {
							case tcpio.Opened:
								do("Receive")
							case tcpio.Closed:
								do("Closed")
								_ = ev
							}
							return harness.EchoActor(ev)
						})
					}
				}
				l := harness.Serve(t, o)
				old := testnet.Dial(t, l)
				testnet.Ping(t, old, "before")
				bad.Store(true)
				for range 25 {
					if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
						c.Close()
					}
				}
				testnet.WaitFor(t, "a line", func() bool { return log.Count("panicked") > 0 })
				bad.Store(false)
				testnet.Ping(t, old, "after")
				testnet.Ping(t, testnet.Dial(t, l), "next")
			})
		}
	}
}

// A line whose values misbehave is lost, and the next one that begins behind it says so.
func TestLineWhoseValuesPanicOrExitIsCounted(t *testing.T) {
	for how, misdeed := range testnet.Misdeeds {
		t.Run(how, func(t *testing.T) {
			log := new(testnet.Log)
			var value atomic.Value
			l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1, Logger: slog.New(resolving{slog.NewTextHandler(log, nil)})},
				tcpio.ActorFunc(func(ev tcpio.Event) error {
					if _, ok := ev.(tcpio.Readable); ok {
						panic(value.Load())
					}
					return nil
				}))
			value.Store(any(badError{misdeed}))
			testnet.Send(t, testnet.DialTCP(t, l), "x")
			testnet.WaitFor(t, "the first is gone", func() bool { return l.Stats().Closed == 1 })
			value.Store(any(badError{func() {}}))
			for n := range 2 { // while the first is on its way, nobody knows yet that it will be lost
				testnet.Send(t, testnet.DialTCP(t, l), "x")
				testnet.WaitFor(t, "the next line", func() bool { return log.Count("panicked") == n+1 })
			}
			if log.Count("suppressed=1") != 1 {
				t.Errorf("the lost line is not counted: %s", log)
			}
		})
	}
}

// resolving is a handler that asks the values outside the protection that the ones of the package
// slog have.
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
	log := new(testnet.Log)
	l := harness.Listen(t, tcpio.ListenerOptions{Logger: slog.New(log), OnErrorEvent: func(error) { panic("misdeed") }})
	l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Start()
	}()
	testnet.Await(t, "the end of Start", done)
	log.Await(t, "OnErrorEvent panicked", 1)
}

// A range over Conns holds nothing while its body runs.
func TestBodyOfAConnsLoopMayPanic(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{Loops: 1})
	harness.Open(t, l, events)
	testnet.Misbehave(t, func(misdeed func()) {
		for range l.Conns() {
			misdeed()
		}
	})
	harness.Open(t, l, events)
}

var suppressedAttr = regexp.MustCompile(`suppressed=(\d+)`)

// A thousand failures are a few lines, and the lines say how many more there were. To see it fail:
// let LogLimit.Take always answer true, or leave logRest out of finish.
func TestFloodOfFailuresIsAFewLinesThatCountTheRest(t *testing.T) {
	t.Parallel()
	const conns = 1000
	for name, tc := range map[string]struct {
		opts func(failed *atomic.Int64) tcpio.ListenerOptions
		line string
	}{
		"panics in Receive": {func(failed *atomic.Int64) tcpio.ListenerOptions {
			return tcpio.ListenerOptions{NewActor: func(*tcpio.Conn) tcpio.Actor {
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
			return tcpio.ListenerOptions{NewActor: func(*tcpio.Conn) tcpio.Actor {
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
		}, "handler failed"},
		"panics in NewActor": {func(failed *atomic.Int64) tcpio.ListenerOptions {
			return tcpio.ListenerOptions{NewActor: func(*tcpio.Conn) tcpio.Actor { failed.Add(1); panic("flood") }}
		}, "NewActor panicked"},
		"panics in Admit": {func(failed *atomic.Int64) tcpio.ListenerOptions {
			return tcpio.ListenerOptions{
				Admit:    func(netip.AddrPort) error { failed.Add(1); panic("flood") },
				NewActor: func(*tcpio.Conn) tcpio.Actor { return nil },
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
