//go:build linux

package tcpio

import (
	"bufio"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/sys"
)

// revActors serves n connections with one loop and receive as their actor, which Opened does not reach.
func revActors(t *testing.T, n int, handle func(Event) error) (*rig, []*Conn) {
	t.Helper()
	opened := make(chan *Conn, n)
	r := listen(t, ListenerOptions{Loops: 1, Actor: func(*Conn) Actor {
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
		conns[i] = receive(t, "Opened", opened)
	}
	return r, conns
}

// The same for a body that breaks behind frames kept from before, when an edge was merged into the Readable that is being
// handled. To see it fail: let beginFrames start with more false.
func TestInputBehindAnOutstandingReadableOutlivesABreak(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1}).serve()
	peer, c := r.open()
	one := func() {
		t.Helper()
		receiveAs[Readable](t, r.Events())
		for _, err := range c.Frames(revSplit(4)) {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	write(t, peer, []byte("frm1frm2"))
	one() // frm2 is kept, and announced
	write(t, peer, []byte("frm3"))
	waitFor(t, "the bytes to arrive", func() bool { var b [1]byte; n, _ := sys.Peek(c.fd, b[:]); return n > 0 })
	asleep(t, r.Listener) // the edge has been merged into the Readable that is outstanding
	one()                 // frm2
	one()                 // frm3
}

func revSplit(size int) bufio.SplitFunc {
	return func(data []byte, atEOF bool) (int, []byte, error) {
		if len(data) < size {
			return 0, nil, nil
		}
		return size, data[:size], nil
	}
}

// The end of stream that Frames has met closes nothing before it was handed out: a body that breaks behind the last
// frame gets another Readable, and io.EOF with that. To see it fail: let fillFrames call endReadLocked.
func TestEndOfStreamCountsOnceFramesHasHandedItOut(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1, EOFTimeout: 50 * time.Millisecond}).serve()
	peer, c := r.open()
	write(t, peer, []byte("last"))
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var last string
	for last == "" {
		receiveAs[Readable](t, r.Events())
		for line, err := range c.Frames(bufio.ScanLines) {
			if err != nil {
				t.Fatal(err)
			}
			last = string(line)
			if end := locked(c, func() peerEnd { return c.peerEnd }); end != peerRead || r.loops[0].eofs.First() != 0 {
				t.Errorf("in the body of the last frame: the peer's end is at %d, its time to close has begun", end)
			}
			break
		}
	}
	receiveAs[Readable](t, r.Events())
	for range 2 {
		for _, err := range c.Frames(bufio.ScanLines) {
			if err != io.EOF {
				t.Fatalf("got %v, want EOF", err)
			}
		}
	}
	for { // a Readable may be stale
		if _, ok := receive(t, "Closed", r.Events()).(Closed); ok {
			break
		}
	}
	if err := c.Err(); err != nil {
		t.Errorf("Err: %v", err)
	}
}

// A handler may return what another connection ended with. That is an error of its own then, and no panic, let alone an
// exiting goroutine, which would give the loop's role to a second one. To see it fail: let receive look at the error's
// type.
func TestAPanicErrorThatIsReturnedIsAnError(t *testing.T) {
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
			waitFor(t, "the connection ends", func() bool { return locked(c, c.ended) })
			if err := locked(c, func() error { return c.ext.err }); err != error(cause) {
				t.Errorf("its error is %v, want %v", err, cause)
			}
			if got := r.Blocked(); got != 0 {
				t.Errorf("%d handlers count as blocked", got)
			}
			if markedSock(c, sockReset) {
				t.Error("aborted, as after a panic")
			}
		})
	}
}

// While descriptors are exhausted, neither new peers nor connections that end make the loop try more and more often.
// To see it fail: let acceptFailed make a timer each time.
func TestAcceptingTriesOneTimerLongWhileDescriptorsAreExhausted(t *testing.T) {
	var exhausted atomic.Bool
	r := listen(t, ListenerOptions{Loops: 1})
	accept := r.socket.call
	r.socket.call = func(fd int32) (int32, sys.Addr, syscall.Errno) {
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
		receiveAs[Closed](t, r.Events())
		asleep(t, r.Listener)
	}
	if pending := r.loops[0].timers.Len(); pending > 1 {
		t.Errorf("%d timers to look again", pending)
	}
	exhausted.Store(false)
	receiveAs[Opened](t, r.Events())
	late.Close()
}

// What a group queues for its slow members holds about as much memory as WriteBuffer counts, however short the writes.
// To see it fail: share blocks of any size.
func TestShortWritesToAGroupHoldLittleMoreThanTheirBytes(t *testing.T) {
	for _, size := range []int{1, 100, shareMin, shareMin + 1, buf.Small + 1, buf.Large/2 + 1, buf.Large + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			r := listen(t, ListenerOptions{Loops: 1}).serve()
			var g Group
			var conns [2]*Conn
			for i := range conns {
				peer, c := r.open()
				peer.SetReadBuffer(4 << 10)
				for c.Buffered() == 0 {
					if _, err := c.TryWrite(make([]byte, 256<<10)); err != nil {
						t.Fatal(err)
					}
				}
				conns[i] = c
				g.Join(c)
			}
			before := conns[0].Buffered()
			for range max(10, 1000/size) {
				g.Write(make([]byte, size))
			}
			held := make(map[*buf.Block]bool)
			bytes := 0
			for _, c := range conns {
				c.mu.Lock()
				for b := range c.out.Blocks {
					if !held[b] {
						held[b] = true
						bytes += len(b.Buf)
					}
				}
				bytes -= before + buf.Large
				c.mu.Unlock()
			}
			if queued := 2 * (conns[0].Buffered() - before); bytes > 4*queued+2*buf.Large {
				t.Errorf("%d bytes held for %d queued", bytes, queued)
			}
		})
	}
}
