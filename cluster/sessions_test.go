//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// storeServers runs n servers of one cluster with JetStream until the end of the test, and waits
// for a leader.
func storeServers(t testing.TB, n int) []*server.Server {
	t.Helper()
	var ports []int
	var routes []*url.URL
	for range n { // each names all others, so they are known before the first starts
		addr, err := net.ResolveTCPAddr("tcp", testnet.FreeAddr(t))
		must(t, err)
		ports = append(ports, addr.Port)
		routes = append(routes, &url.URL{Scheme: "nats", Host: addr.String()})
	}
	var all []*server.Server
	for i := range n {
		o := &server.Options{
			Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, ServerName: fmt.Sprint("s", i),
			JetStream: true, StoreDir: t.TempDir(),
		}
		if n > 1 {
			o.Cluster = server.ClusterOpts{Name: "test", Host: testnet.Host(), Port: ports[i], PoolSize: -1}
			o.Routes = routes
		}
		all = append(all, runServer(t, o))
	}
	proc.Eventually(t, "JetStream has a leader", func() bool {
		for _, s := range all {
			if n == 1 || s.JetStreamIsLeader() {
				return true
			}
		}
		return false
	})
	return all
}

func runServer(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	s, err := server.NewServer(o)
	must(t, err)
	s.Start()
	t.Cleanup(func() { stop(s) })
	if !s.ReadyForConnections(testnet.Limit) {
		t.Fatal("the NATS server does not become ready")
	}
	return s
}

func stop(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

// leaseForTests is short, and long enough for a machine that is busy: a node whose renewals take
// longer than four fifths of it loses its sessions.
const leaseForTests = 5 * time.Second

// longLease is for tests in which no lease is to end, also on a machine that runs much else.
const longLease = 3 * leaseForTests

func withSessions(s Sessions) Options {
	if s.Lease == 0 {
		s.Lease = leaseForTests
	}
	return Options{Sessions: &s}
}

// claim claims for as long as there is no majority.
func (s *site) claim(t testing.TB, key string, c *client) *Session {
	t.Helper()
	var se *Session
	proc.Eventually(t, "a claim succeeds", func() bool {
		var err error
		se, err = s.Claim(testnet.Context(t), key, c.conn)
		if err != nil && !errors.Is(err, ErrNoQuorum) {
			t.Fatal(err)
		}
		return err == nil
	})
	return se
}

// told returns what a connection of the site was told next.
func (s *site) told(t testing.TB, c *client) any {
	t.Helper()
	for {
		m := testnet.Receive(t, "a message", s.got)
		if m.Conn == c.conn {
			return m.Value
		}
	}
}

func TestNewestLoginWinsOnWhicheverNode(t *testing.T) {
	t.Parallel()
	sites := openSites(t, storeServers(t, 3), withSessions(Sessions{Lease: longLease}))
	a, b, c := sites[0].client(t), sites[1].client(t), sites[1].client(t)
	first := sites[0].claim(t, "ann", a)
	if !first.Held() || first.Key() != "ann" || first.Conn() != a.conn {
		t.Errorf("%+v", first)
	}
	second := sites[1].claim(t, "ann", b)
	// The older one has lost it before Claim returned, and is told.
	if first.Held() {
		t.Error("Claim returned while the older connection had the key")
	}
	if r, ok := sites[0].told(t, a).(Replaced); !ok || r.Key != "ann" || r.Fence != second.Fence() {
		t.Errorf("the older connection got %+v", r)
	}
	if first.Held() || !second.Held() || second.Fence() <= first.Fence() {
		t.Errorf("first %v %d, second %v %d", first.Held(), first.Fence(), second.Held(), second.Fence())
	}
	if _, err := a.lines.ReadByte(); err == nil {
		t.Error("the older connection was not closed")
	}
	// Then on the same node.
	third := sites[1].claim(t, "ann", c)
	if r, ok := sites[1].told(t, b).(Replaced); !ok || r.Fence != third.Fence() || second.Held() {
		t.Errorf("the older connection got %+v", r)
	}
	// The key reaches the newest alone.
	testnet.WaitFor(t, "the key is known everywhere", func() bool {
		return sites[2].Post(testnet.Context(t), "ann", []byte("hello")) == nil
	})
	if p, ok := sites[1].told(t, c).(Posted); !ok || string(p.Data) != "hello" {
		t.Errorf("the newest got %+v", p)
	}
	// Again on the same connection: a new fence, and no Replaced.
	fourth := sites[1].claim(t, "ann", c)
	if !fourth.Held() || third.Held() || fourth.Fence() <= third.Fence() {
		t.Errorf("third %v, fourth %v", third.Held(), fourth.Held())
	}
	must(t, sites[2].Post(testnet.Context(t), "ann", []byte("again")))
	p, ok := sites[1].told(t, c).(Posted)
	for ok && string(p.Data) == "hello" { // one that came late, so it was posted again
		p, ok = sites[1].told(t, c).(Posted)
	}
	if !ok || string(p.Data) != "again" {
		t.Errorf("got %+v", p)
	}
	fourth.Release()
	if fourth.Held() {
		t.Error("held after Release")
	}
	testnet.WaitFor(t, "nobody has the key", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		return errors.Is(sites[2].Post(ctx, "ann", nil), ErrNobody)
	})
	if fifth := sites[2].claim(t, "ann", sites[2].client(t)); fifth.Fence() <= fourth.Fence() {
		t.Errorf("fence %d behind %d", fifth.Fence(), fourth.Fence())
	}
}

