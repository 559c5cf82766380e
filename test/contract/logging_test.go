//go:build linux

package contract

import (
	"context"
	"errors"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// setDefault makes h the handler of slog.Default until the end of the test, which is not parallel.
func setDefault(t *testing.T, h slog.Handler) {
	was := slog.Default()
	slog.SetDefault(slog.New(h))
	t.Cleanup(func() {
		slog.SetDefault(was)
		stdlog.SetOutput(os.Stderr) // SetDefault takes it along
	})
}

// nilMap serves a handler with a fault that everybody makes once, and one connection that meets it.
func nilMap(t *testing.T, logger *slog.Logger) *tcpio.Listener {
	t.Helper()
	var seen map[string]int
	l := harness.Actor(t, tcpio.ListenerOptions{Logger: logger}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if _, ok := ev.(tcpio.Readable); ok {
			seen["hello"]++
		}
		return nil
	}))
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "hello")
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer read %v, want a reset", err)
	}
	testnet.WaitFor(t, "the count of the panic", func() bool { return l.Stats().Panics == 1 })
	return l
}

// To see it fail: let shared.logger read slog.Default once, in Listen.
func TestPanicsGoToTheDefaultLoggerOfTheMoment(t *testing.T) {
	first, second := new(testnet.Log), new(testnet.Log)
	setDefault(t, first)
	l := nilMap(t, nil)
	testnet.WaitFor(t, "the line", func() bool { return first.Count("tcpio: handler panicked") == 1 })
	if got := first.String(); !strings.Contains(got, "assignment to entry in nil map") || !strings.Contains(got, "logging_test.go") ||
		strings.Contains(got, "hello") {
		t.Errorf("the line lacks the panic or its place, or has what the peer sent: %s", got)
	}
	slog.SetDefault(slog.New(second))
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "hello")
	testnet.WaitFor(t, "the line in the new default", func() bool { return second.Count("tcpio: handler panicked") == 1 })
}

func TestPanicsGoToLoggerAloneWhichMayDiscardThem(t *testing.T) {
	byDefault, own := new(testnet.Log), new(testnet.Log)
	setDefault(t, byDefault)
	nilMap(t, slog.New(own))
	testnet.WaitFor(t, "the line", func() bool { return own.Count("tcpio: handler panicked") == 1 })
	nilMap(t, slog.New(slog.DiscardHandler)).Close()
	if got := byDefault.String(); got != "" {
		t.Errorf("the default logger got %s", got)
	}
}

// A peer that was refused is silent to nobody: without an event or a callback it is a line. It is
// none of Error, since anybody can cause it.
func TestARefusedPeerIsALineOfTheDefaultLogger(t *testing.T) {
	log := &levels{least: slog.LevelInfo}
	setDefault(t, log)
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "this is no ClientHello\n")
	testnet.WaitFor(t, "the line", func() bool { return log.Count("tcpio: a peer was refused") == 1 })
	if level, _ := log.level("tcpio: a peer was refused"); level != slog.LevelInfo {
		t.Errorf("its level is %v", level)
	}
}

// levels keeps the records that pass a level.
type levels struct {
	testnet.Log
	least slog.Level
	mu    sync.Mutex
	got   map[string]slog.Level
}

func (h *levels) Enabled(_ context.Context, level slog.Level) bool { return level >= h.least }

func (h *levels) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	if h.got == nil {
		h.got = make(map[string]slog.Level)
	}
	h.got[r.Message] = r.Level
	h.mu.Unlock()
	return h.Log.Handle(ctx, r)
}

func (h *levels) level(msg string) (slog.Level, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	level, ok := h.got[msg]
	return level, ok
}

