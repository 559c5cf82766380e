package tcpio

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// A listenSocket is the listening descriptor. It is registered once, edge-triggered, so that the
// loop pauses by not accepting.
type listenSocket struct {
	// Immutable after Listen.
	call sys.AcceptFunc // another one in tests

	mu sync.Mutex
	// Guarded by mu.
	path     string           // of a unix socket that we made, removed at close
	file     sys.FileID       // what we made there
	fd       int32            // -1 once closed, and with Network "none"
	arriving int32            // the descriptor that no loop counts yet; -1: none
	adopted  []*Conn          // adopted connections that have no actor yet
	std      *net.TCPListener // what GetListener made

	// Immutable after Listen. Closed with fd: nothing arrives any more.
	over chan struct{}

	// Atomic.
	retry    atomic.Bool // look at the backlog again
	starved  atomic.Bool // accepting waits for a descriptor
	busy     atomic.Bool // an accepting turn is under way
	last     atomic.Bool // Shutdown has begun: take what there is, and close
	adopting atomic.Bool // adopted is not empty

	// Owned by the accepting turn.
	backoff time.Duration
	again   timer   // when to look again after a failure
	left    int     // how many more are taken once last is set
	late    []*Conn // those that were: Shutdown may have missed them
}

// accept takes a connection from the backlog. It holds mu for a tick of the kernel's clock at most;
// see sys.Accepter.
func (s *listenSocket) accept() (int32, sys.Addr, syscall.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return -1, sys.Addr{}, syscall.EAGAIN
	}
	fd, peer, errno := s.call(s.fd)
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
	if s.fd >= 0 {
		if p != nil {
			_ = p.remove(int(s.fd))
		}
		if s.path != "" {
			sys.RemoveFile(s.path, s.file)
		}
		sys.CloseFD(s.fd)
		s.fd = -1
	}
	if s.arriving >= 0 {
		sys.Close(s.arriving, false)
		s.arriving = -1
	}
	close(s.over)
	if s.std != nil {
		s.std.Close()
	}
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
