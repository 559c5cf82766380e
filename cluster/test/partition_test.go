//go:build linux

package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// A network has three machines, each in a network namespace with a node and an embedded NATS
// server, and a bridge between them.
type network struct {
	t     testing.TB
	hub   testnet.Netns
	nodes []*node
}

func startNetwork(t testing.TB, strict string) *network {
	t.Helper()
	testnet.Program(t, "ip")
	w := &network{t: t, hub: testnet.NewNetns(t)}
	w.hub.IP(t, w.hub, "link add bridge type bridge")
	w.hub.IP(t, w.hub, "link set bridge up")
	names := []string{"a", "b", "c"}
	var peers []string
	for i, name := range names {
		peers = append(peers, fmt.Sprintf("%s=10.9.0.%d:6222", name, i+1))
	}
	pem := writePEM(t)
	for i, name := range names {
		ns := testnet.NewNetns(t)
		w.hub.IP(t, ns, fmt.Sprintf("link add to-%s type veth peer name eth0 netns /peer", name))
		w.hub.IP(t, ns, fmt.Sprintf("link set to-%s master bridge", name))
		w.hub.IP(t, ns, fmt.Sprintf("link set to-%s up", name))
		ns.IP(t, ns, "link set lo up")
		ns.IP(t, ns, fmt.Sprintf("addr add 10.9.0.%d/24 dev eth0", i+1))
		ns.IP(t, ns, "link set eth0 up")
		n := &node{t: t, name: name}
		ns.Do(t, func() error {
			n.Child = proc.Start(t, "node", "NAME="+name, "PEERS="+strings.Join(peers, " "), "PEM="+pem,
				"SECRET="+strings.Repeat("x", 32), "STORE="+t.TempDir(), "STRICT="+strict)
			return nil
		})
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		n.id = n.Line("ready ")
	}
	return w
}

func (w *network) cut(i int)  { w.hub.IP(w.t, w.hub, "link set to-"+w.nodes[i].name+" down") }
func (w *network) heal(i int) { w.hub.IP(w.t, w.hub, "link set to-"+w.nodes[i].name+" up") }

// leader returns the machine that leads the stream of sessions.
func (w *network) leader() int {
	w.t.Helper()
	leader := -1
	proc.Eventually(w.t, "the stream has a leader", func() bool {
		name, _, _ := strings.Cut(w.nodes[0].ask("leader", "leader "), " ")
		for i, n := range w.nodes {
			if n.name == name {
				leader = i
			}
		}
		return leader >= 0
	})
	return leader
}

// One machine of three is cut off and joined again, under load: that with the leader or another,
// for less than a Lease or for longer.
func TestPartition(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		leader  bool // it is on the side that is cut off
		outlast bool // the partition outlasts Lease
		long    bool // only at full length
		strict  string
	}{
		{"leader cut off, beyond Lease", true, true, false, ""},
		{"leader cut off, less than Lease", true, false, true, ""},
		{"leader stays, beyond Lease", false, true, true, ""},
		{"leader stays, less than Lease", false, false, true, ""},
		{"strict, beyond Lease", false, true, true, "yes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.long && !testnet.Long {
				t.Skip("SKIPPED without -tags long")
			}
			t.Parallel()
			w := startNetwork(t, test.strict)
			awaitMembers(t, w.nodes...)
			fence := w.nodes[0].awaitClaim("ann", 0)
			cut := w.leader()
			if !test.leader {
				cut = (cut + 1) % 3
			}
			alone := w.nodes[cut]
			var others []*node
			for i, n := range w.nodes {
				if i != cut {
					others = append(others, n)
				}
			}
			fence = alone.awaitClaim("ann", fence) // it has the session
			load(w.nodes...)
			w.cut(cut)
			since := time.Now()
			if test.outlast {
				// Both sides go on with their own members.
				awaitMembers(t, others...)
				awaitMembers(t, alone)
				t.Logf("each side has the list of its own after %v", time.Since(since))
				// The majority claims, the other does not, and gives its sessions up.
				fence = others[0].awaitClaim("ann", fence)
				if test.strict != "" {
					// Nobody has it on the other side any more.
					if r := alone.report(); r.Held != 0 {
						t.Errorf("two have a key: the side that is cut off has %d sessions", r.Held)
					}
				}
				t.Logf("the majority claims after %v", time.Since(since))
				if f, took, why := alone.claim("ann"); f != 0 || !strings.Contains(why, "no quorum") {
					t.Errorf("the minority claims: fence %d, %s, after %v", f, why, took)
				} else {
					t.Logf("the minority's claim fails after %v", took)
				}
				testnet.WaitFor(t, "the minority's session is unsure", func() bool { return alone.report().Unsure > 0 })
			} else {
				time.Sleep(lease / 2) // the partition lasts
			}
			w.heal(cut)
			healed := time.Now()
			awaitMembers(t, w.nodes...)
			t.Logf("healed after %v, whole %v later", healed.Sub(since), time.Since(healed))
			for _, n := range w.nodes {
				fence = n.awaitClaim("ann", fence)
			}
			t.Logf("all claim %v after that", time.Since(healed))
			settle(t, w.nodes...)
			check(t, w.nodes...)
		})
	}
}
