package main

import (
	"math/bits"
	"time"

	"github.com/cespare/xxhash/v2"
)

// What happens to the connections of an upstream that is found down.
const (
	keepConns  = "keep"
	resetConns = "reset"
)

// An upstream is one server of a pool. Its pool's mu guards everything below addr and seed.
type upstream struct {
	addr string
	seed uint64 // of byClient

	limit         int // connections; 0 is no limit
	drainByConfig bool
	drainByHand   bool
	clients       map[*ticket]struct{} // that have a place here

	// What health checks have found. streak counts results in a row against the present state.
	down    bool
	checked bool // once at least
	streak  int
	because string // the last check's error

	// What clients' connections have shown.
	failures  int // in a row
	ejections int // without a success in between
	until     time.Time
	lastError string

	counts upstreamCounts
}

// upstreamCounts are what an upstream counts for ever.
type upstreamCounts struct {
	Attempts  uint64 `json:"attempts"`   // to connect
	Failures  uint64 `json:"failures"`   // of those
	Ejections uint64 `json:"ejections"`  // for failures
	Downs     uint64 `json:"downs"`      // times that health checks found it down
	Resets    uint64 `json:"resets"`     // connections reset since it went down
	BytesUp   uint64 `json:"bytes_up"`   // to it, of connections that have ended
	BytesDown uint64 `json:"bytes_down"` // from it
}

func newUpstream(addr string) *upstream {
	return &upstream{addr: addr, seed: xxhash.Sum64String(addr), clients: make(map[*ticket]struct{})}
}

func (u *upstream) draining() bool { return u.drainByConfig || u.drainByHand }

func (u *upstream) ejected(now time.Time) bool { return now.Before(u.until) }

// state is what the status page and the metrics call it.
func (u *upstream) state(now time.Time) string {
	switch {
	case u.draining():
		return "draining"
	case u.down:
		return "down"
	case u.ejected(now):
		return "ejected"
	}
	return "up"
}

func (u *upstream) connectedNow() {
	u.failures, u.ejections, u.lastError = 0, 0, ""
	u.until = time.Time{}
}

// attemptFailedLocked counts a failed attempt, and ejects u for too many in a row. Behind an
// ejection one more is too many, and the next ejection takes twice as long.
func (p *pool) attemptFailedLocked(u *upstream, err error, now time.Time) {
	u.counts.Failures++
	u.failures++
	u.lastError = err.Error()
	e := p.cfg.Eject
	if u.failures < e.Failures.n || u.ejected(now) {
		return
	}
	d := e.Max.Duration
	if u.ejections < bits.LeadingZeros64(uint64(e.For.Duration))-1 {
		d = min(d, e.For.Duration<<u.ejections)
	}
	u.ejections++
	u.counts.Ejections++
	u.until = now.Add(d)
	p.log.Warn("upstream ejected", "upstream", u.addr, "for", d, "failures", u.failures, "err", err)
}

// checkedLocked takes in the result of a health check.
func (p *pool) checkedLocked(u *upstream, err error) {
	u.checked = true
	u.because = ""
	if err != nil {
		u.because = err.Error()
	}
	defer p.serveQueueLocked() // an ejection may be over, too
	if good := err == nil; good != u.down {
		u.streak = 0 // as it was
		return
	}
	u.streak++
	switch {
	case u.down && u.streak >= p.cfg.Health.Rise.n:
		u.down, u.streak = false, 0
		u.connectedNow()
		p.log.Info("upstream up", "upstream", u.addr)
	case !u.down && u.streak >= p.cfg.Health.Fall.n:
		u.down, u.streak = true, 0
		u.counts.Downs++
		p.log.Warn("upstream down", "upstream", u.addr, "err", err)
		if p.cfg.WhenDown == resetConns {
			for t := range u.clients {
				if t.live { // others go elsewhere when their attempt ends
					u.counts.Resets++
					t.holder.cut()
				}
			}
		}
	}
}
