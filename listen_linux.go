package tcpio

import (
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the listening socket, and of its options, which accepted sockets inherit.

// accepter returns the accept4 for the listening socket fd. The connections that it takes off the backlog are CLOEXEC and
// NONBLOCK from birth.
//
// accept4 blocks if O_NONBLOCK is off, which a supervisor or a successor may do to the listening socket that they share
// with us. So the flag is looked at, and without it the backlog is too. What is left is that somebody clears the flag, or
// takes the connection that was seen, between the look and the call. Then SO_RCVTIMEO ends the call, see callLimit, and the
// scheduler, which is told of it, lets the rest of the process go on.
func accepter(fd int) func(fd int) (int, sockaddr, syscall.Errno) {
	const ipprotoMPTCP = 262
	if p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && p == ipprotoMPTCP {
		return sysAcceptMPTCP // what the package net listens to by default
	}
	return sysAccept
}

func sysAccept(fd int) (int, sockaddr, syscall.Errno) {
	for {
		if !nonblocking(fd) {
			if !backlogged(fd) {
				return -1, sockaddr{}, unix.EAGAIN
			}
			_ = limitCalls(fd) // whoever wants to block may have undone that as well
		}
		if n, peer, errno := accept4(fd); errno != unix.EINTR {
			return n, peer, errno
		}
	}
}

// sysAcceptMPTCP is sysAccept for multipath TCP, where accept4 does not look at SO_RCVTIMEO: it waits on the first subflow's
// socket, which does not get the option (net/mptcp, mptcp_setsockopt). A call that takes long is instead interrupted, with
// O_NONBLOCK on: the kernel begins it anew and sees the flag. SIGURG is the signal by which the runtime preempts, and whoever
// else gets one has to expect that (os/signal); its handler restarts system calls.
func sysAcceptMPTCP(fd int) (int, sockaddr, syscall.Errno) {
	if !backlogged(fd) {
		return -1, sockaddr{}, unix.EAGAIN
	}
	return acceptInterruptibly(fd)
}

func acceptInterruptibly(fd int) (int, sockaddr, syscall.Errno) {
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
		_ = unix.SetNonblock(fd, true)
		_ = unix.Tgkill(pid, thread, unix.SIGURG)
		late.Reset(callLimit) // somebody may clear the flag again before the kernel looks
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

func accept4(fd int) (int, sockaddr, syscall.Errno) {
	var rsa unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	n, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&rsa)),
		uintptr(unsafe.Pointer(&size)), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0)
	if errno != 0 {
		return -1, sockaddr{}, errno
	}
	return int(n), parseSockaddr(&rsa), 0
}

// nonblocking reports whether O_NONBLOCK is set on fd at the moment. fcntl(2) is the system call of that name here, not
// fcntl64, which F_GETFL does not need.
func nonblocking(fd int) bool {
	v, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_GETFL, 0)
	return errno == 0 && v&unix.O_NONBLOCK != 0
}

// backlogged reports whether an accept would find something, an error of the socket included.
func backlogged(fd int) bool {
	revents, err := sysPoll(int32(fd), unix.POLLIN)
	return err != nil || revents != 0
}

// retryable reports an accept error that concerns the one connection that is no more, or the network for a moment:
// accept(2) says to treat them like EAGAIN and go on.
func retryable(errno syscall.Errno) bool {
	switch errno {
	case unix.ECONNABORTED, unix.EPROTO, unix.ENETDOWN, unix.ENOPROTOOPT, unix.EHOSTDOWN, unix.ENONET,
		unix.EHOSTUNREACH, unix.EOPNOTSUPP, unix.ENETUNREACH, unix.EPERM, unix.ECONNRESET, unix.ETIMEDOUT:
		return true
	}
	return false
}

// exhausted reports an accept error that lasts until somebody gives a descriptor or memory back.
func exhausted(errno syscall.Errno) bool {
	switch errno {
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		return true
	}
	return false
}

// takeListener moves the socket out of a net.Listener: a duplicate that this package owns, after which ln itself is
// closed. SyscallConn is used and not File, which would put the shared description into blocking mode.
func takeListener(ln net.Listener) (int, error) {
	sc, err := ln.(syscall.Conn).SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	if err := sc.Control(func(old uintptr) {
		fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, err
	}
	if dupErr != nil {
		return -1, os.NewSyscallError("fcntl", dupErr)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("fcntl", err)
	}
	if err := limitCalls(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	ln.Close()
	return fd, nil
}

// tuneListener sets on the listening socket what every accepted one inherits (Linux copies them in
// tcp_create_openreq_child), so that no accepted connection costs a setsockopt.
func tuneListener(fd int, ka net.KeepAliveConfig, user time.Duration) error {
	set := func(name string, level, opt, v int) error {
		if err := unix.SetsockoptInt(fd, level, opt, v); err != nil {
			return os.NewSyscallError("setsockopt "+name, err)
		}
		return nil
	}
	if err := set("TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	if err := setUserTimeout(fd, user); err != nil {
		return err
	}
	if !ka.Enable {
		return set("SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
	}
	if err := set("SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); err != nil {
		return err
	}
	if v := seconds(ka.Idle, 15); v > 0 {
		if err := set("TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, v); err != nil {
			return err
		}
	}
	if v := seconds(ka.Interval, 15); v > 0 {
		if err := set("TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, v); err != nil {
			return err
		}
	}
	count := ka.Count
	if count == 0 {
		count = 9
	}
	if count > 0 {
		return set("TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, count)
	}
	return nil
}

func setUserTimeout(fd int, user time.Duration) error {
	if user <= 0 {
		return nil
	}
	ms := int((user + time.Millisecond - 1) / time.Millisecond)
	return os.NewSyscallError("setsockopt TCP_USER_TIMEOUT", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms))
}

// tuneDialled is tuneListener for a socket that is about to connect, behind its user's own settings: keepAlive says whether
// the options' are wanted, and a TCP_USER_TIMEOUT that is set already stays. A multipath socket may lack an option.
func tuneDialled(fd int, keepAlive, multipath bool, o *ListenerOptions) error {
	ka, user := o.KeepAlive, o.UserTimeout
	if !keepAlive {
		on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		if err != nil {
			return os.NewSyscallError("getsockopt", err)
		}
		ka = net.KeepAliveConfig{Enable: on != 0, Idle: -1, Interval: -1, Count: -1} // as it is
	}
	if was, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err == nil && was != 0 {
		user = 0
	}
	lacking := func(err error) error {
		if multipath && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOPROTOOPT)) {
			return nil
		}
		return err
	}
	return errors.Join(lacking(tuneListener(fd, ka, 0)), lacking(setUserTimeout(fd, user)))
}

// sysMultipath reports whether a TCP socket is one of multipath TCP, of which a short read proves nothing.
func sysMultipath(fd int32) bool {
	protocol, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return err == nil && protocol != unix.IPPROTO_TCP
}
