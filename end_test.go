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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio/internal/sys"
	"github.com/rabbit-backend/tcpio/internal/testnet"
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

// Shutdown may begin between the accept of a connection and its registration. That one is served
// like any other. To see it fail: let register close what it meets while stopping is set.
func TestConnectionAcceptedWhileShutdownBeginsIsNotReset(t *testing.T) {
	for name, drain := range map[string]time.Duration{"DrainTimeout": 2 * testnet.Limit, "none": 0} {
		t.Run(name, func(t *testing.T) {
			inside, release := make(chan struct{}, 1), make(chan struct{})
			open := sync.OnceFunc(func() { close(release) })
			defer open()
			r := listen(t, ListenerOptions{Loops: 1, DrainTimeout: drain, NewActor: hoEcho("A"), Admit: func(netip.AddrPort) error {
				inside <- struct{}{}
				<-release
				return nil
			}}).serve()
			peer := r.dial()
			testnet.Send(t, peer, "request")
			testnet.Receive(t, "Admit", inside)
			done := make(chan error, 1)
			go func() { done <- r.Shutdown(context.Background()) }()
			testnet.WaitFor(t, "the stop", r.stopping.Load)
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
			if err := testnet.Receive(t, "the end of Shutdown", done); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}

// The same for one that is registered when its time is over already, and for Close.
func TestConnectionRegisteredAfterTheEndEndsToo(t *testing.T) {
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
			testnet.Receive(t, "Admit", inside)
			go func() { ended <- end(r) }()
			testnet.WaitFor(t, "the end of all time", func() bool { return r.ending.Load() > endTold && r.stopping.Load() })
			open()
			if _, err := peer.Read(make([]byte, 1)); err == nil || name == "time is over" && err != io.EOF {
				t.Errorf("the peer read %v", err)
			}
			peer.Close()
			if err := testnet.Receive(t, "the end", ended); err != nil {
				t.Error(err)
			}
			for range events {
			}
		})
	}
}

