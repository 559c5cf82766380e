// Bench compares tcpio's WebSocket with tcpio itself and with other libraries, all in the same run.
// README.md says what is measured and how to read it.
//
//	go run .                                     everything; about 25 minutes
//	go run . -workloads echo64x64,group -servers core,tcpio,gws -rounds 1
//	go run . -json out.json -md out.md
//	go run . -first -workloads calm,loris,drip,bytes,bomb,pings,deaf    latencies on a machine that others use
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	if part() {
		return
	}
	rounds := flag.Int("rounds", 5, "rounds, in each of which every server has its turn")
	seconds := flag.Float64("seconds", 1, "measured `seconds` of each run, after a warm-up")
	ws := flag.String("workloads", "", "some of the workloads, by comma; all if empty")
	ss := flag.String("servers", "", "some of the servers, by comma; all if empty")
	jsonFile := flag.String("json", "", "write every figure to this `file`")
	mdFile := flag.String("md", "", "write the tables to this `file` too")
	first := flag.Bool("first", false, "servers and clients come before all other programs, for latencies on a machine that others use; needs root")
	flag.Parse()
	b := &bench{rounds: *rounds, seconds: *seconds, warm: 3, out: os.Stdout}
	if *first {
		b.nice = -20
	}
	if *mdFile != "" {
		f, err := os.Create(*mdFile)
		must(err)
		defer f.Close()
		b.out = io.MultiWriter(os.Stdout, f)
	}
	var err error
	b.workloads, err = pick(workloads, *ws, func(w workload) string { return w.name })
	must(err)
	b.servers, err = pick(servers, *ss, func(s server) string { return s.name })
	must(err)
	failed := b.run()
	b.report()
	if *jsonFile != "" {
		data, err := json.MarshalIndent(b.results, "", " ")
		must(err)
		must(os.WriteFile(*jsonFile, append(data, '\n'), 0o644))
	}
	if failed > 0 {
		must(fmt.Errorf("%d runs failed", failed))
	}
}

// part runs a part of the program, if the command line names one: the servers and the clients are
// processes of this program.
func part() bool {
	if len(os.Args) < 2 {
		return false
	}
	f, ok := map[string]func([]string) error{"serve": serve, "load": load, "idle": idle, "attack": attack}[os.Args[1]]
	if ok {
		must(f(os.Args[2:]))
	}
	return ok
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// pick returns those of all whose names are in a list; all for an empty one.
func pick[T any](all []T, list string, name func(T) string) (some []T, err error) {
	if list == "" {
		return all, nil
	}
	for _, want := range strings.Split(list, ",") {
		i := slices.IndexFunc(all, func(t T) bool { return name(t) == want })
		if i < 0 {
			return nil, fmt.Errorf("there is no %q", want)
		}
		some = append(some, all[i])
	}
	return some, nil
}

// A workload is one table.
type workload struct {
	name, what string
	mode       string // echo, group or connect; of the load generator
	conns      int
	size       int    // of a message, in bytes
	idle       int    // connections whose memory is measured, and nothing else
	tls        bool   // with idle
	attack     string // what others do to the server meanwhile; see attack.go
}

var workloads = []workload{
	{name: "idle", what: "18,000 idle connections", idle: 18000},
	{name: "idletls", what: "5,000 idle connections with TLS", idle: 5000, tls: true},
	{name: "echo64x64", what: "echo of 64 B on 64 connections", mode: "echo", conns: 64, size: 64},
	{name: "echo64x1000", what: "echo of 64 B on 1,000 connections", mode: "echo", conns: 1000, size: 64},
	{name: "echo64x10000", what: "echo of 64 B on 10,000 connections", mode: "echo", conns: 10000, size: 64},
	{name: "echo16kx64", what: "echo of 16 KiB on 64 connections", mode: "echo", conns: 64, size: 16 << 10},
	{name: "echo16kx1000", what: "echo of 16 KiB on 1,000 connections", mode: "echo", conns: 1000, size: 16 << 10},
	{name: "echo16kx10000", what: "echo of 16 KiB on 10,000 connections", mode: "echo", conns: 10000, size: 16 << 10},
	{name: "group", what: "a message of 64 B to a group of 10,000; a request is a message", mode: "group", conns: 10000, size: 64},
	{name: "connect", what: "connect, handshake, an echo of 64 B, close; 64 at a time", mode: "connect", conns: 64, size: 64},
	{name: "calm", what: "echo of 64 B on 8 connections, nobody else", mode: "echo", conns: 8, size: 64, attack: "none"},
	{name: "loris", what: "the same beside 10,000 handshakes that send a byte a second", mode: "echo", conns: 8, size: 64, attack: "loris"},
	{name: "drip", what: "beside 1,000 peers that send a fragment a second for ever", mode: "echo", conns: 8, size: 64, attack: "drip"},
	{name: "bytes", what: "beside one that sends messages of 16 MiB in fragments of a byte", mode: "echo", conns: 8, size: 64, attack: "bytes"},
	{name: "bomb", what: "beside 8 that send messages that inflate to 64 MiB, and connect again", mode: "echo", conns: 8, size: 64, attack: "bomb"},
	{name: "pings", what: "beside one that sends 100,000 pings a second", mode: "echo", conns: 8, size: 64, attack: "pings"},
	{name: "deaf", what: "beside 100 members that never read of a group that is sent 10 KB 100 times a second", mode: "echo", conns: 8, size: 64, attack: "deaf"},
}
