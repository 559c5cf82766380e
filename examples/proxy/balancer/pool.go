package main

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A claimant is a client's session, as its pool sees it. Its methods are called under pool.mu, so
// they block on nothing and do not call the pool.
type claimant interface {
	granted() bool            // its ticket has a place now; false if it has ended
	cut()                     // its upstream is down: it is to be reset
	moved() (up, down uint64) // bytes to the upstream and from it, up to now
}

// A pool is a set of upstreams that can stand for each other. It outlives reloads.
type pool struct {
	name string
	log  *slog.Logger

	mu       sync.Mutex
	cfg      *poolConfig
	ups      []*upstream // in the order of the configuration
	turn     int
	waiting  list.List // of *ticket; the first has waited longest
	stop     context.CancelFunc
	watchers sync.WaitGroup // the health checks; stop ends them
	counts   poolCounts
}

// poolCounts are what a pool counts for ever.
type poolCounts struct {
	Queued     uint64 `json:"queued"`      // clients that had to wait
	QueueFull  uint64 `json:"queue_full"`  // refused, since too many waited
	QueueLate  uint64 `json:"queue_late"`  // refused, since they had waited too long
	NoUpstream uint64 `json:"no_upstream"` // refused, since no upstream was usable, or every attempt failed
	Retries    uint64 `json:"retries"`     // attempts behind a failed one
}

// Why a client gets no place.
var (
	errNoUpstream = errors.New("no upstream is usable")
	errQueueFull  = errors.New("every upstream is full, and so is the queue")
	errDown       = errors.New("it was found down meanwhile")
	errQueueLate  = errors.New("every upstream has been full for as long as the queue waits")
)

func newPool(name string, log *slog.Logger) *pool {
	return &pool{name: name, log: log.With("pool", name), stop: func() {}}
}

