package main

import (
	"errors"
	"fmt"
	"image/color"
	"io"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

type results struct{ Runs []run }

func (res *results) of(mode, workload, server string) (runs []run) {
	for _, r := range res.Runs {
		if r.Mode == mode && r.Workload == workload && r.Server == server {
			runs = append(runs, r)
		}
	}
	return runs
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
}

func medianOf(runs []run, f func(*run) float64) float64 {
	var v []float64
	for i := range runs {
		v = append(v, f(&runs[i]))
	}
	return median(v)
}

// ratio is the median over rounds of f as a ratio to the base server's in the same round; 0 without a common round.
func (res *results) ratio(mode, workload, server, base string, f func(*run) float64) float64 {
	var v []float64
	bases := res.of(mode, workload, base)
	for _, r := range res.of(mode, workload, server) {
		for _, b := range bases {
			if b.Round == r.Round && f(&b) > 0 {
				v = append(v, f(&r)/f(&b))
			}
		}
	}
	return median(v)
}

func cpuOf(r *run) float64 { return r.CPU }

func (res *results) print(w io.Writer, o *options) {
	for _, mode := range o.modes {
		for _, wl := range o.workloads {
			fmt.Fprintf(w, "\n### %s, %s: %s\n\n", wl.name, mode, wl.what)
			if wl.idle > 0 {
				fmt.Fprintf(w, "| server | bytes for each connection |\n|---|--:|\n")
				for _, s := range o.servers {
					if runs := res.of(mode, wl.name, s.name); len(runs) > 0 {
						fmt.Fprintf(w, "| %s | %.0f |\n", s.name, medianOf(runs, func(r *run) float64 { return r.Bytes }))
					}
				}
				continue
			}
			fmt.Fprintf(w, "| server | CPU µs/request | × C | × net | requests/s | p50 µs | p99 µs | p99.9 µs | switches/request | peak MiB |\n")
			fmt.Fprintf(w, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
			for _, s := range o.servers {
				runs := res.of(mode, wl.name, s.name)
				if len(runs) == 0 {
					continue
				}
				m := func(f func(*run) float64) float64 { return medianOf(runs, f) }
				fmt.Fprintf(w, "| %s | %.2f | %.2f | %.2f | %.0f | %.0f | %.0f | %.0f | %.3f | %.1f |\n", s.name, m(cpuOf),
					res.ratio(mode, wl.name, s.name, floor, cpuOf), res.ratio(mode, wl.name, s.name, goNet, cpuOf),
					m(func(r *run) float64 { return r.Rate }), m(func(r *run) float64 { return r.P50 }),
					m(func(r *run) float64 { return r.P99 }), m(func(r *run) float64 { return r.P999 }),
					m(func(r *run) float64 { return r.Switches }), m(func(r *run) float64 { return r.PeakMiB }))
			}
		}
	}
}

// slack is how far a limit may be missed before check fails.
const slack = 1.15

func (res *results) check(o *options) error {
	var missed []string
	miss := func(format string, args ...any) { missed = append(missed, fmt.Sprintf(format, args...)) }
	for _, mode := range o.modes {
		for _, w := range o.workloads {
			limit := w.pinned
			if mode == "shared" {
				limit = w.shared
			}
			for _, name := range []string{"stream", "streams", "actor"} {
				if r := res.ratio(mode, w.name, name, floor, cpuOf); limit > 0 && r > limit*slack {
					miss("%s %s %s: CPU %.2f × C, limit %.2f", mode, w.name, name, r, limit)
				}
				p99 := res.ratio(mode, w.name, name, goNet, func(r *run) float64 { return r.P99 })
				if w.idle == 0 && p99 > slack {
					miss("%s %s %s: p99 %.2f × net", mode, w.name, name, p99)
				}
				if runs := res.of(mode, w.name, name); w.idle > 0 && len(runs) > 0 {
					if b := medianOf(runs, func(r *run) float64 { return r.Bytes }); b > 360*slack {
						miss("%s %s %s: %.0f bytes for each connection, limit 360", mode, w.name, name, b)
					}
				}
			}
			if r := res.ratio(mode, w.name, "mailbox", goNet, cpuOf); w.idle == 0 && r > slack {
				miss("%s %s mailbox: CPU %.2f × net", mode, w.name, r)
			}
		}
	}
	if len(missed) > 0 {
		return errors.New("missed:\n" + strings.Join(missed, "\n"))
	}
	fmt.Println("every limit is kept")
	return nil
}

// chart draws the pinned CPU time, or that of the first mode measured, as ratios to the floor.
func (res *results) chart(file string, o *options) error {
	mode := o.modes[0]
	p := plot.New()
	p.Title.Text = "Server CPU per request, C epoll loop = 1 (" + mode + ")"
	p.Y.Label.Text = "× C"
	p.Y.Min = 0
	p.Legend.Top, p.Legend.Left = true, true
	var names []string
	for _, w := range o.workloads {
		if w.idle == 0 && !w.oursOnly {
			names = append(names, w.name)
		}
	}
	var shown []server
	for _, s := range o.servers {
		if s.name != floor && len(names) > 0 && len(res.of(mode, names[0], s.name)) > 0 {
			shown = append(shown, s)
		}
	}
	width := vg.Points(40 / float64(len(shown)+1))
	for i, s := range shown {
		values := make(plotter.Values, len(names))
		for j, n := range names {
			values[j] = res.ratio(mode, n, s.name, floor, cpuOf)
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		shade := uint8(70 + 140*i/len(shown))
		bars.Color = color.RGBA{shade, shade, shade, 255}
		if s.ours {
			bars.Color = color.RGBA{uint8(20 + 40*i), 110, 200, 255}
		}
		bars.LineStyle.Width = 0
		bars.Offset = width * vg.Length(float64(i)-float64(len(shown)-1)/2)
		p.Add(bars)
		p.Legend.Add(s.name, bars)
	}
	p.NominalX(names...)
	return p.Save(26*vg.Centimeter, 12*vg.Centimeter, file)
}
