//go:build linux

package tcpio

import (
	"testing"
	"time"
)

// A poll never ends before the timer it waits for: it would poll again with nothing to do.
func TestWaitIsRoundedUpToMilliseconds(t *testing.T) {
	for _, tc := range []struct {
		d    time.Duration
		want int
	}{
		{-1, -1}, {0, 0}, {1, 1}, {time.Millisecond, 1}, {time.Millisecond + 1, 2}, {1<<63 - 1 - time.Second, 1<<31 - 1},
	} {
		if got := waitMillis(tc.d); got != tc.want {
			t.Errorf("waitMillis(%d) is %d, want %d", tc.d, got, tc.want)
		}
	}
}

func TestTimersThatAreDueTogetherLeaveOthersTheirTurn(t *testing.T) {
	lp := newLoop(&Listener{}, 0)
	const all = 2*timerBudget + 1
	for range all {
		lp.addTimer(&timer{kind: timerWake}, 0)
	}
	for left := all - timerBudget; left > 0; left -= timerBudget {
		lp.kicked.Store(false)
		lp.runTimers()
		if n := lp.timers.Len(); n != left {
			t.Fatalf("%d timers left behind a turn, want %d", n, left)
		}
		if !lp.kicked.Load() {
			t.Fatal("the loop might sleep although timers are due")
		}
	}
	lp.kicked.Store(false)
	lp.runTimers()
	if lp.timers.Len() != 0 || lp.kicked.Load() {
		t.Fatalf("%d timers left behind the last turn, kicked %v", lp.timers.Len(), lp.kicked.Load())
	}
}
