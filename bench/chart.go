package main

import (
	"bytes"
	"errors"
	"fmt"
	"html/template"
	"math"
	"os"
	"slices"
)

// The pictures are SVG, drawn for a README: words in place of the workloads' short names, the peers
// that most readers know, and colours that follow the reader's light or dark mode, which a plotting
// library's images do not.

// drawn are the servers that a picture shows, in its order, with the names and the colours there.
var drawn = []struct{ server, label, class string }{
	{"stream", "tcpio, one channel", "ours1"},
	{"actor", "tcpio, actors", "ours2"},
	{goNet, "package net", "peer1"},
	{"netpoll", "netpoll", "peer2"},
	{"gnet", "gnet", "peer3"},
	{"nbio", "nbio", "peer4"},
}

const (
	chartWidth = 860
	nameWidth  = 250 // for the workloads' names, left of the bars
	barHeight  = 13
	groupGap   = 20
	chartTop   = 76
	maxRatio   = 1.6 // a longer bar ends here, and its label says its length
)

type rect struct{ X, Y, W, H float64 }

type text struct {
	X, Y float64
	S    string
}

type bar struct {
	rect
	Class string
	Label text
}

type key struct {
	Swatch rect
	Class  string
	Label  text
}

// A picture is what the template draws.
type picture struct {
	Width, Height float64
	Title, Axis   text
	Keys          []key
	Names         []text
	Bars          []bar
	Grid          []rect // of no width or no height: lines
	One           rect   // the line of the C loop
	OneLabel      text
	Ticks         []text
	Lines         []line
}

type line struct {
	Class, Points string
	Dots          []rect // X and Y only
	Label         text
}

// keys places the legend: each word right of its colour, and no word over another one's.
func (p *picture) keys(x, y float64, shown []int) {
	for _, i := range shown {
		d := drawn[i]
		p.Keys = append(p.Keys, key{rect{x, y - 10, 12, 12}, d.class, text{x + 17, y, d.label}})
		x += 17 + 6.6*float64(len(d.label)) + 22
	}
}

// bars draws the CPU time of the first mode measured, as ratios to the floor.
func (res *results) bars(file string, o *options) error {
	mode := o.modes[0]
	var workloads []*workload
	for i := range o.workloads {
		if w := &o.workloads[i]; w.idle == 0 && w.only == nil && len(res.of(mode, w.name, floor)) > 0 {
			workloads = append(workloads, w)
		}
	}
	var shown []int
	for i, d := range drawn {
		if len(workloads) > 0 && len(res.of(mode, workloads[0].name, d.server)) > 0 {
			shown = append(shown, i)
		}
	}
	if len(shown) == 0 {
		return fmt.Errorf("nothing to draw in mode %s", mode)
	}
	p := picture{Width: chartWidth, Title: text{16, 26, "CPU time of the server for each request. A C epoll loop is 1; shorter is better."}}
	p.keys(16, 52, shown)
	scale := (chartWidth - nameWidth - 60) / maxRatio
	one := nameWidth + scale
	group := float64(len(shown)*barHeight + groupGap)
	bottom := chartTop + group*float64(len(workloads))
	for i, w := range workloads {
		top := chartTop + group*float64(i) + groupGap/2
		p.Names = append(p.Names, text{nameWidth - 12, top + float64(len(shown)*barHeight)/2 + 4, w.what})
		for j, k := range shown {
			v := res.ratio(mode, w.name, drawn[k].server, floor, cpuOf)
			r := rect{nameWidth, top + float64(j*barHeight), math.Min(v, maxRatio) * scale, barHeight - 2}
			x := r.X + r.W + 5
			if x < one && x > one-30 {
				x = one + 5 // the line of the C loop would go through it
			}
			p.Bars = append(p.Bars, bar{r, drawn[k].class, text{x, r.Y + 9.5, fmt.Sprintf("%.2f", v)}})
		}
	}
	for v := 0.0; v <= maxRatio; v += 0.5 {
		x := nameWidth + v*scale
		p.Grid = append(p.Grid, rect{x, chartTop, 0, bottom - chartTop})
		p.Ticks = append(p.Ticks, text{x, bottom + 16, fmt.Sprintf("%.1f", v)})
	}
	p.One = rect{one, chartTop - 4, 0, bottom - chartTop + 4}
	p.OneLabel = text{one, bottom + 32, "C epoll"}
	p.Height = bottom + 42
	return p.write(file)
}

