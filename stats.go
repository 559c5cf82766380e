package tcpio

import "sync/atomic"

// Stats is what a listener has counted since Listen. Sums are over all loops.
type Stats struct {
	LoopStats
	Loops []LoopStats // each loop's own part

	Buffered    int64 // bytes of output that wait for room in sockets
	MaxBuffered int64 // their bound, also where ListenerOptions has none
	Blocked     int   // goroutines in actors' handlers that have blocked and lost their loop
	Refusing    int   // refused connections whose peer has not read the reply yet

	// Panics counts the panics of your code that tcpio has stopped, and its calls of runtime.Goexit:
	// in handlers, hooks, callbacks, Group.Left, Groups.Changed, and functions of a TLS config in a
	// handshake, or of the Dialer of a dial.
	Panics uint64
}

// LoopStats is one loop's part of Stats.
type LoopStats struct {
	Open     int    // connections that have a descriptor
	Accepted uint64 // connections served: accepted, adopted and dialed ones
	Closed   uint64 // of those, the ones whose descriptor is gone
	BytesIn  uint64 // read from sockets, what a close has discarded included
	BytesOut uint64 // taken by sockets
	Events   uint64 // delivered, or noted until their route has room; without Failed
	Posted   uint64 // values that came from Post, Ask and After, part of Events

	GroupSkips uint64 // writes and posts that a member of a Group missed since it had no room

	// HandlerErrors counts the errors other than io.EOF that Receive and OnConnEvent have returned.
	HandlerErrors uint64

	Dialing     int    // dials that have no answer yet, blocking calls too
	DialsFailed uint64 // dials whose answer was an error, likewise

	HandshakesFailed uint64 // TLS handshakes, those that took too long too

	Refused  RefusedStats
	Timeouts TimeoutStats
}

// RefusedStats counts connections that were closed instead of served, by reason.
type RefusedStats struct {
	Conns uint64 // MaxConns
	PerIP uint64 // MaxConnsPerIP
	Rate  uint64 // AcceptRate
	Admit uint64 // Admit

	// Preface, PrefaceTimeout or MaxPreface. These were served until then: Accepted and Closed
	// count them too, as they do those that PerIP counts for the client of a proxy.
	Preface uint64
}

// TimeoutStats counts connections that a time limit ended, by kind.
type TimeoutStats struct {
	Idle      uint64
	Input     uint64
	Read      uint64
	Frame     uint64
	Write     uint64
	Preface   uint64 // PrefaceTimeout; Refused.Preface counts them too
	Handshake uint64
	Close     uint64 // CloseTimeout, output left or not; also when Shutdown's ctx ended before
	Drain     uint64 // Shutdown, before the peer had ended: ErrDrainTimeout
	EOF       uint64 // EOFTimeout, behind an end or a reset, and those closed to make room for others
}

// counters is what one loop counts. A counter is written mostly by one goroutine, so that counting
// is an uncontended addition.
type counters struct {
	accepted, closed  atomic.Uint64
	bytesIn, bytesOut atomic.Uint64
	events, posted    atomic.Uint64
	handshakesFailed  atomic.Uint64
	handlerErrors     atomic.Uint64
	dialing           atomic.Int64
	dialsFailed       atomic.Uint64
	skipped           atomic.Uint64 // see GroupSkips
	refused           [refusals]atomic.Uint64
	timeouts          [timeoutKinds]atomic.Uint64
}

func (s *LoopStats) add(o *LoopStats) {
	s.Open += o.Open
	s.Accepted += o.Accepted
	s.Closed += o.Closed
	s.BytesIn += o.BytesIn
	s.BytesOut += o.BytesOut
	s.Events += o.Events
	s.Posted += o.Posted
	s.GroupSkips += o.GroupSkips
	s.HandlerErrors += o.HandlerErrors
	s.Dialing += o.Dialing
	s.DialsFailed += o.DialsFailed
	s.HandshakesFailed += o.HandshakesFailed
	s.Refused.Conns += o.Refused.Conns
	s.Refused.PerIP += o.Refused.PerIP
	s.Refused.Rate += o.Refused.Rate
	s.Refused.Admit += o.Refused.Admit
	s.Refused.Preface += o.Refused.Preface
	s.Timeouts.Idle += o.Timeouts.Idle
	s.Timeouts.Read += o.Timeouts.Read
	s.Timeouts.Input += o.Timeouts.Input
	s.Timeouts.Frame += o.Timeouts.Frame
	s.Timeouts.Write += o.Timeouts.Write
	s.Timeouts.Preface += o.Timeouts.Preface
	s.Timeouts.Handshake += o.Timeouts.Handshake
	s.Timeouts.Close += o.Timeouts.Close
	s.Timeouts.Drain += o.Timeouts.Drain
	s.Timeouts.EOF += o.Timeouts.EOF
}

// refusal says why a connection that was accepted is not served.
type refusal int

const (
	refusedConns   refusal = iota // MaxConns
	refusedPerIP                  // MaxConnsPerIP
	refusedRate                   // AcceptRate
	refusedAdmit                  // Admit
	refusedPreface                // Preface
	refusals
	admitted refusal = -1
)
