package tcpio

import (
	"net"
	"net/netip"
	"strconv"
)

// addrPort is the address in its usual form; zone is the name of a.zone.
func (a *sockaddr) addrPort(zone string) netip.AddrPort {
	if !a.isIP {
		return netip.AddrPort{}
	}
	if a.is4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.ip[:4])), a.port)
	}
	ip := netip.AddrFrom16(a.ip)
	if ip.Is4In6() {
		ip = ip.Unmap() // as the package net shows an IPv4 peer of a dual-stack socket
	} else if a.zone != 0 {
		ip = ip.WithZone(zone)
	}
	return netip.AddrPortFrom(ip, a.port)
}

// named reports whether the address has a name that the kernel must be asked for: a unix socket's, or that of an IPv6
// address's zone. The Conn of such a peer has it in connExt from the start.
func (a *sockaddr) named() bool { return a.zone != 0 }

// names asks for the names in the addresses of a fresh connection; z is the zone of its peer, if that is an IPv6 one.
func (a *sockaddr) names(fd int32, z zone) *connExt {
	if !a.isIP {
		return &connExt{remote: sysPeerName(fd)}
	}
	return &connExt{remote: net.TCPAddrFromAddrPort(a.addrPort(z.name)), local: sysLocalAddr(fd, z)}
}

// A zone is the index of a network interface with its name, which is asked for once and under no lock.
type zone struct {
	index uint32
	name  string
}

// nameOf is the zone's name of an address; without knowing better the index, as the package net shows it then.
func (z zone) nameOf(index uint32) string {
	switch index {
	case 0:
		return ""
	case z.index:
		return z.name
	}
	return strconv.FormatUint(uint64(index), 10)
}

// peerOf is a net.Addr in the form that a Conn keeps. If that is named, a itself has the name.
func peerOf(a net.Addr) (s sockaddr) {
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
	s.isIP, s.port = true, ap.Port()
	ip := ap.Addr().Unmap()
	if ip.Is4() {
		s.is4 = true
		v4 := ip.As4()
		copy(s.ip[:], v4[:])
		return s
	}
	s.ip = ip.As16()
	return s
}
