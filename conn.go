package tcpio

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/quota"
	"github.com/rabbit-backend/tcpio/internal/sched"
	"github.com/rabbit-backend/tcpio/internal/sys"
	"github.com/rabbit-backend/tcpio/internal/tlsio"
)

// A Conn is one connection. It costs no goroutine and, while idle, no buffer.
//
// Every method may be called from any goroutine at any time, also after the connection closed; what
// reads, writes or changes it then fails with an error that matches [net.ErrClosed]. A method whose
// documentation does not say that it blocks returns at once, also while a loop is busy.
type Conn struct {
	// Immutable.
	sh   *shard
	id   uint64 // 0: refused
	peer sys.Addr
	key  sched.Key // names it in epoll's data: a descriptor number is no identity; set by the table

	mu connMutex
	// Guarded by mu.
	fd      int32  // -1 once the descriptor is being released
	sentAt  uint32 // with a stream: the number that the outstanding Readable has in it
	stamp   uint32 // with a stream: the outstanding Readable's demand batch; without: the number of reads
	phase   phase
	todo    set[todo]
	origin  origin // immutable
	sendEnd sendEnd
	peerEnd peerEnd
	writing writing
	claim   claim
	pending set[event] // events that wait in the Conn for room on their route
	route   set[routeMark]
	wants   set[want]
	sock    set[sockMark]
	user    set[userMark]
	out     *buf.Queue // output the socket did not take; nil when there is none
	stream  *stream    // where events go; nil: to the actor
	actor   Actor
	ext     *connExt // what few connections need
	data    any      // of SetData; of a relayed connection its *relaySide or a *sideAndData
	limit   limitState
}

// connExt holds what few connections need, so that the others do not pay for it.
type connExt struct {
	// Immutable, and there before anybody else sees the Conn, if its peer is named.
	remote net.Addr

	// Atomic. What SetRemoteAddr was told.
	client atomic.Pointer[proxied]

	// Guarded by the Conn's mu.
	err          error             // why the connection ended
	readErr      error             // why reading failed; for the end of stream see peerEnd
	sendErr      error             // why writing failed
	local        net.Addr          // the local address, kept at release
	timer        *timer            // of a close that is under way
	closeBy      int64             // when CloseTimeout is over
	timers       *timer            // of After, linked
	mailbox      sched.Queue[mail] // values not yet delivered
	posted       int32             // of them, those that count against MailboxSize
	copies       int32             // that are under way to the connection
	fdUsers      int32             // functions of SyscallConn that run; the last one releases fd
	late         int32             // calls of a callback that had to wait; see callback.lateCall
	heard        bool              // the close has thrown input away since the timer was set
	raw          bool              // SyscallConn was called: others may have met the end
	given        bool              // somebody else has the socket too: its options are left alone
	counted      bool              // with a Preface: MaxConnsPerIP counts the connection for addrPort
	connecting   bool              // of a dial: the socket is not connected; stays when that fails
	ownInput     bool              // inputTimeout is set
	edges        uint16            // while connecting: what epoll has said of the socket
	groups       []membership      // of Groups
	tls          *tlsState
	preface      *preface // until Preface is done with the connection
	frames       frameBuffer
	context      connContext
	dial         dialler       // until the dial is answered
	dialed       *Dialed       // the answer, until it is delivered
	inputTimeout time.Duration // of SetInputTimeout, if ownInput is set
	toldAt       int64         // see unreadForLocked; 0 while a Readable waits to be received
	waits        *waits        // nil until a call blocks
}

// waiting returns the waits, for a call that may block.
func (x *connExt) waiting() *waits {
	if x.waits == nil {
		x.waits = new(waits)
	}
	return x.waits
}

// A connContext is what Conn.Context returns, and how to end it; nil until it is asked for.
type connContext struct {
	ctx context.Context
	end context.CancelCauseFunc
}

// limitState is a connection's part: 24 bytes, and 16 in its loop's list. The connection's mu
// guards lastIn, lastOut and idle, the list's lock guards place.
type limitState struct {
	lastIn  int64  // when it was accepted, or bytes arrived or were read (of TLS: decrypted)
	lastOut int64  // when bytes went out, or began to wait; like lastIn on the coarse clock
	idle    uint32 // the idle limit in milliseconds; 0: none
	place   int32  // in the list, see sched.Item
}

