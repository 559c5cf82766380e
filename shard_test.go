package tcpio

import (
	"errors"
	"testing"
	"time"
)

// wakes is a poller that only counts its wake-ups.
type wakes struct {
	poller
	n int
}

func (w *wakes) wake() { w.n++ }

func newShard() (*shard, *wakes) {
	w := new(wakes)
	return &shard{shared: new(shared), p: w, wakeup: make(chan struct{}, 1)}, w
}

// To see it fail: leave out the Swap in kick.
func TestKicksWakeAccordingToTheRole(t *testing.T) {
	sh, w := newShard()
	sh.state.Store(uint64(sleeping))
	for range 3 {
		sh.kick()
	}
	if w.n != 1 || len(sh.wakeup) != 0 {
		t.Errorf("asleep: %d wake-ups of the poller, %d of the goroutine", w.n, len(sh.wakeup))
	}
	sh.kicked.Store(false)
	sh.state.Store(uint64(parked))
	for range 3 {
		sh.kick()
	}
	if w.n != 1 || len(sh.wakeup) != 1 || role(sh.state.Load()) != running {
		t.Errorf("parked: %d wake-ups of the poller, %d of the goroutine", w.n, len(sh.wakeup))
	}
	<-sh.wakeup
	sh.kicked.Store(false)
	sh.kick()
	if w.n != 1 || len(sh.wakeup) != 0 || !sh.kicked.Load() {
		t.Errorf("running: %d wake-ups of the poller, %d of the goroutine", w.n, len(sh.wakeup))
	}
}

// To see it fail: leave out the comparison with reportedAt.
func TestOneReportASecond(t *testing.T) {
	sh, _ := newShard()
	first, second, third := errors.New("first"), errors.New("second"), errors.New("third")
	sh.report(first)
	sh.report(second)
	if err := sh.trouble.Swap(nil); err == nil || *err != first {
		t.Errorf("reported %v, want the first", err)
	}
	sh.reportedAt.Add(-int64(time.Second))
	sh.report(third)
	if err := sh.trouble.Swap(nil); err == nil || *err != third {
		t.Errorf("a second later: reported %v, want the third", err)
	}
}

// To see it fail: make closedGivenUp -1.
func TestLoopThatHasEndedOwesNoClosed(t *testing.T) {
	sh, _ := newShard()
	if !sh.oweClosed() || sh.closedOwed.Load() != 1 {
		t.Fatalf("%d are owed, want 1", sh.closedOwed.Load())
	}
	sh.closedOwed.Store(closedGivenUp)
	for range 3 {
		sh.closedOwed.Add(1) // by connections that end late
		if sh.oweClosed() {
			t.Fatal("a loop that has ended took on one more")
		}
	}
}
