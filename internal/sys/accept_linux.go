package sys

import (
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Accepting. The caller owns the descriptors that it gets.

// Accepter returns the accept4 for the listening socket fd. The connections that it takes off the
// backlog are CLOEXEC and NONBLOCK from birth.
//
// accept4 has no MSG_DONTWAIT: it blocks if O_NONBLOCK is off, and a supervisor or a successor can
// clear the flag of the listening socket that it shares with us. So Accept looks at the flag, and
// without it at the backlog. What is left is another process that clears the flag, or takes the
// connection that was seen, between the look and the call. Then SO_RCVTIMEO ends the call (see
// LimitCalls); it is no raw call, so that the scheduler lets the rest of the process go on.
func Accepter(fd int32) AcceptFunc {
	protocol, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if protocol == unix.IPPROTO_MPTCP { // the package net listens to it by default
		return acceptMultipath
	}
	return Accept
}

// Accept is Accepter's for sockets other than of multipath TCP.
func Accept(fd int32) (int32, Addr, syscall.Errno) {
	for {
		if !nonblocking(fd) {
			if !backlogged(fd) {
				return -1, Addr{}, unix.EAGAIN
			}
			_ = LimitCalls(fd) // the process that wants to block may have undone that as well
		}
		if n, peer, errno := accept4(fd); errno != unix.EINTR {
			return n, peer, errno
		}
	}
}

// acceptMultipath is Accept for multipath TCP, where accept4 does not look at SO_RCVTIMEO: it waits
// on the first subflow's socket, which does not get the option (net/mptcp, mptcp_setsockopt).
func acceptMultipath(fd int32) (int32, Addr, syscall.Errno) {
	if !backlogged(fd) {
		return -1, Addr{}, unix.EAGAIN
	}
	return acceptInterruptibly(fd)
}

// acceptInterruptibly sets O_NONBLOCK and interrupts a call that takes long: the kernel begins it
// anew and sees the flag. SIGURG is the signal by which the runtime preempts, so a program that
// catches it has to expect it at any time (os/signal); its handler restarts system calls.
func acceptInterruptibly(fd int32) (int32, Addr, syscall.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, thread := unix.Getpid(), unix.Gettid()
	var end sync.Mutex // held while the call may be interrupted: fd and the thread are what they were
	over := false
	var late *time.Timer
	end.Lock()
	late = time.AfterFunc(callLimit, func() {
		end.Lock()
		defer end.Unlock()
		if over {
			return
		}
		_ = unix.SetNonblock(int(fd), true)
		_ = unix.Tgkill(pid, thread, unix.SIGURG)
		late.Reset(callLimit) // the flag may be cleared again before the kernel looks
	})
	end.Unlock()
	for {
		n, peer, errno := accept4(fd)
		if errno == unix.EINTR {
			continue
		}
		late.Stop()
		end.Lock()
		over = true
		end.Unlock()
		return n, peer, errno
	}
}

func accept4(fd int32) (int32, Addr, syscall.Errno) {
	var rsa unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	n, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&rsa)),
		uintptr(unsafe.Pointer(&size)), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0)
	if errno != 0 {
		return -1, Addr{}, errno
	}
	return int32(n), parseAddr(&rsa), 0
}

// nonblocking reports whether O_NONBLOCK is set on fd at the moment. It makes the system call
// fcntl(2) and not fcntl64, which F_GETFL does not need.
func nonblocking(fd int32) bool {
	v, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_GETFL, 0)
	return errno == 0 && v&unix.O_NONBLOCK != 0
}

// backlogged reports whether an accept would find something, an error of the socket included.
func backlogged(fd int32) bool {
	revents, err := poll(fd, unix.POLLIN)
	return err != nil || revents != 0
}

// Retryable reports an accept error that concerns one connection that is gone, or the network for a
// moment: accept(2) says to treat it like EAGAIN and go on.
func Retryable(errno syscall.Errno) bool {
	switch errno {
	case unix.ECONNABORTED, unix.EPROTO, unix.ENETDOWN, unix.ENOPROTOOPT, unix.EHOSTDOWN, unix.ENONET,
		unix.EHOSTUNREACH, unix.EOPNOTSUPP, unix.ENETUNREACH, unix.EPERM, unix.ECONNRESET, unix.ETIMEDOUT:
		return true
	}
	return false
}

// Exhausted reports an accept error that lasts until a descriptor or memory is given back.
func Exhausted(errno syscall.Errno) bool {
	switch errno {
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		return true
	}
	return false
}
