package main

import (
	"fmt"
	"slices"
)

// report prints a table for each workload: medians over the rounds. A ratio is the median of the
// ratios within a round.
func (b *bench) report() {
	attacks := false
	for _, w := range b.workloads {
		if w.attack != "" {
			attacks = true
			continue
		}
		if w.idle > 0 {
			fmt.Fprintf(b.out, "\n### %s: %s\n\n| | bytes in use | more than %s | resident |\n|---|--:|--:|--:|\n", w.name, w.what, floor)
		} else {
			fmt.Fprintf(b.out, "\n### %s: %s\n\n| | CPU µs | × %s | × tcpio | requests/s | p50 µs | p99 µs |\n|---|--:|--:|--:|--:|--:|--:|\n", w.name, w.what, floor)
		}
		for _, s := range b.servers {
			if len(b.of(w, s.name)) == 0 {
				continue
			}
			m := func(f func(figures) float64) float64 { return b.median(w, s.name, f) }
			if w.idle > 0 {
				more := b.paired(w, s.name, floor, live, func(x, y float64) float64 { return x - y })
				fmt.Fprintf(b.out, "| %s | %.0f | %.0f | %.0f |\n", s.name, m(live), more, m(func(r figures) float64 { return r.Resident }))
				continue
			}
			fmt.Fprintf(b.out, "| %s | %.2f | %.2f | %.2f | %.0f | %.0f | %.0f |\n", s.name, m(cpu), b.ratio(w, s.name, floor), b.ratio(w, s.name, "tcpio"),
				m(func(r figures) float64 { return float64(r.Requests) / r.Seconds }), m(func(r figures) float64 { return r.P50 }),
				m(func(r figures) float64 { return r.P99 }))
		}
	}
	if !attacks {
		return
	}
	fmt.Fprintf(b.out, "\n### Others' echo of 64 B during an attack\n\n| | | p50 µs | p99 µs | p99.9 µs | growth KiB |\n|---|---|--:|--:|--:|--:|\n")
	for _, w := range b.workloads {
		for _, s := range b.servers {
			if w.attack == "" || len(b.of(w, s.name)) == 0 {
				continue
			}
			m := func(f func(figures) float64) float64 { return b.median(w, s.name, f) }
			fmt.Fprintf(b.out, "| %s | %s | %.0f | %.0f | %.0f | %.0f |\n", w.what, s.name, m(func(r figures) float64 { return r.P50 }),
				m(func(r figures) float64 { return r.P99 }), m(func(r figures) float64 { return r.P999 }), m(func(r figures) float64 { return r.Resident / 1024 }))
		}
	}
}

func cpu(r figures) float64  { return r.CPU }
func live(r figures) float64 { return r.Live }

func (b *bench) of(w workload, server string) (some []figures) {
	for _, r := range b.results {
		if r.Workload == w.name && r.Server == server {
			some = append(some, r)
		}
	}
	return some
}

func (b *bench) median(w workload, server string, f func(figures) float64) float64 {
	var all []float64
	for _, r := range b.of(w, server) {
		all = append(all, f(r))
	}
	return median(all)
}

func (b *bench) ratio(w workload, server, to string) float64 {
	return b.paired(w, server, to, cpu, func(x, y float64) float64 { return x / y })
}

// paired is the median of what join makes of two servers' figures of the same round; 0 without any.
func (b *bench) paired(w workload, server, to string, f func(figures) float64, join func(x, y float64) float64) float64 {
	var all []float64
	for _, x := range b.of(w, server) {
		for _, y := range b.of(w, to) {
			if x.Round == y.Round {
				all = append(all, join(f(x), f(y)))
			}
		}
	}
	return median(all)
}

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return (all[len(all)/2] + all[(len(all)-1)/2]) / 2
}
