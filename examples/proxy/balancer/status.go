package main

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// A status is what the page shows and what the metrics are made of: everything at one moment.
type status struct {
	Now       time.Time        `json:"now"`
	Started   time.Time        `json:"started"`
	Loaded    time.Time        `json:"loaded"`            // when the configuration in force was read
	Problem   string           `json:"problem,omitempty"` // why the last reload was refused
	Listeners []listenerStatus `json:"listeners"`
	Pools     []poolStatus     `json:"pools"`
}

type listenerStatus struct {
	Name     string     `json:"name"`
	Addr     string     `json:"addr"`
	Leaving  bool       `json:"leaving"` // the configuration has it no more, its connections go on
	Open     int        `json:"open"`
	Accepted uint64     `json:"accepted"`
	Refused  uint64     `json:"refused"` // by max_conns and max_conns_per_client
	Ends     []endCount `json:"ends"`
}

type poolStatus struct {
	Name    string `json:"name"`
	Balance string `json:"balance"`
	Waiting int    `json:"waiting"`
	poolCounts
	Upstreams []upstreamStatus `json:"upstreams"`
}

type upstreamStatus struct {
	Addr     string    `json:"addr"`
	State    string    `json:"state"` // up, down, ejected, draining
	ByConfig bool      `json:"by_config"`
	Checked  bool      `json:"checked"`
	Why      string    `json:"why,omitempty"`
	Until    time.Time `json:"until,omitzero"` // the end of an ejection
	Conns    int       `json:"conns"`
	Limit    int       `json:"limit"`
	upstreamCounts
}

// status of p. Counters of connections that are open are those of the moment.
func (p *pool) status(now time.Time) poolStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := poolStatus{Name: p.name, Balance: p.cfg.Balance, Waiting: p.waiting.Len(), poolCounts: p.counts}
	for _, u := range p.ups {
		us := upstreamStatus{
			Addr: u.addr, State: u.state(now), ByConfig: u.drainByConfig, Checked: u.checked,
			Conns: len(u.clients), Limit: u.limit, upstreamCounts: u.counts,
		}
		switch us.State {
		case "ejected":
			us.Why, us.Until = u.lastError, u.until
		case "down":
			us.Why = u.because
		}
		for t := range u.clients {
			up, down := t.holder.moved()
			us.BytesUp += up
			us.BytesDown += down
		}
		s.Upstreams = append(s.Upstreams, us)
	}
	return s
}

// status of p as a whole, in the order of the names.
func (p *proxy) status() *status {
	p.mu.Lock()
	s := &status{Now: time.Now(), Started: p.started, Loaded: p.loaded, Problem: p.problem}
	fronts, leaving := slices.Collect(maps.Values(p.fronts)), slices.Collect(maps.Keys(p.leaving))
	pools := slices.Collect(maps.Values(p.pools))
	p.mu.Unlock()
	for _, f := range fronts {
		s.Listeners = append(s.Listeners, f.status(false))
	}
	for _, f := range leaving {
		s.Listeners = append(s.Listeners, f.status(true))
	}
	for _, p := range pools {
		s.Pools = append(s.Pools, p.status(s.Now))
	}
	slices.SortFunc(s.Listeners, func(a, b listenerStatus) int { return cmp.Compare(a.Name+a.Addr, b.Name+b.Addr) })
	slices.SortFunc(s.Pools, func(a, b poolStatus) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

// historyLen is how many seconds the page's pictures show.
const historyLen = 120

// A point is one second of history. Rates are for each second.
type point struct {
	At   int64  `json:"at"` // Unix seconds
	Open int    `json:"open"`
	Up   uint64 `json:"up"` // bytes to upstreams
	Down uint64 `json:"down"`
	New  uint64 `json:"new"` // connections
}

// A history remembers the last historyLen seconds.
type history struct {
	mu     sync.Mutex
	points []point
	last   totals
}

type totals struct {
	at             time.Time
	up, down, conn uint64
}

// keep takes a look each second until ctx ends.
func (h *history) keep(ctx context.Context, look func() *status) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		h.add(look())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *history) add(s *status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := totals{at: s.Now}
	p := point{At: s.Now.Unix()}
	for _, l := range s.Listeners {
		p.Open += l.Open
		now.conn += l.Accepted
	}
	for _, pool := range s.Pools {
		for _, u := range pool.Upstreams {
			now.up += u.BytesUp
			now.down += u.BytesDown
		}
	}
	if last := h.last; !last.at.IsZero() {
		rate := func(now, last uint64) uint64 {
			if now <= last {
				return 0 // an upstream has left the configuration, with what it had counted
			}
			return uint64(float64(now-last) / max(s.Now.Sub(h.last.at).Seconds(), 0.001))
		}
		p.Up, p.Down, p.New = rate(now.up, last.up), rate(now.down, last.down), rate(now.conn, last.conn)
	}
	h.last = now
	h.points = append(h.points, p)
	if n := len(h.points) - historyLen; n > 0 {
		h.points = slices.Delete(h.points, 0, n)
	}
}

// all returns the points, the oldest first.
func (h *history) all() []point {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.points)
}
