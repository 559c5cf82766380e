//go:build linux

package tcpio

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The heap against a sorted list. Long timers are never due in the test; their order is seen at the end, when their
// times are moved into the past, which keeps their order.
func TestTimersAreDueInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lp := newLoop(&Listener{}, 0)
		ts := &lp.timers
		var model []*timer // by when
		insert := func(tm *timer) {
			model = append(model, tm)
			slices.SortStableFunc(model, func(a, b *timer) int { return cmp.Compare(a.when, b.when) })
		}
		takeDue := func(t *rapid.T) bool {
			tm := ts.due()
			if tm == nil {
				if len(model) > 0 && model[0].when <= now()-int64(time.Second) {
					t.Fatalf("the first was due long ago, and nothing is due")
				}
				return false
			}
			if len(model) == 0 || tm.when != model[0].when {
				t.Fatalf("due out of order")
			}
			if tm.when > now() {
				t.Fatalf("due %v too early", time.Duration(tm.when-now()))
			}
			i := slices.Index(model, tm)
			if i < 0 {
				t.Fatalf("due twice, or after stop")
			}
			model = slices.Delete(model, i, i+1)
			return true
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				tm := &timer{kind: timerMessage}
				d := time.Duration(rapid.SampledFrom([]int{-5, 0, 1, 2, 3, 5, 9}).Draw(t, "hours")) * time.Hour
				kicked := lp.kicked.Swap(false)
				ts.add(&lp.shard, tm, d)
				insert(tm)
				if ts.heap[0] == tm && !lp.kicked.Load() {
					t.Fatalf("a timer that is due first did not wake the loop")
				}
				if ts.heap[0] != tm && lp.kicked.Load() {
					t.Fatalf("a timer that is not due first woke the loop")
				}
				lp.kicked.Store(kicked)
			},
			"stop": func(t *rapid.T) {
				if len(model) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(model)-1).Draw(t, "which")
				tm := model[i]
				if !ts.stop(tm) {
					t.Fatalf("stop of a pending timer reports false")
				}
				if ts.stop(tm) {
					t.Fatalf("the second stop reports true")
				}
				model = slices.Delete(model, i, i+1)
			},
			"due": func(t *rapid.T) { takeDue(t) },
			"":    func(t *rapid.T) { checkHeap(t, lp, model) },
		})
		ts.mu.Lock()
		for i, tm := range ts.heap {
			tm.when -= int64(24 * time.Hour)
			if i == 0 {
				ts.first.Store(tm.when)
			}
		}
		ts.mu.Unlock()
		for takeDue(t) {
			checkHeap(t, lp, model)
		}
		if len(model) != 0 {
			t.Fatalf("%d timers were never due", len(model))
		}
		if ts.heap != nil || lp.untilDue() >= 0 {
			t.Fatalf("an empty heap keeps memory or a time")
		}
	})
}

func checkHeap(t *rapid.T, lp *loop, model []*timer) {
	ts := &lp.timers
	if len(ts.heap) != len(model) {
		t.Fatalf("%d timers, want %d", len(ts.heap), len(model))
	}
	for i, tm := range ts.heap {
		if tm.index != i+1 {
			t.Fatalf("timer at %d believes to be at %d", i, tm.index-1)
		}
		if i > 0 && ts.heap[(i-1)/4].when > tm.when {
			t.Fatalf("timer at %d is due before its parent", i)
		}
	}
	if len(model) == 0 {
		if ts.first.Load() != 0 {
			t.Fatalf("no timer, and a first one")
		}
		return
	}
	if first := ts.first.Load(); first != model[0].when {
		t.Fatalf("first is %d, want %d", first, model[0].when)
	}
	if wait := lp.untilDue(); wait < 0 || wait > max(0, time.Duration(model[0].when-now()))+time.Minute {
		t.Fatalf("wait of %v", wait)
	}
}

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
		lp.timers.add(&lp.shard, &timer{kind: timerWake}, 0)
	}
	for left := all - timerBudget; left > 0; left -= timerBudget {
		lp.kicked.Store(false)
		lp.runTimers()
		if n := len(lp.timers.heap); n != left {
			t.Fatalf("%d timers left behind a turn, want %d", n, left)
		}
		if !lp.kicked.Load() {
			t.Fatal("the loop might sleep although timers are due")
		}
	}
	lp.kicked.Store(false)
	lp.runTimers()
	if len(lp.timers.heap) != 0 || lp.kicked.Load() {
		t.Fatalf("%d timers left behind the last turn, kicked %v", len(lp.timers.heap), lp.kicked.Load())
	}
}
