package sys

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Pipes and splice(2). The caller owns a Pipe. splice has no MSG_DONTWAIT: it trusts O_NONBLOCK, so
// LimitCalls must have been called for the sockets.

// A Pipe carries bytes from one socket to another inside the kernel.
type Pipe struct{ from, to int32 }

// NewPipe makes a pipe for size bytes, or for the 64 KiB that it has if the kernel refuses more.
func NewPipe(size int) (Pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return Pipe{}, err
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, size)
	return Pipe{from: int32(fds[0]), to: int32(fds[1])}, nil
}

// Close closes both ends.
func (p Pipe) Close() {
	CloseFD(p.from)
	CloseFD(p.to)
}

// Read reads what the pipe holds.
func (p Pipe) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(p.from), b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// SpliceFrom moves up to size bytes from the socket fd into the pipe.
func (p Pipe) SpliceFrom(fd int32, size int) (int, syscall.Errno) { return splice(fd, p.to, size) }

// SpliceTo moves up to size bytes from the pipe to the socket fd. splice has no MSG_NOSIGNAL, and
// the program may have asked for SIGPIPE (os/signal). So SpliceTo blocks the signal on this thread,
// where the kernel sends it, and takes it.
func (p Pipe) SpliceTo(fd int32, size int) (int, syscall.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	set, old := uint64(1)<<(unix.SIGPIPE-1), uint64(0)
	sigmask(unix.SIG_BLOCK, &set, &old)
	n, errno := splice(p.from, fd, size)
	if errno == unix.EPIPE && old&set == 0 {
		var none unix.Timespec
		for {
			_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)), 0,
				uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(set), 0, 0)
			if e != unix.EINTR {
				break
			}
		}
	}
	sigmask(unix.SIG_SETMASK, &old, nil)
	return n, errno
}

// splice is a raw call, as send and recv are: it takes some ten microseconds, for which the
// scheduler would take the processor away, and then a thread has to be woken.
func splice(from, to int32, size int) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(size),
			unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// sigmask changes the signal mask of the thread. The kernel takes it as 64 bits on every
// architecture that Go has.
func sigmask(how int, set, old *uint64) {
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, uintptr(how), uintptr(unsafe.Pointer(set)),
		uintptr(unsafe.Pointer(old)), unsafe.Sizeof(*set), 0, 0)
}

// Unspliceable reports an error of splice itself, and not of the connection.
func Unspliceable(errno syscall.Errno) bool {
	switch errno {
	case unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.ENOMEM, unix.EBADF, unix.EPERM:
		return true
	}
	return false
}
