//go:build linux

package testnet

import (
	"net"
	"os"
	"strconv"
	"sync/atomic"
)

// Host is a loopback address of this process's own: nothing but its tests uses the ports there. A
// port of 127.0.0.1 that is free now may be taken before a program listens on it, or while a server
// is down: any connection on this machine may begin there.
func Host() string {
	pid := os.Getpid() // less than 1<<22 on Linux
	return net.IPv4(127, byte(64+pid>>16), byte(pid>>8), byte(pid)).String()
}

// handedOut counts the addresses that FreeAddr has tried.
var handedOut atomic.Int32

// FreeAddr returns an address on Host on which nobody listens, another one with each call.
func FreeAddr(t T) string {
	t.Helper()
	for range 1000 { // ports that another program has on all addresses are passed over
		// Less than what the kernel gives to listeners that ask for any port.
		addr := net.JoinHostPort(Host(), strconv.Itoa(10_000+int(handedOut.Add(1))))
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatalf("no port is free on %s", Host())
	return ""
}
