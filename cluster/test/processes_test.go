//go:build linux

package test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// Three nodes in three processes, and three NATS servers in three others: a node is killed, one
// hangs, NATS goes away and comes back, all under load.
func TestProcesses(t *testing.T) {
	t.Parallel()
	nats := startServers(t)
	env := "NATS=" + nats.urls
	a, b, c := startNode(t, "a", env), startNode(t, "b", env), startNode(t, "c", env)
	awaitMembers(t, a, b, c)
	load(a, b, c)
	fence := a.awaitClaim("ann", 0)
	fence = c.awaitClaim("ann", fence)

	// kill -9: its members leave everywhere, its keys are claimed anew.
	c.Kill()
	killed := time.Now()
	awaitMembers(t, a, b)
	if took := time.Since(killed); took > 4*beat+15*time.Second {
		t.Errorf("the dead node's members were there for %v", took)
	} else {
		t.Logf("the dead node's members have gone after %v, 4 heartbeats are %v", took, 4*beat)
	}
	fence = b.awaitClaim("ann", fence)
	d := startNode(t, "d", env)
	awaitMembers(t, a, b, d)

	// SIGSTOP: as dead for the others; back, it is whole again, and was told of what it has missed.
	hang := 2 * lease
	var unsure int64
	for tries := 0; unsure == 0 && tries < 5; tries++ { // a renewal may come before the end of the lease is seen
		b.awaitClaim("b's own", 0)
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			b.stopped(hang)
		}()
		awaitMembers(t, a, d)
		fence = a.awaitClaim("ann", fence)
		testnet.Await(t, "the process goes on", stopped)
		awaitMembers(t, a, b, d)
		unsure = b.report().Unsure
	}
	if unsure == 0 {
		t.Errorf("a node that was stopped for %v has no session that is unsure; Lease is %v", hang, lease)
	}

	// NATS away.
	nats.kill()
	testnet.WaitFor(t, "Claim fails", func() bool {
		f, _, why := a.claim("ann")
		return f == 0 && strings.Contains(why, "no quorum")
	})
	nats.start()
	awaitMembers(t, a, b, d)
	fence = d.awaitClaim("ann", fence)
	a.awaitClaim("ann", fence)
	d.End() // it was not there from the beginning
	settle(t, a, b)
	check(t, a, b, c, d)
}

// Three processes find each other by a directory. The one that runs the server is killed, and
// another takes over with all that is stored: sessions, and every record.
func TestEmbeddedStoreIsTakenOver(t *testing.T) {
	t.Parallel()
	dir := "DIR=" + filepath.Join(t.TempDir(), "cluster")
	owner := startNode(t, "a", dir)
	b, c := startNode(t, "b", dir), startNode(t, "c", dir)
	awaitMembers(t, owner, b, c)
	load(owner, b, c)
	fence := owner.awaitClaim("ann", 0)
	proc.Eventually(t, "something is recorded", func() bool { return b.report().Recorded > 100 })
	owner.Kill()
	killed := time.Now()
	fence = b.awaitClaim("ann", fence)
	t.Logf("the other claims %v after the owner was killed", time.Since(killed))
	recorded := b.report().Recorded
	proc.Eventually(t, "recording goes on", func() bool { return b.report().Recorded > recorded+50 })
	c.awaitClaim("ann", fence)
	settle(t, b, c)
	check(t, owner, b, c)
}

// Nodes are replaced one after the other, a hundred times, under load: fences grow all the time,
// and those that are left see all that is.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	nats := startServers(t)
	env := "NATS=" + nats.urls
	witness := startNode(t, "w", env)
	nodes := []*node{startNode(t, "a", env), startNode(t, "b", env)}
	all := append([]*node{witness}, nodes...)
	load(all...)
	rounds, limit := 5, 20*time.Second
	if testnet.Long {
		rounds, limit = 100, 30*time.Second
	}
	fence, round := uint64(0), 0
	begun := time.Now()
	for ; round < rounds && time.Since(begun) < limit; round++ {
		old := nodes[round%2]
		if round%3 == 2 {
			old.Kill()
		} else {
			old.End()
		}
		fence = nodes[(round+1)%2].awaitClaim("ann", fence)
		n := startNode(t, old.name, env)
		load(n)
		nodes[round%2] = n
		all = append(all, n)
		fence = n.awaitClaim("ann", fence)
	}
	t.Logf("%d restarts in %v", round, time.Since(begun).Round(time.Millisecond))
	for _, n := range nodes {
		n.ask("stop", "stopped")
	}
	awaitMembers(t, append([]*node{witness}, nodes...)...)
	settleWitness(t, witness)
	check(t, all...)
}

// settleWitness is settle for a node beside which others have come and gone.
func settleWitness(t *testing.T, n *node) {
	t.Helper()
	n.ask("stop", "stopped")
	r := n.report()
	if got := r.Received[r.ID]; got+int64(r.Stats.Lost)+int64(r.Stats.Skipped) < r.Published || got > r.Published {
		testnet.WaitFor(t, "its members have what it has published", func() bool {
			r = n.report()
			got := r.Received[r.ID]
			return got+int64(r.Stats.Lost)+int64(r.Stats.Skipped) >= r.Published && got <= r.Published
		})
	}
	n.Say("verify")
	t.Logf("%s: all of %s records; lost %d, refilled %d, claims %d", n.name, n.Line("verified "), r.Stats.Lost, r.Stats.Refilled, r.Stats.Claims)
}
