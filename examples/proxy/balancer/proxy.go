package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/metrics"
)

// A proxy is all that a configuration describes, at work.
type proxy struct {
	log      *slog.Logger
	started  time.Time
	registry *prometheus.Registry
	applying sync.Mutex      // held for a whole apply, and before mu
	serving  errgroup.Group  // Serve of each front, and the end of each
	spareEnd errgroup.Group  // Serve of spare
	spare    *tcpio.Listener // without an address; see front.dial
	cut      context.Context
	cutOff   context.CancelFunc // ends cut: what is left is reset

	mu sync.Mutex
	// Guarded by mu.
	cfg     *config
	loaded  time.Time
	problem string            // why the last reload was refused
	fronts  map[string]*front // by name
	leaving map[*front]bool   // those that the configuration has no more
	pools   map[string]*pool
}

func newProxy(log *slog.Logger) (*proxy, error) {
	spare, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "none", Loops: 1, CloseTimeout: time.Second})
	if err != nil {
		return nil, err
	}
	spare.NetListener() // its connections have no route of their own
	p := &proxy{
		spare: spare,
		log:   log, started: time.Now(), registry: prometheus.NewRegistry(),
		fronts: make(map[string]*front), leaving: make(map[*front]bool), pools: make(map[string]*pool),
	}
	p.cut, p.cutOff = context.WithCancel(context.Background())
	p.registry.MustRegister(collector{p.status})
	p.spareEnd.Go(func() error { return spare.Serve(context.Background()) })
	return p, nil
}

// apply puts cfg into force, the first or another. What can fail comes first: with an error
// everything is as it was. Connections go on as they are; see pool.update and front.end for those
// whose upstream or listener is gone.
func (p *proxy) apply(cfg *config) error {
	p.applying.Lock()
	defer p.applying.Unlock()
	fresh, err := p.open(cfg)
	if err != nil {
		p.refused(err)
		return err
	}
	pools := make(map[string]*pool)
	for name, pc := range cfg.Pools {
		pool := p.pools[name]
		if pool == nil {
			pool = newPool(name, p.log)
		}
		pool.update(pc)
		pools[name] = pool
	}
	p.mu.Lock()
	oldFronts, oldPools := p.fronts, p.pools
	p.pools, p.fronts = pools, make(map[string]*front)
	p.cfg, p.loaded, p.problem = cfg, time.Now(), ""
	for name, lc := range cfg.Listeners {
		f := fresh[name]
		if f == nil {
			f = oldFronts[name]
		}
		f.route(lc, pools)
		p.fronts[name] = f
	}
	p.mu.Unlock()
	for name, f := range oldFronts {
		if p.fronts[name] != f {
			p.retire(f)
		}
	}
	for _, f := range fresh {
		p.serve(f)
	}
	for name, pool := range oldPools {
		if pools[name] == nil {
			pool.close()
		}
	}
	return nil
}

// open opens the fronts of cfg that p does not have, by their names.
func (p *proxy) open(cfg *config) (map[string]*front, error) {
	fresh := make(map[string]*front)
	for name, lc := range cfg.Listeners {
		old := p.fronts[name]
		if old != nil && old.shape == shapeOf(name, lc) {
			continue
		}
		f, err := p.openFront(name, lc, p.socketOf(name, lc.Listen))
		if err != nil {
			for _, f := range fresh {
				_ = f.l.Close()
			}
			return nil, err
		}
		fresh[name] = f
	}
	return fresh, nil
}

// socketOf returns the front that listens at that address, the one of that name first; nil if there
// is none.
func (p *proxy) socketOf(name, listen string) *front {
	if f := p.fronts[name]; f != nil && f.shape.listen == listen {
		return f
	}
	for _, f := range p.fronts {
		if f.shape.listen == listen && !strings.HasSuffix(listen, ":0") {
			return f
		}
	}
	return nil
}

// refused notes why a reload was refused.
func (p *proxy) refused(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problem = err.Error()
}

// metrics are those of f's tcpio.Listener.
func (f *front) metrics() prometheus.Collector {
	return metrics.NewCollector(f.l, prometheus.Labels{"listener": f.name})
}

func (p *proxy) serve(f *front) {
	p.registry.MustRegister(f.metrics())
	p.serving.Go(func() error {
		if err := f.l.Serve(context.Background()); err != nil {
			f.log.Error("the listener has failed", "err", err)
			return fmt.Errorf("listener %s: %w", f.name, err)
		}
		return nil
	})
	f.log.Info("listening", "addr", f.l.Addr())
}

// retire has f's connections go on until they end, or the program does.
func (p *proxy) retire(f *front) {
	p.registry.Unregister(f.metrics())
	p.mu.Lock()
	p.leaving[f] = true
	p.mu.Unlock()
	p.serving.Go(func() error {
		f.end(p.cut)
		p.mu.Lock()
		delete(p.leaving, f)
		p.mu.Unlock()
		return nil
	})
}

// end stops accepting and waits until every connection has ended; those that are left after the
// configuration's drain are reset.
func (p *proxy) end() error {
	p.applying.Lock()
	defer p.applying.Unlock()
	p.mu.Lock()
	fronts, pools, drain := p.fronts, p.pools, p.cfg.Drain.Duration
	p.fronts = make(map[string]*front)
	p.mu.Unlock()
	p.log.Info("ending", "drain", drain)
	for _, f := range fronts {
		p.retire(f)
	}
	timer := time.AfterFunc(drain, p.cutOff)
	err := p.serving.Wait()
	timer.Stop()
	p.cutOff()
	for _, pool := range pools {
		pool.close()
	}
	_ = p.spare.Close()
	return errors.Join(err, p.spareEnd.Wait())
}

// drain drains an upstream, or ends that; false if there is no such upstream.
func (p *proxy) drain(pool, upstream string, on bool) bool {
	p.mu.Lock()
	found := p.pools[pool]
	p.mu.Unlock()
	return found != nil && found.drain(upstream, on)
}

// reload reads the file anew and puts it into force. With a mistake in it the old configuration
// holds.
func (p *proxy) reload(path string) {
	cfg, err := load(path)
	if err != nil {
		p.refused(err)
	} else {
		err = p.apply(cfg)
	}
	if err != nil {
		p.log.Error("the configuration before this one holds", "err", err)
		return
	}
	p.log.Info("configuration loaded", "file", path)
}