// To see it fail: take net's File, which makes the shared description blocking; or remove the path
// after all.
func TestSocketGoesOnInWhoeverHasItsFile(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			first := listen(t, ListenerOptions{Network: network, Addr: addr, NewActor: hoEcho("1"), DrainTimeout: testnet.Limit}).serve()
			ask := func(c net.Conn) string {
				t.Helper()
				_ = c.SetDeadline(time.Now().Add(testnet.Limit))
				testnet.Send(t, c, "?")
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
			second := listen(t, ListenerOptions{Listener: ln, NewActor: hoEcho("2")})
			done := make(chan error, 1)
			go func() { done <- first.Shutdown(context.Background()) }()
			testnet.WaitFor(t, "the stop", first.stopping.Load)
			waiting := dial() // in the backlog: nobody accepts
			if got := ask(old); got != "1" {
				t.Errorf("%q answers the old connection", got)
			}
			second.serve()
			a := ask(waiting)
			receive0(t, "the first listener accepts no more", first.socket.over)
			if b := ask(dial()); b != "2" {
				t.Errorf("%q and %q answer new connections", a, b)
			}
			old.Close()
			waiting.Close()
			if err := testnet.Receive(t, "the end of Shutdown", done); err != nil {
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
// To see it fail: let closeTimedOutLocked count before it looks.
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
	testnet.Receive(t, "Control", inside)
	c.Abort()
	c.mu.Lock()
	c.closeTimedOutLocked() // what Shutdown does when its ctx has ended
	c.unlock()
	open()
	if err := testnet.Receive(t, "the end of Control", out); err != nil {
		t.Error(err)
	}
	if n := r.Stats().Timeouts.Close; n != 0 {
		t.Errorf("%d connections counted as ended by CloseTimeout", n)
	}
}

// What peers have sent before the Shutdown is handled before Draining, also if no loop has come to
// it yet: here their connections wait in the backlog.
func TestWhatWasSentBeforeTheShutdownIsHandledBeforeDraining(t *testing.T) {
	for range 5 {
		release, entered := make(chan struct{}), make(chan struct{}, 1)
		var once sync.Once
		o := ListenerOptions{Addr: "127.0.0.1:0", Loops: 3, DrainTimeout: testnet.Limit}
		o.Admit = func(netip.AddrPort) error {
			once.Do(func() {
				entered <- struct{}{}
				<-release
			})
			return nil
		}
		o.NewActor = func(*Conn) Actor {
			return ActorFunc(func(ev Event) error {
				if _, ok := ev.(Draining); ok {
					return io.EOF // closes: what is handled behind it gets no answer
				}
				r, ok := ev.(Readable)
				if !ok {
					return nil
				}
				var b [16]byte
				n, err := r.Conn.TryRead(b[:])
				if errors.Is(err, ErrWouldBlock) {
					return nil
				}
				if err == nil {
					_, err = r.Conn.TryWrite(b[:n])
				}
				return err
			})
		}
		l, err := Listen(&o)
		if err != nil {
			t.Fatal(err)
		}
		served, down := make(chan error, 1), make(chan error, 1)
		go func() { served <- l.Serve(context.Background()) }()
		var peers []net.Conn
		for range 60 {
			peer := testnet.Connect(t, l)
			testnet.Send(t, peer, "request")
			if peers = append(peers, peer); len(peers) == 1 {
				testnet.Receive(t, "the hook that blocks", entered)
			}
		}
		go func() { down <- l.Shutdown(context.Background()) }()
		testnet.WaitFor(t, "the Shutdown", l.socket.last.Load)
		close(release)
		for i, peer := range peers {
			if answer, err := io.ReadAll(peer); string(answer) != "request" || err != nil {
				t.Errorf("peer %d got %q, %v", i, answer, err)
			}
			peer.Close()
		}
		if err := testnet.Receive(t, "the end of Shutdown", down); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := testnet.Receive(t, "the end of Serve", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

// To see it fail: let EventsPerLoop look at finished instead.
func TestStreamsBesideCloseDoesNotPanic(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1})
	r.stopAccepting() // what Close does first
	if chans := r.EventsPerLoop(); len(chans) != 0 {
		t.Errorf("%d channels", len(chans))
	}
	r.Close()
	r.EventsPerLoop()
}

// The goroutine that Close leaves behind ends also when Serve never ran. To see it fail: drop
// finishUnserved from Close; the leak check of TestMain reports it.
func TestNetListenerClosedWithoutServeLeavesNothing(t *testing.T) {
	r := listen(t, ListenerOptions{})
	nl := r.NetListener().(*netListener)
	if err := nl.Close(); err != nil {
		t.Fatal(err)
	}
	if ev, ok := <-nl.l.accepted.ch; ok {
		t.Errorf("got %T", ev)
	}
}

// To see it fail: let acceptRest go on for as long as peers come.
func TestShutdownEndsThoughPeersKeepComing(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1})
	var forever atomic.Bool
	accept := r.entries[0].call
	r.entries[0].call = func(fd int32) (int32, sys.Addr, syscall.Errno) {
		if forever.Load() {
			return -1, sys.Addr{}, syscall.ECONNABORTED
		}
		return accept(fd)
	}
	r.Events()
	r.serve()
	r.open()
	forever.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.Shutdown(ctx) }()
	if err := testnet.Receive(t, "the end of Shutdown", done); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
}

// revActors serves n connections with one loop and receive as their actor, which Opened does not
// reach.
func revActors(t *testing.T, n int, handle func(Event) error) (*rig, []*Conn) {
	t.Helper()
	opened := make(chan *Conn, n)
	r := listen(t, ListenerOptions{Loops: 1, NewActor: func(*Conn) Actor {
		return ActorFunc(func(ev Event) error {
			if o, ok := ev.(Opened); ok {
				opened <- o.Conn
				return nil
			}
			return handle(ev)
		})
	}}).serve()
	conns := make([]*Conn, n)
	for i := range conns {
		r.dial()
		conns[i] = testnet.Receive(t, "Opened", opened)
	}
	return r, conns
}

// A handler may return what another connection ended with. That is an error of its own then, and no
// panic, let alone an exiting goroutine, which would give the loop's role to a second one. To see
// it fail: let receive look at the error's type.
func TestPanicErrorThatIsReturnedIsAnError(t *testing.T) {
	for name, cause := range map[string]*PanicError{
		"panic":  {Value: "a value"},
		"goexit": {Value: errGoexit},
		"nil":    nil,
	} {
		t.Run(name, func(t *testing.T) {
			r, conns := revActors(t, 1, func(ev Event) error {
				if _, ok := ev.(Message); ok {
					return cause
				}
				return nil
			})
			c := conns[0]
			c.Post(1)
			testnet.WaitFor(t, "the connection ends", func() bool { return locked(c, c.ended) })
			if err := locked(c, func() error { return c.ext.err }); err != error(cause) {
				t.Errorf("its error is %v, want %v", err, cause)
			}
			// One that was held up has lost its loop, and counts until it has returned.
			testnet.WaitFor(t, "no handler counts as blocked", func() bool { return r.Stats().Blocked == 0 })
			if markedSock(c, sockReset) {
				t.Error("aborted, as after a panic")
			}
		})
	}
}

