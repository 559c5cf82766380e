package tcpio

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/rabbit-backend/tcpio/internal/quota"
	"github.com/rabbit-backend/tcpio/internal/sys"
	"github.com/rabbit-backend/tcpio/internal/wait"
)

// A Listener accepts connections and turns their readiness into events. Its methods may be called
// from any goroutine.
type Listener struct {
	shared

	// Atomic, or with locks of their own.
	socket      listenSocket
	errs        callback      // OnErrorEvent, where there are no callbacks
	dials       dials         // under way
	dialWorkers wait.Workers  // look up names for DialAsync, and run Control of its Dialer
	refusing    atomic.Int64  // refused connections that are still open; no loop's live counts them
	stopping    atomic.Bool   // nothing is accepted any more
	ending      atomic.Int32  // how far the end has come for the connections; see below
	blocked     atomic.Int64  // goroutines in handlers that lost their loop
	routesKnown chan struct{} // closed when it is known where events go: loops and streams are fixed
	started     chan struct{} // closed when the loops have pollers
	allClosed   chan struct{} // closed when stopping, and every descriptor is closed
	allClosedAt int64         // when that was; read after allClosed is closed
	lateBefore  atomic.Uint64 // what Timeouts.Close was when Shutdown began

	newPoller   func() (poller, error) // epoll; a fake in tests
	plainDialer net.Dialer             // of dials without one; immutable

	mu sync.Mutex
	// Guarded by mu until routesKnown is closed, immutable after that.
	loops       []*loop
	perLoop     bool         // each loop has a stream; with actors guarded by mu for good
	callbacks   *callback    // OnConnEvent, or Start without any other route
	netListener net.Listener // what NetListener returned
	accepted    *stream      // the Opened of its connections

	// Guarded by mu.
	events    *stream // when Events was called
	stoppedAt int64   // when stopping was set
	served    bool    // Serve was called
	polling   bool    // the loops have pollers
	finished  bool    // the channels are closed
}

// Listen opens a listening socket. From then on peers may connect and wait in the backlog; Serve
// accepts them. The socket is CLOEXEC, and its backlog is the system's maximum
// (net.core.somaxconn). TCP_NODELAY is on; connections inherit it, and KeepAlive.
//
// Listen fails on a nil opts, on a bad field (the error names it), with what net.Listen returns,
// and with errors.ErrUnsupported where the system is not Linux.
func Listen(opts *ListenerOptions) (*Listener, error) {
	if opts == nil {
		return nil, errors.New("tcpio: Listen: options are nil")
	}
	if !sys.Supported {
		return nil, fmt.Errorf("tcpio: Listen: %w", errors.ErrUnsupported)
	}
	l := &Listener{
		shared: shared{
			opts:        *opts,
			feedersDone: make(chan struct{}, 1),
			dropEvents:  make(chan struct{}),
		},
		routesKnown: make(chan struct{}),
		started:     make(chan struct{}),
		allClosed:   make(chan struct{}),

		newPoller: func() (poller, error) {
			p, err := newEpoll()
			if err != nil {
				return nil, err // and no *epoll
			}
			return p, nil
		},
	}
	l.plainDialer.SetMultipathTCP(false) // as for the listening socket, also if GODEBUG says otherwise
	l.roomAgain, l.onClosed, l.listener = l.retryAccept, l.connClosed, l
	if err := l.opts.check(); err != nil {
		return nil, err
	}
	l.errs.onErr = l.opts.OnErrorEvent
	l.handshakes = quota.NewHandshakes(l.opts.MaxHandshakes, max(1, runtime.GOMAXPROCS(0)/2))
	if l.opts.MaxBuffered == 0 {
		l.opts.MaxBuffered = defaultBuffered(processMemory())
	}
	l.budget.Most = int64(l.opts.MaxBuffered)
	l.timed.Store(l.opts.hasTimeLimit())
	if err := l.socket.open(l.opts.endpoints(), &l.opts); err != nil {
		return nil, err
	}
	l.entries = l.socket.entries
	l.addr, l.opts.Listener, l.opts.More = l.entries[0].addr, nil, nil
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.opts.NewActor != nil:
		l.fixRoutesLocked(defaultLoops(), false)
	case l.opts.OnConnEvent != nil:
		l.callbacks = &callback{onConn: l.opts.OnConnEvent, onErr: l.opts.OnErrorEvent}
		if l.opts.ConcurrentCallbacks {
			l.fixRoutesLocked(defaultLoops(), false)
		} else {
			l.callbacks.calls = new(wait.CallQueue)
			l.fixRoutesLocked(1, false)
		}
	}
	return l, nil
}

