package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A collector makes metrics of the status at the moment of a scrape, so that what a reload takes
// away is gone from the next one.
type collector struct{ look func() *status }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("balancer_"+name, help, labels, nil)
}

var (
	loadedDesc  = desc("config_loaded_timestamp_seconds", "When the configuration in force was read.")
	refusedDesc = desc("config_reload_refused", "1 if the last reload was refused, and the old configuration holds.")

	openDesc     = desc("listener_connections_open", "Clients' connections.", "listener")
	acceptedDesc = desc("listener_connections_accepted_total", "Clients' connections, the refused ones left out.", "listener")
	limitedDesc  = desc("listener_connections_refused_total", "Refused by max_conns or max_conns_per_client.", "listener")
	endsDesc     = desc("listener_ends_total", "Ends of clients' connections, by their kind.", "listener", "end")

	waitingDesc = desc("pool_queue_length", "Clients that wait for a place.", "pool")
	queuedDesc  = desc("pool_queued_total", "Clients that had to wait for a place.", "pool")
	deniedDesc  = desc("pool_refused_total", "Clients that got no upstream, by the reason.", "pool", "reason")
	retriesDesc = desc("pool_retries_total", "Attempts to connect behind a failed one.", "pool")

	stateDesc     = desc("upstream_state", "1 for the state that the upstream has.", "pool", "upstream", "state")
	connsDesc     = desc("upstream_connections_open", "Clients' connections at the upstream.", "pool", "upstream")
	limitDesc     = desc("upstream_connections_limit", "max_conns, 0 if there is none.", "pool", "upstream")
	attemptsDesc  = desc("upstream_connect_attempts_total", "Attempts to connect.", "pool", "upstream")
	failuresDesc  = desc("upstream_connect_failures_total", "Attempts that failed.", "pool", "upstream")
	ejectionsDesc = desc("upstream_ejections_total", "Ejections for failed attempts.", "pool", "upstream")
	downsDesc     = desc("upstream_downs_total", "Times that health checks found it down.", "pool", "upstream")
	resetsDesc    = desc("upstream_resets_total", "Connections that were reset since it was down.", "pool", "upstream")
	bytesDesc     = desc("upstream_bytes_total", "Bytes of payload.", "pool", "upstream", "direction")
)

var states = []string{"up", "down", "ejected", "draining"}

// Describe sends nothing: what there is changes with the configuration.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := c.look()
	gauge(loadedDesc, float64(s.Loaded.UnixNano())/float64(time.Second))
	gauge(refusedDesc, truth(s.Problem != ""))
	for _, l := range s.Listeners {
		if l.Leaving {
			continue // another of its name may be there
		}
		gauge(openDesc, float64(l.Open), l.Name)
		count(acceptedDesc, l.Accepted, l.Name)
		count(limitedDesc, l.Refused, l.Name)
		for _, e := range l.Ends {
			count(endsDesc, e.N, l.Name, e.Name)
		}
	}
	for _, p := range s.Pools {
		gauge(waitingDesc, float64(p.Waiting), p.Name)
		count(queuedDesc, p.Queued, p.Name)
		count(deniedDesc, p.QueueFull, p.Name, "queue_full")
		count(deniedDesc, p.QueueLate, p.Name, "queue_timeout")
		count(deniedDesc, p.NoUpstream, p.Name, "no_upstream")
		count(retriesDesc, p.Retries, p.Name)
		for _, u := range p.Upstreams {
			for _, state := range states {
				gauge(stateDesc, truth(u.State == state), p.Name, u.Addr, state)
			}
			gauge(connsDesc, float64(u.Conns), p.Name, u.Addr)
			gauge(limitDesc, float64(u.Limit), p.Name, u.Addr)
			count(attemptsDesc, u.Attempts, p.Name, u.Addr)
			count(failuresDesc, u.Failures, p.Name, u.Addr)
			count(ejectionsDesc, u.Ejections, p.Name, u.Addr)
			count(downsDesc, u.Downs, p.Name, u.Addr)
			count(resetsDesc, u.Resets, p.Name, u.Addr)
			count(bytesDesc, u.BytesUp, p.Name, u.Addr, "up")
			count(bytesDesc, u.BytesDown, p.Name, u.Addr, "down")
		}
	}
}

func truth(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