// A frameBuffer is input that Frames has read and not yet handed out: a partial frame, or whole
// ones after a break. The Conn's mu guards it; the zero value is empty and holds no memory.
type frameBuffer struct {
	buf.Window
	since   int64 // when the partial frame began, on the coarse clock; 0: there is none
	offered int64 // when more was announced, while there is a partial frame; likewise
	late    bool  // FrameTimeout is over, and what had arrived by then may complete the frame
	busy    bool  // an iterator is running: the bytes stay where they are
	split   bool  // split is looking at the bytes, or they are being moved: nobody else reads
	more    bool  // the socket may hold more, and no edge will say so
	emptied bool  // the socket was read empty: an edge will say when there is more
	partial bool  // split has seen the bytes and wants more
}

// read moves buffered bytes to p.
func (f *frameBuffer) read(pool *buf.Pool, p []byte) int {
	n := copy(p, f.Bytes())
	if f.Skip(n); f.Len() == 0 {
		f.drop(pool)
	}
	return n
}

// drop gives the memory back, unless an iterator still shows it to somebody; that one calls drop
// again.
func (f *frameBuffer) drop(pool *buf.Pool) {
	if f.Held() && !f.busy {
		f.Drop(pool)
		*f = frameBuffer{}
	}
}

// tlsState is a connection's TLS. It is guarded by the Conn's mu.
type tlsState struct {
	config *tls.Config
	client bool      // we are
	conn   *tls.Conn // nil before the handshake begins
	done   bool      // the handshake is
	tells  bool      // the next Readable says that the handshake is done
	link   tlsLink
	timer  *timer        // HandshakeTimeout
	place  *list.Element // in the queue of handshakes, from the whole ClientHello on
	cancel func()        // ends the context that the config's functions see, while the handshake runs

	// The two sizes of the output queue at the last write, in plain-text and in sealed bytes. By
	// their ratio queuedLocked counts the queue in plain-text bytes.
	plain, sealed int64

	reading bool // tls.Conn.Read is running: what it writes answers the peer
	replied int  // bytes of such answers since the queue was last empty

	// The last read left something that no edge will announce: records beyond its budget, the end,
	// or an error.
	more bool
	// plainTextWaitsLocked has found plain text or the end, which the user has not read yet.
	waits bool
}

// tlsLink is the net.Conn below a tls.Conn. While the handshake runs, Read blocks, and Read and
// Write take the connection's mu. Afterwards they do not block, and the caller has mu.
type tlsLink struct {
	c    *Conn
	turn *quota.Turn // of the handshake, which alone changes it; nil afterwards

	in      tlsio.Records
	records int // records that the running read may still begin
	silent  int // bytes of records since plain text came
}

// A preface is the state of a connection that Preface is not done with.
type preface struct {
	timer   *timer // PrefaceTimeout
	seen    int    // how many bytes Preface was shown; -1: it was not called yet
	running bool   // a goroutine is inside it
	again   bool   // an edge came meanwhile
	over    bool   // the peer has ended its stream, or reset the connection
}

// A proxied is what SetRemoteAddr was told.
type proxied struct {
	addr   netip.AddrPort
	header any
}

// A membership is what a connection leaves when it ends: a Group, or a dial that answers to it.
type membership interface{ letGo(c *Conn) }

// A phase is how far the life of a connection has come. It never goes back.
type phase uint8

const (
	phaseOpen     phase = iota
	phaseDraining       // Draining was emitted: the listener is in its Shutdown
	phaseDrained        // the actor has received it: the connection closes behind the actor's turn
	phaseClosing        // the end has begun, by Close say: flush, send the FIN, discard input
	phaseReleased       // nothing is sent or received; the descriptor's last user closes it
	phaseGone           // the descriptor is closed and Closed emitted
)

var phaseNames = [...]string{"open", "draining", "drained", "closing", "released", "gone"}

func (p phase) String() string { return phaseNames[p] }

// phases has the phases that may follow each. Released without having been closing is a connection
// that Abort, a read error, or Listener.Close has cut off. The peer's end of stream changes
// nothing.
var phases = [...][]phase{
	phaseOpen:     {phaseDraining, phaseClosing, phaseReleased},
	phaseDraining: {phaseDrained, phaseClosing, phaseReleased},
	phaseDrained:  {phaseClosing, phaseReleased},
	phaseClosing:  {phaseReleased},
	phaseReleased: {phaseGone},
	phaseGone:     {},
}

// enterLocked moves the connection to the phase p.
func (c *Conn) enterLocked(p phase) {
	if !slices.Contains(phases[c.phase], p) {
		panic("tcpio: a connection that is " + c.phase.String() + " cannot become " + p.String())
	}
	c.phase = p
	if c.ended() {
		c.endContextLocked()
	}
}

