package main

import (
	"net/netip"

	"github.com/cespare/xxhash/v2"
)

// The names of the balancers in a configuration.
const (
	roundRobin = "round_robin"
	leastConns = "least_conns"
	clientHash = "client_hash"
)

// A chooser takes one of the upstreams that have room. There is at least one, in the order of
// the configuration. turn is one more at each call.
type chooser func(free []*upstream, turn int, client netip.Addr) *upstream

var balancers = map[string]chooser{
	roundRobin: byTurn,
	leastConns: byConns,
	clientHash: byClient,
}

// byTurn takes each in its turn.
func byTurn(free []*upstream, turn int, _ netip.Addr) *upstream {
	return free[turn%len(free)]
}

// byConns takes one of those that have the fewest connections; among equals it is their turn.
func byConns(free []*upstream, turn int, _ netip.Addr) *upstream {
	best := free[turn%len(free)]
	for i := range free {
		if u := free[(turn+i)%len(free)]; len(u.clients) < len(best.clients) {
			best = u
		}
	}
	return best
}

// byClient takes the same upstream for a client's address each time: the one with the highest hash
// of itself and the client (rendezvous hashing). One that comes or goes moves those clients alone
// that it gets or had. Every proxy with the same upstreams chooses alike.
func byClient(free []*upstream, _ int, client netip.Addr) *upstream {
	ip := client.As16()
	var best *upstream
	var highest uint64
	for _, u := range free {
		var d xxhash.Digest
		d.ResetWithSeed(u.seed)
		d.Write(ip[:])
		if h := d.Sum64(); best == nil || h > highest {
			best, highest = u, h
		}
	}
	return best
}
