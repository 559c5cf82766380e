package tcpio

import (
	"runtime/debug"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// PublicDefaults returns options for a server on the open internet, where a peer may be anybody:
// set Addr, and what else the server needs, and pass them to Listen. They bound what peers who are
// silent, slow, gone or many can take:
//
//	MaxConns           100,000, three quarters of the descriptors, or a quarter of the memory at
//	                   16 KiB each, whichever is least
//	MaxConnsPerIP      1,000; fewer unless many users share an address
//	WriteBuffer        256 KiB
//	MaxBuffered        a quarter of the memory, as it is by default
//	WriteStallTimeout  30 s
//	ReadStallTimeout   10 s: to the first byte, and between two bytes of a frame
//	FrameTimeout       30 s
//	IdleTimeout        5 min: longer than the protocol's own ping
//	TCPUserTimeout     30 s
//
// Memory is what MaxBuffered says it is. Where a client may connect and say nothing for longer, set
// ReadStallTimeout to 0. InputTimeout is left to you, since a subscriber may never send anything,
// and so is AcceptRate: rate.NewLimiter of golang.org/x/time/rate.
func PublicDefaults() ListenerOptions { return publicDefaults(processMemory(), sys.MaxDescriptors()) }

func publicDefaults(memory int64, descriptors int) ListenerOptions {
	return ListenerOptions{
		MaxConns:          int(max(1, min(100_000, int64(descriptors/4*3), memory/4/(16<<10)))),
		MaxConnsPerIP:     1000,
		WriteBuffer:       256 << 10,
		MaxBuffered:       defaultBuffered(memory),
		WriteStallTimeout: 30 * time.Second,
		ReadStallTimeout:  10 * time.Second,
		FrameTimeout:      30 * time.Second,
		IdleTimeout:       5 * time.Minute,
		TCPUserTimeout:    30 * time.Second,
	}
}

// defaultBuffered is MaxBuffered where the options have none. What is queued is not garbage, and
// the collector lets the heap grow to twice of what is in use, so that a full budget takes half of
// memory.
func defaultBuffered(memory int64) int {
	return int(max(leastBuffered, min(memory/4, mostBuffered)))
}

// leastBuffered is a MaxBuffered with which a server works at all.
const leastBuffered = 1 << 20

// processMemory returns how many bytes the process may use: what the Go runtime (GOMEMLIMIT,
// debug.SetMemoryLimit), its control groups and the machine allow.
func processMemory() int64 { return min(debug.SetMemoryLimit(-1), sys.MemoryLimit("/")) }
