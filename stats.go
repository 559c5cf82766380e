package tcpio

import "sync/atomic"

// Kinds of time limit, as counters has them.
const (
	timeoutIdle = iota
	timeoutRead
	timeoutWrite
	timeoutHandshake
	timeoutClose
	timeoutKinds
)

// Reasons to refuse a connection, as counters has them.
const (
	refusedConns = iota
	refusedPerIP
	refusedRate
	refusedAdmit
	refusedKinds
)

// counters is what one loop counts. Each counter has its own home in the loop that writes it most, so that counting is
// an uncontended addition.
type counters struct {
	accepted  atomic.Uint64
	closed    atomic.Uint64
	bytesIn   atomic.Uint64
	bytesOut  atomic.Uint64
	events    atomic.Uint64
	posted    atomic.Uint64
	refused   [refusedKinds]atomic.Uint64
	timeouts  [timeoutKinds]atomic.Uint64
	handshake atomic.Uint64 // failed TLS handshakes
}

func (n *counters) timeout(limit string) {
	kind := timeoutIdle
	if limit == "read" {
		kind = timeoutRead
	}
	n.timeouts[kind].Add(1)
}
