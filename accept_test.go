//go:build linux

package tcpio

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio/internal/sys"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// ListenerOptions.NewActor may turn a connection away. It must not touch the others, nor the
// counts.
func TestActorHookMayEndItsConnection(t *testing.T) {
	var end atomic.Int32
	closed := make(chan Event, 10)
	r := listen(t, ListenerOptions{Loops: 1, NewActor: func(c *Conn) Actor {
		switch end.Load() {
		case 1:
			c.Abort()
		case 2:
			c.Close()
		}
		echoes := echoActor(c)
		return ActorFunc(func(ev Event) error {
			if _, ok := ev.(Closed); ok {
				closed <- ev
			}
			return echoes.Receive(ev)
		})
	}})
	r.serve()
	old := r.dial()
	echo(t, old, []byte("before"))
	for _, how := range []int32{1, 2} {
		end.Store(how)
		if p, err := net.Dial("tcp", r.Addr().String()); err == nil { // else it is reset already
			if _, err := p.Read(make([]byte, 1)); err == nil {
				t.Errorf("%d: the peer got bytes", how)
			}
			p.Close()
		}
		testnet.Receive(t, "Closed", closed)
		testnet.WaitFor(t, "only the first is left", func() bool { return r.Len() == 1 })
		if n := len(slices.Collect(r.loops[0].conns.All())); n != 1 {
			t.Errorf("%d: %d connections in the table, want 1", how, n)
		}
		echo(t, old, []byte("after"))
	}
}

// Conns shows a connection while it is still being admitted; to end it then is as good as later.
func TestConnectionsMayEndWhileTheyAreAdmitted(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 2, NewActor: echoActor})
	r.serve()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for c := range r.Conns() {
				c.Abort()
			}
			runtime.Gosched()
		}
	})
	for range 200 {
		p, err := net.Dial("tcp", r.Addr().String())
		if err != nil {
			continue // reset already
		}
		_ = p.SetDeadline(time.Now().Add(testnet.Limit))
		_, _ = p.Read(make([]byte, 1))
		p.Close()
	}
	close(stop)
	wg.Wait()
	testnet.WaitFor(t, "all are gone", func() bool { return r.Len() == 0 })
	for _, lp := range r.loops {
		if slots, free := lp.conns.Slots(); slots != free {
			t.Errorf("%d slots, %d free ones", slots, free)
		}
	}
}

func TestConnectionThatIsNotAdoptedIsLeftAsItWas(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{})
	r.Events()
	r.serve()
	r.dial() // Serve is running
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.(*net.TCPConn).SetLinger(7); err != nil {
		t.Fatal(err)
	}
	testnet.WaitFor(t, "Serve is running", func() bool { return r.mayAdd() == nil })
	f.set(func() { f.refuse = syscall.ENOSPC })
	if _, err := r.Adopt(nc); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Adopt: %v", err)
	}
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for name, opt := range map[string]int{"SO_RCVTIMEO": unix.SO_RCVTIMEO, "SO_SNDTIMEO": unix.SO_SNDTIMEO} {
			if tv, err := unix.GetsockoptTimeval(int(fd), unix.SOL_SOCKET, opt); err != nil || *tv != (unix.Timeval{}) {
				t.Errorf("%s is %v, %v", name, tv, err)
			}
		}
		if v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_LINGER); err != nil || v == 0 {
			t.Errorf("SO_LINGER is %d, %v", v, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	nc.(*net.TCPConn).SetLinger(0)
}

// asking is a server's config that says whose handshake begins, and waits until it may go on.
func asking(began chan<- string, goOn <-chan struct{}) *tls.Config {
	cert := testnet.ServerTLS().Certificates[0]
	return &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		began <- hello.ServerName
		<-goOn
		return &cert, nil
	}}
}

