package main

import (
	"fmt"
	"slices"
	"strconv"
)

// named returns copies of the servers of these names.
func named(names ...string) (some []server) {
	for _, n := range names {
		i := slices.IndexFunc(servers, func(s server) bool { return s.name == n })
		some = append(some, servers[i])
	}
	return some
}

// curve plans the cost of a request by how many connections one loop has, active ones or idle ones
// beside 64 active.
func (p *plan) curve() {
	o := p.o
	o.modes = []string{"pinned"}
	o.servers = named(floor, "stream", "actor", goNet)
	o.workloads = nil
	for _, n := range curveActive {
		o.workloads = append(o.workloads, workload{name: fmt.Sprintf("n=%d", n), load: []string{"-c", strconv.Itoa(n)}, conns: n})
	}
	for _, n := range curveIdle {
		o.workloads = append(o.workloads, workload{name: fmt.Sprintf("idle=%d", n), load: []string{"-c", "64", "-i", strconv.Itoa(n)}, conns: n})
	}
	p.print, p.check, p.chart = (*results).curveTables, (*results).checkCurve, (*results).lines
}

var (
	curveActive = []int{10, 30, 100, 300, 1000, 3000, 10000, 18000}
	curveIdle   = []int{0, 1000, 4000, 15000}
)

func (res *results) curveTables(o *options) {
	res.head(o)
	for _, part := range []struct {
		what, key string
		steps     []int
	}{{"connections, all active", "n", curveActive}, {"idle connections beside 64 active", "idle", curveIdle}} {
		fmt.Fprintf(o.out, "\n### Pinned, 64 B: %s\n\nServer CPU µs/request (× C), p99 µs\n\n| |", part.what)
		for _, s := range o.servers {
			fmt.Fprintf(o.out, " %s | |", s.name)
		}
		fmt.Fprint(o.out, "\n|--:|")
		for range o.servers {
			fmt.Fprint(o.out, "--:|--:|")
		}
		for _, n := range part.steps {
			w := fmt.Sprintf("%s=%d", part.key, n)
			fmt.Fprintf(o.out, "\n| %d |", n)
			for _, s := range o.servers {
				fmt.Fprintf(o.out, " %.2f (%s) | %.0f |", res.median("pinned", w, s.name, cpuOf),
					times("pinned", res.ratio("pinned", w, s.name, floor, cpuOf)), res.median("pinned", w, s.name, p99Of))
			}
		}
		fmt.Fprintln(o.out)
	}
}

func (res *results) checkCurve(o *options) error {
	c := &checker{res: res}
	for _, name := range routesOf("pinned") {
		for _, n := range curveActive {
			w := fmt.Sprintf("n=%d", n)
			c.atMost(1.10, res.ratio("pinned", w, name, floor, cpuOf), "%s %s: CPU × C", name, w)
		}
		for _, n := range curveIdle[1:] {
			w := fmt.Sprintf("idle=%d", n)
			c.atMost(maxIdleGrowth, res.ratioTo("pinned", w, name, "idle=0", name, cpuOf), "%s %s: CPU × without", name, w)
		}
	}
	return c.result()
}

// neighbour plans tcpio with and without a second user of the network in its process.
func (p *plan) neighbour() {
	o := p.o
	o.servers = nil
	for _, s := range named("stream", "streams", "actor") {
		o.servers = append(o.servers, s)
		s.name += "+http"
		s.http = true
		o.servers = append(o.servers, s)
	}
	o.workloads = slices.DeleteFunc(slices.Clone(workloads), func(w workload) bool {
		return !slices.Contains([]string{"W1", "W2", "W4", "W9"}, w.name)
	})
	p.print, p.check, p.chart = (*results).neighbourTable, (*results).checkNeighbour, nil
}

func (res *results) eachNeighbour(o *options, f func(mode string, w *workload, name string)) {
	for _, mode := range o.modes {
		for i := range o.workloads {
			for _, s := range o.servers {
				if !s.http && len(res.all(mode, o.workloads[i].name, s.name)) > 0 {
					f(mode, &o.workloads[i], s.name)
				}
			}
		}
	}
}

