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
	if err := LimitCalls(int32(fd)); err != nil {
		CloseFD(int32(fd))
		return -1, err
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
	sa, err := sockaddr(fd, local)
	if err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(int(fd), sa))
}

// Connect begins to connect fd to remote, a *net.TCPAddr or *net.UnixAddr. What becomes of it
// Connected says, when it is over: fd is writable then.
func Connect(fd int32, remote net.Addr) error {
	sa, err := sockaddr(fd, remote)
	if err != nil {
		return err
	}
	switch err := unix.Connect(int(fd), sa); err {
	// After EINTR it goes on (connect(2)).
	case nil, unix.EISCONN, unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
		return nil
	default:
		return os.NewSyscallError("connect", err)
	}
}

// Connected reports whether fd, which Connect has begun to connect, is connected, and to its own
// address (self): a port of the dynamic range that nobody listens on can be given to the very
// socket that connects to it. It takes a pending error out of the socket.
func Connected(fd int32) (connected, self bool, err error) {
	if errno := TakeError(fd); errno != 0 {
		return false, false, os.NewSyscallError("connect", errno)
	}
	peer, err := unix.Getpeername(int(fd))
	if err != nil {
		return false, false, nil // readiness is a hint
	}
	local, err := unix.Getsockname(int(fd))
	if err != nil {
		return true, false, nil
	}
	switch p := peer.(type) {
	case *unix.SockaddrInet4:
		l, ok := local.(*unix.SockaddrInet4)
		self = ok && l.Port == p.Port && l.Addr == p.Addr
	case *unix.SockaddrInet6:
		l, ok := local.(*unix.SockaddrInet6)
		self = ok && l.Port == p.Port && l.Addr == p.Addr
	}
	return true, self, nil
}

// ConnectedAddrs asks for both addresses of fd, which was connected to remote. The zone of a
// link-local address is the kernel's: it may have come from the local address alone.
func ConnectedAddrs(fd int32, remote net.Addr) (peer, local net.Addr) {
	zone := Zone{}
	if tcp, ok := remote.(*net.TCPAddr); ok && tcp.IP.To4() == nil && tcp.IP.IsLinkLocalUnicast() {
		if sa, err := unix.Getpeername(int(fd)); err == nil {
			if in, ok := sa.(*unix.SockaddrInet6); ok && in.ZoneId != 0 {
				zone = zoneOf(fd, in.ZoneId)
				remote = &net.TCPAddr{IP: tcp.IP, Port: tcp.Port, Zone: zone.name}
			}
		}
	}
	return remote, LocalAddr(fd, zone)
}

// SetKeepAlive sets the keep-alive options as the package net sets those of a net.Dialer: zero
// values are its defaults, and what is negative is left alone.
func SetKeepAlive(fd int32, ka net.KeepAliveConfig) error { return tune(fd, ka, 0, true) }

// sockaddr is an address as the kernel has it. Of a TCP address without an IP, the family of fd
// says which kind it is.
func sockaddr(fd int32, a net.Addr) (unix.Sockaddr, error) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return &unix.SockaddrUnix{Name: a.(*net.UnixAddr).Name}, nil
	}
	family, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	ip, _ := netip.AddrFromSlice(tcp.IP)
	if ip = ip.Unmap(); family == unix.AF_INET {
		sa := &unix.SockaddrInet4{Port: tcp.Port}
		if ip.Is4() {
			sa.Addr = ip.As4()
		}
		return sa, nil
	}
	sa := &unix.SockaddrInet6{Port: tcp.Port, ZoneId: zoneIndex(fd, tcp.Zone)}
	if ip.IsValid() && !ip.IsUnspecified() {
		sa.Addr = ip.As16()
	}
	return sa, nil
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
