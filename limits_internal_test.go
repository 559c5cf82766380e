//go:build linux

package tcpio

import (
	"testing"
	"time"
	"unsafe"
)

// A time limit costs 24 bytes a connection, besides its entry in the loop's list.
var _ [24 - unsafe.Sizeof(limitState{})]byte

// A connection that has only been read from for 30 days is idle when that ends.
func TestAnOldLastWriteDoesNotPutTheIdleTimeoutOff(t *testing.T) {
	c := &Conn{sh: &shard{shared: new(shared)}, sock: set[sockMark]{sockTimed | sockHeard}}
	now := 100 * 24 * int64(time.Hour)
	c.limit.idle = 500
	c.limit.lastIn, c.limit.lastOut = now-600*int64(time.Millisecond), now-30*24*int64(time.Hour)
	if _, _, wait := c.nextLimitLocked(now); wait != -100*time.Millisecond {
		t.Errorf("idle in %v, want 100 ms ago", wait)
	}
}

func TestLimitsThatAreDueTogetherLeaveOthersTheirTurn(t *testing.T) {
	lp := newLoop(&Listener{}, 0)
	const all = 2*limitBudget + 1
	for range all {
		c := &Conn{sh: &lp.shard, phase: phaseClosing}
		lp.limits.Add(limited{c}, 1)
	}
	for left := all - limitBudget; left > 0; left -= limitBudget {
		lp.kicked.Store(false)
		lp.runLimits(1)
		if n := lp.limits.Len(); n != left {
			t.Fatalf("%d connections left behind a turn, want %d", n, left)
		}
		if !lp.kicked.Load() {
			t.Fatal("the loop might sleep although limits are due")
		}
	}
	lp.runLimits(1)
	if n := lp.limits.Len(); n != 0 {
		t.Fatalf("%d connections left behind the last turn", n)
	}
}
