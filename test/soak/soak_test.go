//go:build linux

package soak

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

var (
	soakTime = flag.Duration("soak", 1500*time.Millisecond, "how long TestSoak runs")
	soakSeed = flag.Uint64("soak.seed", 0, "what TestSoak's choices come from; 0 takes one from the clock")
)

const (
	soakClients  = 32                    // that talk at once
	soakPause    = 80 * time.Millisecond // the longest pause of a client between two connections; 40 on average
	soakPatience = 60 * time.Second      // how long a client waits for what must come; a -race build on a busy machine is slow
)

// TestSoak lets clients of every kind loose on listeners of every route, all at once and at a
// bounded rate: at most soakClients connections every soakPause/2, that is 800 a second. Each
// connection has bytes of its own, and what comes back is compared to the last one. At the end
// nothing may be left: no connection, no descriptor, no goroutine, no memory.
//
//	go test [-race] ./test/soak -run Soak -soak 10m [-soak.seed N]
//
// A failure prints the seed. The choices of each client come from it; how they interleave does not.
//
// To see it fail: queue another part of p in putRawLocked, leave out endLimitsLocked in
// dropResourcesLocked (the heap grows), the emitting of Writable, or the subtraction in
// dropOutLocked.
func TestSoak(t *testing.T) {
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	defer func() {
		if t.Failed() {
			t.Logf("to repeat it: go test ./test/soak -run Soak -soak %v -soak.seed %d", *soakTime, seed)
		}
	}()
	s := &soak{t: t, seed: seed, done: make(map[string]int)}
	s.listen()

	// Once for everything that grows to its size and stays there: tables, pools, the runtime's own.
	warm := min(2*time.Second, *soakTime/2)
	s.run(warm, 0)
	s.quiet()
	before := measure(t)
	s.run(*soakTime-warm, 1)
	s.quiet()
	after := measure(t)
	if after.fds > before.fds {
		t.Errorf("%d descriptors, %d before", after.fds, before.fds)
	}
	if after.goroutines > before.goroutines {
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before:\n%s", after.goroutines, before.goroutines, buf[:runtime.Stack(buf, true)])
	}
	if grown := after.heap - before.heap; grown > 3<<20 {
		t.Errorf("the heap grew by %d KiB, from %d", grown>>10, before.heap>>10)
	}
	s.stop()
	t.Logf("seed %d: %d connections, %d MiB echoed, %d values posted, %d group records read, %d slow members closed; heap %d -> %d KiB, %s",
		seed, s.conns.Load(), s.bytes.Load()>>20, s.posts.Load(), s.records.Load(), s.slow.Load(), before.heap>>10, after.heap>>10, s.kinds())
}

// A soak is one run of TestSoak.
type soak struct {
	t       *testing.T
	seed    uint64
	servers []*soakServer
	group   soakGroup

	conns, bytes, posts, records, slow atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	done map[string]int // connections by kind of client
}

// run lets the clients and the posters loose for d.
func (s *soak) run(d time.Duration, phase uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var clients, posters sync.WaitGroup
	for i := range uint64(soakClients) {
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(s.seed, phase<<32|i))
			for ctx.Err() == nil && !s.t.Failed() {
				s.client(rng)
				select {
				case <-ctx.Done():
				case <-time.After(time.Duration(rng.Int64N(int64(soakPause)))):
				}
			}
		})
	}
	posting, stop := context.WithCancel(context.Background())
	for _, srv := range s.servers {
		if srv.posted {
			posters.Go(func() { srv.post(posting) })
		}
	}
	posters.Go(func() { s.group.broadcast(posting, s.t) })
	clients.Wait()
	stop()
	posters.Wait()
}

// client is one connection of a random kind to a random listener.
func (s *soak) client(rng *rand.Rand) {
	srv := s.servers[rng.IntN(len(s.servers))]
	kind := srv.kinds[rng.IntN(len(srv.kinds))]
	c := &soakClient{soak: s, srv: srv, rng: rng, seed: rng.Uint64()}
	if err := c.run(kind); err != nil {
		s.t.Errorf("%s against %s: %v", kind.name, srv.name, err)
	}
	s.conns.Add(1)
	s.mu.Lock()
	s.done[srv.name+"/"+kind.name]++
	s.mu.Unlock()
}

