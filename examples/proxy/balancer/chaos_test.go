//go:build linux

package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// Clients come, wait, are refused, half-close, and reset, each at a moment of its own, while
// upstreams go down and come back, are drained, and are changed by reloads. What an answer says is
// right, and at the end nothing is left: no session, no place, nobody in a queue, no descriptor.
func TestNothingIsLeftOfClientsAtAnyMoment(t *testing.T) {
	bs := named(t, "a", "b", "c")
	flapping := bs[2].addr()
	file := func(i int) string {
		return fmt.Sprintf(`
listeners: {main: {listen: '127.0.0.1:0', to: main, max_conns: %d}}
pools:
  main:
    balance: %s
    upstreams: [{addr: '%s', max_conns: 4}, {addr: '%s', max_conns: 3, drain: %v}, {addr: '%s'}]
    queue: 20
    queue_timeout: 30ms
    connect_timeout: 200ms
    when_down: reset
    health: {interval: 20ms, fall: 1, rise: 1}
    eject: {for: 10ms, max: 50ms}
`, 1000+i%3, []string{roundRobin, leastConns, clientHash}[i%3], bs[0].addr(), bs[1].addr(), i%4 == 3, flapping)
	}
	s := start(t, file(0))
	at := s.addrs["main"]
	before := descriptors(t)
	end := time.Now().Add(2 * time.Second)
	var load sync.WaitGroup
	for w := range 40 {
		load.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 0))
			for i := 0; time.Now().Before(end); i++ {
				if err := visit(at, fmt.Sprint(w, "-", i), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	load.Go(func() { // the third upstream comes and goes
		for b := bs[2]; time.Now().Before(end); time.Sleep(30 * time.Millisecond) {
			b.stop()
			time.Sleep(50 * time.Millisecond)
			b = newBackend(t, "c", flapping, answer)
		}
	})
	for i := 1; time.Now().Before(end); i++ {
		s.reload(file(i))
		s.drain("main", bs[i%2].addr(), i%5 < 2)
		time.Sleep(20 * time.Millisecond)
	}
	load.Wait()
	st := s.when("nothing is left", func(st *status) bool {
		for _, l := range st.Listeners {
			if l.Open != 0 {
				return false
			}
		}
		for _, u := range st.Pools[0].Upstreams {
			if u.Conns != 0 {
				return false
			}
		}
		return st.Pools[0].Waiting == 0 && len(st.Listeners) == 1
	})
	for limit := time.Now().Add(patience); descriptors(t) > before+10; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%d descriptors, and %d before", descriptors(t), before)
		}
	}
	for _, u := range st.Pools[0].Upstreams {
		t.Logf("%s: %+v", u.Addr, u.upstreamCounts)
	}
	t.Logf("%+v, %v", st.Pools[0].poolCounts, st.ends())
}

// visit is one client. Its error is an answer that is wrong; to be refused or reset is none.
func visit(at, word string, r *rand.Rand) error {
	c, err := net.DialTimeout("tcp", at, patience)
	if err != nil {
		return nil
	}
	defer c.Close()
	tc := c.(*net.TCPConn)
	_ = tc.SetDeadline(time.Now().Add(patience))
	pause := func() { time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond) }
	what := r.IntN(5)
	if what == 0 { // gone before it has said anything
		_ = tc.SetLinger(0)
		return nil
	}
	pause()
	if _, err := io.WriteString(tc, word+"\n"); err != nil {
		return nil
	}
	switch what {
	case 1: // gone before the answer
		pause()
		_ = tc.SetLinger(0)
		return nil
	case 2:
		_ = tc.CloseWrite()
	}
	got := make([]byte, len(word)+3)
	n, err := io.ReadFull(tc, got)
	switch {
	case os.IsTimeout(err):
		return fmt.Errorf("no answer to %s", word)
	case n > 0 && string(got[1:n]) != (" " + word + "\n")[:n-1]:
		return fmt.Errorf("the answer to %s is %q", word, got[:n])
	}
	if pause(); what == 3 {
		_ = tc.SetLinger(0)
	}
	return nil
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
