package main

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

const chartCap = 3.0 // a bar that is higher is cut off there, and labelled

// shades gives each server its colour: tcpio's blues, everything else greys.
func shades(shown []server) (colours []color.Color) {
	ours, others := 0, 0
	blues := []color.RGBA{{0x08, 0x45, 0x94, 255}, {0x21, 0x71, 0xb5, 255}, {0x42, 0x92, 0xc6, 255}, {0x6b, 0xae, 0xd6, 255},
		{0x9e, 0xca, 0xe1, 255}, {0xc6, 0xdb, 0xef, 255}}
	for _, s := range shown {
		if s.ours {
			colours = append(colours, blues[ours%len(blues)])
			ours++
			continue
		}
		g := uint8(0x60 + 0x12*others)
		if s.name == goNet {
			colours = append(colours, color.RGBA{0xd9, 0x8c, 0x4a, 255}) // what everybody compares with
			continue
		}
		colours = append(colours, color.RGBA{g, g, g, 255})
		others++
	}
	return colours
}

// bars draws the CPU time of the first mode measured, as ratios to the floor.
func (res *results) bars(file string, o *options) error {
	mode := o.modes[0]
	p := plot.New()
	p.Title.Text = "Server CPU per request; a C epoll loop is 1 (" + mode + ")"
	p.Y.Label.Text = "× C"
	p.Y.Min, p.Y.Max = 0, chartCap
	p.Legend.Top = true // on the right, where there are no bars
	p.Legend.TextStyle.Font.Size = vg.Points(10)
	var names []string
	for _, w := range o.workloads {
		if w.idle == 0 && w.only == nil && len(res.of(mode, w.name, floor)) > 0 {
			names = append(names, w.name)
		}
	}
	var shown []server
	for _, s := range o.servers {
		if s.name != floor && len(names) > 0 && len(res.of(mode, names[0], s.name)) > 0 {
			shown = append(shown, s)
		}
	}
	if len(shown) == 0 {
		return fmt.Errorf("nothing to draw in mode %s", mode)
	}
	const plotWidth = 1000 // points
	width := vg.Points(plotWidth * 0.88 / float64((len(names)+1)*(len(shown)+1)))
	colours := shades(shown)
	for i, s := range shown {
		values := make(plotter.Values, len(names))
		offset := width * vg.Length(float64(i)-float64(len(shown)-1)/2)
		var labels plotter.XYLabels
		for j, n := range names {
			v := res.ratio(mode, n, s.name, floor, cpuOf)
			values[j] = math.Min(v, chartCap)
			if s.ours || v > chartCap {
				labels.XYs = append(labels.XYs, plotter.XY{X: float64(j), Y: values[j]})
				labels.Labels = append(labels.Labels, fmt.Sprintf("%.2f", v))
			}
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		bars.Color = colours[i]
		bars.LineStyle.Width = 0
		bars.Offset = offset
		p.Add(bars)
		if len(labels.Labels) > 0 {
			l, err := plotter.NewLabels(labels)
			if err != nil {
				return err
			}
			l.Offset = vg.Point{X: offset, Y: vg.Points(2)}
			for i := range l.TextStyle {
				l.TextStyle[i].Rotation = math.Pi / 2
				l.TextStyle[i].Font.Size = min(width, vg.Points(8))
				l.TextStyle[i].YAlign = draw.YCenter
			}
			p.Add(l)
		}
		p.Legend.Add(s.name, bars)
	}
	one, err := plotter.NewLine(plotter.XYs{{X: -0.5, Y: 1}, {X: float64(len(names)) - 0.5, Y: 1}})
	if err != nil {
		return err
	}
	one.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	p.Add(one)
	p.Legend.Add("C epoll", one)
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.5, float64(len(names))+0.4
	p.Y.Min, p.Y.Max = 0, chartCap+0.2
	return p.Save(vg.Points(plotWidth), vg.Points(360), file)
}

// lines draws the curve.
func (res *results) lines(file string, o *options) error {
	p := plot.New()
	p.Title.Text = "Server CPU per 64-byte echo by connections of one loop (pinned)"
	p.X.Label.Text, p.Y.Label.Text = "connections", "µs"
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = plot.ConstantTicks(curveTicks())
	p.Y.Min = 0
	p.Legend.Top, p.Legend.Left = true, true
	colours := shades(o.servers)
	for i, s := range o.servers {
		var points plotter.XYs
		for _, n := range curveActive {
			if v := res.median("pinned", fmt.Sprintf("n=%d", n), s.name, cpuOf); v > 0 {
				points = append(points, plotter.XY{X: float64(n), Y: v})
				p.Y.Max = math.Max(p.Y.Max, v*1.3)
			}
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color = colours[i], colours[i]
		line.Width = vg.Points(2)
		dots.Shape = draw.CircleGlyph{}
		p.Add(line, dots)
		p.Legend.Add(s.name, line, dots)
	}
	return p.Save(22*vg.Centimeter, 11*vg.Centimeter, file)
}

func curveTicks() (ticks []plot.Tick) {
	for _, n := range curveActive {
		ticks = append(ticks, plot.Tick{Value: float64(n), Label: fmt.Sprint(n)})
	}
	return ticks
}
