package wait

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// To see it fail: start a goroutine for each function, or let Goexit end one for good.
func TestWorkersAreBoundedAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Workers
		var running, most, ran atomic.Int64
		const n = 10 * MaxWorkers
		var all sync.WaitGroup
		all.Add(n)
		for i := range n {
			w.Do(func() {
				defer all.Done()
				most.Store(max(most.Load(), running.Add(1)))
				time.Sleep(time.Second)
				running.Add(-1)
				if ran.Add(1); i%3 == 0 {
					runtime.Goexit() // as user code may
				}
			})
		}
		start := time.Now()
		all.Wait()
		if d := time.Since(start); d != n/MaxWorkers*time.Second || most.Load() > MaxWorkers || ran.Load() != n {
			t.Errorf("%d of %d ran, %d at once, in %v", ran.Load(), n, most.Load(), d)
		}
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.n != 0 || w.queue.Len() != 0 {
			t.Errorf("%d goroutines and %d functions are left", w.n, w.queue.Len())
		}
	})
}