// update gives p its configuration, the first or another. An upstream whose address stays keeps its
// state and its connections. One that goes gets no new connection, and those it has go on.
func (p *pool) update(cfg *poolConfig) {
	p.close()
	ctx, cancel := context.WithCancel(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop = cancel
	p.cfg = cfg
	ups := make([]*upstream, 0, len(cfg.Upstreams))
	for _, uc := range cfg.Upstreams {
		u := p.upstreamLocked(uc.Addr)
		if u == nil {
			u = newUpstream(uc.Addr)
		}
		u.limit, u.drainByConfig = uc.MaxConns.n, uc.Drain
		ups = append(ups, u)
		if cfg.Health.Interval.Duration > 0 {
			p.watchers.Go(func() { p.watch(ctx, u, cfg) })
		} else {
			u.down, u.checked = false, false
		}
	}
	p.ups = ups
	p.serveQueueLocked()
}

// close ends the health checks. Sessions go on.
func (p *pool) close() {
	p.mu.Lock()
	p.stop()
	p.mu.Unlock()
	p.watchers.Wait()
}

func (p *pool) upstreamLocked(addr string) *upstream {
	i := slices.IndexFunc(p.ups, func(u *upstream) bool { return u.addr == addr })
	if i < 0 {
		return nil
	}
	return p.ups[i]
}

// settings returns p's configuration of the moment, which nobody changes.
func (p *pool) settings() *poolConfig {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg
}

// drain has the upstream of that address take no new connection, or take them again. It reports
// whether p has such an upstream.
func (p *pool) drain(addr string, on bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.upstreamLocked(addr)
	if u == nil {
		return false
	}
	u.drainByHand = on
	p.log.Info("drain", "upstream", addr, "on", on)
	p.serveQueueLocked()
	return true
}

// A ticket is a client's claim on a place at one of a pool's upstreams: it waits in the queue, or
// has a place, or neither. Its session has to give it back.
type ticket struct {
	pool   *pool
	holder claimant
	client netip.Addr

	// Guarded by pool.mu.
	tried []*upstream   // those where an attempt has failed
	place *upstream     // where it has a place
	live  bool          // and a connection
	queue *list.Element // in pool.waiting
}

// take asks for a place, and behind a failed attempt for one elsewhere. Without an error the ticket
// has a place, which place returns, or it waits for one, and granted is called when it has it.
func (t *ticket) take() error {
	p := t.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(t.tried) > 0 {
		if len(t.tried) > p.cfg.Retries.n {
			p.counts.NoUpstream++
			return errNoUpstream
		}
		p.counts.Retries++
	}
	free, full := p.freeLocked(t)
	switch {
	case len(free) > 0:
		p.seatLocked(t, free)
	case !full:
		p.counts.NoUpstream++
		return errNoUpstream
	case p.waiting.Len() >= p.cfg.Queue.n:
		p.counts.QueueFull++
		return errQueueFull
	default:
		p.counts.Queued++
		t.queue = p.waiting.PushBack(t)
	}
	return nil
}

// at returns the upstream where t has a place, or nil.
func (t *ticket) at() *upstream {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	return t.place
}

// giveUp takes t out of the queue, if it still waits there.
func (t *ticket) giveUp() bool {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	if t.queue == nil {
		return false
	}
	t.leaveQueueLocked()
	t.pool.counts.QueueLate++
	return true
}

// giveBack ends t's claim, whatever it has. The next in the queue gets the place.
func (t *ticket) giveBack() {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	t.leaveQueueLocked()
	t.leavePlaceLocked()
}

// failed notes that the attempt to connect has failed, and gives the place back.
func (t *ticket) failed(err error) {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	u := t.place
	t.tried = append(t.tried, u)
	t.leavePlaceLocked()
	t.pool.attemptFailedLocked(u, err, time.Now())
}

// connected notes that the attempt has succeeded. It returns false if the upstream was found down
// meanwhile, and its connections were reset: this one would be left.
func (t *ticket) connected() bool {
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	u := t.place
	if u.down && t.pool.cfg.WhenDown == resetConns {
		return false
	}
	u.connectedNow()
	t.live = true
	return true
}

func (t *ticket) leaveQueueLocked() {
	if t.queue != nil {
		t.pool.waiting.Remove(t.queue)
		t.queue = nil
	}
}

func (t *ticket) leavePlaceLocked() {
	u := t.place
	if u == nil {
		return
	}
	t.place, t.live = nil, false
	delete(u.clients, t)
	up, down := t.holder.moved()
	u.counts.BytesUp += up
	u.counts.BytesDown += down
	t.pool.serveQueueLocked()
}

// freeLocked returns the upstreams that t may have a place at. If there is none, full reports
// whether t may wait for one. Ejected ones are used only while there is no other: an attempt that
// may fail is better than none.
func (p *pool) freeLocked(t *ticket) (free []*upstream, full bool) {
	now := time.Now()
	for _, ejected := range []bool{false, true} {
		for _, u := range p.ups {
			if u.down || u.draining() || u.ejected(now) != ejected || slices.Contains(t.tried, u) {
				continue
			}
			if u.limit > 0 && len(u.clients) >= u.limit {
				full = true
			} else {
				free = append(free, u)
			}
		}
		if len(free) > 0 || full {
			break
		}
	}
	return free, full
}

func (p *pool) seatLocked(t *ticket, free []*upstream) {
	u := balancers[p.cfg.Balance](free, p.turn, t.client)
	p.turn++
	t.place = u
	u.clients[t] = struct{}{}
	u.counts.Attempts++
}

// serveQueueLocked gives places to those that wait, in their order, as far as there are any.
func (p *pool) serveQueueLocked() {
	for e := p.waiting.Front(); e != nil; {
		t := e.Value.(*ticket)
		e = e.Next()
		free, full := p.freeLocked(t)
		if len(free) == 0 {
			if full && len(t.tried) == 0 {
				return // nor is there a place for the next
			}
			continue
		}
		t.leaveQueueLocked()
		p.seatLocked(t, free)
		if !t.holder.granted() {
			delete(t.place.clients, t) // its session has ended, and gives back what it does not have
			t.place = nil
		}
	}
}
