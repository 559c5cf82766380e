package tcpio

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
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
