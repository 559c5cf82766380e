package tcpio

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// A listenSocket is what accepting has to do with: the listening descriptors of all entries. Each
// is registered once, edge-triggered, so that the loop pauses by not accepting.
type listenSocket struct {
	// Immutable after Listen.
	entries []*entry

	mu sync.Mutex
	// Guarded by mu.
	arriving int32   // the descriptor that no loop counts yet; -1: none
	adopted  []*Conn // connections that are to have their actor, and come from no turn of accepting

	// Immutable after Listen. Closed with the descriptors: nothing arrives any more.
	over chan struct{}

	// Atomic.
	retry    atomic.Bool // look at the backlogs again
	starved  atomic.Bool // accepting waits for a descriptor
	busy     atomic.Bool // an accepting turn is under way
	last     atomic.Bool // Shutdown has begun: take what there is, and close
	adopting atomic.Bool // adopted is not empty

	// Owned by the accepting turn.
	turn    int // the entry that the last connection came by
	backoff time.Duration
	again   timer   // when to look again after a failure
	left    int     // how many more are taken once last is set
	late    []*Conn // those that were: Shutdown may have missed them
}

// open opens the sockets of endpoints.
func (s *listenSocket) open(endpoints []Endpoint, o *ListenerOptions) (err error) {
	s.over, s.arriving, s.left = make(chan struct{}), -1, longestBacklog*len(endpoints)
	defer func() {
		if err != nil {
			s.close(nil)
		}
	}()
	lns := make([]net.Listener, len(endpoints))
	for i, at := range endpoints {
		e := &entry{name: at.Name, addr: noAddr{}, tls: guardTLS(at.TLSConfig), preface: at.Preface, fd: -1}
		s.entries = append(s.entries, e)
		if lns[i] = at.Listener; lns[i] == nil && at.Network != "none" {
			if lns[i], err = e.listen(at); err != nil {
				return inEndpoint(i, err)
			}
			if err = e.take(lns[i], o); err != nil {
				lns[i].Close()
				return inEndpoint(i, err)
			}
		}
	}
	// At the end: Listen leaves alone what it is given, unless it succeeds.
	for i, at := range endpoints {
		if at.Listener != nil {
			if err = s.entries[i].take(at.Listener, o); err != nil {
				return inEndpoint(i, err)
			}
		}
	}
	return nil
}

// inEndpoint is an error of the system's about endpoint i, which says the field of one of More.
func inEndpoint(i int, err error) error {
	if i == 0 {
		return err
	}
	return fmt.Errorf("tcpio: ListenerOptions.More[%d]: %w", i-1, err)
}

// listen makes the socket of at.
func (e *entry) listen(at Endpoint) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // plain TCP: what is set and measured here does not hold for MPTCP
	ln, err := lc.Listen(context.Background(), at.Network, at.Addr)
	if err != nil {
		return nil, err
	}
	if u, ok := ln.Addr().(*net.UnixAddr); ok && u.Name != "" && u.Name[0] != '@' {
		e.path = u.Name
		e.file, _ = sys.FileAt(u.Name)
	}
	return ln, nil
}

// take moves the socket out of ln.
func (e *entry) take(ln net.Listener, o *ListenerOptions) error {
	e.addr = ln.Addr()
	fd, err := sys.TakeListener(ln)
	if err == nil {
		if a, ok := e.addr.(*net.TCPAddr); ok {
			e.anyAddr = a.IP.IsUnspecified()
			e.zone = sys.Device(fd)
			e.multipath = sys.Multipath(fd)
			if err = sys.TuneListener(fd, o.KeepAlive, o.TCPUserTimeout); err != nil {
				sys.CloseFD(fd)
			}
		}
	}
	if err != nil {
		return &net.OpError{Op: "listen", Net: e.addr.Network(), Addr: e.addr, Err: err}
	}
	e.fd, e.call = fd, sys.Accepter(fd)
	return nil
}

// noAddr is the address of a listener that does not listen.
type noAddr struct{}

func (noAddr) Network() string { return "none" }
func (noAddr) String() string  { return "none" }

// accept takes a connection from one of the backlogs, in turn. EAGAIN says that all are empty; the
// entry of another error is in peer. It holds mu for a tick of the kernel's clock for each; see
// sys.Accepter.
func (s *listenSocket) accept() (fd int32, peer sys.Addr, errno syscall.Errno) {
	failed := sys.Addr{}
	errno = syscall.EAGAIN
	for range s.entries {
		s.turn = (s.turn + 1) % len(s.entries)
		switch n, peer, err := s.acceptAt(s.turn); err {
		case 0:
			return n, peer, 0
		case syscall.EAGAIN:
		default: // what the others have comes first
			errno, failed.Entry = err, uint8(s.turn)
		}
	}
	return -1, failed, errno
}

func (s *listenSocket) acceptAt(i int) (int32, sys.Addr, syscall.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[i]
	if e.fd < 0 {
		return -1, sys.Addr{}, syscall.EAGAIN
	}
	fd, peer, errno := e.call(e.fd)
	peer.Entry = uint8(i)
	if errno == 0 {
		s.arriving = fd
	}
	return fd, peer, errno
}

// arrived notes that the descriptor that accept returned is counted. It returns false if close has
// closed it.
func (s *listenSocket) arrived() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := s.arriving >= 0
	s.arriving = -1
	return open
}

// turnAway closes the descriptor that accept returned, unless close has.
func (s *listenSocket) turnAway() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.arriving >= 0 {
		sys.Close(s.arriving, false)
		s.arriving = -1
	}
}

// close ends accepting. It also closes the descriptor that accept returned last, if a user's hook
// still decides about it. It removes a unix socket's file before the socket: until then no other
// file can have its inode, and a successor binds only once the path is free.
func (s *listenSocket) close(p poller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.over:
		return
	default:
	}
	for _, e := range s.entries {
		if e.fd >= 0 {
			if p != nil {
				_ = p.remove(int(e.fd))
			}
			if e.path != "" {
				sys.RemoveFile(e.path, e.file)
			}
			sys.CloseFD(e.fd)
			e.fd = -1
		}
		if e.std != nil {
			e.std.Close()
		}
	}
	if s.arriving >= 0 {
		sys.Close(s.arriving, false)
		s.arriving = -1
	}
	close(s.over)
}

// nextAdopted takes the first of adopted. It returns nil if there is none.
func (s *listenSocket) nextAdopted() *Conn {
	if !s.adopting.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.adopted[0]
	s.adopted[0] = nil
	if s.adopted = s.adopted[1:]; len(s.adopted) == 0 {
		s.adopted = nil
		s.adopting.Store(false)
	}
	return c
}

// longestBacklog bounds what Shutdown accepts, since peers may go on connecting. It is the default
// of net.core.somaxconn.
const longestBacklog = 4096

// acceptState is what the first loop, which accepts for all, knows of the backlog. The goroutine
// with that loop's role owns it.
type acceptState uint8

const (
	acceptIdle  acceptState = iota // the backlog was seen empty: the next connection is an edge
	acceptMore                     // there may be more in it
	acceptPause                    // there may be more, but no room or descriptor; see retryAccept
)
