// Package metrics exposes what a tcpio listener counts to Prometheus and to expvar. It is a module
// of its own, so that tcpio needs neither.
//
//	prometheus.MustRegister(metrics.NewCollector(l, nil))
//	expvar.Publish("tcpio", metrics.Var(l))
package metrics

import (
	"expvar"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rabbit-backend/tcpio"
)

// NewCollector returns a collector of l's [tcpio.Stats], of every loop by itself: sum without
// (loop) is the listener. A registry takes several listeners when labels, which may be nil, tell
// them apart. Collecting takes no lock that connections or loops wait for, and works after Close.
func NewCollector(l *tcpio.Listener, labels prometheus.Labels) prometheus.Collector {
	return newCollector(l.Stats, labels)
}

// Var returns l's [tcpio.Stats] of the moment as JSON, with the names of its fields.
func Var(l *tcpio.Listener) expvar.Var {
	return expvar.Func(func() any { return l.Stats() })
}

// A sample is one value of a metric, for the values of its labels.
type sample struct {
	value  float64
	labels []string
}

// A metric is one name. Its values come from every loop, or from the listener as a whole.
type metric struct {
	desc     *prometheus.Desc
	kind     prometheus.ValueType
	perLoop  func(*tcpio.LoopStats) []sample // labels behind the loop's
	together func(*tcpio.Stats) float64
}

type collector struct {
	stats   func() tcpio.Stats
	metrics []metric
}

// The names are promises. examples/echo, which is without this module, has the same.
func newCollector(stats func() tcpio.Stats, labels prometheus.Labels) *collector {
	c := &collector{stats: stats}
	perLoop := func(kind prometheus.ValueType, name, help, label string, values func(*tcpio.LoopStats) []sample) {
		names := []string{"loop"}
		if label != "" {
			names = append(names, label)
		}
		c.metrics = append(c.metrics, metric{
			desc:    prometheus.NewDesc("tcpio_"+name, help, names, labels),
			kind:    kind,
			perLoop: values,
		})
	}
	counter := func(name, help string, value func(*tcpio.LoopStats) uint64) {
		perLoop(prometheus.CounterValue, name, help, "", func(s *tcpio.LoopStats) []sample {
			return []sample{{value: float64(value(s))}}
		})
	}
	total := func(name, help string, value func(*tcpio.Stats) float64) {
		c.metrics = append(c.metrics, metric{
			desc:     prometheus.NewDesc("tcpio_"+name, help, nil, labels),
			kind:     prometheus.CounterValue,
			together: value,
		})
	}
	gauge := func(name, help string, value func(*tcpio.Stats) float64) {
		c.metrics = append(c.metrics, metric{
			desc:     prometheus.NewDesc("tcpio_"+name, help, nil, labels),
			kind:     prometheus.GaugeValue,
			together: value,
		})
	}

	perLoop(prometheus.GaugeValue, "connections_open", "Connections that have a descriptor.", "", func(s *tcpio.LoopStats) []sample {
		return []sample{{value: float64(s.Open)}}
	})
	counter("connections_accepted_total", "Connections served, adopted ones too.",
		func(s *tcpio.LoopStats) uint64 { return s.Accepted })
	counter("connections_closed_total", "Accepted connections whose descriptor is gone.",
		func(s *tcpio.LoopStats) uint64 { return s.Closed })
	perLoop(prometheus.CounterValue, "connections_refused_total", "Connections closed instead of served, by reason.", "reason", refused)
	perLoop(prometheus.CounterValue, "connections_timed_out_total", "Connections that a time limit ended, by kind.", "kind", timeouts)
	perLoop(prometheus.GaugeValue, "dials_under_way", "Dials that have no answer yet, blocking calls too.", "", func(s *tcpio.LoopStats) []sample {
		return []sample{{value: float64(s.Dialing)}}
	})
	counter("dials_failed_total", "Dials whose answer was an error, blocking calls too.",
		func(s *tcpio.LoopStats) uint64 { return s.DialsFailed })
	counter("tls_handshakes_failed_total", "TLS handshakes that failed, those that took too long too.",
		func(s *tcpio.LoopStats) uint64 { return s.HandshakesFailed })
	counter("handler_errors_total", "Errors other than io.EOF that handlers have returned.",
		func(s *tcpio.LoopStats) uint64 { return s.HandlerErrors })
	counter("group_skips_total", "Writes and posts that a member of a group missed since it had no room.",
		func(s *tcpio.LoopStats) uint64 { return s.GroupSkips })
	counter("received_bytes_total", "Bytes read from sockets.",
		func(s *tcpio.LoopStats) uint64 { return s.BytesIn })
	counter("sent_bytes_total", "Bytes taken by sockets.",
		func(s *tcpio.LoopStats) uint64 { return s.BytesOut })
	counter("events_total", "Events of connections.",
		func(s *tcpio.LoopStats) uint64 { return s.Events })
	counter("posted_total", "Values posted to connections, part of the events.",
		func(s *tcpio.LoopStats) uint64 { return s.Posted })

	total("panics_total", "Panics of the program's handlers, hooks and callbacks.",
		func(s *tcpio.Stats) float64 { return float64(s.Panics) })
	gauge("queued_bytes", "Bytes of output that wait for room in sockets.",
		func(s *tcpio.Stats) float64 { return float64(s.Buffered) })
	gauge("queued_bytes_limit", "Bound of queued_bytes: MaxBuffered, or its default.",
		func(s *tcpio.Stats) float64 { return float64(s.MaxBuffered) })
	gauge("blocked_handlers", "Goroutines in actors' handlers that have blocked and lost their loop.",
		func(s *tcpio.Stats) float64 { return float64(s.Blocked) })
	gauge("connections_refusing", "Refused connections whose peer has not read the reply yet.",
		func(s *tcpio.Stats) float64 { return float64(s.Refusing) })
	return c
}

func refused(s *tcpio.LoopStats) []sample {
	return []sample{
		{float64(s.Refused.Conns), []string{"max_conns"}},
		{float64(s.Refused.PerIP), []string{"max_conns_per_ip"}},
		{float64(s.Refused.Rate), []string{"accept_rate"}},
		{float64(s.Refused.Admit), []string{"admit"}},
		{float64(s.Refused.Preface), []string{"preface"}},
	}
}

func timeouts(s *tcpio.LoopStats) []sample {
	return []sample{
		{float64(s.Timeouts.Idle), []string{"idle"}},
		{float64(s.Timeouts.Read), []string{"read"}},
		{float64(s.Timeouts.Input), []string{"input"}},
		{float64(s.Timeouts.Frame), []string{"frame"}},
		{float64(s.Timeouts.Write), []string{"write"}},
		{float64(s.Timeouts.Preface), []string{"preface"}},
		{float64(s.Timeouts.Handshake), []string{"handshake"}},
		{float64(s.Timeouts.Close), []string{"close"}},
		{float64(s.Timeouts.Drain), []string{"drain"}},
		{float64(s.Timeouts.EOF), []string{"eof"}},
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector. All the values are of one call of Stats.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	for _, m := range c.metrics {
		if m.together != nil {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.together(&s))
			continue
		}
		for i := range s.Loops {
			for _, v := range m.perLoop(&s.Loops[i]) {
				ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v.value, append([]string{strconv.Itoa(i)}, v.labels...)...)
			}
		}
	}
}
