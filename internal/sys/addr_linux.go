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

// Local asks for the local address of fd. The zero Addr is that of a unix socket, or of none.
func Local(fd int32) Addr {
	var rsa unix.RawSockaddrAny
	if !sockname(fd, &rsa) {
		return Addr{}
	}
	return parseAddr(&rsa)
}

// LocalAddr asks for the local address of fd, nil if it has none. z is the zone that it may have.
func LocalAddr(fd int32, z Zone) net.Addr {
	var rsa unix.RawSockaddrAny
	if !sockname(fd, &rsa) {
		return nil
	}
	switch a := parseAddr(&rsa); rsa.Addr.Family {
	case unix.AF_INET:
		return &net.TCPAddr{IP: append(net.IP(nil), a.ip[12:]...), Port: int(a.port)}
	case unix.AF_INET6:
		return &net.TCPAddr{IP: append(net.IP(nil), a.ip[:]...), Port: int(a.port), Zone: z.nameOf(a.zone)}
	case unix.AF_UNIX:
		if sa, err := unix.Getsockname(int(fd)); err == nil {
			return &net.UnixAddr{Name: sa.(*unix.SockaddrUnix).Name, Net: "unix"}
		}
	}
	return nil
}

// sockname is getsockname(2). The function of x/sys allocates, and asks for the protocol as well.
func sockname(fd int32, rsa *unix.RawSockaddrAny) bool {
	size := uint32(unix.SizeofSockaddrAny)
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd),
		uintptr(unsafe.Pointer(rsa)), uintptr(unsafe.Pointer(&size)))
	return errno == 0
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
