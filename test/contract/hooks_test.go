//go:build linux

package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// hookOptions are options with hook as the hook of that name, which is on the way of every
// connection, and an echo.
func hookOptions(name string, hook func()) tcpio.ListenerOptions {
	o := tcpio.ListenerOptions{Loops: 1, NewActor: func(*tcpio.Conn) tcpio.Actor {
		if name == "Actor" {
			hook()
		}
		return harness.EchoActor
	}}
	switch name {
	case "Admit":
		o.Admit = func(netip.AddrPort) error { hook(); return nil }
	case "AcceptRate":
		o.AcceptRate = allow(func() bool { hook(); return true })
	}
	return o
}

var hookNames = []string{"Admit", "AcceptRate", "Actor"}

func TestHookThatPanicsOrExitsRefusesItsPeerAndNobodyElse(t *testing.T) {
	for _, name := range hookNames {
		for how, misdeed := range testnet.Misdeeds {
			t.Run(name+"/"+how, func(t *testing.T) {
				var bad atomic.Bool
				log := new(testnet.Log)
				o := hookOptions(name, func() {
					if bad.Load() {
						misdeed()
					}
				})
				o.Logger = slog.New(log)
				o.MaxConnsPerIP = 2 // a place that is not given back is missed
				l := harness.Serve(t, o)
				old := testnet.Dial(t, l)
				testnet.Ping(t, old, "before")
				for i := range 5 {
					bad.Store(true)
					if c, err := net.Dial("tcp", l.Addr().String()); err == nil { // else it is reset already
						_ = c.SetDeadline(time.Now().Add(testnet.Limit))
						if _, err := c.Read(make([]byte, 1)); err == nil {
							t.Error("the refused peer got bytes")
						}
						c.Close()
					}
					testnet.WaitFor(t, "the refused connection is gone", func() bool { return l.Len() == 1 })
					log.Await(t, " panicked", i+1)
					bad.Store(false)
					testnet.Ping(t, old, "after")
					next := testnet.Dial(t, l)
					testnet.Ping(t, next, "next")
					next.Close()
					testnet.WaitFor(t, "the next one is gone", func() bool { return l.Len() == 1 })
				}
				want := tcpio.RefusedStats{}
				switch name {
				case "Admit":
					want.Admit = 5
				case "AcceptRate":
					want.Rate = 5
				}
				if n := l.Stats().Refused; n != want {
					t.Errorf("counted: %+v", n)
				}
				// A handler that the machine did not run for a while counts until it has returned.
				testnet.WaitFor(t, "nobody is blocked", func() bool { return l.Stats().Blocked == 0 })
			})
		}
	}
}

// While a hook blocks, accepting waits for it, and nothing else does. Its connections are served
// when it is over, however it ends.
func TestHookThatBlocksHoldsUpAcceptingAlone(t *testing.T) {
	for _, name := range hookNames {
		for how, end := range map[string]func(){"return": func() {}, "panic": testnet.Misdeeds["panic"], "Goexit": testnet.Misdeeds["Goexit"]} {
			t.Run(name+"/"+how, func(t *testing.T) {
				var blocks atomic.Bool
				var alone harness.Alone
				inside, release := make(chan struct{}), make(chan struct{})
				l := harness.Serve(t, hookOptions(name, func() {
					defer alone.Enter(t)()
					if blocks.CompareAndSwap(true, false) {
						close(inside)
						<-release
						end()
					}
				}))
				old := testnet.Dial(t, l)
				testnet.Ping(t, old, "before")
				blocks.Store(true)
				first := testnet.Dial(t, l)
				testnet.Await(t, "the hook", inside)
				second := testnet.Dial(t, l)
				for range 20 {
					testnet.Ping(t, old, "meanwhile")
				}
				close(release)
				testnet.Ping(t, second, "second")
				if how == "return" {
					testnet.Ping(t, first, "first")
				} else if _, err := first.Read(make([]byte, 1)); err == nil {
					t.Error("the peer that the hook has not let in got bytes")
				}
			})
		}
	}
}

