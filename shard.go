package tcpio

import (
	"crypto/tls"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/quota"
	"github.com/rabbit-backend/tcpio/internal/sched"
	"github.com/rabbit-backend/tcpio/internal/sys"
	"github.com/rabbit-backend/tcpio/internal/wait"
)

// A poller reports readiness; epoll in production, a fake in tests.
type poller interface {
	add(fd int, k sched.Key, mask uint32) error
	remove(fd int) error
	wait(events []readyEvent, timeout time.Duration) (int, error) // negative: until something happens
	wake()                                                        // ends this wait, or the next
	close()
}

// A key in the poller's data names a registration. No Go pointer goes there, the collector could
// not see it. listenKey is the listening socket's; no connection has the generation zero.
var listenKey = sched.Key{Slot: 1}

// shared is what all connections of a listener share, and all its loops.
type shared struct {
	// Immutable after Listen.
	opts      ListenerOptions // with the defaults filled in
	addr      net.Addr        // of the first of entries
	entries   []*entry        // by sys.Addr.Entry: the listener's own, then those of More
	listener  any             // see Conn.Listener
	roomAgain func()          // is called when a stream that was full has been emptied
	onClosed  func(c *Conn)   // see Listener.connClosed

	// With locks of their own, or atomic.
	pool        buf.Pool
	exts        sync.Pool           // connExts that a relay had no use for; zero values
	hurried     atomic.Bool         // Shutdown has begun: no close waits for a silent peer
	fedAt       atomic.Int64        // when a feeder last sent an event, or began
	pipes       sys.Pipes           // of relays
	timed       atomic.Bool         // there are time limits: the loops keep their coarse clocks
	feeders     atomic.Int64        // goroutines that feed a stream
	feedersDone chan struct{}       // of one: the last feeder has ended
	dropEvents  chan struct{}       // closed when undelivered events are dropped
	budget      quota.Budget[*Conn] // MaxBuffered: the output queues of all connections
	perAddress  quota.PerAddress    // the connections, if MaxConnsPerIP is set
	handshakes  *quota.Handshakes
	logLimit    quota.LogLimit
	debugLimit  quota.LogLimit         // of lines at the level Debug
	logging     wait.CallQueue         // lines on their way to the logger
	panics      atomic.Uint64          // of user code
	reportedAt  [troubles]atomic.Int64 // of the last Failed, on the clock of now
}

// An entry is a listening socket, with what differs between a listener's. The first one has none if
// Network is "none".
type entry struct {
	// Immutable after Listen.
	name      string
	addr      net.Addr
	anyAddr   bool     // bound to a wildcard: each connection has a local address of its own
	multipath bool     // a given listener, as net.Listen makes it, speaks multipath TCP
	zone      sys.Zone // of the network interface that the socket is bound to
	tls       *tls.Config
	preface   func(*Conn, []byte) (int, error)
	call      sys.AcceptFunc // another one in tests

	// Guarded by listenSocket.mu.
	fd   int32            // -1 once closed
	path string           // of a unix socket that we made, removed at close
	file sys.FileID       // what we made there
	std  *net.TCPListener // what GetListener made
}

// A shard is what connections need of their loop. The loop has it, and the connections have nothing
// else of the loop.
type shard struct {
	*shared

	// Immutable.
	p           poller          // set by Serve
	wakeup      chan struct{}   // hands the role to the loop's own goroutine, which is parked
	pollForLoop func(more bool) // see loop.pollForLoop
	willBlock   func(c *Conn)   // see loop.willBlock

	// Atomic, or with locks of their own.
	state      atomic.Uint64                   // a role
	kicked     atomic.Bool                     // look at queue, timers and the listener's state
	live       atomic.Int64                    // connections that have a descriptor
	closedOwed atomic.Int64                    // Closed that actors have yet to receive; see closedGivenUp
	trouble    [troubles]atomic.Pointer[error] // reported and not delivered yet
	demand     sched.Demand                    // Readables in channels that no read has answered yet
	conns      sched.Table[*Conn]
	timers     sched.Deadlines[*timer]
	limits     limits       // of connections that are open
	eofs       limits       // of those whose user has read the end of stream: EOFTimeout runs
	clock      atomic.Int64 // the coarse one, see tickClock
	count      counters
	queue      sched.SharedQueue[*Conn] // connections that want a turn
}

// schedule puts c into the loop's work queue. It may be called from anywhere.
func (sh *shard) schedule(c *Conn) {
	sh.queue.Push(c)
	sh.kick()
}

// A trouble is whose fault a Failed is about. Each has a limit of its own: peers that are refused
// all the time do not hide that the listener has failed.
type trouble uint8