// To see it fail: leave handlerFailed out of actorFailed, or let logDebug take from logLimit.
func TestErrorsOfHandlersAreDebugLinesAndCounted(t *testing.T) {
	t.Parallel()
	failing := func(ev tcpio.Event) error {
		if _, ok := ev.(tcpio.Readable); ok {
			return errOfTheUser
		}
		return nil
	}
	orderly := func(ev tcpio.Event) error {
		if _, ok := ev.(tcpio.Readable); ok {
			return io.EOF
		}
		return nil
	}
	var told testnet.Log
	for name, tc := range map[string]struct {
		opts  tcpio.ListenerOptions
		count uint64
		lines int
	}{
		"Receive":  {tcpio.ListenerOptions{NewActor: func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(failing) }}, 1, 1},
		"io.EOF":   {tcpio.ListenerOptions{NewActor: func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(orderly) }}, 0, 0},
		"callback": {tcpio.ListenerOptions{OnConnEvent: func(net.Conn) error { return errOfTheUser }}, 1, 1},
		"callback that is told": {tcpio.ListenerOptions{OnConnEvent: func(net.Conn) error { return errOfTheUser },
			OnErrorEvent: func(err error) { _, _ = told.Write([]byte(err.Error() + "\n")) }}, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			log := &levels{least: slog.LevelDebug}
			tc.opts.Logger = slog.New(log)
			l := harness.Listen(t, tc.opts)
			stop := harness.Start(t, l)
			peer := testnet.Dial(t, l)
			testnet.Send(t, peer, "x")
			testnet.ExpectEOF(t, peer)
			peer.Close()
			testnet.WaitFor(t, "the end", func() bool { return l.Stats().Closed == 1 })
			stop() // which waits for the lines
			if n := l.Stats().HandlerErrors; n != tc.count {
				t.Errorf("HandlerErrors = %d, want %d", n, tc.count)
			}
			if n := log.Count("tcpio: handler failed"); n != tc.lines || log.Count("") != n {
				t.Errorf("%d lines, want %d: %s", n, tc.lines, log.String())
			}
			if level, ok := log.level("tcpio: handler failed"); ok && level != slog.LevelDebug {
				t.Errorf("the level is %v", level)
			}
		})
	}
	testnet.WaitFor(t, "OnErrorEvent", func() bool { return told.Count(errOfTheUser.Error()) == 1 })
}

// Debug lines that nobody wants take no place from a panic's, and none is counted as suppressed.
func TestErrorsOfHandlersHideNoPanic(t *testing.T) {
	t.Parallel()
	log := &levels{least: slog.LevelInfo}
	l := harness.Listen(t, tcpio.ListenerOptions{Logger: slog.New(log), NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if r, ok := ev.(tcpio.Readable); ok {
				var b [1]byte
				if _, _ = r.Conn.TryRead(b[:]); b[0] == 'p' {
					panic("at last")
				}
				return errOfTheUser
			}
			return nil
		})
	}})
	stop := harness.Start(t, l)
	for i := range 50 {
		peer := testnet.Dial(t, l)
		testnet.Send(t, peer, map[bool]string{false: "e", true: "p"}[i == 49])
		_, _ = peer.Read(make([]byte, 1))
		peer.Close()
	}
	stop()
	if s := l.Stats(); s.HandlerErrors != 49 || s.Panics != 1 {
		t.Errorf("Stats has %d errors and %d panics, want 49 and 1", s.HandlerErrors, s.Panics)
	}
	if log.Count("handler panicked") != 1 || log.Count("") != 1 || log.Count("suppressed") != 0 {
		t.Errorf("want the panic alone: %s", log.String())
	}
}

func TestPanicsAreCountedWhereverTheyHappen(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]tcpio.ListenerOptions{
		"NewActor":    {NewActor: func(*tcpio.Conn) tcpio.Actor { panic(name0) }},
		"Admit":       {NewActor: actorOf(harness.EchoActor), Admit: func(netip.AddrPort) error { panic(name0) }},
		"Preface":     {NewActor: actorOf(harness.EchoActor), Preface: func(*tcpio.Conn, []byte) (int, error) { panic(name0) }},
		"OnConnEvent": {OnConnEvent: func(net.Conn) error { panic(name0) }},
		"OnErrorEvent": {OnConnEvent: func(net.Conn) error { return errOfTheUser },
			OnErrorEvent: func(error) { panic(name0) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts.Logger = slog.New(slog.DiscardHandler)
			l := harness.Serve(t, opts)
			if peer, err := net.Dial("tcp", l.Addr().String()); err == nil { // it may be refused before that returns
				defer peer.Close()
				_, _ = peer.Write([]byte("x"))
			}
			testnet.WaitFor(t, "the count", func() bool { return l.Stats().Panics == 1 })
		})
	}
}

