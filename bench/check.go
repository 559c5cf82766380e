package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// slack is how far a limit may be missed before check fails.
const slack = 1.15

// The limits that are no workload's own.
const (
	maxIdleBytes  = 360  // for each idle connection
	maxIdleGrowth = 1.05 // of CPU per request, with 15,000 idle connections
	maxPingPong   = 1.15 // of an actor's p50 with one connection, × C
	maxAllocs     = 0.01 // for each request: what the runtime does by itself is not zero
	maxNeighbour  = 1.05 // with a second user of the network, × without
)

// routesOf are the routes that the limits are for.
func routesOf(mode string) []string {
	if mode == "shared" {
		return []string{"streams", "actor"}
	}
	return []string{"stream", "actor"}
}

// A checker collects what is missed.
type checker struct {
	res    *results
	missed []string
	passed int
}

// atMost checks a figure; 0 means that it was not measured.
func (c *checker) atMost(limit, got float64, format string, args ...any) {
	switch {
	case got == 0:
	case got > limit*slack:
		c.missed = append(c.missed, fmt.Sprintf("%s: %.2f, limit %.2f", fmt.Sprintf(format, args...), got, limit))
	default:
		c.passed++
	}
}

func (c *checker) result() error {
	if len(c.missed) > 0 {
		return errors.New("missed by more than 15 %:\n" + strings.Join(c.missed, "\n"))
	}
	if c.passed == 0 {
		return errors.New("nothing was measured that has a limit")
	}
	fmt.Printf("every limit is kept, %d figures\n", c.passed)
	return nil
}

func (res *results) check(o *options) error {
	c := &checker{res: res}
	for _, mode := range o.modes {
		for i := range o.workloads {
			c.workload(mode, &o.workloads[i])
		}
	}
	return c.result()
}

func (c *checker) workload(mode string, w *workload) {
	res := c.res
	if w.idle > 0 {
		for _, name := range []string{"stream", "streams", "actor"} {
			c.atMost(maxIdleBytes, res.median(mode, w.name, name, func(r *run) float64 { return r.Bytes }),
				"%s %s %s: bytes for each idle connection", mode, w.name, name)
		}
		return
	}
	if w.name == "W12" {
		return // it has no limit
	}
	for _, name := range routesOf(mode) {
		if limit := w.limit(mode); limit > 0 {
			c.atMost(limit, res.ratio(mode, w.name, name, floor, cpuOf), "%s %s %s: CPU × C", mode, w.name, name)
		}
		c.atMost(1, res.ratio(mode, w.name, name, goNet, p99Of), "%s %s %s: p99 × net", mode, w.name, name)
	}
	c.atMost(1, res.ratio(mode, w.name, "mailbox", goNet, cpuOf), "%s %s mailbox: CPU × net", mode, w.name)
	for _, name := range []string{"stream", "streams", "stream-2", "actor", "mailbox", "legacy"} {
		// A connection, a group's queue and a posted value are things to allocate.
		if !slices.Contains([]string{"W7", "W10", "W11"}, w.name) {
			c.atMost(maxAllocs, res.median(mode, w.name, name, func(r *run) float64 { return r.Allocs }),
				"%s %s %s: allocations for each request", mode, w.name, name)
		}
	}
	switch w.name {
	case "W6":
		for _, name := range routesOf(mode) {
			c.atMost(maxIdleGrowth, res.ratioTo(mode, "W6", name, "W1", name, cpuOf), "%s W6 %s: CPU × W1", mode, name)
		}
	case "W9":
		if mode != "shared" {
			break
		}
		c.atMost(1, res.ratio(mode, w.name, "streams", goNet, p50Of), "%s W9 streams: p50 × net", mode)
		c.atMost(maxPingPong, res.ratio(mode, w.name, "actor", floor, p50Of), "%s W9 actor: p50 × C", mode)
		for _, name := range routesOf(mode) {
			c.atMost(1, res.ratio(mode, w.name, name, goNet, cpuOf), "%s W9 %s: CPU × net", mode, name)
		}
	}
	if mode == "shared" && w.only == nil {
		// Two loops for one consumer must not be slower than one.
		c.atMost(1, res.ratio(mode, w.name, "stream", "stream-2", rateOf), "%s %s: requests/s of stream × stream-2", mode, w.name)
	}
}
