package sys

import (
	"net"
	"net/netip"
	"strconv"
	"syscall"
)

// Addresses. An Addr is plain bytes. The names in an address (a unix socket's path, an IPv6 zone's
// interface) are asked of the kernel once, when the connection is new and under no lock.

// Addr is a peer's address, and a byte of the caller's, in 24 bytes without a pointer. The zero
// value is a unix peer without a name.
type Addr struct {
	ip   [16]byte // IPv4 is mapped
	zone uint32   // an IPv6 address's; of a unix peer: 1 if it has a name
	port uint16
	IsIP bool

	Entry uint8 // the caller's: which listening socket the peer came by
}

// AddrPort returns the address in its usual form; zone is the name of its zone. IPv4 peers of a
// dual-stack socket are IPv4, as in the package net. A unix peer has the zero value.
func (a *Addr) AddrPort(zone string) netip.AddrPort {
	if !a.IsIP {
		return netip.AddrPort{}
	}
	ip := netip.AddrFrom16(a.ip).Unmap()
	if ip.Is6() && a.zone != 0 {
		ip = ip.WithZone(zone)
	}
	return netip.AddrPortFrom(ip, a.port)
}

// Named reports whether the kernel must be asked for a name: a unix peer's, or that of the zone.
func (a *Addr) Named() bool { return a.zone != 0 }

// Unnamed returns the address without its zone or name.
func (a Addr) Unnamed() Addr {
	a.zone = 0
	return a
}

// Same reports whether the addresses, without their zones, are the same IP and port.
func (a *Addr) Same(b Addr) bool { return a.IsIP && b.IsIP && a.ip == b.ip && a.port == b.port }

// Zone asks for the name of the zone of an IPv6 peer, in the network namespace of the socket fd.
func (a *Addr) Zone(fd int32) Zone {
	if !a.IsIP || !a.Named() {
		return Zone{}
	}
	return zoneOf(fd, a.zone)
}

// Names asks for both addresses of a new connection with the names in them; z is its Zone. The
// local address of a unix connection is nil: it is its listener's.
func (a *Addr) Names(fd int32, z Zone) (remote, local net.Addr) {
	if !a.IsIP {
		return peerName(fd), nil
	}
	return net.TCPAddrFromAddrPort(a.AddrPort(z.name)), LocalAddr(fd, z)
}

// AcceptFunc takes a connection off the backlog of a listening socket. The caller owns the
// descriptor that it returns. It fails with EAGAIN when the backlog is empty.
type AcceptFunc func(fd int32) (conn int32, peer Addr, errno syscall.Errno)

// A Zone is the index of a network interface with its name. The zero value is no interface.
type Zone struct {
	index uint32
	name  string
}

// Name returns the zone's name, empty for no zone.
func (z Zone) Name() string { return z.name }

// nameOf returns the name of the zone index in an address: z's if it is that zone, otherwise the
// index, as in the package net.
func (z Zone) nameOf(index uint32) string {
	switch index {
	case 0:
		return ""
	case z.index:
		return z.name
	}
	return strconv.FormatUint(uint64(index), 10)
}

// AddrOf is a net.Addr as an Addr. If the result is Named, a has the name.
func AddrOf(a net.Addr) (s Addr) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		if a != nil {
			s.zone = 1
		}
		return s
	}
	ap := tcp.AddrPort()
	if ap.Addr().Zone() != "" {
		s.zone = 1 // any: the name is known
	}
	s.IsIP, s.port, s.ip = true, ap.Port(), ap.Addr().As16()
	return s
}