// A package that calls handlers of its users' itself has their failures counted and logged as those
// of Receive are.
func TestFailuresThatAPackageReportsCount(t *testing.T) {
	t.Parallel()
	log := &levels{least: slog.LevelDebug}
	handled := make(chan struct{})
	l := harness.Actor(t, tcpio.ListenerOptions{Logger: slog.New(log)}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if r, ok := ev.(tcpio.Readable); ok {
			r.Conn.HandlerFailed(nil)
			r.Conn.HandlerFailed(io.EOF)
			r.Conn.HandlerFailed(errOfTheUser)
			for range 20 {
				r.Conn.HandlerFailed(&tcpio.PanicError{Value: name0})
			}
			_, _ = r.Conn.TryWrite([]byte("alive"))
			close(handled)
			return io.EOF
		}
		return nil
	}))
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "x")
	testnet.ExpectBytes(t, peer, "alive")
	<-handled
	if s := l.Stats(); s.HandlerErrors != 1 || s.Panics != 20 {
		t.Errorf("Stats has %d errors and %d panics, want 1 and 20", s.HandlerErrors, s.Panics)
	}
	testnet.WaitFor(t, "the lines", func() bool { return log.Count("handler panicked") > 0 && log.Count("handler failed") == 1 })
	if n := log.Count("handler panicked"); n == 20 {
		t.Error("the rate of the lines has no limit")
	}
}

const name0 = "of the test's"

func actorOf(a tcpio.Actor) func(*tcpio.Conn) tcpio.Actor {
	return func(*tcpio.Conn) tcpio.Actor { return a }
}

// To see it fail: leave the timer out of awaitRoutes.
func TestServeThatNobodyAsksForARouteSaysSoOnce(t *testing.T) {
	t.Parallel()
	log := &levels{least: slog.LevelInfo}
	l := harness.Listen(t, tcpio.ListenerOptions{Logger: slog.New(log)})
	stop := harness.Start(t, l)
	const msg = "Serve waits for a route"
	testnet.WaitFor(t, "the warning", func() bool { return log.Count(msg) == 1 })
	if line := log.String(); !strings.Contains(line, "call Events") || !strings.Contains(line, l.Addr().String()) {
		t.Errorf("the line does not say what to do, or where: %s", line)
	}
	peer := testnet.Dial(t, l)
	testnet.Send(t, peer, "x")
	go func() { // it was late, and everything works all the same
		for ev := range l.Events() {
			if r, ok := ev.(tcpio.Readable); ok {
				r.Conn.Close()
			}
		}
	}()
	testnet.ExpectEOF(t, peer)
	peer.Close()
	stop()
	if n := log.Count(""); n != 1 {
		t.Errorf("%d lines, want the warning alone: %s", n, log.String())
	}
}

// Whoever has a route, or is stopped before, is not warned.
func TestServeWithARouteDoesNotWarn(t *testing.T) {
	t.Parallel()
	for name, route := range map[string]func(o *tcpio.ListenerOptions) func(l *tcpio.Listener){
		"Events": func(*tcpio.ListenerOptions) func(*tcpio.Listener) {
			return func(l *tcpio.Listener) {
				events := l.Events()
				go func() {
					for range events {
					}
				}()
			}
		},
		"EventsPerLoop": func(*tcpio.ListenerOptions) func(*tcpio.Listener) {
			return func(l *tcpio.Listener) { l.EventsPerLoop() }
		},
		"NetListener": func(*tcpio.ListenerOptions) func(*tcpio.Listener) {
			return func(l *tcpio.Listener) { l.NetListener() }
		},
		"NewActor": func(o *tcpio.ListenerOptions) func(*tcpio.Listener) {
			o.NewActor = actorOf(harness.EchoActor)
			return func(*tcpio.Listener) {}
		},
		"OnConnEvent": func(o *tcpio.ListenerOptions) func(*tcpio.Listener) {
			o.OnConnEvent = func(net.Conn) error { return nil }
			return func(*tcpio.Listener) {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := new(testnet.Log)
			o := tcpio.ListenerOptions{Logger: slog.New(log)}
			ask := route(&o)
			l := harness.Listen(t, o)
			ask(l)
			stop := harness.Start(t, l)
			time.Sleep(1100 * time.Millisecond) // Serve's patience is a second, and nothing must happen behind it
			stop()
			if n := log.Count(""); n != 0 {
				t.Errorf("want no line: %s", log.String())
			}
		})
	}
}
