package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Relays: proxies between the load generator and an echo server in C, which has the client's
// processor.

// relays are the proxies. haproxy and nginx are Debian's; one that is not installed is left out.
func relays() (some []server) {
	for _, s := range []server{
		{name: "relay", bin: "relay", pinned: 1, ours: true},
		{name: "haproxy", bin: "haproxy", pinned: 1},
		{name: "haproxy-splice", bin: "haproxy", route: "option splice-auto", pinned: 1},
		{name: "nginx", bin: "nginx", pinned: 1},
		{name: "net", bin: "netrelay", pinned: 1},
	} {
		s.between = true
		if s.external() {
			if why := missing(s.bin); why != "" {
				fmt.Fprintf(os.Stderr, "%s is left out: %s\n", s.name, why)
				continue
			}
		}
		some = append(some, s)
	}
	return some
}

// external reports whether the server's program is installed on the machine, and not built here.
func (s *server) external() bool { return s.bin == "haproxy" || s.bin == "nginx" }

const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

// program finds one that Debian puts where only root looks.
func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}

// missing says what a program lacks; empty if nothing.
func missing(name string) string {
	if _, err := program(name); err != nil {
		return err.Error()
	}
	if name == "nginx" {
		if _, err := os.Stat(nginxStream); err != nil {
			return "libnginx-mod-stream is not installed"
		}
	}
	return ""
}

// config writes the configuration of an external proxy in one process with one thread, and returns
// its command line.
func (s *server) config(dir string, port, upstream int) ([]string, error) {
	path, err := program(s.bin)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, s.name+".conf")
	text, argv := "", []string(nil)
	switch s.bin {
	case "haproxy":
		text = fmt.Sprintf(`global
	nbthread 1
	maxconn 9500
	maxpipes 100
defaults
	mode tcp
	timeout connect 5s
	timeout client 1h
	timeout server 1h
	%s
listen relay
	bind 127.0.0.1:%d backlog 4096
	server echo 127.0.0.1:%d
`, s.route, port, upstream)
		argv = []string{path, "-db", "-f", file}
	case "nginx":
		text = fmt.Sprintf(`load_module %s;
daemon off;
master_process off;
worker_rlimit_nofile 40000;
pid %s.pid;
error_log /dev/null;
events { worker_connections 20000; }
stream {
	access_log off;
	server {
		listen 127.0.0.1:%d backlog=4096;
		proxy_pass 127.0.0.1:%d;
	}
}
`, nginxStream, file, port, upstream)
		argv = []string{path, "-p", dir, "-c", file}
	}
	return argv, os.WriteFile(file, []byte(text), 0o644)
}

// startUpstream runs the echo server that a proxy passes on to.
func (o *options) startUpstream() (*process, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p := &process{Cmd: exec.Command("taskset", "-c", "1", filepath.Join(o.bin, "cserver"), strconv.Itoa(port), "et", "1"),
		port: port, stopPoll: func() {}}
	p.Stderr = os.Stderr
	if err := p.Start(); err != nil {
		return nil, err
	}
	return p, reachable(port)
}

const bulkSize = 1 << 20

// relay plans what proxies cost. The echo makes every byte pass twice, once in each direction.
func (p *plan) relay() {
	p.o.modes = pinnedOne
	p.print, p.check, p.chart = (*results).relayTable, (*results).checkRelay, nil
}

var relayWorkloads = []workload{
	{name: "R1", what: "64 connections × 64 B", load: []string{"-c", "64"}},
	{name: "R2", what: "1,000 connections × 64 B", load: []string{"-c", "1000"}, conns: 1000},
	{name: "R3", what: "4 connections × 1 MiB", load: []string{"-c", "4", "-s", strconv.Itoa(bulkSize)}},
	{name: "R4", what: "64 connections × 16 KiB", load: []string{"-c", "64", "-s", "16384"}},
	{name: "R5", what: "connect, one round trip, close", load: []string{"-c", "64", "-m", "connect"}, short: true},
	{name: "R6", what: "memory for 9,000 idle pairs", idle: 9000, conns: 9000},
}

// perGiB is the CPU time in seconds for a GiB that passes.
func perGiB(size int) func(r *run) float64 {
	return func(r *run) float64 { return r.CPU / 1e6 * (1 << 30) / float64(2*size) }
}

// relayFigures are the columns of the table.
var relayFigures = []struct {
	workload, head string
	f              func(r *run) float64
	limit          float64 // as a ratio to rival, for ours; 0: none
	rival          string  // "": the best of all others
	most           float64 // absolute, for ours
}{
	{"R1", "µs for a 64 B round trip", cpuOf, 0.9, "haproxy", 0},
	{"R1", "p99, µs", p99Of, 0, "", 0},
	{"R2", "µs, 1,000 connections", cpuOf, 0.9, "haproxy", 0},
	{"R3", "s for a GiB, 1 MiB", perGiB(bulkSize), 1.05, "", 0},
	{"R4", "s for a GiB, 16 KiB", perGiB(16 << 10), 0, "", 0},
	{"R5", "µs for a connection", cpuOf, 0, "", 0},
	{"R6", "bytes for an idle pair", func(r *run) float64 { return r.Bytes }, 0, "", 1024},
}

func (res *results) relayTable(o *options) {
	res.head(o)
	fmt.Fprint(o.out, "\n### Proxies: CPU time of one between a client and an echo server\n\n| |")
	for _, f := range relayFigures {
		fmt.Fprintf(o.out, " %s |", f.head)
	}
	fmt.Fprint(o.out, "\n|---|"+strings.Repeat("--:|", len(relayFigures)))
	for _, s := range o.servers {
		fmt.Fprintf(o.out, "\n| %s |", s.name)
		for _, f := range relayFigures {
			fmt.Fprintf(o.out, " %s |", short(res.median("pinned", f.workload, s.name, f.f)))
		}
	}
	fmt.Fprintln(o.out)
}

// short shows three digits.
func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// best is the name of the server, but ours, with the lowest figure.
func (res *results) best(o *options, workload string, f func(r *run) float64) (name string) {
	low := 0.0
	for _, s := range o.servers {
		if v := res.median("pinned", workload, s.name, f); !s.ours && v > 0 && (low == 0 || v < low) {
			name, low = s.name, v
		}
	}
	return name
}

func (res *results) checkRelay(o *options) error {
	c := &checker{res: res}
	for _, f := range relayFigures {
		if f.limit > 0 {
			rival := f.rival
			if rival == "" {
				rival = res.best(o, f.workload, f.f)
			}
			c.atMost(f.limit, res.ratio("pinned", f.workload, "relay", rival, f.f), "%s: × %s", f.head, rival)
		}
		if f.most > 0 {
			c.atMost(f.most, res.median("pinned", f.workload, "relay", f.f), "%s", f.head)
		}
	}
	return c.result()
}