// Many claim few keys on all nodes at once: fences grow with every claim of a key, and in the end
// one connection has each.
func TestFencesStrictlyGrow(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprint("strict=", strict), func(t *testing.T) {
			sites := openSites(t, storeServers(t, 3), withSessions(Sessions{Strict: strict}))
			rounds := 10
			if testnet.Long && !strict {
				rounds = 40
			}
			var mu sync.Mutex
			all := make(map[string][]*Session)
			var failed atomic.Bool // a claim for want of a majority, which may have taken a key all the same
			for _, s := range sites {
				stop, stopped := make(chan struct{}), make(chan struct{})
				go func() { // until stop
					defer close(stopped)
					for {
						select {
						case m := <-s.got:
							m.Conn.Close() // it was told, so nobody needs to wait for it
						case <-stop:
							return
						}
					}
				}()
				defer func() { close(stop); <-stopped }()
			}
			var wg sync.WaitGroup
			for i, s := range sites {
				for range 3 {
					wg.Go(func() {
						last := make(map[string]uint64)
						for range rounds {
							key := fmt.Sprint("user ", rand.IntN(3))
							se, err := s.Claim(testnet.Context(t), key, s.client(t).conn)
							if errors.Is(err, ErrNoQuorum) {
								failed.Store(true)
							}
							// It may have been replaced before Claim returned, and closed.
							if errors.Is(err, ErrReplaced) || errors.Is(err, net.ErrClosed) || errors.Is(err, ErrNoQuorum) {
								continue
							}
							if err != nil {
								t.Errorf("site %d: %v", i, err)
								return
							}
							if se.Fence() <= last[key] {
								t.Errorf("fence %d behind %d", se.Fence(), last[key])
							}
							last[key] = se.Fence()
							mu.Lock()
							if strict { // whoever was before has nothing any more
								for _, other := range all[key] {
									if other.Held() && other.Fence() < se.Fence() {
										t.Errorf("two have %s: fences %d and %d", key, other.Fence(), se.Fence())
									}
								}
							}
							all[key] = append(all[key], se)
							mu.Unlock()
						}
					})
				}
			}
			wg.Wait()
			for key, list := range all {
				seen := make(map[uint64]bool)
				for _, se := range list {
					if seen[se.Fence()] {
						t.Errorf("two sessions of %s have the fence %d", key, se.Fence())
					}
					seen[se.Fence()] = true
				}
				testnet.WaitFor(t, "one connection has "+key, func() bool {
					held := 0
					for _, se := range list {
						if se.Held() {
							held++
						}
					}
					// On a machine that does not run them, claims fail and leases end.
					unsure := slices.ContainsFunc(sites, func(s *site) bool { return s.Stats().Unsure > 0 })
					if held == 0 && (failed.Load() || unsure) {
						list = append(list, sites[0].claim(t, key, sites[0].client(t)))
					}
					return held == 1
				})
			}
		})
	}
}

