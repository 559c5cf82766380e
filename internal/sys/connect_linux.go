package sys

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sockets that connect.

// Socket makes a stream socket, CLOEXEC and non-blocking, for a network "tcp4", "tcp6" or "unix".
// With multipath it is one of multipath TCP where the system has that.
func Socket(network string, multipath bool) (int32, error) {
	family := unix.AF_UNIX
	switch network {
	case "tcp4":
		family = unix.AF_INET
	case "tcp6":
		family = unix.AF_INET6
	}
	const kind = unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err := -1, error(unix.EPROTONOSUPPORT)
	if multipath && family != unix.AF_UNIX {
		fd, err = unix.Socket(family, kind, unix.IPPROTO_MPTCP)
	}
	switch err {
	case unix.EINVAL, unix.EPROTONOSUPPORT, unix.ENOPROTOOPT, unix.EPERM: // as net.Dialer falls back
		fd, err = unix.Socket(family, kind, 0)
	}
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return int32(fd), nil
}

// Bind gives fd its local address, a *net.TCPAddr or *net.UnixAddr. An IP address that is missing
// is any. Without a port the kernel chooses one when fd connects, so that one local address does
// for more connections than there are ports.
func Bind(fd int32, local net.Addr) error {
	if tcp, ok := local.(*net.TCPAddr); ok && tcp.Port == 0 {
		// Without it Bind chooses the port.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}
	family, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	sa := sockaddr(fd, family, local)
	return os.NewSyscallError("bind", unix.Bind(int(fd), sa))
}

// Connect begins to connect fd, a socket of remote's network, to remote, a *net.TCPAddr or
// *net.UnixAddr. When that is over, fd is writable. If poll(2) reports an error or a hang-up then,
// Connected says what became of it; if not, fd is connected. Connect does not block; a socket that
// others have seen, who may have cleared O_NONBLOCK, needs LimitCalls before.
func Connect(fd int32, remote net.Addr) error {
	family := unix.AF_INET6
	if tcp, ok := remote.(*net.TCPAddr); ok && tcp.IP.To4() != nil {
		family = unix.AF_INET
	}
	switch err := unix.Connect(int(fd), sockaddr(fd, family, remote)); err {
	// After EINTR it goes on (connect(2)).
	case nil, unix.EISCONN, unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
		return nil
	default:
		return os.NewSyscallError("connect", err)
	}
}

// Connected reports whether fd, which Connect has begun to connect, is connected. It takes a
// pending error out of the socket.
func Connected(fd int32) (bool, error) {
	if errno := TakeError(fd); errno != 0 {
		return false, os.NewSyscallError("connect", errno)
	}
	_, err := unix.Getpeername(int(fd))
	return err == nil, nil
}

// LinkLocalAddrs asks for both addresses of fd, which was connected to remote, if that is a
// link-local one: its zone may have come from the local address alone, and only the kernel knows.
func LinkLocalAddrs(fd int32, remote net.Addr) (peer, local net.Addr, ok bool) {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok || tcp.IP.To4() != nil || !tcp.IP.IsLinkLocalUnicast() {
		return nil, nil, false
	}
	zone := Zone{}
	if sa, err := unix.Getpeername(int(fd)); err == nil {
		if in, ok := sa.(*unix.SockaddrInet6); ok && in.ZoneId != 0 {
			zone = zoneOf(fd, in.ZoneId)
			remote = &net.TCPAddr{IP: tcp.IP, Port: tcp.Port, Zone: zone.name}
		}
	}
	return remote, LocalAddr(fd, zone), true
}

// SetKeepAlive sets the keep-alive options as the package net sets those of a net.Dialer: zero
// values are its defaults, and what is negative is left alone.
func SetKeepAlive(fd int32, ka net.KeepAliveConfig) error { return tune(fd, ka, 0, true) }

// sockaddr is an address as the kernel has it, for a socket fd of the family if it is a TCP address:
// one without an IP is of that family.
func sockaddr(fd int32, family int, a net.Addr) unix.Sockaddr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return &unix.SockaddrUnix{Name: a.(*net.UnixAddr).Name}
	}
	ip, _ := netip.AddrFromSlice(tcp.IP)
	if ip = ip.Unmap(); family == unix.AF_INET {
		sa := &unix.SockaddrInet4{Port: tcp.Port}
		if ip.Is4() {
			sa.Addr = ip.As4()
		}
		return sa
	}
	sa := &unix.SockaddrInet6{Port: tcp.Port, ZoneId: zoneIndex(fd, tcp.Zone)}
	if ip.IsValid() && !ip.IsUnspecified() {
		sa.Addr = ip.As16()
	}
	return sa
}

// zoneIndex asks for the index of the network interface zone, or reads it if it is a number. It is
// 0 for an interface that is not there, with which connect fails.
func zoneIndex(fd int32, zone string) uint32 {
	if zone == "" {
		return 0
	}
	if ifr, err := unix.NewIfreq(zone); err == nil && unix.IoctlIfreq(int(fd), unix.SIOCGIFINDEX, ifr) == nil {
		return ifr.Uint32()
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}

// A RawSocket is a socket as a syscall.RawConn, for a Control function of a net.Dialer.
type RawSocket int32

// Control calls f with the descriptor.
func (s RawSocket) Control(f func(fd uintptr)) error {
	f(uintptr(s))
	return nil
}

// Read is refused: the socket is not connected.
func (s RawSocket) Read(func(fd uintptr) bool) error { return syscall.ENOTCONN }

// Write is refused: the socket is not connected.
func (s RawSocket) Write(func(fd uintptr) bool) error { return syscall.ENOTCONN }