const (
	ofListener trouble = iota // accepting has failed
	ofPeer                    // Preface has refused a peer, or its handshake has failed
	troubles
)

// report has the loop deliver a Failed about err, which concerns no connection that the program
// knows: of each trouble one a second at most. It may be called under any lock.
func (sh *shard) report(whose trouble, err error) {
	t := now()
	at := &sh.reportedAt[whose]
	last := at.Load()
	if last != 0 && t-last < int64(time.Second) || !at.CompareAndSwap(last, t) {
		return
	}
	sh.trouble[whose].Store(&err)
	sh.kick()
}

// kick makes the loop look soon at its queue, its timers and the listener's state. Further kicks
// before the loop has looked cost no wake-up, nor do those of a loop that is awake.
func (sh *shard) kick() {
	if sh.kicked.Swap(true) {
		return
	}
	switch w := sh.state.Load(); role(w & roleMask) {
	case sleeping:
		sh.p.wake()
	case parked:
		if sh.state.CompareAndSwap(w, w&^roleMask) {
			sh.wakeup <- struct{}{}
		}
	}
}

// oweClosed records that the loop must deliver one more Closed to an actor before it may end. It
// returns false if it has ended.
func (sh *shard) oweClosed() bool {
	for {
		n := sh.closedOwed.Load()
		if n < 0 {
			return false
		}
		if sh.closedOwed.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// tickClock keeps the coarse clock going, if anybody looks at it. It is called whenever the loop
// has polled and by the watchdog, so that while the loop is awake the clock is a millisecond late
// at most.
func (sh *shard) tickClock() {
	if sh.timed.Load() {
		sh.tick()
	}
}

func (sh *shard) tick() { sh.clock.Store(now()) }

// coarse returns the time for a note. It reads the clock where nobody keeps the coarse one going:
// while the loop sleeps, and where the listener has no time limits but EOFTimeout.
func (sh *shard) coarse() int64 {
	if !sh.timed.Load() || role(sh.state.Load()&roleMask) == sleeping {
		sh.tick()
	}
	return sh.clock.Load()
}

// The role of a loop is to poll and to dispatch what is ready. One goroutine has it at a time:
//
//	running   a goroutine polls or dispatches
//	handler   it is inside an actor's Receive; the watchdog may give the role to another goroutine
//	hook      it is inside one of the hooks that decide about a new connection; likewise
//	sleeping  it is blocked in the poller, with nothing else to do
//	over      the loop has ended
//	parked    nobody polls: a consumer has a batch, and takes the role when it has read all of it
//
// The goroutine that moves the state from parked to running has the role. The word holds the state
// and a count that tells two visits of the same state apart.
type role uint64

const (
	running role = iota
	handler
	hook
	sleeping
	parked
	over
	roleBits = 3
	roleMask = 1<<roleBits - 1
)

type timerKind uint8

const (
	timerClose     timerKind = iota // CloseTimeout is over
	timerAccept                     // try accepting again
	timerWake                       // the loop wants to look at the clock
	timerMessage                    // post value to c
	timerPreface                    // PrefaceTimeout is over
	timerHandshake                  // HandshakeTimeout is over
	timerReadable                   // announce unread input again
	timerRelay                      // the idle limit of a pair could be reached
	timerDial                       // value is a dialler, whose step is due
)

// A timer is due once, in the timers of its loop. It costs no goroutine: the loop waits in the
// poller until the first one is due. One that is stopped leaves at once. It takes 48 bytes, and 16
// of the heap; a time limit takes 24 and 16, see limitState, which is why limits are no timers.
type timer struct {
	// Immutable.
	c     *Conn
	value any
	kind  timerKind

	place int32 // in the loop's timers

	// Guarded by c.mu: the connection's other timers.
	next, prev *timer
}

// Place implements sched.Item.
func (tm *timer) Place() *int32 { return &tm.place }

// epoch makes now a small positive number.
var epoch = time.Now().Add(-time.Second)

// now is the monotonic clock in nanoseconds.
func now() int64 { return int64(time.Since(epoch)) }

// addTimer starts tm, due d from now, and makes sure that the loop wakes up in time for it.
func (sh *shard) addTimer(tm *timer, d time.Duration) {
	at := now() + max(int64(d), 0)
	if at < 0 {
		at = math.MaxInt64 // centuries from now
	}
	if sh.timers.Add(tm, at) {
		sh.kick()
	}
}

// limits is the connections of a loop that have a time limit: sh.eofs has those that EOFTimeout
// runs for, sh.limits the others. Its lock is taken under a Conn's mu.
type limits = sched.Deadlines[limited]

// limited is a Conn in limits.
type limited struct{ c *Conn }

// Place implements sched.Item.
func (l limited) Place() *int32 { return &l.c.limit.place }
