package quota

import (
	"sync"
	"sync/atomic"
)

// A Budget bounds the bytes that several queues hold together. It remembers the owners of queues
// that it refused room, of type K, until half of it is free. With Most 0 it only counts. It may be
// used by several goroutines, and calls nothing of its callers'.
type Budget[K comparable] struct {
	Most int64 // bytes; immutable

	used    atomic.Int64
	refused atomic.Bool // waiting is not empty

	mu sync.Mutex
	// Guarded by mu.
	waiting map[K]struct{}
}

// Used returns the bytes that are queued.
func (b *Budget[K]) Used() int64 { return b.used.Load() }

// Add counts n bytes that are queued. It does not ask whether they fit.
func (b *Budget[K]) Add(n int) { b.used.Add(int64(n)) }

// Left returns how many bytes fit. It may be negative.
func (b *Budget[K]) Left() int64 { return b.Most - b.used.Load() }

// Fits reports whether size more bytes may be queued: they fit, or half of the budget is free.
func (b *Budget[K]) Fits(size int) bool {
	if b.Most == 0 {
		return true
	}
	used := b.used.Load()
	return used <= b.Most/2 || used+int64(size) <= b.Most
}

// Wait remembers k until half of the budget is free. Other goroutines may have freed it since k
// was refused: Wait returns what Free returns, and k may be in it.
func (b *Budget[K]) Wait(k K) (wake map[K]struct{}) {
	b.mu.Lock()
	if b.waiting == nil {
		b.waiting = make(map[K]struct{})
	}
	b.waiting[k] = struct{}{}
	b.refused.Store(true)
	b.mu.Unlock()
	return b.Free(0)
}

// Free counts n bytes that are no longer queued. If half of the budget is free then, it returns
// those that wait, which the caller wakes; they wait no more.
func (b *Budget[K]) Free(n int) (wake map[K]struct{}) {
	if b.used.Add(-int64(n)) > b.Most/2 || !b.refused.Load() {
		return nil
	}
	return b.wake()
}

func (b *Budget[K]) wake() (waiting map[K]struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	waiting, b.waiting = b.waiting, nil
	b.refused.Store(false)
	return waiting
}

// Leave forgets k.
func (b *Budget[K]) Leave(k K) {
	b.mu.Lock()
	delete(b.waiting, k)
	b.mu.Unlock()
}

// Waiting returns how many wait.
func (b *Budget[K]) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting)
}
