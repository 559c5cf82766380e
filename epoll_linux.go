package tcpio

import (
	"math"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/rabbit-backend/tcpio/internal/sched"
	"golang.org/x/sys/unix"
)

// Readiness bits as epoll reports them; see epoll_ctl(2).
const (
	pollIn    = unix.EPOLLIN
	pollOut   = unix.EPOLLOUT
	pollPri   = unix.EPOLLPRI
	pollErr   = unix.EPOLLERR
	pollHup   = unix.EPOLLHUP
	pollRdHup = unix.EPOLLRDHUP

	// Every connection is registered once, with this mask, so that no request costs an epoll_ctl.
	// EPOLLPRI is in it because a read stops short at urgent data (tcp(7)), which a short read must
	// then not be taken as proof that the socket is empty.
	pollConn = pollIn | pollOut | pollPri | pollRdHup | unix.EPOLLET
	pollEdge = pollIn | unix.EPOLLET
)

// readyEvent is one entry of an epoll_wait result.
type readyEvent unix.EpollEvent

func (e *readyEvent) bits() uint32 { return e.Events }

func (e *readyEvent) key() sched.Key { return sched.Key{Slot: uint32(e.Fd), Gen: uint32(e.Pad)} }

func makeReady(bits uint32, k sched.Key) readyEvent {
	return readyEvent{Events: bits, Fd: int32(k.Slot), Pad: int32(k.Gen)}
}

// epoll is the kernel's poller. The eventfd ends a blocked wait; it is registered edge-triggered
// and never read, since every write to it is an edge of its own (epoll(7), eventfd(2)) and its
// counter cannot come near its limit of 2^64-2.
type epoll struct {
	// Immutable.
	fd int

	mu sync.Mutex
	// Guarded by mu.
	wakeFD int // -1 once closed: a loop may be kicked after its end
}

// wakeKey is the eventfd's; of what is no connection the generation is zero.
var wakeKey = sched.Key{Slot: 0}

func newEpoll() (*epoll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wakeFD, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	p := &epoll{fd: fd, wakeFD: wakeFD}
	if err := p.add(wakeFD, wakeKey, pollEdge); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *epoll) add(fd int, k sched.Key, mask uint32) error {
	ev := unix.EpollEvent(makeReady(mask, k))
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &ev))
}

func (p *epoll) remove(fd int) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil))
}

// wait with a zero timeout cannot block, so it goes around the scheduler's hand-off; any other goes
// through it. An interrupted wait is reported as no events: the caller looks at its clock and its
// queues and comes back.
func (p *epoll) wait(events []readyEvent, timeout time.Duration) (int, error) {
	var n uintptr
	var errno syscall.Errno
	ms := waitMillis(timeout)
	if ms == 0 {
		n, _, errno = unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd),
			uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	} else {
		n, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd),
			uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(ms), 0, 0)
	}
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, os.NewSyscallError("epoll_wait", errno)
}

func (p *epoll) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wakeFD < 0 {
		return
	}
	one := uint64(1)
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(p.wakeFD), uintptr(unsafe.Pointer(&one)), 8)
		if errno != unix.EINTR {
			return
		}
	}
}

func (p *epoll) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	unix.Close(p.wakeFD)
	unix.Close(p.fd)
	p.wakeFD = -1
}

// waitMillis rounds up, so that a timer is never polled for before it is due; negative means for
// ever.
func waitMillis(d time.Duration) int {
	if d < 0 {
		return -1
	}
	const longest = math.MaxInt32 * time.Millisecond // 24 days, an int of epoll_wait's
	return int((min(d, longest) + time.Millisecond - 1) / time.Millisecond)
}