// kinds says how many connections there were of each sort, to see that none is left out.
func (s *soak) kinds() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	least, name := -1, ""
	for k, n := range s.done {
		if least < 0 || n < least {
			least, name = n, k
		}
	}
	return fmt.Sprintf("%d pairs of listener and kind, of the rarest, %s, %d", len(s.done), name, least)
}

// quiet waits until every server is at rest: it has let go of every connection and of every client
// that it has refused, and its books balance. A channel that a connection has left may be read
// behind the connection's end.
func (s *soak) quiet() {
	for _, srv := range s.servers {
		testnet.WaitFor(s.t, srv.name+" has no connection left", func() bool {
			st := srv.l.Stats()
			return st.Open == 0 && st.Closed == st.Accepted && srv.balanced()
		})
		testnet.WaitFor(s.t, srv.name+" has nothing queued, refuses nobody and has no blocked handler", func() bool {
			st := srv.l.Stats()
			return st.Buffered == 0 && st.Refusing == 0 && st.Blocked == 0
		})
		testnet.WaitFor(s.t, srv.name+" has delivered every message that it accepted", func() bool {
			return srv.messages.Load() == int64(srv.l.Stats().Posted)
		})
	}
}

func (s *soak) stop() {
	for _, srv := range s.servers {
		ctx, cancel := context.WithTimeout(context.Background(), soakPatience)
		if err := srv.l.Shutdown(ctx); err != nil {
			s.t.Errorf("%s: Shutdown: %v", srv.name, err)
		}
		cancel()
		if err := testnet.Await(s.t, "the end of Serve", srv.served); err != nil {
			s.t.Errorf("%s: Serve: %v", srv.name, err)
		}
	}
}

// usage is what a process holds.
type usage struct {
	fds, goroutines int
	heap            int64
}

// measure waits until two looks in a row agree on goroutines and descriptors: some are on their way
// out.
func measure(t *testing.T) usage {
	t.Helper()
	look := func() (u usage) {
		runtime.GC() // twice: what a sync.Pool holds goes with the second
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		u.heap = int64(m.HeapAlloc)
		u.goroutines = runtime.NumGoroutine()
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		u.fds = len(entries)
		return u
	}
	last := look()
	for same := 0; same < 5; {
		<-time.After(20 * time.Millisecond)
		u := look()
		if u.fds == last.fds && u.goroutines == last.goroutines {
			same++
		} else {
			same = 0
		}
		last = u
	}
	return last
}

// harmless reports an error with which a connection ends that either side has cut off.
func harmless(err error) bool {
	return testnet.Benign(err) || errors.Is(err, tcpio.ErrHijacked) || err != nil && strings.Contains(err.Error(), "use of closed")
}

// Epoll's data holds no pointer, so nothing of a connection may hang on it alone: collections all
// the time take nothing away from connections that nobody but the library holds, whatever comes and
// goes beside them. To see it fail: keep table.conns as uintptrs.
func TestGarbageCollectionsAllTheTimeTakeNothingAway(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			runtime.GC()
			runtime.Gosched()
		}
	})
	defer wg.Wait()
	defer stop.Store(true)

	l := harness.Stream(t, tcpio.ListenerOptions{}, harness.Echo(t))
	var idle []net.Conn
	for i := range 50 {
		peer := testnet.Dial(t, l)
		testnet.Ping(t, peer, []byte{byte(i)})
		idle = append(idle, peer)
	}
	s := &soak{t: t, seed: rand.Uint64(), done: make(map[string]int)}
	s.listen()
	d := 200 * time.Millisecond
	if testnet.Long {
		d = time.Second
	}
	s.run(d, 0)
	s.quiet()
	s.stop()
	for i, peer := range idle {
		testnet.Ping(t, peer, []byte{byte(i), 1})
	}
	if n := l.Len(); n != len(idle) {
		t.Errorf("%d connections of %d", n, len(idle))
	}
}
