//go:build linux

package tcpio

import (
	"testing"
	"time"
	"unsafe"
)

// A time limit costs 32 bytes a connection: limitState, and a place in the heap.
var _ [32 - unsafe.Sizeof(limitState{}) - unsafe.Sizeof((*Conn)(nil))]byte

func TestTicksTellAgesOverTheirWrap(t *testing.T) {
	const day = 24 * 60 * 60 * 1000
	for _, tt := range []struct {
		age  int64 // milliseconds
		want time.Duration
	}{
		{0, 0},
		{-3, -3 * time.Millisecond}, // somebody's clock was late
		{5, 5 * time.Millisecond},
		{20 * day, 20 * 24 * time.Hour},
	} {
		for _, at := range []ticks{0, 1, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
			if got := at.since(at - ticks(tt.age)); got != tt.want {
				t.Errorf("at %d, %d ms ago: %v, want %v", at, tt.age, got, tt.want)
			}
		}
	}
	for _, age := range []int64{25 * day, 30 * day, 40 * day, 49 * day} {
		if got := ticks(7).since(7 - ticks(uint32(age))); got <= longestLimit {
			t.Errorf("%d days ago seems %v ago", age/day, got)
		}
	}
}

// A connection that has only been read from for 30 days is idle when that ends.
func TestAnOldLastWriteDoesNotPutTheIdleTimeoutOff(t *testing.T) {
	c := &Conn{sh: &shard{shared: new(shared)}, flags: fTimed | fHeard}
	now := ticks(1000)
	day := ticks(24 * time.Hour / time.Millisecond)
	c.limit.idle = 500
	c.limit.lastIn, c.limit.lastOut = now-600, now-30*day
	if _, _, wait := c.nextLimitLocked(now); wait != -100*time.Millisecond {
		t.Errorf("idle in %v, want 100 ms ago", wait)
	}
}

func TestLimitsThatAreDueTogetherLeaveOthersTheirTurn(t *testing.T) {
	lp := newLoop(&Listener{}, 0)
	const all = 2*limitBudget + 1
	for range all {
		c := &Conn{sh: &lp.shard, phase: phaseClosing}
		c.limit.at = 1
		lp.limits.heap.push(c)
	}
	lp.limits.first.Store(1)
	for left := all - limitBudget; left > 0; left -= limitBudget {
		lp.kicked.Store(false)
		lp.runLimits()
		if n := len(lp.limits.heap); n != left {
			t.Fatalf("%d connections left behind a turn, want %d", n, left)
		}
		if !lp.kicked.Load() {
			t.Fatal("the loop might sleep although limits are due")
		}
	}
	lp.runLimits()
	if n := len(lp.limits.heap); n != 0 {
		t.Fatalf("%d connections left behind the last turn", n)
	}
}