// A hook that does not come back keeps neither Close nor Shutdown nor Serve, and does no harm when
// it does.
func TestHookThatBlocksKeepsNobodyFromStopping(t *testing.T) {
	stops := map[string]func(l *tcpio.Listener, cancel func()) error{
		"Close": func(l *tcpio.Listener, _ func()) error { return l.Close() },
		"Shutdown": func(l *tcpio.Listener, _ func()) error {
			return l.Shutdown(context.Background())
		},
		"the end of Shutdown's ctx": func(l *tcpio.Listener, _ func()) error {
			ctx, end := context.WithCancel(context.Background())
			end()
			if err := l.Shutdown(ctx); err != context.Canceled {
				return fmt.Errorf("Shutdown: %v", err)
			}
			return nil
		},
		"the end of Serve's ctx": func(l *tcpio.Listener, cancel func()) error { cancel(); return nil },
	}
	for _, name := range hookNames {
		for stopped, stop := range stops {
			for how, end := range map[string]func(){"return": func() {}, "panic": testnet.Misdeeds["panic"], "Goexit": testnet.Misdeeds["Goexit"]} {
				t.Run(name+"/"+stopped+"/"+how, func(t *testing.T) {
					t.Parallel()
					inside, release, over := make(chan struct{}, 10), make(chan struct{}), make(chan struct{}, 10)
					o := hookOptions(name, func() {
						defer func() { over <- struct{}{} }()
						inside <- struct{}{}
						<-release
						end()
					})
					o.CloseTimeout = 50 * time.Millisecond
					l := harness.Listen(t, o)
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					served := harness.Go(ctx, l)
					testnet.Dial(t, l)
					testnet.Await(t, "the hook", inside)
					testnet.Dial(t, l) // in the backlog
					done := make(chan error, 1)
					go func() { done <- stop(l, cancel) }()
					if err := testnet.Await(t, "the end of "+stopped, done); err != nil {
						t.Error(err)
					}
					if err := testnet.Await(t, "the end of Serve", served); err != nil {
						t.Errorf("Serve: %v", err)
					}
					if n := l.Len(); n != 0 {
						t.Errorf("%d connections are left", n)
					}
					close(release)
					testnet.Await(t, "the end of the hook", over)
				})
			}
		}
	}
}

func TestHookMayStopTheListener(t *testing.T) {
	for _, name := range hookNames {
		for how, stop := range map[string]func(*tcpio.Listener) error{
			"Close":    (*tcpio.Listener).Close,
			"Shutdown": func(l *tcpio.Listener) error { return l.Shutdown(context.Background()) },
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				listener, stopped := make(chan *tcpio.Listener, 1), make(chan error, 1)
				o := hookOptions(name, func() { stopped <- stop(<-listener) })
				o.CloseTimeout = 50 * time.Millisecond
				l := harness.Listen(t, o)
				listener <- l
				served := harness.Go(t.Context(), l)
				if c, err := net.Dial("tcp", l.Addr().String()); err == nil { // else it is reset already
					defer c.Close()
				}
				if err := testnet.Await(t, "the end of "+how, stopped); err != nil {
					t.Error(err)
				}
				if err := testnet.Await(t, "the end of Serve", served); err != nil {
					t.Errorf("Serve: %v", err)
				}
			})
		}
	}
}