// A claimer may die before it has told anybody. The record that it leaves is heard of.
func TestAClaimIsHeardOfWithoutItsClaimer(t *testing.T) {
	t.Parallel()
	s := openSite(t, storeServers(t, 1)[0], withSessions(Sessions{Lease: longLease}))
	a := s.client(t)
	se := s.claim(t, "a", a)
	m := &nats.Msg{Subject: s.sessions.keySubject("a"), Header: nats.Header{},
		Data: record{strings.Repeat("d", idLen), 1}.append(nil)}
	stale := se.Fence() - 1
	if _, err := s.put(testnet.Context(t), m, &stale, callLimit); !errors.Is(err, errConflict) {
		t.Errorf("a record over one that was not read: %v", err)
	}
	expect := se.Fence()
	fence, err := s.put(testnet.Context(t), m, &expect, callLimit)
	must(t, err)
	if r, ok := s.told(t, a).(Replaced); !ok || r.Fence != fence || se.Held() {
		t.Errorf("got %+v", r)
	}
}

// A connection that closes gives its key back, and a node that closes all of its keys.
func TestKeysAreGivenBack(t *testing.T) {
	t.Parallel()
	o := withSessions(strictly)
	o.Heartbeat = time.Second // as long may NATS take to take Close's goodbye
	s := openSites(t, storeServers(t, 1), o)[0]
	a := s.client(t)
	se := s.claim(t, "k", a)
	a.Close()
	testnet.WaitFor(t, "the session is over", func() bool { return !se.Held() && s.Stats().Sessions == 0 })
	subject := s.sessions.keySubject("k")
	testnet.WaitFor(t, "the record is free", func() bool {
		last, err := s.lastOf(testnet.Context(t), s.sessions.stream, subject)
		return err == nil && (last.seq == 0 || string(last.data) == string(freeRecord.append(nil)))
	})
	testnet.WaitFor(t, "the record has gone", func() bool {
		last, err := s.lastOf(testnet.Context(t), s.sessions.stream, subject)
		return err == nil && last.seq == 0
	})
	b := s.client(t)
	again := s.claim(t, "k", b)
	if again.Fence() <= se.Fence() {
		t.Errorf("fence %d behind %d, whose record has gone", again.Fence(), se.Fence())
	}
	must(t, s.Node.Close())
	if again.Held() {
		t.Error("held after the node was closed")
	}
	if _, err := s.Claim(testnet.Context(t), "k", b.conn); !errors.Is(err, ErrClosed) {
		t.Errorf("Claim on a closed node: %v", err)
	}
}

// Without a majority Claim fails, at once from the second one on; sessions become unsure within
// Lease; behind it everything works again.
func TestWithoutAMajority(t *testing.T) {
	t.Parallel()
	servers := storeServers(t, 3)
	s := openSite(t, servers[0], withSessions(Sessions{}))
	a := s.client(t)
	se := s.claim(t, "a", a)
	keeps := openSite(t, servers[0], withSessions(Sessions{KeepUnsure: true}))
	b := keeps.client(t)
	kept := keeps.claim(t, "kept", b)
	stop(servers[1])
	stop(servers[2])
	lost := time.Now()
	c := s.client(t)
	// claimFails returns how long a Claim takes that fails.
	claimFails := func() time.Duration {
		t.Helper()
		begun := time.Now()
		if _, err := s.Claim(testnet.Context(t), "b", c.conn); !errors.Is(err, ErrNoQuorum) {
			t.Errorf("got %v, want ErrNoQuorum", err)
		}
		return time.Since(begun)
	}
	if took := claimFails(); took > 5*callLimit {
		t.Errorf("the first Claim that failed took %v", took)
	}
	quick(t, "a Claim when it is known that there is no majority", callLimit/2, claimFails)
	if time.Sleep(time.Until(lost.Add(leaseForTests))); se.Held() || kept.Held() {
		t.Error("a session is held for longer than Lease")
	}
	if u, ok := s.told(t, a).(Unsure); !ok || u.Key != "a" {
		t.Errorf("got %+v, want Unsure", u)
	}
	if _, err := a.lines.ReadByte(); err == nil {
		t.Error("the connection was not closed")
	}
	if u, ok := keeps.told(t, b).(Unsure); !ok || u.Key != "kept" || kept.Held() {
		t.Errorf("got %+v, want Unsure", u)
	}
	if _, err := b.conn.TryWrite([]byte("still here\n")); err != nil || b.line(t) != "still here" {
		t.Errorf("with KeepUnsure: %v", err)
	}
	if got := s.Stats(); got.Unsure != 1 || got.NoQuorum < 2 || got.Sessions != 0 {
		t.Errorf("%+v", got)
	}
}