func (res *results) neighbourTable(o *options) {
	res.head(o)
	fmt.Fprint(o.out, "\n### An HTTP port in the same process, asked twenty times a second\n\n"+
		"| | CPU µs/request without | with | × | p99 µs without | with | × | runs |\n|---|--:|--:|--:|--:|--:|--:|--:|\n")
	res.eachNeighbour(o, func(mode string, w *workload, name string) {
		m := func(name string, f func(*run) float64) float64 { return res.median(mode, w.name, name, f) }
		r := func(f func(*run) float64) string { return times(mode, res.ratio(mode, w.name, name+"+http", name, f)) }
		fmt.Fprintf(o.out, "| %s, %s, %s | %.2f | %.2f | %s | %.0f | %.0f | %s | %s |\n", w.name, mode, name,
			m(name, cpuOf), m(name+"+http", cpuOf), r(cpuOf), m(name, p99Of), m(name+"+http", p99Of), r(p99Of),
			res.counted(mode, w.name, name+"+http"))
	})
}

func (res *results) checkNeighbour(o *options) error {
	c := &checker{res: res}
	res.eachNeighbour(o, func(mode string, w *workload, name string) {
		c.atMost(maxNeighbour, res.ratio(mode, w.name, name+"+http", name, cpuOf), "%s %s %s: CPU × without HTTP", mode, w.name, name)
	})
	return c.result()
}

// misbehave plans a consumer that does ill to eight peers, and measures eight others. Where the
// consumer itself does not return, its own stream waits, whatever a library does: there the others
// are on other routes of the same loop.
func (p *plan) misbehave() {
	o := p.o
	o.modes = []string{"shared"}
	o.servers = nil
	for _, m := range [][2]string{{"stream", "none"}, {"stream", "hold"}, {"stream", "pool"}, {"actor", "none"}, {"actor", "sleep"}, {"actor", "hold"},
		{"mailbox", "none"}, {"mailbox", "sleep"}, {"mailbox", "hold"}} {
		o.servers = append(o.servers, server{name: m[0] + " " + m[1], bin: "tcpio", route: m[0], ours: true, shared: 1, extra: []string{"-bad", m[1]}})
	}
	o.workloads = []workload{{name: "bad", load: []string{"-c", "8"}, beside: []string{"-c", "8", "-z", "1"}}}
	p.print, p.check, p.chart = (*results).misbehaveTable, (*results).checkMisbehave, nil
}

func longest(r *run) float64 { return r.Max }

func (res *results) misbehaveTable(o *options) {
	res.head(o)
	fmt.Fprint(o.out, "\n### A consumer that misbehaves towards 8 peers, and 8 others on the same loop\n\n"+
		"| the others' route, and what the consumer does | requests/s of the others | p50 µs | p99 µs | p99.9 µs | longest, µs | over 2 ms, of a million |\n"+
		"|---|--:|--:|--:|--:|--:|--:|\n")
	for _, s := range o.servers {
		m := func(f func(*run) float64) float64 { return res.median("shared", "bad", s.name, f) }
		fmt.Fprintf(o.out, "| %s | %.0f | %.0f | %.0f | %.0f | %.0f | %.1f |\n", s.name, m(rateOf), m(p50Of), m(p99Of),
			m(func(r *run) float64 { return r.P999 }), m(longest), m(func(r *run) float64 { return 1e6 * float64(r.Over2ms) / float64(r.Requests) }))
	}
}

// checkMisbehave allows a longest wait of 2 ms beyond what the machine does by itself, which is
// that without misbehaving.
func (res *results) checkMisbehave(o *options) error {
	c := &checker{res: res}
	base := ""
	for _, s := range o.servers {
		if s.extra[1] == "none" {
			base = s.name
			continue
		}
		c.atMost(2000+res.median("shared", "bad", base, longest), res.median("shared", "bad", s.name, longest), "%s: longest wait of others, µs", s.name)
	}
	return c.result()
}
