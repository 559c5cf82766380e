// Package sys makes the system calls of tcpio: on connected sockets, listening sockets and pipes,
// by their descriptors. It knows no connection and keeps no state. The caller owns a descriptor,
// and keeps it open during a call. No function keeps a slice.
//
// No call blocks for longer than a tick of the kernel's clock, with O_NONBLOCK off too: the flag
// belongs to the open file description, so every process with a duplicate can clear it at any time.
// Most calls have MSG_DONTWAIT or do not look at the flag. For accept4 see Accepter, for splice
// LimitCalls, for close(2) Close.
package sys

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Supported reports whether the functions of this package work on this system.
const Supported = true

// Recv, Send and Sendv are the hot path. They are raw system calls, which the scheduler does not
// learn of: MSG_DONTWAIT keeps them from blocking, and the hand-off around an ordinary system call
// is a fifth of a small request.

// Recv reads into p, which is not empty. It returns 0 at the end of stream.
func Recv(fd int32, p []byte) (int, syscall.Errno) { return recv(fd, p, unix.MSG_DONTWAIT) }

// Peek is Recv that leaves the bytes in the socket.
func Peek(fd int32, p []byte) (int, syscall.Errno) {
	return recv(fd, p, unix.MSG_DONTWAIT|unix.MSG_PEEK)
}

func recv(fd int32, p []byte, flags uintptr) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), flags, 0, 0)
		if errno != unix.EINTR {
			return max(int(n), 0), errno
		}
	}
}

// Send writes from p, which is not empty, and returns how many bytes the socket took.
func Send(fd int32, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
			uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno != unix.EINTR {
			return max(int(n), 0), errno
		}
	}
}

// VecMax is the number of segments in a Vec. UIO_MAXIOV would be 1,024, but a few dozen suffice.
const VecMax = 64

// Vec collects segments for one Sendv.
type Vec struct {
	Segs [VecMax]unix.Iovec
	N    int // how many of Segs are set
}

// Add appends p. An empty p is left out. Add returns false if v is full and p was not taken.
func (v *Vec) Add(p []byte) bool {
	if len(p) == 0 {
		return true
	}
	if v.N == VecMax {
		return false
	}
	v.Segs[v.N].Base = &p[0]
	v.Segs[v.N].SetLen(len(p))
	v.N++
	return true
}

// Sendv is Send for the segments of v, of which there is one at least.
func Sendv(fd int32, v *Vec) (int, syscall.Errno) {
	var msg unix.Msghdr
	msg.Iov = &v.Segs[0]
	msg.SetIovlen(v.N)
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd),
			uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errno != unix.EINTR {
			return max(int(n), 0), errno
		}
	}
}

// Unread returns how many bytes can be read, without the end of stream and urgent data (SIOCINQ,
// tcp(7)). Unlike Peek it leaves a pending error in the socket.
func Unread(fd int32) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// HungUp reports whether the peer has ended its stream or reset the connection, even if bytes are
// left to read before that. It leaves a pending error in the socket.
func HungUp(fd int32) bool {
	revents, _ := poll(fd, unix.POLLRDHUP)
	return revents != 0
}

// Over reports whether nothing can be sent or received any more: the connection was reset, or both
// sides have ended it. Bytes from before may be left to read. It leaves a pending error in the
// socket.
func Over(fd int32) bool {
	revents, _ := poll(fd, 0)
	return revents&(unix.POLLERR|unix.POLLHUP) != 0
}

// HasError reports whether the socket has an error pending, and leaves it there.
func HasError(fd int32) bool {
	revents, _ := poll(fd, 0)
	return revents&unix.POLLERR != 0
}

// poll returns which of events, or an error or hang-up, are on fd at the moment.
func poll(fd int32, events int16) (revents int16, err error) {
	p := [1]unix.PollFd{{Fd: fd, Events: events}}
	for {
		if _, err = unix.Poll(p[:], 0); err != unix.EINTR {
			return p[0].Revents, err
		}
	}
}

// TakeError takes the pending error out of the socket. It returns 0 if there is none.
func TakeError(fd int32) syscall.Errno {
	v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if errno, ok := err.(syscall.Errno); ok {
		return errno
	}
	return syscall.Errno(v)
}

// Disconnected reports whether a TCP socket is in the state CLOSE: it was reset, it timed out, or
// both sides have ended it.
func Disconnected(fd int32) bool { return inState(fd, unix.BPF_TCP_CLOSE) }

// Delivered reports whether the peer of a TCP socket has acknowledged everything that was sent, our
// FIN too, and has sent none itself (the state FIN-WAIT-2). Of multipath TCP it is not known.
func Delivered(fd int32) bool { return inState(fd, unix.BPF_TCP_FIN_WAIT2) && !Multipath(fd) }

func inState(fd int32, state byte) bool {
	var info [4]byte // only the first field of struct tcp_info, tcpi_state
	size := uint32(1)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return errno == 0 && info[0] == state
}

// ShutdownWrite sends the end of our stream behind what was sent before.
func ShutdownWrite(fd int32) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0); errno != 0 {
		return os.NewSyscallError("shutdown", errno)
	}
	return nil
}

// Close closes a connected socket, by a reset if reset is set (SO_LINGER of zero, socket(7)).
// It sets SO_LINGER in any case, which costs a quarter of a microsecond: with a time in that option
// close(2) waits that long for unsent bytes to be acknowledged, on a non-blocking socket too. The
// user may have set it through SyscallConn, and accepted sockets inherit it from a shared listening
// socket.
func Close(fd int32, reset bool) {
	var linger unix.Linger
	if reset {
		linger.Onoff = 1
	}
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&linger)), unix.SizeofLinger, 0)
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) // which does not wait now
}

// CloseFD closes a descriptor and leaves the socket's options alone, for a socket that others have
// too. It does not retry after EINTR: Linux has released the number by then (close(2)).
func CloseFD(fd int32) { _ = unix.Close(int(fd)) }
