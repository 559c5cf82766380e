package main

import (
	"fmt"
	"slices"
)

type results struct {
	Machine, Command string
	Runs             []run
	Calls            []calls
	Failed           []string
	ourFailures      int
}

func (res *results) all(mode, workload, server string) (runs []run) {
	for _, r := range res.Runs {
		if r.Mode == mode && r.Workload == workload && r.Server == server {
			runs = append(runs, r)
		}
	}
	return runs
}

// clean are the runs that count: those that were not disturbed, if at least half were not; else
// all.
func clean(runs []run) []run {
	some := slices.DeleteFunc(slices.Clone(runs), func(r run) bool { return r.disturbed() != "" })
	if len(some) > 0 && 2*len(some) >= len(runs) {
		return some
	}
	return runs
}

// of are the runs that count.
func (res *results) of(mode, workload, server string) []run {
	return clean(res.all(mode, workload, server))
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
}

func (res *results) median(mode, workload, server string, f func(*run) float64) float64 {
	var v []float64
	for _, r := range res.of(mode, workload, server) {
		v = append(v, f(&r))
	}
	return median(v)
}

// ratio is the median over rounds of f as a ratio to the base server's in the same round; that of
// the medians without a round in which both count, and 0 where there is nothing to compare.
func (res *results) ratio(mode, workload, server, base string, f func(*run) float64) float64 {
	return res.ratioTo(mode, workload, server, workload, base, f)
}

func (res *results) ratioTo(mode, workload, server, baseWorkload, base string, f func(*run) float64) float64 {
	var v []float64
	bases := res.of(mode, baseWorkload, base)
	for _, r := range res.of(mode, workload, server) {
		for _, b := range bases {
			if b.Round == r.Round && f(&b) > 0 {
				v = append(v, f(&r)/f(&b))
			}
		}
	}
	if len(v) == 0 {
		if b := res.median(mode, baseWorkload, base, f); b > 0 {
			return res.median(mode, workload, server, f) / b
		}
	}
	return median(v)
}

func cpuOf(r *run) float64  { return r.CPU }
func p50Of(r *run) float64  { return r.P50 }
func p99Of(r *run) float64  { return r.P99 }
func rateOf(r *run) float64 { return r.Rate }

// tie is the difference below which two figures are the same.
func tie(mode string) float64 {
	if mode == "shared" {
		return 0.30
	}
	return 0.10
}

// times shows a ratio; with ≈ if it is a tie.
func times(mode string, ratio float64) string {
	switch {
	case ratio == 0:
		return "–"
	case max(ratio, 1/ratio) <= 1+tie(mode):
		return fmt.Sprintf("≈ %.2f", ratio)
	}
	return fmt.Sprintf("%.2f", ratio)
}

// counted says how many runs count, of those that were made.
func (res *results) counted(mode, workload, server string) string {
	runs := res.all(mode, workload, server)
	used := clean(runs)
	note := ""
	if slices.ContainsFunc(used, func(r run) bool { return r.disturbed() != "" }) {
		note = " disturbed"
	}
	return fmt.Sprintf("%d/%d%s", len(used), len(runs), note)
}

// optional is a figure that not every server has.
func optional(format string, v float64) string {
	if v < 0 {
		return "–"
	}
	return fmt.Sprintf(format, v)
}

func (res *results) callsOf(mode, workload, server string) float64 {
	for _, c := range res.Calls {
		if c.Mode == mode && c.Workload == workload && c.Server == server {
			return c.PerRequest
		}
	}
	return -1
}

func (res *results) head(o *options) {
	fmt.Fprintf(o.out, "`%s`\n\n%s. %s\n", res.Command, res.Machine, res.speed())
}

// speed is how the machine's own speed changed meanwhile.
func (res *results) speed() string {
	var v []float64
	for _, r := range res.Runs {
		if r.Before > 0 {
			v = append(v, r.Before, r.After)
		}
	}
	if len(v) == 0 {
		return ""
	}
	return fmt.Sprintf("The fixed piece of work around each run took %.0f to %.0f µs, %.0f in the median.",
		slices.Min(v), slices.Max(v), median(v))
}

func (res *results) tables(o *options) {
	res.head(o)
	for _, mode := range o.modes {
		for i := range o.workloads {
			res.table(o, mode, &o.workloads[i])
		}
	}
	for _, f := range res.Failed {
		fmt.Fprintf(o.out, "\nfailed: %s\n", f)
	}
}

func (res *results) table(o *options, mode string, w *workload) {
	if !slices.ContainsFunc(o.servers, func(s server) bool { return len(res.all(mode, w.name, s.name)) > 0 }) {
		return
	}
	fmt.Fprintf(o.out, "\n### %s, %s: %s\n\n", w.name, mode, w.what)
	if w.idle > 0 {
		fmt.Fprintf(o.out, "| server | bytes for each connection | runs |\n|---|--:|--:|\n")
	} else {
		fmt.Fprintf(o.out, "| server | CPU µs/request | × C | × net | requests/s | p50 µs | p99 µs | p99.9 µs | switches/request | "+
			"system calls/request | allocations/request | processors | client µs/request | peak MiB | runs |\n"+
			"|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	}
	for _, s := range o.servers {
		if len(res.all(mode, w.name, s.name)) == 0 {
			continue
		}
		m := func(f func(*run) float64) float64 { return res.median(mode, w.name, s.name, f) }
		if w.idle > 0 {
			fmt.Fprintf(o.out, "| %s | %.0f | %s |\n", s.name, m(func(r *run) float64 { return r.Bytes }), res.counted(mode, w.name, s.name))
			continue
		}
		fmt.Fprintf(o.out, "| %s | %.2f | %s | %s | %.0f | %.0f | %.0f | %.0f | %.3f | %s | %s | %.2f | %.2f | %.1f | %s |\n", s.name, m(cpuOf),
			times(mode, res.ratio(mode, w.name, s.name, floor, cpuOf)), times(mode, res.ratio(mode, w.name, s.name, goNet, cpuOf)),
			m(rateOf), m(p50Of), m(p99Of), m(func(r *run) float64 { return r.P999 }),
			m(func(r *run) float64 { return r.Switches }), optional("%.2f", res.callsOf(mode, w.name, s.name)),
			optional("%.3f", m(func(r *run) float64 { return r.Allocs })), m(func(r *run) float64 { return r.Busy }),
			m(func(r *run) float64 { return r.ClientCPU }), m(func(r *run) float64 { return r.PeakMiB }),
			res.counted(mode, w.name, s.name))
	}
}
