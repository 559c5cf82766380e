//go:build linux

package tcpio

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hoEcho answers each read with what says who answers, and lets an orderly end be one.
func hoEcho(name string) func(*Conn) Actor {
	return func(*Conn) Actor {
		return ActorFunc(func(ev Event) error {
			if r, ok := ev.(Readable); ok {
				var b [100]byte
				n, err := r.Conn.TryRead(b[:])
				if n > 0 && err == nil {
					_, _ = r.Conn.TryWrite([]byte(name))
				}
				if err == io.EOF {
					return err
				}
			}
			return nil
		})
	}
}

// Shutdown may begin between the accept of a connection and its registration. That one is served like any other.
// To see it fail: let register close what it meets while stopping is set.
func TestAConnectionAcceptedWhileShutdownBeginsIsNotReset(t *testing.T) {
	for name, drain := range map[string]time.Duration{"DrainTimeout": 2 * testLimit, "none": 0} {
		t.Run(name, func(t *testing.T) {
			inside, release := make(chan struct{}, 1), make(chan struct{})
			open := sync.OnceFunc(func() { close(release) })
			defer open()
			r := listen(t, ListenerOptions{Loops: 1, DrainTimeout: drain, Actor: hoEcho("A"), Admit: func(netip.AddrPort) error {
				inside <- struct{}{}
				<-release
				return nil
			}}).serve()
			peer := r.dial()
			write(t, peer, []byte("request"))
			receive(t, "Admit", inside)
			done := make(chan error, 1)
			go func() { done <- r.Shutdown(context.Background()) }()
			waitFor(t, "the stop", r.stopping.Load)
			open()
			if drain > 0 {
				if n, err := io.ReadFull(peer, make([]byte, 1)); n != 1 || err != nil {
					t.Errorf("the answer: %v", err)
				}
				_ = peer.CloseWrite()
			}
			if _, err := io.ReadAll(peer); err != nil {
				t.Errorf("the end: %v, want EOF", err)
			}
			peer.Close()
			if err := receive(t, "the end of Shutdown", done); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}

// The same for one that is registered when its time is over already, and for Close.
func TestAConnectionRegisteredAfterTheEndEndsToo(t *testing.T) {
	for name, end := range map[string]func(*rig) error{
		"time is over": func(r *rig) error { return r.Shutdown(context.Background()) },
		"ctx is over": func(r *rig) error {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := r.Shutdown(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		},
		"Close": func(r *rig) error { return r.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			inside, release := make(chan struct{}, 1), make(chan struct{})
			open := sync.OnceFunc(func() { close(release) })
			defer open()
			ended := make(chan error, 1)
			r := listen(t, ListenerOptions{Loops: 1, DrainTimeout: time.Millisecond, Admit: func(netip.AddrPort) error {
				inside <- struct{}{}
				<-release
				return nil
			}})
			events := r.Events()
			r.serve()
			peer := r.dial()
			receive(t, "Admit", inside)
			go func() { ended <- end(r) }()
			waitFor(t, "the end of all time", func() bool { return r.ending.Load() > endTold && r.stopping.Load() })
			open()
			if _, err := peer.Read(make([]byte, 1)); err == nil || name == "time is over" && err != io.EOF {
				t.Errorf("the peer read %v", err)
			}
			peer.Close()
			if err := receive(t, "the end", ended); err != nil {
				t.Error(err)
			}
			for range events {
			}
		})
	}
}

// To see it fail: take net's File, which makes the shared description blocking; or remove the path after all.
func TestTheSocketGoesOnInWhoeverHasItsFile(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			first := listen(t, ListenerOptions{Network: network, Addr: addr, Actor: hoEcho("1"), DrainTimeout: testLimit}).serve()
			ask := func(c net.Conn) string {
				t.Helper()
				_ = c.SetDeadline(time.Now().Add(testLimit))
				write(t, c, []byte("?"))
				var b [1]byte
				if _, err := io.ReadFull(c, b[:]); err != nil {
					t.Fatal(err)
				}
				return string(b[:])
			}
			dial := func() net.Conn {
				t.Helper()
				c, err := net.Dial(network, first.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				return c
			}
			old := dial()
			if got := ask(old); got != "1" {
				t.Errorf("%q answers", got)
			}
			f, err := first.File()
			if err != nil {
				t.Fatal(err)
			}
			if status, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || status&unix.O_NONBLOCK == 0 {
				t.Errorf("the socket's status is %#o, %v: it blocks", status, err)
			}
			if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("the duplicate's flags are %#o, %v: not CLOEXEC", flags, err)
			}
			ln, err := net.FileListener(f)
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			second := listen(t, ListenerOptions{Listener: ln, Actor: hoEcho("2")})
			done := make(chan error, 1)
			go func() { done <- first.Shutdown(context.Background()) }()
			waitFor(t, "the stop", first.stopping.Load)
			waiting := dial() // in the backlog: nobody accepts
			if got := ask(old); got != "1" {
				t.Errorf("%q answers the old connection", got)
			}
			second.serve()
			if a, b := ask(waiting), ask(dial()); b != "2" {
				t.Errorf("%q and %q answer new connections", a, b)
			}
			old.Close()
			waiting.Close()
			if err := receive(t, "the end of Shutdown", done); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			if got := ask(dial()); got != "2" {
				t.Errorf("%q answers after the end of the first listener", got)
			}
			if _, err := first.File(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("File after the end: %v", err)
			}
		})
	}
}

// A connection that has ended by itself and is only kept by somebody's reference is no timeout.
// To see it fail: let cutLocked count before it looks.
func TestWhatHasEndedBeforeIsNoCloseTimeout(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1})
	r.Events()
	r.serve()
	_, c := r.open()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	inside, release, out := make(chan struct{}, 1), make(chan struct{}), make(chan error, 1)
	open := sync.OnceFunc(func() { close(release) })
	defer open()
	go func() { out <- raw.Control(func(uintptr) { inside <- struct{}{}; <-release }) }()
	receive(t, "Control", inside)
	c.Abort()
	c.mu.Lock()
	c.cutLocked() // what Shutdown does when its ctx has ended
	c.unlock()
	open()
	if err := receive(t, "the end of Control", out); err != nil {
		t.Error(err)
	}
	if n := r.Stats().Timeouts.Close; n != 0 {
		t.Errorf("%d connections counted as ended by CloseTimeout", n)
	}
}
