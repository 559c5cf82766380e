// Bench compares tcpio with a C epoll loop, the package net and other libraries, all in the same run.
//
//	go run . -rounds 5                 the whole table, both modes
//	go run . -workloads W1,W9 -servers c-et,stream,actor,net -modes pinned
//	go run . -json out.json -chart out.svg
//	go run . -check                    fails when a ratio of README.md is missed by more than 15 %
//	go run . -smoke                    only sees whether every server answers right
//
// Servers are interleaved over rounds. The main figure is the server's CPU time for each request, from the kernel's own
// accounting: unlike requests per second it holds on a machine that others use too. Every figure is the median over
// the rounds, every ratio the median of the ratios within a round.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

type options struct {
	rounds    int
	seconds   float64
	modes     []string
	workloads []workload
	servers   []server
	bin       string
}

func main() {
	rounds := flag.Int("rounds", 5, "rounds, over which the servers are interleaved")
	secs := flag.Float64("seconds", 2, "measured `seconds` of each run, after one of warm-up")
	modes := flag.String("modes", "pinned,shared", "pinned: server on CPU 0 with one loop, client on CPU 1; shared: two loops, both CPUs")
	ws := flag.String("workloads", "", "some of W1 to W10, by comma; all if empty")
	ss := flag.String("servers", "", "some of the servers, by comma; all if empty")
	jsonFile := flag.String("json", "", "write every figure to this `file`")
	chartFile := flag.String("chart", "", "draw CPU per request as a ratio to the floor into this `file`, .svg or .png")
	check := flag.Bool("check", false, "fail when a limit is missed by more than 15 %")
	smoke := flag.Bool("smoke", false, "only see whether every server answers right")
	flag.Parse()

	o := options{rounds: *rounds, seconds: *secs, modes: strings.Split(*modes, ",")}
	o.servers = pick(servers, *ss, func(s server) string { return s.name })
	o.workloads = pick(workloads, *ws, func(w workload) string { return w.name })
	if err := o.run(*jsonFile, *chartFile, *check, *smoke); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func pick[T any](all []T, names string, name func(T) string) []T {
	if names == "" {
		return all
	}
	want := strings.Split(names, ",")
	return slices.DeleteFunc(slices.Clone(all), func(t T) bool { return !slices.Contains(want, name(t)) })
}

func (o *options) run(jsonFile, chartFile string, check, smoke bool) error {
	dir, err := os.MkdirTemp("", "tcpio-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.bin = dir
	if err := o.build(); err != nil {
		return err
	}
	if smoke {
		return o.smoke()
	}
	var res results
	for round := range o.rounds {
		for _, mode := range o.modes {
			for i := range o.workloads {
				for j := range o.servers {
					if err := o.measure(&res, round, mode, &o.workloads[i], &o.servers[j]); err != nil {
						return err
					}
				}
			}
		}
	}
	res.print(os.Stdout, o)
	if jsonFile != "" {
		data, err := json.MarshalIndent(res.Runs, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(jsonFile, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	if chartFile != "" {
		if err := res.chart(chartFile, o); err != nil {
			return err
		}
	}
	if check {
		return res.check(o)
	}
	return nil
}

// build makes every program, into one folder.
func (o *options) build() error {
	make := func(name string, args ...string) error {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := make("gcc", "-O2", "-o", filepath.Join(o.bin, "load"), "load/load.c"); err != nil {
		return err
	}
	if err := make("gcc", "-O2", "-pthread", "-o", filepath.Join(o.bin, "cserver"), "cserver/cserver.c"); err != nil {
		return err
	}
	done := map[string]bool{"cserver": true}
	for _, s := range o.servers {
		if done[s.bin] {
			continue
		}
		done[s.bin] = true
		if err := make("go", "build", "-o", filepath.Join(o.bin, s.bin), "./servers/"+s.bin); err != nil {
			return err
		}
	}
	return nil
}

// smoke runs every server for a moment.
func (o *options) smoke() error {
	for i := range o.servers {
		s := &o.servers[i]
		for _, load := range [][]string{{"-c", "8"}, {"-c", "4", "-s", "20000", "-d", "3"}, {"-c", "4", "-m", "connect"}} {
			w := workload{name: "smoke", load: append(load, "-t", "0.2", "-w", "0.1")}
			r, err := o.once("shared", &w, s, max(s.shared, s.pinned))
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if r.Requests == 0 {
				return fmt.Errorf("%s: no request was answered", s.name)
			}
		}
		fmt.Println("ok", s.name)
	}
	return nil
}

// measure makes one run, again while others use the processors: twice more at most, then the run is marked.
func (o *options) measure(res *results, round int, mode string, w *workload, s *server) error {
	loops := s.pinned
	if mode == "shared" {
		loops = s.shared
	}
	if loops == 0 || w.oursOnly && !s.ours && s.name != floor {
		return nil
	}
	for try := 0; ; try++ {
		r, err := o.once(mode, w, s, loops)
		if err != nil {
			// A peer that cannot do a workload is a result; we have to.
			if s.ours || s.name == floor {
				return fmt.Errorf("%s %s %s: %w", mode, w.name, s.name, err)
			}
			fmt.Fprintf(os.Stderr, "round %d %-6s %-4s %-9s FAILED: %v\n", round, mode, w.name, s.name, err)
			return nil
		}
		r.Round, r.Mode, r.Workload, r.Server = round, mode, w.name, s.name
		if r.Noise > 0.10 && try < 2 {
			time.Sleep(time.Second)
			continue
		}
		fmt.Fprintf(os.Stderr, "round %d %-6s %-4s %-9s %8.3f µs/req %8.0f req/s p99 %7.0f µs noise %2.0f %%\n",
			round, mode, w.name, s.name, r.CPU, r.Rate, r.P99, 100*r.Noise)
		res.Runs = append(res.Runs, r)
		return nil
	}
}