// lines draws the curve.
func (res *results) lines(file string, o *options) error {
	p := picture{Width: chartWidth, Height: 420,
		Title: text{16, 26, "CPU time of the server for each echo of 64 bytes, by the number of connections on one loop"},
		Axis:  text{16, 52, "µs"}}
	const left, right, top, bottom = 56, 700, 66, 360
	most := 0.0
	for _, n := range curveActive {
		for _, s := range o.servers {
			most = math.Max(most, res.median("pinned", fmt.Sprintf("n=%d", n), s.name, cpuOf))
		}
	}
	if most == 0 {
		return errors.New("nothing to draw")
	}
	most = math.Ceil(most)
	first, last := math.Log(float64(curveActive[0])), math.Log(float64(curveActive[len(curveActive)-1]))
	x := func(n int) float64 { return left + (math.Log(float64(n))-first)/(last-first)*(right-left) }
	y := func(v float64) float64 { return bottom - v/most*(bottom-top) }
	for _, n := range curveActive {
		p.Ticks = append(p.Ticks, text{x(n), bottom + 18, fmt.Sprint(n)})
	}
	for v := 0.0; v <= most; v += math.Max(1, math.Floor(most/5)) {
		p.Grid = append(p.Grid, rect{left, y(v), right - left, 0})
		p.Names = append(p.Names, text{left - 8, y(v) + 4, fmt.Sprintf("%.0f", v)})
	}
	for _, s := range o.servers {
		l := line{Class: "floor", Label: text{S: "C epoll"}}
		if i := slices.IndexFunc(drawn, func(d struct{ server, label, class string }) bool { return d.server == s.name }); i >= 0 {
			l.Class, l.Label.S = drawn[i].class, drawn[i].label
		} else if s.name != floor {
			continue
		}
		for _, n := range curveActive {
			if v := res.median("pinned", fmt.Sprintf("n=%d", n), s.name, cpuOf); v > 0 {
				l.Points += fmt.Sprintf("%.1f,%.1f ", x(n), y(v))
				l.Dots = append(l.Dots, rect{X: x(n), Y: y(v)})
			}
		}
		if len(l.Dots) > 0 {
			end := l.Dots[len(l.Dots)-1]
			l.Label.X, l.Label.Y = right+14, end.Y+4
			p.Lines = append(p.Lines, l)
		}
	}
	// Labels at the ends of the lines keep a distance from each other.
	slices.SortFunc(p.Lines, func(a, b line) int { return int(math.Copysign(1, a.Label.Y-b.Label.Y)) })
	for i := 1; i < len(p.Lines); i++ {
		p.Lines[i].Label.Y = math.Max(p.Lines[i].Label.Y, p.Lines[i-1].Label.Y+16)
	}
	return p.write(file)
}

func (p *picture) write(file string) error {
	var b bytes.Buffer
	if err := svg.Execute(&b, p); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

var svg = template.Must(template.New("svg").Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{.Width}} {{.Height}}" width="{{.Width}}" height="{{.Height}}" role="img">
<title>{{.Title.S}}</title>
<style>
text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-size: 14px; font-weight: 600 }
.end { text-anchor: end } .mid { text-anchor: middle } .small { font-size: 10.5px; fill: #59636e }
.back { fill: #ffffff } .grid { stroke: #d1d9e0 } .one { stroke: #1f2328; stroke-dasharray: 4 3 }
.ours1 { fill: #0969da; stroke: #0969da } .ours2 { fill: #54aeff; stroke: #54aeff }
.peer1 { fill: #d4762c; stroke: #d4762c } .peer2 { fill: #8250df; stroke: #8250df }
.peer3 { fill: #2da44e; stroke: #2da44e } .peer4 { fill: #8c959f; stroke: #8c959f } .floor { fill: #1f2328; stroke: #1f2328 }
rect { stroke: none } polyline[class] { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .small { fill: #9198a1 } .back { fill: #0d1117 } .grid { stroke: #3d444d } .one { stroke: #f0f6fc }
.ours1 { fill: #4493f8; stroke: #4493f8 } .ours2 { fill: #a5d6ff; stroke: #a5d6ff }
.peer1 { fill: #f0883e; stroke: #f0883e } .peer2 { fill: #ab7df8; stroke: #ab7df8 }
.peer3 { fill: #3fb950; stroke: #3fb950 } .peer4 { fill: #9198a1; stroke: #9198a1 } .floor { fill: #f0f6fc; stroke: #f0f6fc }
}
</style>
<rect class="back" width="100%" height="100%"/>
<text class="title" x="{{.Title.X}}" y="{{.Title.Y}}">{{.Title.S}}</text>
{{with .Axis}}{{if .S}}<text class="small" x="{{.X}}" y="{{.Y}}">{{.S}}</text>{{end}}{{end}}
{{range .Keys}}<rect class="{{.Class}}" x="{{.Swatch.X}}" y="{{.Swatch.Y}}" width="12" height="12" rx="2"/><text x="{{.Label.X}}" y="{{.Label.Y}}">{{.Label.S}}</text>
{{end}}{{range .Grid}}<path class="grid" d="M{{.X}} {{.Y}}h{{.W}}v{{.H}}"/>
{{end}}{{range .Names}}<text class="end" x="{{.X}}" y="{{.Y}}">{{.S}}</text>
{{end}}{{range .Bars}}<rect class="{{.Class}}" x="{{.X}}" y="{{.Y}}" width="{{printf "%.1f" .W}}" height="{{.H}}" rx="1"/><text class="small" x="{{printf "%.1f" .Label.X}}" y="{{.Label.Y}}">{{.Label.S}}</text>
{{end}}{{range .Lines}}<polyline class="{{.Class}}" points="{{.Points}}"/>{{$class := .Class}}{{range .Dots}}<circle class="{{$class}}" cx="{{printf "%.1f" .X}}" cy="{{printf "%.1f" .Y}}" r="3"/>{{end}}<text x="{{.Label.X}}" y="{{printf "%.1f" .Label.Y}}">{{.Label.S}}</text>
{{end}}{{if .OneLabel.S}}<path class="one" d="M{{.One.X}} {{.One.Y}}v{{.One.H}}"/><text class="mid small" x="{{.OneLabel.X}}" y="{{.OneLabel.Y}}">{{.OneLabel.S}}</text>
{{end}}{{range .Ticks}}<text class="mid small" x="{{.X}}" y="{{.Y}}">{{.S}}</text>
{{end}}</svg>
`))