// Of the ClientHellos that wait, the newest is served first.
func TestTLSNewestClientHelloIsServedFirst(t *testing.T) {
	began, goOn := make(chan string, 10), make(chan struct{})
	r := listen(t, ListenerOptions{MaxHandshakes: 1, HandshakeTimeout: time.Hour,
		TLSConfig: asking(began, goOn), NewActor: echoActor}).serve()
	names := []string{"first", "second", "third", "fourth"}
	for i, name := range names {
		config := testnet.ClientTLS()
		config.ServerName, config.InsecureSkipVerify = name, true
		c := tls.Client(r.dial(), config)
		done := make(chan struct{})
		go func() { defer close(done); _ = c.Handshake() }()
		t.Cleanup(func() { c.NetConn().Close(); <-done })
		if i == 0 {
			if got := testnet.Await(t, "the first handshake", began); got != name {
				t.Fatalf("%q began", got)
			}
		} else {
			testnet.WaitFor(t, "the place in the queue", func() bool { return r.handshakes.Waiting() == i })
		}
	}
	close(goOn)
	for _, want := range []string{"fourth", "third", "second"} {
		if got := testnet.Await(t, "a handshake", began); got != want {
			t.Errorf("%q began, want %q", got, want)
		}
	}
}

// A connection that closes leaves the queue of handshakes at once, however long the one in front
// takes.
func TestTLSClosedConnectionsLeaveTheQueueOfHandshakes(t *testing.T) {
	began, goOn := make(chan string, 10), make(chan struct{})
	r := listen(t, ListenerOptions{MaxHandshakes: 1, HandshakeTimeout: time.Hour,
		TLSConfig: asking(began, goOn), NewActor: echoActor}).serve()
	defer close(goOn)
	testnet.Send(t, r.dial(), testnet.ClientHello())
	testnet.Await(t, "the first handshake", began)
	var waiting []net.Conn
	for range 100 {
		c := r.dial()
		testnet.Send(t, c, testnet.ClientHello())
		waiting = append(waiting, c)
	}
	testnet.WaitFor(t, "the queue", func() bool { return r.handshakes.Waiting() == 100 })
	for i, c := range waiting {
		switch i % 2 {
		case 0:
			c.Close()
		case 1:
			testnet.RST(t, c)
		}
	}
	testnet.WaitFor(t, "the queue to be empty", func() bool { return r.handshakes.Waiting() == 0 && r.Len() == 1 })
}

// While descriptors are exhausted, neither new peers nor connections that end make the loop try
// more and more often. To see it fail: let acceptFailed make a timer each time.
func TestAcceptingTriesOneTimerLongWhileDescriptorsAreExhausted(t *testing.T) {
	var exhausted atomic.Bool
	r := listen(t, ListenerOptions{Loops: 1})
	accept := r.entries[0].call
	r.entries[0].call = func(fd int32) (int32, sys.Addr, syscall.Errno) {
		if exhausted.Load() {
			return -1, sys.Addr{}, syscall.EMFILE
		}
		return accept(fd)
	}
	r.Events()
	r.serve()
	const n = 20
	conns := make([]*Conn, n)
	for i := range conns {
		_, conns[i] = r.open()
	}
	exhausted.Store(true)
	late := r.dial()
	receiveAs[Failed](t, r.Events())
	for _, c := range conns { // each makes the loop look at once
		c.Abort()
		receiveEnd(t, r.Events())
		asleep(t, r.Listener)
	}
	if pending := r.loops[0].timers.Len(); pending > 1 {
		t.Errorf("%d timers to look again", pending)
	}
	exhausted.Store(false)
	receiveUntil[Opened](t, r.Events())
	late.Close()
}

// To see it fail: let register begin the limits behind the hook.
func TestIdleTimeoutSetByTheActorHookHolds(t *testing.T) {
	hooked := make(chan *Conn, 1)
	r := listen(t, ListenerOptions{Loops: 1, IdleTimeout: time.Hour, NewActor: func(c *Conn) Actor {
		if err := c.SetIdleTimeout(time.Minute); err != nil {
			t.Error(err)
		}
		hooked <- c
		return ActorFunc(func(Event) error { return nil })
	}}).serve()
	r.dial()
	c := testnet.Receive(t, "the hook", hooked)
	testnet.WaitFor(t, "Opened", func() bool { return markedRoute(c, routeOpened) })
	if got := locked(c, func() uint32 { return c.limit.idle }); got != uint32(time.Minute/time.Millisecond) {
		t.Errorf("the limit is %d ms", got)
	}
}