// quick fails the test unless f, which returns how long it took, takes less than limit. On a
// machine that is busy it may need a few times.
func quick(t testing.TB, what string, limit time.Duration, f func() time.Duration) {
	t.Helper()
	var all []time.Duration
	for range 5 {
		took := f()
		if took < limit {
			return
		}
		all = append(all, took)
	}
	t.Errorf("%s: took %v, want less than %v", what, all, limit)
}

// A node that was killed has its keys overwritten: at once, or with Strict when its lease is over.
// To see it fail: have revoke forget whose lease it has taken away.
func TestKeysOfADeadNodeAreOverwritten(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprint("strict=", strict), func(t *testing.T) {
			servers := storeServers(t, 1)
			dead := openSite(t, servers[0], withSessions(Sessions{Strict: strict}))
			s := openSite(t, servers[0], withSessions(Sessions{Strict: strict}))
			var firsts []*Session
			for i := range 6 {
				firsts = append(firsts, dead.claim(t, fmt.Sprint(i), dead.client(t)))
			}
			c := s.client(t)
			s.claim(t, "other", c) // it has its lease
			dead.nc.Close()        // as by kill -9: nothing is given back
			next := 0
			claim := func() time.Duration {
				t.Helper()
				first := firsts[next]
				begun := time.Now()
				second := s.claim(t, first.Key(), c)
				took := time.Since(begun)
				if second.Fence() <= first.Fence() {
					t.Errorf("fence %d behind %d", second.Fence(), first.Fence())
				}
				if strict && first.Held() {
					t.Errorf("Claim returned after %v: the dead node may have its lease", took)
				}
				next++
				return took
			}
			if strict {
				if took := claim(); took < leaseForTests/2 {
					t.Errorf("Claim returned after %v: the dead node may have its lease", took)
				}
			}
			// With Strict its lease is known to be over by now.
			quick(t, "Claim of a dead node's key", leaseForTests*3/4, claim)
		})
	}
}

// All that JetStream has is lost: sessions go on, and fences grow.
func TestSessionsOutliveTheirStore(t *testing.T) {
	t.Parallel()
	servers := storeServers(t, 1)
	s := openSite(t, servers[0], withSessions(Sessions{Lease: longLease}))
	a := s.client(t)
	first := s.claim(t, "a", a)
	var answer struct{ Success bool }
	must(t, s.api(testnet.Context(t), "STREAM.DELETE."+s.sessions.stream, nil, &answer))
	testnet.WaitFor(t, "the record is there again", func() bool {
		last, err := s.lastOf(testnet.Context(t), s.sessions.stream, s.sessions.keySubject("a"))
		return err == nil && last.seq > first.Fence()
	})
	if !first.Held() {
		t.Error("the session is over")
	}
	second := s.claim(t, "a", s.client(t))
	if second.Fence() <= first.Fence() || first.Held() {
		t.Errorf("fence %d behind %d", second.Fence(), first.Fence())
	}
}

func TestClaimIsChecked(t *testing.T) {
	t.Parallel()
	servers := storeServers(t, 1)
	without := openSite(t, servers[0], Options{})
	c := without.client(t)
	if _, err := without.Claim(testnet.Context(t), "k", c.conn); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without Sessions: %v", err)
	}
	s := openSite(t, servers[0], withSessions(Sessions{}))
	if _, err := s.Claim(testnet.Context(t), "k", nil); err == nil {
		t.Error("nil connection")
	}
	if _, err := s.Claim(testnet.Context(t), strings.Repeat("ü", 100), c.conn); !errors.Is(err, ErrName) {
		t.Errorf("a long name: %v", err)
	}
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Claim(done, "k", c.conn); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
	must(t, c.conn.Close())
	var err error
	testnet.WaitFor(t, "a closing connection is refused", func() bool {
		_, err = s.Claim(testnet.Context(t), "k", c.conn)
		return errors.Is(err, net.ErrClosed)
	})
	if strings.Count(err.Error(), "Claim") != 1 {
		t.Errorf("the call is to be named once: %v", err)
	}
	for want, o := range map[string]Sessions{"Lease": {Lease: time.Millisecond}, "Replicas": {Replicas: 2},
		"Strict": {Strict: true, KeepUnsure: true}} {
		if _, err := Open(testnet.Context(t), s.nc, &Options{Sessions: &o}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	// Without JetStream there is no majority.
	bare := openSite(t, natsServers(t, 1)[0], withSessions(Sessions{}))
	if _, err := bare.Claim(testnet.Context(t), "k", bare.client(t).conn); !errors.Is(err, ErrNoQuorum) {
		t.Errorf("without JetStream: %v", err)
	}
}
