//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// A fake is a claimant.
type fake struct {
	grants, cuts int
	gone         bool
}

func (f *fake) granted() bool            { f.grants++; return !f.gone }
func (f *fake) cut()                     { f.cuts++ }
func (f *fake) moved() (up, down uint64) { return 1, 2 }

// testPool has upstreams a:1, b:1 and so on, without health checks; change may change its config.
func testPool(t *testing.T, n int, change func(*poolConfig)) *pool {
	t.Helper()
	p := newPool("test", quiet)
	p.update(poolOf(n, change))
	t.Cleanup(p.close)
	return p
}

func poolOf(n int, change func(*poolConfig)) *poolConfig {
	cfg := &poolConfig{}
	for i := range n {
		cfg.Upstreams = append(cfg.Upstreams, upstreamConfig{Addr: fmt.Sprintf("%c:1", 'a'+i)})
	}
	cfg.Health.Interval.Duration = -1
	if change != nil {
		change(cfg)
	}
	cfg.fill()
	return cfg
}

func (p *pool) ticket(ip string) *ticket {
	return &ticket{pool: p, holder: new(fake), client: netip.MustParseAddr(ip)}
}

// seats takes n places and returns where they are.
func seats(t *testing.T, p *pool, n int) (tickets []*ticket, where []string) {
	t.Helper()
	for range n {
		k := p.ticket("10.0.0.1")
		if err := k.take(); err != nil {
			t.Fatal(err)
		}
		tickets, where = append(tickets, k), append(where, k.at().addr)
	}
	return tickets, where
}

func TestRoundRobinTakesEachInItsTurn(t *testing.T) {
	p := testPool(t, 3, nil)
	if _, got := seats(t, p, 7); !slices.Equal(got, []string{"a:1", "b:1", "c:1", "a:1", "b:1", "c:1", "a:1"}) {
		t.Error(got)
	}
}

func TestLeastConnsEvensOut(t *testing.T) {
	p := testPool(t, 3, func(c *poolConfig) { c.Balance = leastConns })
	tickets, _ := seats(t, p, 9)
	for _, k := range tickets {
		if k.at().addr != "b:1" {
			continue
		}
		k.giveBack()
	}
	if _, got := seats(t, p, 3); !slices.Equal(got, []string{"b:1", "b:1", "b:1"}) {
		t.Error(got)
	}
}

func TestClientHashIsStableUnderChanges(t *testing.T) {
	p := testPool(t, 10, func(c *poolConfig) { c.Balance = clientHash })
	const clients = 2000
	place := func() map[int]string {
		m := make(map[int]string)
		for i := range clients {
			k := p.ticket(fmt.Sprintf("10.0.%d.%d", i/250, i%250))
			if err := k.take(); err != nil {
				t.Fatal(err)
			}
			m[i] = k.at().addr
			k.giveBack()
		}
		return m
	}
	before, again := place(), place()
	count := make(map[string]int)
	for i, at := range before {
		if again[i] != at {
			t.Fatalf("client %d is at %s and then at %s", i, at, again[i])
		}
		count[at]++
	}
	for at, n := range count {
		if n < clients/10/2 || n > clients/10*2 {
			t.Errorf("%s has %d clients of %d", at, n, clients)
		}
	}
	p.update(poolOf(9, func(c *poolConfig) { c.Balance = clientHash })) // j:1 is gone
	for i, at := range place() {
		if before[i] != "j:1" && before[i] != at {
			t.Fatalf("client %d has moved from %s to %s, though %[2]s is still there", i, before[i], at)
		}
	}
}

func TestAFullPoolHasClientsWaitInTheirOrder(t *testing.T) {
	p := testPool(t, 2, func(c *poolConfig) {
		c.Queue.n = 3
		for i := range c.Upstreams {
			c.Upstreams[i].MaxConns.n = 1
		}
	})
	have, _ := seats(t, p, 2)
	var wait []*ticket
	for range 3 {
		k := p.ticket("10.0.0.1")
		if err := k.take(); err != nil || k.at() != nil {
			t.Fatalf("%v, and a place at %v", err, k.at())
		}
		wait = append(wait, k)
	}
	if err := p.ticket("10.0.0.1").take(); !errors.Is(err, errQueueFull) {
		t.Errorf("%v, want a full queue", err)
	}
	wait[0].holder.(*fake).gone = true // it has ended, and not said so yet
	have[1].giveBack()
	if wait[1].at() == nil || wait[1].at().addr != "b:1" || wait[2].at() != nil {
		t.Errorf("the places: %v, %v", wait[1].at(), wait[2].at())
	}
	wait[0].giveBack()
	if !wait[2].giveUp() || wait[2].giveUp() || wait[1].giveUp() {
		t.Error("giving up is for those that wait")
	}
	have[0].giveBack()
	have[0].giveBack() // the second one gives nothing
	if _, got := seats(t, p, 1); got[0] != "a:1" {
		t.Error(got)
	}
	if s := p.status(time.Now()); s.Waiting != 0 || s.Queued != 3 || s.QueueFull != 1 || s.QueueLate != 1 {
		t.Errorf("%+v", s)
	}
}

func TestARoomierConfigurationServesTheQueue(t *testing.T) {
	one := func(c *poolConfig) { c.Upstreams[0].MaxConns.n = 1 }
	p := testPool(t, 1, one)
	seats(t, p, 1)
	k := p.ticket("10.0.0.1")
	if err := k.take(); err != nil || k.at() != nil {
		t.Fatalf("%v, %v", err, k.at())
	}
	p.update(poolOf(2, one))
	if k.at() == nil || k.at().addr != "b:1" || k.holder.(*fake).grants != 1 {
		t.Errorf("it still waits: %v", k.at())
	}
}