// The errors that accept(2) says to treat like EAGAIN.
func TestAcceptErrorsOfOneConnectionAreSkipped(t *testing.T) {
	r, _ := fakeOne(t, ListenerOptions{})
	events := r.Events()
	errnos := []syscall.Errno{
		unix.ENETDOWN, unix.EPROTO, unix.ENOPROTOOPT, unix.EHOSTDOWN, unix.ENONET, unix.EHOSTUNREACH,
		unix.EOPNOTSUPP, unix.ENETUNREACH, unix.ECONNABORTED, unix.EPERM,
	}
	left := slices.Clone(errnos)
	r.entries[0].call = func(fd int32) (int32, sys.Addr, syscall.Errno) {
		if len(left) > 0 {
			errno := left[0]
			left = left[1:]
			return -1, sys.Addr{}, errno
		}
		return sys.Accept(fd)
	}
	r.serve()
	r.dial()
	receiveAs[Opened](t, events) // and no Failed before it
	for _, errno := range errnos {
		if sys.Exhausted(errno) {
			t.Errorf("%v is taken for exhaustion", errno)
		}
	}
}

// A storm of such errors must not keep the loop from its connections.
func TestEndlessAcceptErrorsStarveNobody(t *testing.T) {
	r, _ := fakeOne(t, ListenerOptions{NewActor: echoActor})
	r.entries[0].call = sys.Accept
	r.serve()
	peer := r.dial()
	echo(t, peer, []byte("before"))
	r.socket.mu.Lock()
	r.entries[0].call = func(int32) (int32, sys.Addr, syscall.Errno) { return -1, sys.Addr{}, unix.ECONNABORTED }
	r.socket.mu.Unlock()
	r.dial()
	for range 50 {
		echo(t, peer, []byte("during"))
	}
	r.socket.mu.Lock()
	r.entries[0].call = sys.Accept
	r.socket.mu.Unlock()
	testnet.WaitFor(t, "the second connection is accepted", func() bool { return r.Len() == 2 })
}

func TestExhaustedDescriptorsBackOffAndRecover(t *testing.T) {
	t.Parallel()
	var took time.Duration
	for range 3 { // a machine that stands still for a moment waits as long as the back-off
		if took = backOffAndRecover(t); took < acceptSlowest-10*time.Millisecond {
			return
		}
	}
	t.Errorf("the next attempt came after %v", took)
}

