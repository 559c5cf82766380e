package main

import (
	"testing"
)

func TestDisturbedRunsAreLeftOut(t *testing.T) {
	good := func(round int, server string, cpu float64) run {
		return run{Round: round, Mode: "pinned", Workload: "W1", Server: server, CPU: cpu, Before: 100, After: 110}
	}
	noisy := func(round int, server string, cpu float64) run {
		r := good(round, server, cpu)
		r.Noise = 0.5
		return r
	}
	slower := func(round int, server string, cpu float64) run {
		r := good(round, server, cpu)
		r.After = 120
		return r
	}
	for _, tt := range []struct {
		name    string
		runs    []run
		ratio   float64
		counted string
	}{
		{"none", []run{good(0, floor, 2), good(0, "stream", 4), good(1, floor, 4), good(1, "stream", 4), good(2, floor, 4), good(2, "stream", 20)}, 2, "3/3"},
		{"one", []run{good(0, floor, 2), noisy(0, "stream", 9), good(1, floor, 4), good(1, "stream", 4), good(2, floor, 4), good(2, "stream", 4)}, 1, "2/3"},
		{"speed", []run{good(0, floor, 2), slower(0, "stream", 9), good(1, floor, 4), good(1, "stream", 4), good(2, floor, 4), good(2, "stream", 4)}, 1, "2/3"},
		{"the floor's", []run{noisy(0, floor, 1), good(0, "stream", 9), good(1, floor, 4), good(1, "stream", 4), good(2, floor, 4), good(2, "stream", 4)}, 1, "3/3"},
		{"most", []run{good(0, floor, 2), noisy(0, "stream", 4), good(1, floor, 2), noisy(1, "stream", 6), good(2, floor, 2), good(2, "stream", 8)}, 3, "3/3 disturbed"},
		{"no common round", []run{good(0, floor, 2), noisy(1, floor, 2), noisy(0, "stream", 4), good(1, "stream", 6)}, 3, "1/2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res := results{Runs: tt.runs}
			if got := res.ratio("pinned", "W1", "stream", floor, cpuOf); got != tt.ratio {
				t.Errorf("the ratio is %v, want %v", got, tt.ratio)
			}
			if got := res.counted("pinned", "W1", "stream"); got != tt.counted {
				t.Errorf("counted are %q, want %q", got, tt.counted)
			}
		})
	}
}

func TestTiesAreMarked(t *testing.T) {
	for _, tt := range []struct {
		mode  string
		ratio float64
		want  string
	}{
		{"pinned", 1.09, "≈ 1.09"}, {"pinned", 1.12, "1.12"}, {"pinned", 0.95, "≈ 0.95"}, {"pinned", 0.85, "0.85"},
		{"shared", 1.28, "≈ 1.28"}, {"shared", 1.32, "1.32"}, {"pinned", 0, "–"},
	} {
		if got := times(tt.mode, tt.ratio); got != tt.want {
			t.Errorf("%v %s is shown as %q, want %q", tt.ratio, tt.mode, got, tt.want)
		}
	}
}

func TestCheckFailsBeyondTheSlack(t *testing.T) {
	for _, tt := range []struct {
		cpu  float64
		want bool
	}{{1.10 * 1.14, true}, {1.10 * 1.16, false}} {
		res := results{Runs: []run{
			{Mode: "pinned", Workload: "W1", Server: floor, CPU: 1, P99: 1},
			{Mode: "pinned", Workload: "W1", Server: "stream", CPU: tt.cpu, P99: 1},
		}}
		if err := res.check(&options{modes: pinnedOne, workloads: workloads}); (err == nil) != tt.want {
			t.Errorf("CPU %.2f × C: %v", tt.cpu, err)
		}
	}
	if err := new(results).check(&options{modes: pinnedOne, workloads: workloads}); err == nil {
		t.Error("a check without figures passes")
	}
}