func TestARetryGoesElsewhere(t *testing.T) {
	p := testPool(t, 3, nil)
	k := p.ticket("10.0.0.1")
	var tried []string
	err := k.take()
	for ; err == nil; err = k.take() {
		tried = append(tried, k.at().addr)
		k.failed(errors.New("refused"))
	}
	if slices.Sort(tried); !errors.Is(err, errNoUpstream) || !slices.Equal(tried, []string{"a:1", "b:1", "c:1"}) {
		t.Errorf("%v, %v", tried, err)
	}
	p.update(poolOf(3, func(c *poolConfig) { c.Retries = count{given: true} }))
	k = p.ticket("10.0.0.1")
	if err := k.take(); err != nil {
		t.Fatal(err)
	}
	k.failed(errors.New("refused"))
	if err := k.take(); !errors.Is(err, errNoUpstream) {
		t.Errorf("retries: 0, and %v", err)
	}
}

func TestFailuresEjectForTwiceAsLongEachTime(t *testing.T) {
	p := testPool(t, 2, func(c *poolConfig) {
		c.Eject = ejectConfig{Failures: count{n: 2}, For: duration{Duration: time.Second}, Max: duration{Duration: 3 * time.Second}}
	})
	u, now := p.ups[0], time.Now()
	for _, step := range []struct {
		after time.Duration
		want  time.Duration // how long u is ejected; 0 is not
	}{
		{0, 0},
		{0, time.Second},
		{500 * time.Millisecond, 500 * time.Millisecond}, // an attempt from before counts for nothing
		{500 * time.Millisecond, 2 * time.Second},        // the first one behind it is enough
		{2 * time.Second, 3 * time.Second},
		{3 * time.Second, 3 * time.Second},
	} {
		now = now.Add(step.after)
		p.attemptFailedLocked(u, errors.New("refused"), now)
		if got := max(0, u.until.Sub(now)); got != step.want {
			t.Errorf("ejected for %v, want %v", got, step.want)
		}
	}
	if _, got := seats(t, p, 2); !slices.Equal(got, []string{"b:1", "b:1"}) {
		t.Errorf("an ejected upstream was used: %v", got)
	}
	// Where there is nothing else it is used, and a success ends it all.
	p.drain("b:1", true)
	tickets, got := seats(t, p, 1)
	if got[0] != "a:1" {
		t.Error(got)
	}
	tickets[0].connected()
	if u.ejected(now) || u.failures != 0 || u.ejections != 0 {
		t.Errorf("%+v", u)
	}
}

func TestChecksBringAnUpstreamDownAndUp(t *testing.T) {
	p := testPool(t, 2, func(c *poolConfig) {
		c.WhenDown = resetConns
		c.Health.Fall.n, c.Health.Rise.n = 2, 3
	})
	have, _ := seats(t, p, 6)
	for _, k := range have[:4] { // the rest still connect
		if !k.connected() {
			t.Error("it is up, and connected says no")
		}
	}
	u, bad := p.ups[0], errors.New("refused")
	for i, step := range []struct {
		err  error
		down bool
	}{{bad, false}, {nil, false}, {bad, false}, {bad, true}, {nil, true}, {nil, true}, {bad, true}, {nil, true}, {nil, true}, {nil, false}} {
		p.checkedLocked(u, step.err)
		if late := have[4]; late.at() == u && u.down && late.connected() {
			t.Error("one that connects to what is down would be left there")
		}
		if u.down != step.down {
			t.Fatalf("step %d: down is %v", i, u.down)
		}
	}
	for i, k := range have {
		if want := map[bool]int{true: 1}[k.at() == u && i < 4]; k.holder.(*fake).cuts != want {
			t.Errorf("one at %s was cut %d times, want %d", k.at().addr, k.holder.(*fake).cuts, want)
		}
	}
	if u.counts.Downs != 1 || u.counts.Resets != 2 {
		t.Errorf("%+v", u.counts)
	}
}

func TestADrainedUpstreamGetsNoneAndKeepsItsOwn(t *testing.T) {
	p := testPool(t, 2, nil)
	have, _ := seats(t, p, 2)
	if !p.drain("a:1", true) || p.drain("z:1", true) {
		t.Error("drain tells whether there is such an upstream")
	}
	if _, got := seats(t, p, 2); !slices.Equal(got, []string{"b:1", "b:1"}) {
		t.Error(got)
	}
	if have[0].at().addr != "a:1" || have[0].holder.(*fake).cuts != 0 {
		t.Error("its connection was touched")
	}
	p.drain("b:1", true)
	if err := p.ticket("10.0.0.1").take(); !errors.Is(err, errNoUpstream) {
		t.Error(err)
	}
	p.drain("a:1", false)
	if _, got := seats(t, p, 1); got[0] != "a:1" {
		t.Error(got)
	}
}

func TestBytesOfEndedConnectionsStayCounted(t *testing.T) {
	p := testPool(t, 1, nil)
	have, _ := seats(t, p, 3)
	have[0].giveBack()
	if u := p.status(time.Now()).Upstreams[0]; u.BytesUp != 3 || u.BytesDown != 6 || u.Conns != 2 {
		t.Errorf("%+v", u)
	}
}
