package main

import "strconv"

// A server is one row of a table.
type server struct {
	name  string
	bin   string // under servers, or cserver
	route string // tcpio's, or how cserver polls
	// loops is how many loops it runs in each mode; 0 leaves the server out of that mode.
	pinned, shared int
	ours           bool
	extra          []string // further arguments
	http           bool     // has a second port that is polled meanwhile
	between        bool     // is a proxy before an echo server
}

// argv is the command line after the program.
func (s *server) argv(port, loops int, w *workload) []string {
	route := s.route
	if w.route != "" {
		route = w.route
	}
	if s.bin == "cserver" {
		return []string{strconv.Itoa(port), route, strconv.Itoa(loops)}
	}
	argv := []string{"-port", strconv.Itoa(port), "-loops", strconv.Itoa(loops)}
	if w.buf > 0 {
		argv = append(argv, "-buf", strconv.Itoa(w.buf))
	}
	if w.short {
		argv = append(argv, "-short")
	}
	if s.ours && !s.between {
		argv = append(argv, "-route", route)
		argv = append(argv, w.extra...)
	}
	return append(argv, s.extra...)
}

// loops is how many the server runs in a mode.
func (s *server) loops(mode string) int {
	if mode == "shared" {
		return s.shared
	}
	return s.pinned
}

// floor and goNet are what ratios are taken to.
const (
	floor = "c-et"
	goNet = "net"
)

var servers = []server{
	{name: floor, bin: "cserver", route: "et", pinned: 1, shared: 2},
	{name: "c-lt", bin: "cserver", route: "lt", pinned: 1, shared: 2},
	{name: "stream", bin: "tcpio", route: "stream", pinned: 1, shared: 1, ours: true},
	{name: "streams", bin: "tcpio", route: "streams", shared: 2, ours: true},
	{name: "stream-2", bin: "tcpio", route: "stream", shared: 2, ours: true}, // one consumer of two loops
	{name: "actor", bin: "tcpio", route: "actor", pinned: 1, shared: 2, ours: true},
	{name: "mailbox", bin: "tcpio", route: "mailbox", pinned: 1, shared: 2, ours: true},
	{name: "legacy", bin: "tcpio", route: "legacy", pinned: 1, shared: 2, ours: true},
	{name: goNet, bin: "net", pinned: 1, shared: 2},
	{name: "netpoll", bin: "netpoll", pinned: 1, shared: 2},
	{name: "gnet", bin: "gnet", pinned: 1, shared: 2},
	{name: "nbio", bin: "nbio", pinned: 1, shared: 2},
	{name: "gev", bin: "gev", pinned: 1, shared: 2},
	{name: "evio", bin: "evio", pinned: 1, shared: 2},
	{name: "gaio", bin: "gaio", pinned: 1, shared: 2},
}

// A workload is one table in each mode.
type workload struct {
	name, what string
	load       []string // flags of the load generator
	conns      int      // made before anything is measured, for the estimate of time
	extra      []string // further arguments of tcpio's server
	route      string   // in place of the server's own
	longer     float64  // so many times as long as others, if more than 1
	buf        int      // bytes of a buffer that belongs to one connection, if not the 4 KiB that are usual
	short      bool     // connections make one request each
	idle       int      // memory is measured for so many idle connections, and nothing else
	only       []string // the servers that can do it; nil: all
	modes      []string // nil: all
	beside     []string // flags of a second load generator, which runs meanwhile
	// limits on CPU per request as a ratio to the floor, for stream, streams and actor; 0: none
	pinned, shared float64
}

// limit is that of a mode.
func (w *workload) limit(mode string) float64 {
	if mode == "shared" {
		return w.shared
	}
	return w.pinned
}

var (
	ownRoutes = []string{floor, "stream", "streams", "stream-2", "actor", "mailbox"}
	pinnedOne = []string{"pinned"}
)

var workloads = []workload{
	{name: "W1", what: "64 connections × 64 B", load: []string{"-c", "64"}, pinned: 1.10, shared: 1.25},
	{name: "W2", what: "1,000 connections × 64 B", load: []string{"-c", "1000"}, conns: 1000, pinned: 1.10, shared: 1.25},
	{name: "W3", what: "10,000 connections × 64 B", load: []string{"-c", "10000"}, conns: 10000, pinned: 1.10, shared: 1.25},
	{name: "W4", what: "64 connections, 16 requests pipelined", load: []string{"-c", "64", "-d", "16"}, pinned: 1.10, shared: 1.25},
	{name: "W5", what: "64 connections × 64 KiB", load: []string{"-c", "64", "-s", "65536"}, buf: 64 << 10, pinned: 1.15, shared: 1.25},
	{name: "W6", what: "64 active beside 15,000 idle", load: []string{"-c", "64", "-i", "15000"}, conns: 15000, pinned: 1.10, shared: 1.25},
	{name: "W7", what: "connect, one round trip, close", load: []string{"-c", "64", "-m", "connect"}, short: true, pinned: 1.25, shared: 1.35},
	{name: "W8", what: "memory for 18,000 idle connections", idle: 18000, conns: 18000, modes: pinnedOne},
	{name: "W9", what: "one connection, ping-pong", load: []string{"-c", "1"}},
	{name: "W10", what: "64 connections × 64 B beside 10,000 Posts/s", load: []string{"-c", "64"}, extra: []string{"-posts", "10000"}, only: ownRoutes},
	{name: "W11", what: "one Group.Write of 64 B to 10,000 members; a request is a Write, the floor 10,000 sends", load: []string{"-c", "10000", "-m", "group"},
		conns: 10000, longer: 2, route: "group", only: []string{floor, "stream"}, modes: pinnedOne},
	// Not in the list of limits: what a server pays that has nothing to do most of the time.
	{name: "W12", what: "one connection, a request every 500 µs", load: []string{"-c", "1", "-g", "500"}, only: append([]string{goNet, "gnet", "netpoll"}, ownRoutes...)},
}
