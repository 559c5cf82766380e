package main

import (
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A picture names the workloads in words, has every server's ratio, and is XML.
func TestTheChartNamesWhatItShows(t *testing.T) {
	o := &options{modes: []string{"pinned"}, workloads: workloads[:2], servers: servers}
	res := &results{}
	for _, w := range o.workloads {
		for cpu, name := range []string{floor, "stream", goNet, "evio"} {
			res.Runs = append(res.Runs, run{Mode: "pinned", Workload: w.name, Server: name, CPU: float64(cpu + 1), Before: 1, After: 1})
		}
	}
	file := filepath.Join(t.TempDir(), "chart.svg")
	if err := res.bars(file, o); err != nil {
		t.Fatal(err)
	}
	drawing, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(string(drawing))); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{o.workloads[0].what, o.workloads[1].what, ">tcpio, one channel<", ">package net<", ">2.00<", ">3.00<"} {
		if !strings.Contains(string(drawing), want) {
			t.Errorf("the chart has no %q", want)
		}
	}
	for _, not := range []string{"evio", ">4.00<", "W1"} {
		if strings.Contains(string(drawing), not) {
			t.Errorf("the chart has %q", not)
		}
	}
	if err := (&results{}).bars(file, o); err == nil {
		t.Error("nothing was drawn, and no error says so")
	}
}