// fixRoutesLocked fixes the loops, of which there are n unless the options say otherwise.
func (l *Listener) fixRoutesLocked(n int, perLoop bool) {
	if l.routesFixed() {
		return
	}
	if l.opts.Loops > 0 && n > 0 {
		n = l.opts.Loops
	}
	for i := range n {
		lp := newLoop(l, i)
		if perLoop {
			lp.stream = newStream(&l.shared, l.opts.EventBuffer, false)
		}
		l.loops = append(l.loops, lp)
	}
	l.perLoop = perLoop
	close(l.routesKnown)
}

// defaultLoops is how many loops there are where each has a processor's worth of work. One
// processor is left to the runtime's own poller: it looks at the network when a processor has
// nothing to run, and a loop blocked in epoll_wait has something, until the runtime's monitor takes
// the processor away, up to 10 ms later.
func defaultLoops() int { return max(1, runtime.GOMAXPROCS(0)-1) }

func (l *Listener) routesFixed() bool {
	select {
	case <-l.routesKnown:
		return true
	default:
		return false
	}
}

// Addr returns the address that the listener is bound to, with the port that the system chose. With
// Network "none" it is one whose Network and String are "none". It works after Close.
func (l *Listener) Addr() net.Addr { return l.addr }

// Addrs returns the addresses of all the listener's sockets: Addr, and those of
// [ListenerOptions].More in their order. With Network "none" Addr is not among them. It works after
// Close.
func (l *Listener) Addrs() (addrs []net.Addr) {
	for _, e := range l.entries {
		if e.addr != (noAddr{}) {
			addrs = append(addrs, e.addr)
		}
	}
	return addrs
}

// Events returns the channel of all events, the same on every call. It is closed behind the last
// event, when Serve returns. Several goroutines may receive from it; tcpio then gives no order
// between them. With ListenerOptions.NewActor or OnConnEvent only Failed is sent there.
//
// Events panics after EventsPerLoop, and EventsPerLoop after Events: each channel would lack
// events.
func (l *Listener) Events() <-chan Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perLoop {
		panic("tcpio: Listener.Events called after EventsPerLoop")
	}
	if l.events == nil {
		l.events = newStream(&l.shared, l.opts.EventBuffer, false)
		if l.finished {
			close(l.events.ch)
		}
		l.fixRoutesLocked(1, false)
	}
	return l.events.ch
}

// EventsPerLoop returns one channel for each loop, the same on every call; each is for a consumer
// goroutine of its own. Connections are spread over the loops and stay there, so that all events of
// a connection come on one channel. Failed comes on the first channel. The channels are closed
// behind their last event, when Serve returns. With ListenerOptions.NewActor or OnConnEvent only
// Failed is sent there.
//
// EventsPerLoop may be called at any time, but panics after Events or NetListener.
func (l *Listener) EventsPerLoop() []<-chan Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.events != nil:
		panic("tcpio: Listener.EventsPerLoop called after Events")
	case l.netListener != nil:
		panic("tcpio: Listener.EventsPerLoop called after NetListener")
	case !l.routesFixed():
		l.fixRoutesLocked(defaultLoops(), true)
	case !l.perLoop: // with an actor or callbacks; or stopped before it had any loop
		for _, lp := range l.loops {
			lp.stream = newStream(&l.shared, l.opts.EventBuffer, false)
			if l.finished {
				close(lp.stream.ch)
			}
		}
		l.perLoop = len(l.loops) > 0
	}
	chans := make([]<-chan Event, len(l.loops))
	for i, lp := range l.loops {
		chans[i] = lp.stream.ch
	}
	return chans
}

// streamFor is where the events of new connections on lp go; nil with an actor.
func (l *Listener) streamFor(lp *loop) *stream {
	switch {
	case l.opts.NewActor != nil, l.callbacks != nil:
		return nil
	case l.netListener != nil:
		return l.accepted
	case l.perLoop:
		return lp.stream
	}
	return l.events
}

// Conns iterates over the connections that are open or closing. One that is so during the whole
// iteration comes exactly once; one that opens or closes meanwhile may come or not. Refused ones
// never come, nor those that a dial is making. No lock is held while the body runs, so a connection
// may have closed by then.
func (l *Listener) Conns() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		for c := range l.everyConn() {
			if c.origin != refused && !c.isDialing() && !yield(c) {
				return
			}
		}
	}
}