// With one loop no two hooks run at once, also when connections are adopted, and when Shutdown
// takes the last ones.
func TestHooksOfOneListenerNeverRunTogether(t *testing.T) {
	t.Parallel()
	for range 20 {
		var alone harness.Alone
		hook := func() {
			leave := alone.Enter(t)
			runtime.Gosched()
			leave()
		}
		l := harness.Serve(t, tcpio.ListenerOptions{
			Loops: 1, CloseTimeout: 50 * time.Millisecond,
			AcceptRate: allow(func() bool { hook(); return true }),
			Admit:      func(netip.AddrPort) error { hook(); return nil },
			NewActor: func(*tcpio.Conn) tcpio.Actor {
				hook()
				return tcpio.ActorFunc(func(ev tcpio.Event) error {
					if r, ok := ev.(tcpio.Readable); ok {
						_, err := r.Conn.TryRead(make([]byte, 10))
						if err == io.EOF {
							r.Conn.Close()
						}
					}
					return nil
				})
			},
		})
		other, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ping := func(addr net.Addr, n int, then func(net.Conn)) func() {
			return func() {
				for range n {
					if c, err := net.Dial("tcp", addr.String()); err == nil {
						then(c)
					}
				}
			}
		}
		closes := func(c net.Conn) { c.Close() }
		adopted := func(c net.Conn) {
			if _, err := l.Adopt(c); err != nil {
				c.Close()
			}
		}
		ping(l.Addr(), 1, closes)()
		testnet.WaitFor(t, "the first is accepted", func() bool { return l.Stats().Accepted == 1 })
		testnet.Together(ping(l.Addr(), 30, closes), ping(l.Addr(), 30, closes), ping(other.Addr(), 30, adopted), ping(other.Addr(), 30, adopted), func() {
			time.Sleep(2 * time.Millisecond) // anywhere among them
			if err := l.Shutdown(testnet.Context(t)); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
		other.Close()
	}
}

// Shutdown's last accepts wait for the hook that is running.
func TestShutdownDoesNotRunHooksBesideOneThatBlocks(t *testing.T) {
	for _, name := range hookNames {
		t.Run(name, func(t *testing.T) {
			var alone harness.Alone
			calls := make(chan struct{}, 10)
			release := make(chan struct{})
			l := harness.Serve(t, hookOptions(name, func() {
				defer alone.Enter(t)()
				calls <- struct{}{}
				<-release
			}))
			first := testnet.Dial(t, l)
			testnet.Await(t, "the hook", calls)
			second := testnet.Dial(t, l)
			done := make(chan error, 1)
			go func() { done <- l.Shutdown(testnet.Context(t)) }()
			testnet.WaitFor(t, "the stop", func() bool {
				_, err := l.Dial(t.Context(), "unix", "/nowhere")
				return errors.Is(err, net.ErrClosed)
			})
			close(release)
			testnet.Await(t, "the hook for the second", calls)
			for _, c := range []net.Conn{first, second} {
				if _, err := c.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("the peer read %v, want the end", err)
				}
				c.Close()
			}
			if err := testnet.Await(t, "the end of Shutdown", done); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}

// The actor of an adopted connection is made as that of an accepted one is.
func TestActorHookThatPanicsOrExitsRefusesAnAdoptedConnection(t *testing.T) {
	for how, misdeed := range testnet.Misdeeds {
		t.Run(how, func(t *testing.T) {
			var bad atomic.Bool
			l := harness.Serve(t, hookOptions("Actor", func() {
				if bad.Load() {
					misdeed()
				}
			}))
			testnet.Ping(t, testnet.Dial(t, l), "serving")
			other, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			for _, refused := range []bool{true, false, true} {
				bad.Store(refused)
				peer, err := net.Dial("tcp", other.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer peer.Close()
				_ = peer.SetDeadline(time.Now().Add(testnet.Limit))
				nc, err := other.Accept()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := l.Adopt(nc); err != nil {
					t.Fatal(err)
				}
				if !refused {
					testnet.Ping(t, peer, "adopted")
				} else if _, err := peer.Read(make([]byte, 1)); err == nil {
					t.Error("the refused peer got bytes")
				}
			}
		})
	}
}

// At MaxBlocked a loop waits for its handler, but not beyond the end of the listener.
func TestServeReturnsAtMaxBlockedThoughHandlersBlock(t *testing.T) {
	inside, release := make(chan struct{}, 10), make(chan struct{})
	defer close(release)
	o := tcpio.ListenerOptions{Loops: 1, MaxBlocked: 1, CloseTimeout: 50 * time.Millisecond}
	o.NewActor = func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if _, ok := ev.(tcpio.Opened); ok {
				inside <- struct{}{}
				<-release
			}
			return nil
		})
	}
	l := harness.Listen(t, o)
	served := harness.Go(t.Context(), l)
	for range 2 {
		testnet.Dial(t, l)
		testnet.Await(t, "a handler that blocks", inside)
	}
	l.Close()
	if err := testnet.Await(t, "the end of Serve", served); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// What the hooks refuse, by nil, by an error or by a panic, is closed; the next connection is
// served.
func TestHooksRefuseByNilAndByPanic(t *testing.T) {
	for name, bad := range map[string]func() (tcpio.Actor, error){
		"nil actor":   func() (tcpio.Actor, error) { return nil, nil },
		"actor panic": func() (tcpio.Actor, error) { panic("in Actor") },
		"admit error": func() (tcpio.Actor, error) { return nil, errors.New("no") },
		"admit panic": func() (tcpio.Actor, error) { panic("in Admit") },
		"rate panic":  func() (tcpio.Actor, error) { panic("in Allow") },
	} {
		t.Run(name, func(t *testing.T) {
			log := new(testnet.Log)
			var mu sync.Mutex
			first := true
			try := func(hook string) (tcpio.Actor, error) {
				mu.Lock()
				defer mu.Unlock()
				if strings.Contains(name, hook) && first {
					first = false
					return bad()
				}
				return harness.EchoActor, nil
			}
			l := harness.Serve(t, tcpio.ListenerOptions{
				Logger: slog.New(slog.NewTextHandler(log, nil)),
				NewActor: func(*tcpio.Conn) tcpio.Actor {
					a, _ := try("actor")
					return a
				},
				Admit: func(netip.AddrPort) error {
					_, err := try("admit")
					return err
				},
				AcceptRate: allow(func() bool {
					_, err := try("rate")
					return err == nil
				}),
			})
			// A refusal may be as early as the dial.
			if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				if n, err := c.Read(make([]byte, 1)); err == nil {
					t.Errorf("a refused peer read %d bytes", n)
				}
				c.Close()
			}
			c := testnet.Dial(t, l)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Errorf("the next peer is not served: %v", err)
			}
			lines := 0
			if strings.HasSuffix(name, "panic") {
				lines = 1
			}
			log.Await(t, "panicked", lines)
		})
	}
}
