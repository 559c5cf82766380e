// Bench compares tcpio with a C epoll loop, the package net and other libraries, all in the same
// run. README.md says what is measured and how to read it.
//
//	go run . -rounds 5 -seconds 1      the whole table, both modes
//	go run . -workloads W1,W9 -servers c-et,stream,actor,net -modes pinned
//	go run . -syscalls                 system calls per request too, counted apart from what is timed
//	go run . -json out.json -md out.md -chart out.svg
//	go run . -from out.json -md out.md -chart out.svg
//	go run . -check                    fails when a limit is missed by more than 15 %
//	go run . -curve                    from 10 to 18,000 connections, and beside idle ones
//	go run . -neighbour                beside another user of the network in the same process
//	go run . -misbehave                what a consumer that misbehaves costs the others
//	go run . -relay                    proxies: relays of tcpio, HAProxy, nginx, the package net
//	go run . -smoke                    only sees whether every server answers right
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
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
	retries   int
	modes     []string
	workloads []workload
	servers   []server
	syscalls  bool
	bin       string
	out       io.Writer // tables
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "rounds, over which the servers are interleaved")
	flag.Float64Var(&o.seconds, "seconds", 1, "measured `seconds` of each run, after a warm-up")
	flag.IntVar(&o.retries, "retries", 2, "how often a disturbed run is made again")
	flag.BoolVar(&o.syscalls, "syscalls", false, "count system calls, in runs of their own (perf, else strace)")
	modes := flag.String("modes", "pinned,shared", "pinned: server on CPU 0 with one loop, client on CPU 1; shared: two loops, both CPUs")
	ws := flag.String("workloads", "", "some of W1 to W12, by comma; all if empty")
	ss := flag.String("servers", "", "some of the servers, by comma; all if empty")
	jsonFile := flag.String("json", "", "write every figure to this `file`")
	from := flag.String("from", "", "measure nothing, take the figures from this `file` that -json wrote")
	mdFile := flag.String("md", "", "write the tables to this `file` too")
	chartFile := flag.String("chart", "", "draw CPU per request as a ratio to the floor into this `file`, as SVG")
	check := flag.Bool("check", false, "fail when a limit is missed by more than 15 %")
	curve := flag.Bool("curve", false, "measure from 10 to 18,000 connections on one loop, and beside idle ones")
	neighbour := flag.Bool("neighbour", false, "measure with another user of the network in the process, and without")
	misbehave := flag.Bool("misbehave", false, "measure what a consumer that misbehaves costs the others")
	relay := flag.Bool("relay", false, "measure proxies: tcpio, HAProxy, nginx and the package net, those that are installed")
	smoke := flag.Bool("smoke", false, "only see whether every server answers right")
	flag.Parse()

	err := func() (err error) {
		switch {
		case *relay:
			servers, workloads = relays(), relayWorkloads
		case *smoke:
			servers = append(servers, relays()...)
		}
		if o.servers, err = pick(servers, *ss, func(s server) string { return s.name }); err != nil {
			return err
		}
		if o.workloads, err = pick(workloads, *ws, func(w workload) string { return w.name }); err != nil {
			return err
		}
		if o.modes, err = pick([]string{"pinned", "shared"}, *modes, func(m string) string { return m }); err != nil {
			return err
		}
		o.out = os.Stdout
		if *mdFile != "" {
			f, err := os.Create(*mdFile)
			if err != nil {
				return err
			}
			defer f.Close()
			o.out = io.MultiWriter(os.Stdout, f)
		}
		plan := &plan{o: &o, print: (*results).tables, check: (*results).check, chart: (*results).bars}
		switch {
		case *curve:
			plan.curve()
		case *neighbour:
			plan.neighbour()
		case *misbehave:
			plan.misbehave()
		case *relay:
			plan.relay()
		}
		if *from != "" {
			data, err := os.ReadFile(*from)
			if err != nil {
				return err
			}
			res := new(results)
			if err := json.Unmarshal(data, res); err != nil {
				return err
			}
			return plan.report(res, "", *chartFile, *check)
		}
		return plan.run(*jsonFile, *chartFile, *check, *smoke)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func pick[T any](all []T, names string, name func(T) string) ([]T, error) {
	if names == "" {
		return all, nil
	}
	var some []T
	want := strings.Split(names, ",")
	for _, t := range all {
		if i := slices.Index(want, name(t)); i >= 0 {
			some = append(some, t)
			want = slices.Delete(want, i, i+1)
		}
	}
	if len(want) > 0 {
		return nil, fmt.Errorf("unknown: %s", strings.Join(want, ", "))
	}
	return some, nil
}

// A plan is what is measured, and what becomes of it.
type plan struct {
	o     *options
	print func(*results, *options)
	check func(*results, *options) error
	chart func(*results, string, *options) error
}

func (p *plan) run(jsonFile, chartFile string, check, smoke bool) error {
	o := p.o
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
	res := &results{Machine: machine(), Command: strings.Join(append([]string{"go run ."}, os.Args[1:]...), " ")}
	count, estimate := o.estimate()
	fmt.Fprintf(os.Stderr, "%d runs, about %.0f minutes, %.0f with every retry\n", count, estimate.Minutes(),
		estimate.Minutes()*(1+retryShare))
	retries := int(retryShare * float64(count))
	for round := range o.rounds {
		_ = o.each(func(mode string, w *workload, s *server) error {
			o.measure(res, round, mode, w, s, &retries)
			return nil
		})
	}
	if o.syscalls {
		_ = o.each(func(mode string, w *workload, s *server) error {
			if err := o.count(res, mode, w, s); err != nil {
				fmt.Fprintf(os.Stderr, "%s %s %s: no system calls counted: %v\n", mode, w.name, s.name, err)
			}
			return nil
		})
	}
	if res.ourFailures > 0 {
		err = errors.Join(err, fmt.Errorf("%d runs of the floor or of tcpio failed, see above", res.ourFailures))
	}
	return errors.Join(err, p.report(res, jsonFile, chartFile, check)) // what there is, also when a server failed
}

func (p *plan) report(res *results, jsonFile, chartFile string, check bool) error {
	p.print(res, p.o)
	if jsonFile != "" {
		data, err := json.MarshalIndent(res, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(jsonFile, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	if chartFile != "" && p.chart != nil {
		if err := p.chart(res, chartFile, p.o); err != nil {
			return err
		}
	}
	if check {
		return p.check(res, p.o)
	}
	return nil
}

// each calls f for everything there is to measure in a round: the servers of a workload one after
// the other.
func (o *options) each(f func(mode string, w *workload, s *server) error) error {
	for _, mode := range o.modes {
		for i := range o.workloads {
			w := &o.workloads[i]
			if w.modes != nil && !slices.Contains(w.modes, mode) {
				continue
			}
			for j := range o.servers {
				s := &o.servers[j]
				if s.loops(mode) == 0 || w.only != nil && !slices.Contains(w.only, s.name) {
					continue
				}
				if err := f(mode, w, s); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

const (
	warmup     = 0.4  // seconds
	retryShare = 0.15 // of the runs, which may be made again because they were disturbed
)

// estimate is how many runs there are, and how long they take.
func (o *options) estimate() (count int, total time.Duration) {
	_ = o.each(func(_ string, w *workload, _ *server) error {
		seconds := 0.35 + warmup + o.seconds*max(1, w.longer) + float64(w.conns)*80e-6
		if w.idle > 0 {
			seconds = 1.5 + float64(w.conns)*80e-6
		}
		count += o.rounds
		total += time.Duration(seconds * float64(o.rounds) * 1e9)
		if o.syscalls && w.idle == 0 {
			total += time.Duration(1.5e9)
		}
		return nil
	})
	return count, total
}

// build makes every program, into one folder.
func (o *options) build() error {
	run := func(name string, args ...string) error {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := run("gcc", "-O2", "-Wall", "-o", filepath.Join(o.bin, "load"), "load/load.c"); err != nil {
		return err
	}
	if err := run("gcc", "-O2", "-Wall", "-pthread", "-o", filepath.Join(o.bin, "cserver"), "cserver/cserver.c"); err != nil {
		return err
	}
	var packages []string
	for _, s := range o.servers {
		if p := "./servers/" + s.bin; s.bin != "cserver" && !s.external() && !slices.Contains(packages, p) {
			packages = append(packages, p)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	return run("go", append([]string{"build", "-o", o.bin + "/"}, packages...)...)
}

// smoke sees whether every server answers right.
func (o *options) smoke() error {
	for i := range o.servers {
		s := &o.servers[i]
		loads := []workload{
			{load: []string{"-c", "8"}},
			{load: []string{"-c", "4", "-s", "20000", "-d", "3", "-i", "20"}},
			{load: []string{"-c", "4", "-m", "connect"}},
		}
		if s.name == floor || s.name == "stream" {
			loads = append(loads, workload{load: []string{"-c", "40", "-m", "group"}, route: "group"})
		}
		for j := range loads {
			if err := o.smokeOnce(&loads[j], s); err != nil {
				return fmt.Errorf("%s %s: %w", s.name, strings.Join(loads[j].load, " "), err)
			}
		}
		if s.between {
			fmt.Println("ok", s.name, "(proxy)")
		} else {
			fmt.Println("ok", s.name)
		}
	}
	return nil
}

// smokeOnce lets every connection make a request at least, however busy the machine is, and more
// for a moment.
func (o *options) smokeOnce(w *workload, s *server) error {
	loops := max(s.shared, s.pinned)
	if w.route != "" {
		loops = 1 // the floor's group has one thread
	}
	p, err := o.start("shared", w, s, loops)
	if err != nil {
		return err
	}
	defer p.stop()
	c, err := o.client("shared", p.port, append([]string{"-x", "-w", "0", "-t", "0.05"}, w.load...)...)
	if err != nil {
		return err
	}
	if err := c.await("ready"); err != nil {
		return err
	}
	_, _ = c.in.Write([]byte("x"))
	if err := c.await("warm"); err != nil {
		return err
	}
	var r run
	if c.lines.Scan() {
		err = json.Unmarshal(c.lines.Bytes(), &r)
	}
	if err := errors.Join(c.Wait(), err); err != nil {
		return fmt.Errorf("the load generator failed: %w", err)
	}
	if r.Requests == 0 {
		return errNothing
	}
	return nil
}

// measure makes one run, and again while it is disturbed and there are retries left; then the run
// is marked.
func (o *options) measure(res *results, round int, mode string, w *workload, s *server, retries *int) {
	for try := 0; ; try++ {
		r, err := o.once(mode, w, s, s.loops(mode))
		r.Round, r.Mode, r.Workload, r.Server = round, mode, w.name, s.name
		if errors.Is(err, errNothing) && try < o.retries {
			continue // others had the processors all the time
		}
		if err != nil {
			// A peer that cannot do a workload is a result; we have to. Either way the rest is worth
			// measuring.
			if s.ours || s.name == floor {
				res.ourFailures++
			}
			fmt.Fprintf(os.Stderr, "round %d %-6s %-8s %-12s FAILED: %v\n", round, mode, w.name, s.name, err)
			res.Failed = append(res.Failed, fmt.Sprintf("%s %s %s: %v", mode, w.name, s.name, err))
			return
		}
		if r.disturbed() != "" && try < o.retries && *retries > 0 {
			*retries--
			time.Sleep(300 * time.Millisecond)
			continue
		}
		fmt.Fprintf(os.Stderr, "round %d %-6s %-8s %-12s %9.3f µs/req %8.0f req/s p50 %7.0f p99 %7.0f µs, client %7.3f µs/req %s\n",
			round, mode, w.name, s.name, r.CPU, r.Rate, r.P50, r.P99, r.ClientCPU, r.disturbed())
		res.Runs = append(res.Runs, r)
		return
	}
}
