package wait

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestCallsRunOneAtATimeInTheOrderOfPost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q CallQueue
		var got []int // without a lock: the queue is one
		for i := range 100 {
			first := q.Post(func() { time.Sleep(time.Millisecond); got = append(got, i) })
			if first != (i == 0) {
				t.Errorf("Post of call %d says that it is next: %v", i, first)
			}
		}
		if n := q.Len(); n < 99 {
			t.Errorf("%d wait, want at least 99", n)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(got) != 100 || !slices.IsSorted(got) {
			t.Errorf("calls were made in the order %v", got)
		}
		if n := q.Len(); n != 0 {
			t.Errorf("%d still wait", n)
		}
	})
}

func TestCallsOfManyGoroutinesDoNotOverlap(t *testing.T) {
	var q CallQueue
	var callers, calls sync.WaitGroup
	total := 0 // the race detector watches it
	for i := range 8 {
		callers.Go(func() {
			for range 200 {
				calls.Add(1)
				f := func() { total++; calls.Done() }
				switch {
				case i%3 == 0:
					q.Post(f)
				case i%3 == 1:
					q.Run(f)
				case q.Enter():
					f()
					q.Pass()
				default:
					q.Post(f)
				}
			}
		})
	}
	callers.Wait()
	calls.Wait()
	if total != 8*200 {
		t.Errorf("%d calls, want %d", total, 8*200)
	}
}

// A turn that ends by a panic or by runtime.Goexit does not keep the others from theirs.
func TestCallsGoOnBehindOneThatDoesNotReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q CallQueue
		ran := 0
		q.Post(func() { time.Sleep(time.Second); runtime.Goexit() })
		q.Post(func() { ran++ })
		q.Post(func() { runtime.Goexit() })
		q.Post(func() { ran++ })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		func() {
			defer func() { _ = recover() }()
			q.Run(func() {
				q.Run(func() { ran++ }) // not now: this one has the turn
				if ran != 2 {
					t.Errorf("%d calls so far, want 2", ran)
				}
				panic("not the queue's")
			})
		}()
		synctest.Wait()
		if ran != 3 || !q.Enter() {
			t.Errorf("%d calls were made, want 3; then nobody has the turn", ran)
		}
	})
}