// Every way to the end, from every state that it begins in.
func TestStatesFollowTheTable(t *testing.T) {
	t.Parallel()
	own := errors.New("the actor's own")
	read := func(c *Conn) { _, _ = c.TryRead(make([]byte, 64)) }
	drainPeer := func(peer *net.TCPConn) { go func() { _, _ = io.Copy(io.Discard, peer); peer.Close() }() }
	for _, tc := range []struct {
		name    string
		from    []string
		do      func(t *testing.T, r *rig, peer *net.TCPConn, c *Conn)
		err     error // Err at the end, nil for an orderly one
		timeout time.Duration
	}{
		{"Close, and the peer reads and ends", []string{"open", "closing", "FIN sent"},
			func(_ *testing.T, _ *rig, peer *net.TCPConn, c *Conn) { c.Close(); drainPeer(peer) }, nil, 0},
		{"EOF read and EOFTimeout", []string{"open"},
			func(t *testing.T, _ *rig, peer *net.TCPConn, c *Conn) {
				if err := peer.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				testnet.WaitFor(t, "EOF is read", func() bool { read(c); return locked(c, func() bool { return c.peerEnd != peerOpen || c.released() }) })
			}, nil, 0},
		{"the actor's error", []string{"open"},
			func(t *testing.T, r *rig, peer *net.TCPConn, c *Conn) {
				done := make(chan struct{})
				a := ActorFunc(func(ev Event) error {
					switch ev.(type) {
					case Message:
						return own
					case Closed:
						close(done)
					}
					return nil
				})
				if err := errors.Join(c.Attach(a), c.Post("go")); err != nil {
					t.Fatal(err)
				}
				drainPeer(peer)
				receive0(t, "the actor's Closed", done)
			}, own, 0},
		{"Abort", []string{"open", "closing", "FIN sent"},
			func(_ *testing.T, _ *rig, _ *net.TCPConn, c *Conn) { c.Abort() }, net.ErrClosed, 0},
		{"a read error", []string{"open", "FIN sent"},
			func(t *testing.T, _ *rig, peer *net.TCPConn, c *Conn) {
				_ = peer.SetLinger(0)
				peer.Close()
				testnet.WaitFor(t, "the error is read", func() bool { read(c); return state(c) == "gone" })
			}, syscall.ECONNRESET, 0},
		{"CloseTimeout with output left", []string{"closing"},
			func(*testing.T, *rig, *net.TCPConn, *Conn) {}, ErrCloseTimeout, 500 * time.Millisecond},
		{"CloseTimeout without", []string{"FIN sent"},
			func(*testing.T, *rig, *net.TCPConn, *Conn) {}, nil, 500 * time.Millisecond},
		{"Listener.Close", []string{"open", "closing", "FIN sent"},
			func(_ *testing.T, r *rig, _ *net.TCPConn, _ *Conn) { r.Close() }, net.ErrClosed, 0},
	} {
		for _, from := range tc.from {
			t.Run(tc.name+" from "+from, func(t *testing.T) {
				r := listen(t, ListenerOptions{CloseTimeout: tc.timeout, EOFTimeout: 50 * time.Millisecond})
				events := r.Events()
				r.serve()
				peer, c := inState(t, r, from)
				if err := c.Err(); err != nil && state(c) != "gone" {
					t.Errorf("Err before the end: %v", err)
				}
				tc.do(t, r, peer, c)
				if !errors.Is(tc.err, own) {
					receiveEnd(t, events)
				}
				testnet.WaitFor(t, "the connection is gone", func() bool { return state(c) == "gone" })
				if err := c.Err(); tc.err == nil && err != nil || !errors.Is(err, tc.err) {
					t.Errorf("Err is %v, want %v", err, tc.err)
				}
			})
		}
	}
}
