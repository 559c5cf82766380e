//go:build linux

package sys

import (
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestAddrIsWhatTheKernelWrote(t *testing.T) {
	if size := unsafe.Sizeof(Addr{}); size != 24 {
		t.Errorf("an Addr has %d bytes, want 24", size)
	}
	port := [2]byte{0x12, 0x34}
	in4 := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte{192, 0, 2, 1}}
	in4.Port = *(*uint16)(unsafe.Pointer(&port))
	in6 := unix.RawSockaddrInet6{Family: unix.AF_INET6, Scope_id: 7, Port: in4.Port,
		Addr: netip.MustParseAddr("fe80::1").As16()}
	mapped := in6
	mapped.Addr = netip.MustParseAddr("::ffff:192.0.2.1").As16()
	for _, tt := range []struct {
		raw   unsafe.Pointer
		size  uintptr
		want  string
		named bool
	}{
		{unsafe.Pointer(&in4), unsafe.Sizeof(in4), "192.0.2.1:4660", false},
		{unsafe.Pointer(&in6), unsafe.Sizeof(in6), "[fe80::1%eth7]:4660", true},
		{unsafe.Pointer(&mapped), unsafe.Sizeof(mapped), "192.0.2.1:4660", true},
	} {
		var any unix.RawSockaddrAny
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&any)), unsafe.Sizeof(any)),
			unsafe.Slice((*byte)(tt.raw), tt.size))
		a := parseAddr(&any)
		if got := a.AddrPort("eth7"); got != netip.MustParseAddrPort(tt.want) || !a.IsIP {
			t.Errorf("%v, want %s", got, tt.want)
		}
		if a.Named() != tt.named || a.Unnamed().zone != 0 {
			t.Errorf("%s: named is %v", tt.want, a.Named())
		}
		back := AddrOf(net.TCPAddrFromAddrPort(a.AddrPort("")))
		if back != a.Unnamed() {
			t.Errorf("%s: %+v by way of a net.Addr, want %+v", tt.want, back, a.Unnamed())
		}
	}
}

func TestAZoneHasItsInterfacesName(t *testing.T) {
	ifs, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_UNIX} {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			continue // no such family here
		}
		defer unix.Close(fd)
		for _, i := range ifs {
			z := zoneOf(int32(fd), uint32(i.Index))
			if got := z.nameOf(uint32(i.Index)); got != i.Name {
				t.Errorf("family %d, index %d: %q, want %q", family, i.Index, got, i.Name)
			}
			if got := z.nameOf(1 << 30); got != "1073741824" {
				t.Errorf("another zone: %q", got)
			}
			if got := z.nameOf(0); got != "" {
				t.Errorf("no zone: %q", got)
			}
		}
		if got := zoneOf(int32(fd), 1<<30).Name(); got != "1073741824" {
			t.Errorf("family %d, no such interface: %q, want its index", family, got)
		}
	}
}
