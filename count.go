package tcpio

// Stats returns the counters of the moment. It takes no lock that connections or loops wait for,
// and works after Close.
func (l *Listener) Stats() Stats {
	s := Stats{
		Buffered: l.budget.Used(),

		MaxBuffered: l.budget.Most,

		Blocked:  int(l.blocked.Load()),
		Refusing: int(l.refusing.Load()),
		Panics:   l.panics.Load(),
	}
	if !l.routesFixed() {
		return s
	}
	for _, lp := range l.loops {
		n := &lp.count
		one := LoopStats{
			Open:             int(lp.live.Load()),
			Accepted:         n.accepted.Load(),
			Closed:           n.closed.Load(),
			BytesIn:          n.bytesIn.Load(),
			BytesOut:         n.bytesOut.Load(),
			Events:           n.events.Load(),
			Posted:           n.posted.Load(),
			GroupSkips:       n.skipped.Load(),
			Dialing:          int(n.dialing.Load()),
			DialsFailed:      n.dialsFailed.Load(),
			HandlerErrors:    n.handlerErrors.Load(),
			HandshakesFailed: n.handshakesFailed.Load(),
			Refused: RefusedStats{
				Conns: n.refused[refusedConns].Load(),
				PerIP: n.refused[refusedPerIP].Load(),
				Rate:  n.refused[refusedRate].Load(),
				Admit: n.refused[refusedAdmit].Load(),

				Preface: n.refused[refusedPreface].Load(),
			},
			Timeouts: TimeoutStats{
				Idle:      n.timeouts[TimeoutIdle].Load(),
				Read:      n.timeouts[TimeoutReadStall].Load(),
				Input:     n.timeouts[TimeoutInput].Load(),
				Frame:     n.timeouts[TimeoutFrame].Load(),
				Write:     n.timeouts[TimeoutWriteStall].Load(),
				Preface:   n.timeouts[TimeoutPreface].Load(),
				Handshake: n.timeouts[TimeoutHandshake].Load(),
				Close:     n.timeouts[TimeoutClose].Load(),
				Drain:     n.timeouts[TimeoutDrain].Load(),
				EOF:       n.timeouts[timeoutEOF].Load(),
			},
		}
		s.Loops = append(s.Loops, one)
		s.add(&one)
	}
	return s
}