// endContextLocked ends what Context has returned, if it was asked for.
func (c *Conn) endContextLocked() {
	if c.ext != nil && c.ext.context.end != nil {
		c.todo.add(todoContext)
	}
}

// ended reports whether the connection's end has begun: the user can do nothing with it any more.
func (c *Conn) ended() bool { return c.phase >= phaseClosing }

// released reports whether the connection is through with its socket.
func (c *Conn) released() bool { return c.phase >= phaseReleased }

// isClaimed reports whether the connection's events have a route. Without one only Opened is sent.
func (c *Conn) isClaimed() bool { return c.claim == claimed }

// isUnheard reports whether the connection is handed out once its peer's first bytes have come.
func (c *Conn) isUnheard() bool { return c.claim == unheard }

// returnedEOF reports whether the user has received io.EOF.
func (c *Conn) returnedEOF() bool { return c.peerEnd >= peerTold }

// eofTimed reports whether EOFTimeout runs.
func (c *Conn) eofTimed() bool { return c.peerEnd == peerTimed }

// outputFree reports whether no write is under way that others' bytes must not interrupt.
func (c *Conn) outputFree() bool { return c.writing == writeFree }

// finSent reports whether our FIN is out.
func (c *Conn) finSent() bool { return c.sendEnd == sendFin }

// opened reports whether Opened was emitted.
func (c *Conn) opened() bool { return c.route.has(routeOpened) }

// relayed reports whether a Relay reads and writes the connection.
func (c *Conn) relayed() bool { return c.route.has(routeRelayed) }

// announces reports whether Readable and Writable are sent to the connection's route.
func (c *Conn) announces() bool { return c.isClaimed() && !c.relayed() }

// inActor reports whether a goroutine is inside the connection's actor.
func (c *Conn) inActor() bool { return c.route.has(routeRunning) }

// announced reports whether a Readable is outstanding.
func (c *Conn) announced() bool { return c.user.has(userReadable) }

// atEOF reports whether the peer's end of stream was read.
func (c *Conn) atEOF() bool { return c.peerEnd != peerOpen }

// tls returns the state of the connection's TLS, nil if it has none.
func (c *Conn) tls() *tlsState {
	if c.ext == nil {
		return nil
	}
	return c.ext.tls
}

// handshaking reports whether Preface or the TLS handshake is not done: nothing is read, written or
// announced.
func (c *Conn) handshaking() bool {
	x := c.ext
	return x != nil && (x.preface != nil || x.tls != nil && !x.tls.done)
}

// dialing reports whether the connection is one that a dial is making: nobody knows of it.
func (c *Conn) dialing() bool { return c.ext != nil && (c.ext.dial != nil || c.ext.connecting) }

// isEarly reports whether nothing can be announced yet: Preface, a TLS handshake and the rest of
// a dial come before Opened.
func (c *Conn) isEarly() bool {
	return !c.opened() && c.ext != nil && (c.ext.dial != nil || c.handshaking())
}

// wantLocked puts the connection into its loop's queue.
func (c *Conn) wantLocked(w want) {
	if c.wants.empty() {
		c.sh.schedule(c)
	}
	c.wants.add(w)
}

// A connMutex has no Unlock, so that all code that locks it calls Conn.unlock, which acts on todo.
type connMutex struct{ bare sync.Mutex }

func (m *connMutex) Lock()         { m.bare.Lock() }
func (m *connMutex) TryLock() bool { return m.bare.TryLock() }

// unlock does what follows from what was noted in todo, and releases mu before what must not be
// done under it.
func (c *Conn) unlock() {
	if c.todo.empty() {
		c.mu.bare.Unlock()
		return
	}
	c.settleLocked()
	do, fd, given, reset := c.todo, int32(-1), false, c.sock.has(sockReset)
	more := do.has(todoPoll) && c.stream != nil && len(c.stream.ch) > 0
	c.todo = set[todo]{}
	if do.has(todoClose) {
		if c.fdUsedLocked() {
			c.todo.add(todoClose) // for the last user
		} else {
			fd, c.fd = c.fd, -1
			given = c.ext != nil && c.ext.given
		}
	}
	endContext, why := context.CancelCauseFunc(nil), error(nil)
	if do.has(todoContext) {
		endContext, why = c.ext.context.end, c.ext.err
	}
	c.mu.bare.Unlock()
	if endContext != nil {
		if why == nil {
			why = net.ErrClosed
		}
		endContext(why) // it ends the contexts that were derived from it, which may be many
	}
	if do.has(todoDrop) {
		go c.dropRest() // it ends with the timers and groups of this connection
	}
	if fd >= 0 {
		c.finish(fd, given, reset)
	}
	if do.has(todoPoll) {
		c.sh.pollForLoop(more)
	}
}

