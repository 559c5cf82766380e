package sys

import (
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// parseAddr reads an address that the kernel has written.
func parseAddr(rsa *unix.RawSockaddrAny) (a Addr) {
	switch rsa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(rsa))
		a.ip[10], a.ip[11] = 0xff, 0xff
		copy(a.ip[12:], in.Addr[:])
		a.port = netPort(in.Port)
		a.IsIP = true
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(rsa))
		a.ip = in.Addr
		a.port = netPort(in.Port)
		a.zone = in.Scope_id
		a.IsIP = true
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

// peerName asks for the name of a unix socket's peer: @ if it has none.
func peerName(fd int32) net.Addr {
	a := &net.UnixAddr{Name: "@", Net: "unix"}
	if sa, err := unix.Getpeername(int(fd)); err == nil {
		if un, ok := sa.(*unix.SockaddrUnix); ok {
			a.Name = un.Name
		}
	}
	return a
}

// LocalAddr asks for the local address of fd, nil if it has none. z is the zone that it may have.
func LocalAddr(fd int32, z Zone) net.Addr {
	sa, err := unix.Getsockname(int(fd))
	if err != nil {
		return nil
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: append(net.IP(nil), sa.Addr[:]...), Port: sa.Port}
	case *unix.SockaddrInet6:
		ip := append(net.IP(nil), sa.Addr[:]...)
		return &net.TCPAddr{IP: ip, Port: sa.Port, Zone: z.nameOf(sa.ZoneId)}
	case *unix.SockaddrUnix:
		return &net.UnixAddr{Name: sa.Name, Net: "unix"}
	}
	return nil
}

// zoneOf asks for the name of the network interface index, in the network namespace of fd.
func zoneOf(fd int32, index uint32) Zone {
	if ifr, err := unix.NewIfreq(""); err == nil {
		ifr.SetUint32(index)
		if unix.IoctlIfreq(int(fd), unix.SIOCGIFNAME, ifr) == nil {
			return Zone{index, ifr.Name()}
		}
	}
	return Zone{index, Zone{}.nameOf(index)}
}

// Device returns the network interface that fd is bound to, by a link-local address too.
func Device(fd int32) Zone {
	index, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err != nil || index <= 0 {
		return Zone{}
	}
	return zoneOf(fd, uint32(index))
}
