package wait

import (
	"sync"

	"github.com/rabbit-backend/tcpio/internal/sched"
)

// Workers run functions that may block, on a number of goroutines that is bounded. They are started
// on demand, and end when nothing is left to run. The zero value works.
type Workers struct {
	mu sync.Mutex
	// Guarded by mu.
	queue sched.Queue[func()]
	n     int // goroutines
}

// MaxWorkers is the number of goroutines that Workers have at most.
const MaxWorkers = 32

// Do queues f, which must not panic. It does not block. Functions begin in the order of Do.
func (w *Workers) Do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue.Push(f)
	if w.n < MaxWorkers {
		w.n++
		go w.run()
	}
}

// run ends when the queue is empty. A function that calls runtime.Goexit ends its goroutine;
// another one takes its place.
func (w *Workers) run() {
	exiting := true
	defer func() {
		if exiting {
			go w.run()
		}
	}()
	for f := w.next(); f != nil; f = w.next() {
		f()
	}
	exiting = false
}

// next takes a function. With none left it counts the goroutine out and returns nil.
func (w *Workers) next() func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, ok := w.queue.Pop()
	if !ok {
		w.n--
	}
	return f
}