// fdUsedLocked reports whether somebody uses the descriptor outside mu.
func (c *Conn) fdUsedLocked() bool { return c.sock.has(sockNew) || c.ext != nil && c.ext.fdUsers > 0 }

func (c *Conn) extLocked() *connExt {
	if c.ext == nil {
		if c.ext, _ = c.sh.exts.Get().(*connExt); c.ext == nil {
			c.ext = new(connExt)
		}
	}
	return c.ext
}

// callWaitsLocked reports whether a call of a callback waits for its turn, or runs after that.
func (c *Conn) callWaitsLocked() bool { return c.ext != nil && c.ext.late > 0 }

// ID names the connection. It is unique for the life of the process, and never zero.
func (c *Conn) ID() uint64 { return c.id }

// Err says why the connection ended. It is nil before Closed, and after it when the peer ended in
// order, or the user closed and everything queued went out. Otherwise it is the cause: a
// *net.OpError around the system's error (errors.Is(err, syscall.ECONNRESET)), a *[TimeoutError]
// when a time limit ended it ([ErrCloseTimeout] if output was left, [ErrDrainTimeout] in Shutdown),
// the error an actor returned, a *[PanicError], net.ErrClosed when Abort or Listener.Close cut the
// connection off. The package documentation has them all, under "How a connection ends". EOFTimeout
// is no failure: it leaves nil, and Stats counts it.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.unlock()
	if c.phase != phaseGone || c.ext == nil {
		return nil
	}
	return c.ext.err
}

// RemoteAddr returns the peer's address, a *net.TCPAddr or *net.UnixAddr, as the package net would:
// an abstract name begins with @, and is that alone for a unix peer without a name. It is the
// client's behind a proxy, once SetRemoteAddr has said so. It works after the connection closed.
func (c *Conn) RemoteAddr() net.Addr {
	if addr, ok := c.clientAddr(); ok {
		return net.TCPAddrFromAddrPort(addr)
	}
	switch {
	case c.peer.Named():
		return c.ext.remote // the pointer to ext does not change either, once it is there
	case !c.peer.IsIP:
		return &net.UnixAddr{Name: "@", Net: "unix"}
	}
	return net.TCPAddrFromAddrPort(c.peer.AddrPort(""))
}

// String names the connection in a log, by its ID and its peer: "conn 12, 127.0.0.1:5555", or "conn
// 12, unix". It takes no lock, makes no system call, and works after the connection closed and on a
// nil Conn.
func (c *Conn) String() string {
	if c == nil {
		return "no conn"
	}
	peer := "unix" // not its name, which the peer chooses
	if _, proxied := c.clientAddr(); proxied || c.peer.IsIP {
		peer = c.RemoteAddr().String()
	}
	return "conn " + strconv.FormatUint(c.id, 10) + ", " + peer
}

// entry is the listening socket that the connection has come by; of one that was not accepted it is
// the listener's first.
func (c *Conn) entry() *entry { return c.sh.entries[c.peer.Entry] }

// prefaced reports whether the connection has, or had, a preface. Such a connection has its ext
// before anybody else sees it.
func (c *Conn) prefaced() bool {
	return c.sh != nil && c.entry().preface != nil && c.origin == accepted
}

// proxied returns what SetRemoteAddr was told, nil if it was not called.
func (c *Conn) proxied() *proxied {
	if !c.prefaced() {
		return nil
	}
	return c.ext.client.Load()
}

// clientAddr returns the client's address if SetRemoteAddr has set one.
func (c *Conn) clientAddr() (addr netip.AddrPort, ok bool) {
	if p := c.proxied(); p != nil {
		addr = p.addr
	}
	return addr, addr.IsValid()
}

// addrPort returns the address of the peer, or of the client that a proxy has connected for.
func (c *Conn) addrPort() netip.AddrPort {
	if addr, ok := c.clientAddr(); ok {
		return addr
	}
	return c.peer.AddrPort("")
}

// LocalAddr returns the local address, a *net.TCPAddr or *net.UnixAddr, as RemoteAddr does. It
// works after the connection closed.
func (c *Conn) LocalAddr() net.Addr {
	c.mu.Lock()
	defer c.unlock()
	return c.localLocked()
}

func (c *Conn) localLocked() net.Addr {
	if c.ext != nil && c.ext.local != nil {
		return c.ext.local
	}
	if c.fd >= 0 {
		if a := sys.LocalAddr(c.fd, c.entry().zone); a != nil {
			return a
		}
	}
	return c.entry().addr
}
