package cluster

import (
	"errors"
	"net"
	"testing"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// strictly has a lease of which a fifth, for which a connection that was replaced goes on, is longer
// than the next claim takes on a machine that is busy.
var strictly = Sessions{Strict: true, Lease: longLease}

// open reports whether the connection could still be written to, by a handler that does not know yet
// that it has lost its key.
func (c *client) open() bool {
	_, err := c.conn.TryWrite([]byte("x"))
	return !errors.Is(err, net.ErrClosed)
}

// With Strict the newest has the key alone: every connection that had it is closed when Claim
// returns, also one before the last, and whoever was told first.
func TestStrictWaitsForEveryConnectionBefore(t *testing.T) {
	t.Parallel()
	servers := storeServers(t, 1)
	for name, where := range map[string][3]int{
		"three nodes": {0, 1, 2}, "one node": {0, 0, 0}, "there and back": {0, 1, 0}, "two beside one": {0, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := withSessions(strictly)
			o.Name = name
			var sites [3]*site
			for i := range sites {
				if where[i] == i {
					sites[i] = openSite(t, servers[0], o)
				}
			}
			for i := range sites {
				sites[i] = sites[where[i]]
			}
			a, b, c := sites[0].client(t), sites[1].client(t), sites[2].client(t)
			first := sites[0].claim(t, "k", a)
			waits := make(chan error, 1)
			go func() {
				_, err := sites[1].Claim(testnet.Context(t), "k", b.conn)
				waits <- err
			}()
			// It waits for a, which goes on as long as it may, and so does whoever replaces it.
			testnet.WaitFor(t, "the second claim is written", func() bool { return !first.Held() })
			last := sites[2].claim(t, "k", c)
			if a.open() || b.open() {
				t.Errorf("the last has the key, and of those before the first is open: %v, the second: %v", a.open(), b.open())
			}
			if err := testnet.Await(t, "the second claim", waits); !errors.Is(err, ErrReplaced) && !errors.Is(err, net.ErrClosed) {
				t.Errorf("the second claim: %v", err)
			}
			if !last.Held() || first.Held() {
				t.Errorf("the last %v, the first %v", last.Held(), first.Held())
			}
		})
	}
}

// One that gives up while it waits for the one before says nothing about that.
func TestStrictAndAClaimThatGivesUp(t *testing.T) {
	t.Parallel()
	s := openSite(t, storeServers(t, 1)[0], withSessions(strictly))
	a, b, c := s.client(t), s.client(t), s.client(t)
	first := s.claim(t, "k", a)
	waits := make(chan error, 1)
	go func() {
		_, err := s.Claim(testnet.Context(t), "k", b.conn)
		waits <- err
	}()
	testnet.WaitFor(t, "the second claim is written", func() bool { return !first.Held() })
	b.conn.Abort()
	if err := testnet.Await(t, "the second claim", waits); err == nil {
		t.Error("the connection was closed, and has the key")
	}
	s.claim(t, "k", c)
	if a.open() {
		t.Error("the last has the key, and the first is open")
	}
}

// A connection that claims its key again does not wait for anybody.
func TestStrictOnTheSameConnection(t *testing.T) {
	t.Parallel()
	s := openSite(t, storeServers(t, 1)[0], withSessions(strictly))
	a := s.client(t)
	first := s.claim(t, "k", a)
	again := s.claim(t, "k", a)
	if first.Held() || !again.Held() || again.Fence() <= first.Fence() || !a.open() {
		t.Errorf("the first %v, the second %v, open %v", first.Held(), again.Held(), a.open())
	}
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	if !again.alone || len(s.sessions.leaving) != 0 {
		t.Errorf("alone %v, %d leave", again.alone, len(s.sessions.leaving))
	}
}

// Nodes may have leases of different lengths: a node whose own is short waits for the end of the
// longer one of a node that does not answer.
func TestStrictWaitsForALongerLease(t *testing.T) {
	t.Parallel()
	servers := storeServers(t, 1)
	long := openSite(t, servers[0], withSessions(Sessions{Strict: true, Lease: 2 * leaseForTests}))
	short := openSite(t, servers[0], withSessions(Sessions{Strict: true}))
	other := openSite(t, servers[0], withSessions(Sessions{Strict: true}))
	firsts := []*Session{long.claim(t, "a", long.client(t)), long.claim(t, "b", long.client(t))}
	long.nc.Close() // as by kill -9
	// The second is told the length by the record that says that the first took the lease away.
	for i, s := range []*site{short, other} {
		second := s.claim(t, firsts[i].Key(), s.client(t))
		if firsts[i].Held() {
			t.Errorf("Claim has returned with fence %d, and the one before has the key with %d", second.Fence(), firsts[i].Fence())
		}
	}
}
