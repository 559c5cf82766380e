package tcpio

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of a socket. O_NONBLOCK is a flag of the open file description, which whoever has a duplicate shares and
// may clear at any time, so that no call here relies on it. Those of the hot path are made raw, without telling the
// scheduler: MSG_DONTWAIT keeps them from blocking, and the hand-off around an ordinary system call is a fifth of a small
// request. accept4 has no such flag: see accepter. The others do not look at O_NONBLOCK; close(2) looks at SO_LINGER, see
// sysClose.

const supported = true

// iovMax is the number of segments one sendmsg takes here; UIO_MAXIOV would be 1,024, but past a few dozen nothing is won.
const iovMax = 64

// sockaddr is a peer's address without a pointer, 24 bytes in every Conn. The zero value is a peer without an address.
type sockaddr struct {
	ip   [16]byte
	zone uint32 // of a unix peer: whether it has a name; see named
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
	revents, _ := sysPoll(fd, unix.POLLRDHUP)
	return revents != 0
}

// sysPoll says which of events there are on fd at the moment, or an error or a hang-up, which it leaves there.
func sysPoll(fd int32, events int16) (revents int16, err error) {
	p := [1]unix.PollFd{{Fd: fd, Events: events}}
	for {
		if _, err = unix.Poll(p[:], 0); err != unix.EINTR {
			return p[0].Revents, err
		}
	}
}

// sysPeekAt is sysRecv that leaves the bytes where they are.
func sysPeekAt(fd int32, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_PEEK, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
}

func sysShutdownWrite(fd int32) error {
	return os.NewSyscallError("shutdown", unix.Shutdown(int(fd), unix.SHUT_WR))
}

// sysClose closes the socket of a connection, with a reset if reset is set (SO_LINGER of zero, socket(7)). In any case the
// option is ours from here on: with a time in it close(2) waits that long for what is unsent to be acknowledged, on a
// non-blocking socket too, and the loop with it. The user may have set it by SyscallConn, or whoever shares the listening
// socket on that one, from which accepted sockets inherit it at any time. Setting it takes a quarter of a microsecond.
func sysClose(fd int32, reset bool) {
	var linger unix.Linger
	if reset {
		linger.Onoff = 1
	}
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&linger)), unix.SizeofLinger, 0)
	sysCloseFD(fd)
}

// sysCloseFD closes what is not a connection of ours, or no more. EINTR is not retried, since Linux has released the number
// by then (close(2)).
func sysCloseFD(fd int32) { _ = unix.Close(int(fd)) }

// callLimit bounds the calls that have no MSG_DONTWAIT, should O_NONBLOCK be off: the kernel rounds it up to one tick of its
// clock, 1 to 10 ms.
const callLimit = time.Millisecond

// limitCalls sets callLimit on a socket that we take over. Accepted TCP sockets inherit it from the listening socket. Calls
// with MSG_DONTWAIT, and all while O_NONBLOCK is on, do not look at it.
func limitCalls(fd int) error { return setCallLimits(fd, callLimit) }

// unlimitCalls is for a socket that goes to somebody else, who may want to block in it.
func unlimitCalls(fd int) error { return setCallLimits(fd, 0) }

func setCallLimits(fd int, d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	}
	return os.NewSyscallError("setsockopt", err)
}

// sysDisown leaves to nc the socket that sysTake has made a duplicate of.
func sysDisown(nc net.Conn) {
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return // closed meanwhile
	}
	_ = raw.Control(func(fd uintptr) { _ = unlimitCalls(int(fd)) })
}

// sysSockError takes the pending error of the socket, 0 if there is none.
func sysSockError(fd int32) syscall.Errno {
	v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if errno, ok := err.(syscall.Errno); ok {
		return errno
	}
	return syscall.Errno(v)
}

// sysErrorPending reports whether the socket has an error pending, and leaves it there.
func sysErrorPending(fd int32) bool {
	revents, _ := sysPoll(fd, 0)
	return revents&unix.POLLERR != 0
}

// sysDisconnected reports whether a TCP socket is in the state CLOSE: reset or timed out, or ended by both sides.
func sysDisconnected(fd int32) bool {
	var info [4]byte // only the first field of struct tcp_info, tcpi_state
	size := uint32(1)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return errno == 0 && info[0] == unix.BPF_TCP_CLOSE
}

func sysSetNoDelay(fd int32, on bool) error {
	v := 0
	if on {
		v = 1
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, v))
}

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
	case unix.AF_UNIX:
		if un := (*unix.RawSockaddrUnix)(unsafe.Pointer(rsa)); un.Path[0] != 0 || un.Path[1] != 0 {
			a.zone = 1
		}
	}
	return a
}

// netPort reads a port that lies in memory in network order.
func netPort(p uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&p))
	return uint16(b[0])<<8 | uint16(b[1])
}

// sysPeerName asks the kernel for the name of a unix socket's peer.
func sysPeerName(fd int32) net.Addr {
	a := &net.UnixAddr{Name: "@", Net: "unix"}
	if sa, err := unix.Getpeername(int(fd)); err == nil {
		if un, ok := sa.(*unix.SockaddrUnix); ok {
			a.Name = un.Name
		}
	}
	return a
}

// sysZone asks for the name of the network interface index, in the network namespace of the socket fd.
func sysZone(fd int, index uint32) zone {
	z := zone{index: index}
	if ifr, err := unix.NewIfreq(""); err == nil {
		ifr.SetUint32(index)
		if unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifr) == nil {
			z.name = ifr.Name()
			return z
		}
	}
	z.name = zone{}.nameOf(index)
	return z
}

// sysDevice is the network interface that fd is bound to, by a link-local address too.
func sysDevice(fd int) zone {
	index, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err != nil || index <= 0 {
		return zone{}
	}
	return sysZone(fd, uint32(index))
}

// A fileID tells a file from another one that has its path.
type fileID struct{ dev, ino uint64 }

func sysFileID(path string) (id fileID, ok bool) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return fileID{}, false
	}
	return fileID{uint64(st.Dev), uint64(st.Ino)}, true
}

// sysRemoveOwn removes the file at path if it is id. Between a look and an unlink another process may put its own there,
// so the file is moved aside first and looked at again, and one that is not ours is moved back.
func sysRemoveOwn(path string, id fileID) {
	if at, ok := sysFileID(path); !ok || at != id {
		return
	}
	aside := filepath.Join(filepath.Dir(path), fmt.Sprintf(".tcpio-%d-%x-%x", os.Getpid(), id.dev, id.ino))
	if unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, aside, unix.RENAME_NOREPLACE) != nil {
		_ = unix.Unlink(path) // the file system cannot
		return
	}
	if at, ok := sysFileID(aside); ok && at != id &&
		unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE) == nil {
		return
	}
	_ = unix.Unlink(aside)
}

// sysLocalAddr asks the kernel for the local address of fd; z is the zone that it may have.
func sysLocalAddr(fd int32, z zone) net.Addr {
	sa, err := unix.Getsockname(int(fd))
	if err != nil {
		return nil
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: append(net.IP(nil), sa.Addr[:]...), Port: sa.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: append(net.IP(nil), sa.Addr[:]...), Port: sa.Port, Zone: z.nameOf(sa.ZoneId)}
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