// everyConn is Conns with the refused connections that wait for their peer to read the reply.
func (l *Listener) everyConn() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		if !l.routesFixed() {
			return
		}
		for _, lp := range l.loops {
			for c := range lp.conns.All() {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// Len returns the number of connections that have a descriptor, without those that were refused. It
// takes no lock.
func (l *Listener) Len() int {
	if !l.routesFixed() {
		return 0
	}
	n := int64(0)
	for _, lp := range l.loops {
		n += lp.live.Load()
	}
	return int(n)
}

// How far the end has come. It is set before the connections are gone through: one that is
// registered meanwhile either is seen there or sees it.
const (
	endTold   = 1 + iota // Shutdown has sent Draining
	endClosed            // their time is over
	endCut               // Close, or the end of Shutdown's ctx
)

// abortAll stops everything. It does not wait.
func (l *Listener) abortAll() {
	l.endAt(endCut)
	l.stopAccepting()
	for c := range l.everyConn() {
		c.Abort()
	}
}

// endAt notes how far the end has come. It never goes back.
func (l *Listener) endAt(stage int32) {
	for {
		at := l.ending.Load()
		if at >= stage || l.ending.CompareAndSwap(at, stage) {
			return
		}
	}
}

// stopAccepting stops at once. What waits in the backlog is reset, and what is in a hook is closed.
func (l *Listener) stopAccepting() {
	l.socket.close(l.stop())
	l.dials.end()
	l.checkAllClosed()
}

// stop notes that the listener is stopping. It returns the first loop's poller, nil without one.
func (l *Listener) stop() poller {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stopping.Swap(true) {
		l.stoppedAt = now()
	}
	l.fixRoutesLocked(0, false)
	if l.polling {
		return l.loops[0].p
	}
	return nil
}

// checkAllClosed notes that the last descriptor is closed, and ends the loops.
func (l *Listener) checkAllClosed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.socket.over: // before the counts: what was arriving until now is in one of them
	default:
		return
	}
	for _, lp := range l.loops {
		if lp.live.Load() != 0 {
			return
		}
	}
	if l.refusing.Load() != 0 || !l.dials.over() {
		return
	}
	select {
	case <-l.allClosed:
		return
	default:
	}
	l.allClosedAt = now()
	close(l.allClosed)
	for _, lp := range l.loops {
		lp.addTimer(&timer{kind: timerWake}, l.opts.CloseTimeout)
		lp.kick()
	}
}

// timeIsUp reports whether handlers that still block have had their time: every descriptor is
// closed since CloseTimeout.
func (l *Listener) timeIsUp() bool {
	select {
	case <-l.allClosed:
		return now() >= l.allClosedAt+int64(l.opts.CloseTimeout)
	default:
		return false
	}
}

// retryAccept makes the first loop look at the backlog again, if it had paused.
func (l *Listener) retryAccept() {
	l.socket.retry.Store(true)
	l.loops[0].kick()
}

// deliverFailed delivers a Failed about err: to the channel of Events, else to the first one of
// EventsPerLoop, OnErrorEvent or the log.
func (l *Listener) deliverFailed(whose trouble, err error) {
	l.mu.Lock()
	s := l.events
	if l.perLoop {
		s = l.loops[0].stream
	}
	l.mu.Unlock()
	switch {
	case s != nil:
		s.fail(err)
	case l.opts.OnErrorEvent != nil:
		l.errorsTo().listenerFailed(&l.shared, err)
	case whose == ofPeer:
		l.logOnce(slog.LevelInfo, "tcpio: a peer was refused", "addr", l.addr.String(), "err", err)
	default:
		l.logOnce(slog.LevelError, "tcpio: listener", "addr", l.addr.String(), "err", err)
	}
}

// errorsTo returns whose OnErrorEvent is called. Where there are no callbacks its calls come one at
// a time all the same.
func (l *Listener) errorsTo() *callback {
	if l.callbacks != nil {
		return l.callbacks
	}
	return &l.errs
}

// connClosed is called when a connection's descriptor is closed and Closed emitted.
func (l *Listener) connClosed(c *Conn) {
	if side := c.relaySide(); side != nil {
		side.run(relayAll) // the loop may have ended
	}
	n := int64(0)
	if c.origin == refused {
		n = l.refusing.Add(-1)
	} else {
		n = c.sh.live.Add(-1)
	}
	if l.socket.starved.Load() {
		l.retryAccept()
	}
	if n == 0 && l.stopping.Load() {
		l.checkAllClosed()
	}
}
