package sched

import (
	"iter"
	"sync"
)

// A Key names an entry of a Table: its slot, and the slot's generation, which tells the entry from
// earlier ones. The generation of an entry is never zero.
type Key struct{ Slot, Gen uint32 }

// A Table finds items by their keys. The zero value is empty.
type Table[T any] struct {
	mu sync.Mutex
	// Guarded by mu.
	items []T
	gens  []uint32 // of items; zero: the slot is free
	free  []uint32
	gen   uint32 // the last one given
}

// Add stores item and sets *key to its key, before another goroutine can find it.
func (t *Table[T]) Add(item T, key *Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gen++; t.gen == 0 {
		t.gen = 1
	}
	key.Gen = t.gen
	if n := len(t.free); n > 0 {
		key.Slot = t.free[n-1]
		t.free = t.free[:n-1]
		t.items[key.Slot], t.gens[key.Slot] = item, t.gen
		return
	}
	key.Slot = uint32(len(t.items))
	t.items, t.gens = append(t.items, item), append(t.gens, t.gen)
}

// Remove takes out the item with the key k, which must be in the table.
func (t *Table[T]) Remove(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var none T
	t.items[k.Slot], t.gens[k.Slot] = none, 0
	t.free = append(t.free, k.Slot)
}

// Lock is called before some calls of Find.
func (t *Table[T]) Lock() { t.mu.Lock() }

// Unlock is called behind them.
func (t *Table[T]) Unlock() { t.mu.Unlock() }

// Find returns the item with the key k, the zero value if there is none. The caller has called
// Lock.
func (t *Table[T]) Find(k Key) (item T) {
	if k.Gen != 0 && k.Slot < uint32(len(t.gens)) && t.gens[k.Slot] == k.Gen {
		item = t.items[k.Slot]
	}
	return item
}

// piece is how many slots All looks at under one hold of the lock: Find must not wait for long.
const piece = 1024

// All iterates over the items. An item keeps its slot for life, so that one which is there all the
// while is yielded exactly once. No lock is held while the body runs.
func (t *Table[T]) All() iter.Seq[T] {
	return func(yield func(T) bool) {
		var items []T
		for slot := 0; slot >= 0; {
			slot, items = t.piece(slot, items[:0])
			for _, item := range items {
				if !yield(item) {
					return
				}
			}
		}
	}
}

// piece appends the items of the next slots to items, and returns the slot to go on with, -1 behind
// the last one.
func (t *Table[T]) piece(from int, items []T) (next int, _ []T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next = min(from+piece, len(t.items))
	for slot := min(from, next); slot < next; slot++ {
		if t.gens[slot] != 0 {
			items = append(items, t.items[slot])
		}
	}
	if next == len(t.items) {
		next = -1
	}
	return next, items
}

// Slots returns the number of slots, and how many of them are free.
func (t *Table[T]) Slots() (slots, free int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.items), len(t.free)
}
