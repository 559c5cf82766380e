package wait

import (
	"sync"

	"github.com/rabbit-backend/tcpio/internal/sched"
)

// A CallQueue runs functions one at a time, in the order of Run and Post. A goroutine of its own
// runs those whose turn comes later than their call; it ends when none is left. The zero value
// works.
type CallQueue struct {
	mu sync.Mutex
	// Guarded by mu.
	queue sched.Queue[func()]
	busy  bool
}

// Run calls f on this goroutine, or queues it if another one has the turn.
func (q *CallQueue) Run(f func()) {
	if !q.Enter() {
		q.Post(f)
		return
	}
	defer q.Pass()
	f()
}

// Enter begins a turn, which Pass ends. It returns false if another goroutine has the turn.
func (q *CallQueue) Enter() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.busy {
		return false
	}
	q.busy = true
	return true
}

// Post queues f. It reports whether f is the next one and none is running.
func (q *CallQueue) Post(f func()) (next bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue.Push(f)
	if q.busy {
		return false
	}
	q.busy = true
	go q.drain()
	return true
}

// Pass ends a turn.
func (q *CallQueue) Pass() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.queue.Len() > 0 {
		go q.drain()
		return
	}
	q.busy = false
}

// drain runs what is queued. A function that calls runtime.Goexit ends it; the rest gets another
// goroutine.
func (q *CallQueue) drain() {
	exiting := true
	defer func() {
		if exiting {
			q.Pass()
		}
	}()
	for f := q.next(); f != nil; f = q.next() {
		f()
	}
	exiting = false
}

// next takes a function. With none left it ends the turn and returns nil.
func (q *CallQueue) next() (f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f, q.busy = q.queue.Pop()
	return f
}

// Len returns how many functions wait for their turn.
func (q *CallQueue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.queue.Len()
}
