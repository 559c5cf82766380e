package main

import "strconv"

// A server is one column of the comparison.
type server struct {
	name string
	bin  string // under servers, or cserver
	args []string
	// loops is how many loops it runs in each mode; 0 leaves the server out of that mode.
	pinned, shared int
	ours           bool
}

// argv is the command line after the program, for a port.
func (s *server) argv(port, loops int) []string {
	if s.bin == "cserver" {
		return []string{strconv.Itoa(port), s.args[0], strconv.Itoa(loops)}
	}
	return append([]string{strconv.Itoa(port), strconv.Itoa(loops)}, s.args...)
}

// floor and goNet are what ratios are taken to.
const (
	floor = "c-et"
	goNet = "net"
)

var servers = []server{
	{name: floor, bin: "cserver", args: []string{"et"}, pinned: 1, shared: 2},
	{name: "c-lt", bin: "cserver", args: []string{"lt"}, pinned: 1, shared: 2},
	{name: "stream", bin: "tcpio", args: []string{"stream"}, pinned: 1, ours: true},
	{name: "streams", bin: "tcpio", args: []string{"streams"}, shared: 2, ours: true},
	{name: "stream-2", bin: "tcpio", args: []string{"stream"}, shared: 2, ours: true},
	{name: "actor", bin: "tcpio", args: []string{"actor"}, pinned: 1, shared: 2, ours: true},
	{name: "mailbox", bin: "tcpio", args: []string{"mailbox"}, pinned: 1, shared: 2, ours: true},
	{name: "legacy", bin: "tcpio", args: []string{"legacy"}, pinned: 1, shared: 2, ours: true},
	{name: goNet, bin: "net", pinned: 1, shared: 2},
	{name: "netpoll", bin: "netpoll", pinned: 1, shared: 2},
	{name: "gnet", bin: "gnet", pinned: 1, shared: 2},
	{name: "nbio", bin: "nbio", pinned: 1, shared: 2},
	{name: "gev", bin: "gev", pinned: 1, shared: 2},
	{name: "evio", bin: "evio", pinned: 1, shared: 2},
	{name: "gaio", bin: "gaio", pinned: 1, shared: 2},
}

// A workload is one row.
type workload struct {
	name, what string
	load       []string // flags of the load generator
	extra      []string // further arguments of tcpio's server
	idle       int      // memory is measured for so many idle connections, and nothing else
	oursOnly   bool
	// limits on CPU per request as a ratio to the floor, for stream, streams and actor; 0: none
	pinned, shared float64
}

var workloads = []workload{
	{name: "W1", what: "64 connections × 64 B", load: []string{"-c", "64"}, pinned: 1.10, shared: 1.25},
	{name: "W2", what: "1,000 connections × 64 B", load: []string{"-c", "1000"}, pinned: 1.10, shared: 1.25},
	{name: "W3", what: "10,000 connections × 64 B", load: []string{"-c", "10000"}, pinned: 1.10, shared: 1.25},
	{name: "W4", what: "64 connections, 16 requests pipelined", load: []string{"-c", "64", "-d", "16"}, pinned: 1.10, shared: 1.25},
	{name: "W5", what: "64 connections × 64 KiB", load: []string{"-c", "64", "-s", "65536"}, pinned: 1.15, shared: 1.25},
	{name: "W6", what: "64 active beside 15,000 idle", load: []string{"-c", "64", "-i", "15000"}, pinned: 1.10, shared: 1.25},
	{name: "W7", what: "connect, one round trip, close", load: []string{"-c", "64", "-m", "connect"}, pinned: 1.25, shared: 1.35},
	{name: "W8", what: "memory for 18,000 idle connections", idle: 18000},
	{name: "W9", what: "one connection, ping-pong", load: []string{"-c", "1"}},
	{name: "W10", what: "64 connections × 64 B beside 10,000 Posts/s", load: []string{"-c", "64"}, extra: []string{"10000"}, oursOnly: true},
}
