package tcpio

import (
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of a socket. Those of the hot path are made raw, without telling the scheduler: they cannot block
// (MSG_DONTWAIT holds even if somebody cleared O_NONBLOCK on the shared description), and the hand-off around an
// ordinary system call is a fifth of a small request.

const supported = true

// iovMax is the number of segments one sendmsg takes here; UIO_MAXIOV would be 1,024, but past a few dozen nothing is won.
const iovMax = 64

// sockaddr is a peer's address without a pointer, 24 bytes in every Conn. The zero value is a peer without an address.
type sockaddr struct {
	ip   [16]byte
	zone uint32
	port uint16
	is4  bool
	isIP bool
}

func sysRecv(fd int32, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
}

func sysSend(fd int32, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
			uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
}

// iovec collects up to iovMax segments for one sendmsg; empty ones are left out.
type iovec struct {
	segs [iovMax]unix.Iovec
	n    int
}

// add reports false when v is full and p was not taken.
func (v *iovec) add(p []byte) bool {
	if len(p) == 0 {
		return true
	}
	if v.n == iovMax {
		return false
	}
	v.segs[v.n].Base = &p[0]
	v.segs[v.n].SetLen(len(p))
	v.n++
	return true
}

func sysSendv(fd int32, v *iovec) (int, syscall.Errno) {
	var msg unix.Msghdr
	msg.Iov = &v.segs[0]
	msg.SetIovlen(v.n)
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd),
			uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
}

// sysUnread is how many bytes can be read, without the peer's end and urgent data (SIOCINQ, tcp(7)). Unlike a peek it
// leaves a pending error to who reads.
func sysUnread(fd int32) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// sysHungUp reports whether the peer has ended its stream or reset the connection, whatever is still to be read before
// that. It leaves a pending error alone.
func sysHungUp(fd int32) bool {
	p := unix.PollFd{Fd: fd, Events: unix.POLLRDHUP}
	n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(new(unix.Timespec))), 0, 0, 0)
	return n == 1
}

func sysShutdownWrite(fd int32) error {
	return os.NewSyscallError("shutdown", unix.Shutdown(int(fd), unix.SHUT_WR))
}

// sysClose closes fd; EINTR is not retried, since Linux has released the number by then (close(2)).
func sysClose(fd int32) { _ = unix.Close(int(fd)) }

// sysReset makes the close of fd that follows send a reset (SO_LINGER of zero, socket(7)).
func sysReset(fd int32) {
	_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// noLinger takes back an SO_LINGER that a socket was given by somebody else: close(2) waits that long for what is unsent to
// be acknowledged, also on a non-blocking socket, and the loop with it. Accepted sockets inherit the option.
func noLinger(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
}

// sysSockError takes the pending error of the socket, nil if there is none.
func sysSockError(fd int32) error {
	v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if v == 0 {
		return nil
	}
	return syscall.Errno(v)
}

func sysSetNoDelay(fd int32, on bool) error {
	v := 0
	if on {
		v = 1
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, v))
}

// sysAccept takes one connection off the backlog, CLOEXEC and NONBLOCK from birth.
func sysAccept(fd int) (int, sockaddr, syscall.Errno) {
	var rsa unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&rsa)),
			uintptr(unsafe.Pointer(&size)), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return -1, sockaddr{}, errno
		}
		return int(n), parseSockaddr(&rsa), 0
	}
}

func parseSockaddr(rsa *unix.RawSockaddrAny) (a sockaddr) {
	switch rsa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(rsa))
		copy(a.ip[:4], in.Addr[:])
		a.port = netPort(in.Port)
		a.is4, a.isIP = true, true
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(rsa))
		a.ip = in.Addr
		a.port = netPort(in.Port)
		a.zone = in.Scope_id
		a.isIP = true
	}
	return a
}

// netPort reads a port that lies in memory in network order.
func netPort(p uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&p))
	return uint16(b[0])<<8 | uint16(b[1])
}

// sysLocalAddr asks the kernel for the local address of fd.
func sysLocalAddr(fd int32) net.Addr {
	sa, err := unix.Getsockname(int(fd))
	if err != nil {
		return nil
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: append(net.IP(nil), sa.Addr[:]...), Port: sa.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: append(net.IP(nil), sa.Addr[:]...), Port: sa.Port, Zone: zoneName(sa.ZoneId)}
	case *unix.SockaddrUnix:
		return &net.UnixAddr{Name: sa.Name, Net: "unix"}
	}
	return nil
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
	noLinger(fd)
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
	if user > 0 {
		ms := int((user + time.Millisecond - 1) / time.Millisecond)
		if err := set("TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms); err != nil {
			return err
		}
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
