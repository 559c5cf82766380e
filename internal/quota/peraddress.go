package quota

import (
	"net/netip"
	"sync"
)

// PerAddress counts the connections of each address: an IPv4 address, or the /64 network of an IPv6
// address, which is what one customer has. The zero value is ready. It may be used by several
// goroutines.
type PerAddress struct {
	mu sync.Mutex
	// Guarded by mu.
	conns map[netip.Prefix]int
}

// Take counts one more connection of ip, unless there are most. It reports whether it did.
func (a *PerAddress) Take(ip netip.Addr, most int) bool {
	p := network(ip)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns[p] >= most {
		return false
	}
	if a.conns == nil {
		a.conns = make(map[netip.Prefix]int)
	}
	a.conns[p]++
	return true
}

// Give ends what a successful Take began.
func (a *PerAddress) Give(ip netip.Addr) {
	p := network(ip)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns[p]--; a.conns[p] <= 0 {
		delete(a.conns, p)
	}
}

// network is what counts as one address.
func network(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap()
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return p
}