// backOffAndRecover runs out of descriptors until the back-off is at its longest, and returns how long behind
// the last attempt a connection is opened once a descriptor is free.
func backOffAndRecover(t *testing.T) (took time.Duration) {
	r, _ := fakeOne(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	_, first := r.open()

	calls := make(chan time.Time, 1000)
	start := time.Now() // before the first Failed
	r.socket.mu.Lock()
	r.entries[0].call = func(fd int32) (int32, sys.Addr, syscall.Errno) {
		calls <- time.Now()
		return -1, sys.Addr{}, unix.EMFILE
	}
	r.socket.mu.Unlock()
	peer := r.dial()
	if failed := receiveAs[Failed](t, events); !errors.Is(failed.Err, syscall.EMFILE) {
		t.Errorf("Failed says %v, want EMFILE", failed.Err)
	}
	last := testnet.Receive(t, "an accept", calls)
	for want := acceptBackoff; want < acceptSlowest; want *= 2 {
		at := testnet.Receive(t, "the next attempt", calls)
		if d := at.Sub(last); d < want-time.Millisecond {
			t.Errorf("attempt after %v, want at least %v", d, want)
		}
		last = at
	}
	if n, d := len(events), time.Since(start); n > int(d/time.Second) {
		t.Errorf("%d more events in %v: Failed comes once a second", n, d)
	}
	r.socket.mu.Lock()
	r.entries[0].call = sys.Accept
	r.socket.mu.Unlock()
	// A descriptor that comes free is used at once, and not when the back-off, of a second now, is
	// over.
	first.Abort()
	var c *Conn
	for c == nil {
		switch ev := testnet.Receive(t, "Opened", events).(type) {
		case Opened:
			c = ev.Conn
		case Closed, Failed: // more than a second has passed since the first Failed
		default:
			t.Fatalf("got %T", ev)
		}
	}
	took = time.Since(last)
	if _, err := c.TryWrite([]byte("welcome")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(peer, make([]byte, 7)); err != nil {
		t.Errorf("the peer that waited: %v", err)
	}
	return took
}

// To see it fail: leave out the comparison with reportedAt in shard.report.
func TestLastingFailureIsOneLineOfLogASecond(t *testing.T) {
	t.Parallel()
	log := new(testnet.Log)
	r, _ := fakeOne(t, ListenerOptions{NewActor: echoActor, Logger: slog.New(log)})
	r.serve()
	var conns []*Conn
	for range 200 {
		r.dial()
	}
	testnet.WaitFor(t, "all are accepted", func() bool { conns = slices.Collect(r.loops[0].conns.All()); return len(conns) == 200 })
	var failures atomic.Int64
	r.socket.mu.Lock()
	r.entries[0].call = func(int32) (int32, sys.Addr, syscall.Errno) {
		failures.Add(1)
		return -1, sys.Addr{}, unix.EMFILE
	}
	r.socket.mu.Unlock()
	start := time.Now()
	r.dial()
	testnet.WaitFor(t, "accepting fails", func() bool { return failures.Load() > 0 })
	for _, c := range conns { // each that ends makes the listener look again
		before := failures.Load()
		c.Abort()
		testnet.WaitFor(t, "it has looked again", func() bool { return failures.Load() > before })
	}
	testnet.WaitFor(t, "a line of log", func() bool { return log.Count("") > 0 })
	lines, most := log.Count(""), int(time.Since(start)/time.Second)+1
	if lines > most {
		t.Errorf("%d lines of log for %d failures in %v, want %d at most", lines, failures.Load(), time.Since(start), most)
	}
}

// An endpoint whose socket fails holds up no other: what they have comes first.
func TestEndpointThatFailsLeavesTheOthersTheirTurn(t *testing.T) {
	r := listen(t, ListenerOptions{More: []Endpoint{{Addr: "127.0.0.1:0"}, {Name: "good", Addr: "127.0.0.1:0"}}})
	broken := func(int32) (int32, sys.Addr, syscall.Errno) { return -1, sys.Addr{}, unix.EINVAL }
	r.entries[0].call, r.entries[1].call = broken, broken
	const peers = 20
	for range peers {
		c, err := net.Dial("tcp", r.Addrs()[2].String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	events := r.Events()
	r.serve()
	failed := 0
	for n := 0; n < peers || failed == 0; {
		switch ev := testnet.Receive(t, "an event", events).(type) {
		case Opened:
			n++
			if ev.Conn.Endpoint() != "good" {
				t.Errorf("%v came by %q", ev.Conn, ev.Conn.Endpoint())
			}
		case Failed:
			failed++
			var op *net.OpError
			if !errors.As(ev.Err, &op) || op.Op != "accept" || op.Addr != r.entries[0].addr && op.Addr != r.entries[1].addr {
				t.Errorf("Failed: %v", ev.Err)
			}
		}
	}
	one, err := net.Dial("tcp", r.Addrs()[2].String()) // while accepting pauses
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	receiveUntil[Opened](t, events)
}

// A health check's reset is none of the program's business, also where Preface meets it before the
// loop is told. To see it fail: leave failed out of over in lookAhead.
func TestResetThatPrefaceMeetsBeforeItsEdgeIsNotReported(t *testing.T) {
	r, f := fakeOne(t, ListenerOptions{Preface: func(*Conn, []byte) (int, error) { return 0, ErrShortPreface }})
	r.Events()
	r.serve()
	peer := r.dial()
	var c *Conn
	testnet.WaitFor(t, "Preface has seen that there is nothing", func() bool {
		for c = range r.Conns() {
		}
		return c != nil && locked(c, func() bool { return c.ext.preface.seen == 0 && !c.ext.preface.running })
	})
	hold := make(chan struct{})
	defer close(hold)
	f.set(func() { f.hold = hold })
	testnet.RST(t, peer)
	testnet.WaitFor(t, "the reset", func() bool { return sys.Disconnected(c.fd) })
	if b, _ := c.lookAhead(); b != nil {
		t.Error("Preface would be called with nothing, again")
	}
	if n := r.Stats().Refused.Preface; n != 1 || !c.released() {
		t.Errorf("%d refused, in state %s", n, state(c))
	}
	if err := r.loops[0].trouble[ofPeer].Load(); err != nil {
		t.Errorf("reported: %v", *err)
	}
}
