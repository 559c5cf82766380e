package sched

import (
	"sync"
	"sync/atomic"
)

// An Item can be in one Deadlines at a time. Place returns where it keeps its place there: zero
// means that it is in none. The lock of the Deadlines guards the place.
type Item interface{ Place() *int32 }

// Deadlines has items that are due at a time, the earliest first. Times are those of a clock of the
// owner's choice, above zero. The zero value is empty.
type Deadlines[T Item] struct {
	first atomic.Int64 // the earliest time, 0 without any

	mu sync.Mutex
	// Guarded by mu.
	heap heap[T]
}

// Add has item due at time at, or earlier if it is due earlier already. It reports whether the
// first time is now item's.
func (d *Deadlines[T]) Add(item T, at int64) (first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if *item.Place() != 0 {
		return d.advanceLocked(item, at)
	}
	place := d.heap.push(item, at)
	d.first.Store(d.heap[0].at)
	return place == 1
}

// Advance is Add for an item that is in d. It returns false if it is not, because it was due or
// removed.
func (d *Deadlines[T]) Advance(item T, at int64) (first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return *item.Place() != 0 && d.advanceLocked(item, at)
}

func (d *Deadlines[T]) advanceLocked(item T, at int64) (first bool) {
	i := int(*item.Place() - 1)
	if d.heap[i].at <= at {
		return false
	}
	d.heap[i].at = at
	place := d.heap.up(i)
	d.first.Store(d.heap[0].at)
	return place == 1
}

// Remove takes item out. It returns false if item is not in d, because it was due or removed.
func (d *Deadlines[T]) Remove(item T) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	place := *item.Place()
	if place == 0 {
		return false
	}
	d.removeLocked(int(place - 1))
	return true
}

// Due takes the first item if its time is now or earlier. It returns false if no item is due.
func (d *Deadlines[T]) Due(now int64) (item T, ok bool) {
	if first := d.first.Load(); first == 0 || first > now {
		return item, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.heap) == 0 || d.heap[0].at > now {
		return item, false
	}
	item = d.heap[0].item
	d.removeLocked(0)
	return item, true
}

// First returns when the first item is due, 0 if there is none. It takes no lock.
func (d *Deadlines[T]) First() int64 { return d.first.Load() }

// Len returns the number of items.
func (d *Deadlines[T]) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.heap)
}

func (d *Deadlines[T]) removeLocked(i int) {
	d.heap.remove(i)
	if len(d.heap) == 0 {
		d.first.Store(0)
	} else {
		d.first.Store(d.heap[0].at)
	}
}

// A heap is ordered by time, the earliest first. It is four-ary: shallower than a binary heap, and
// the children of a node lie side by side. The times are in the heap, so that a comparison touches
// no item.
type heap[T Item] []entry[T]

type entry[T Item] struct {
	at   int64
	item T
}

// push adds item and returns its place.
func (h *heap[T]) push(item T, at int64) (place int32) {
	*h = append(*h, entry[T]{at, item})
	return h.up(len(*h) - 1)
}

// remove takes out the entry at i. An empty heap gives its memory back.
func (h *heap[T]) remove(i int) {
	old, last := *h, len(*h)-1
	*old[i].item.Place() = 0
	moved := old[last]
	old[last] = entry[T]{}
	*h = old[:last]
	switch {
	case last == 0:
		*h = nil
	case i < last:
		old[i] = moved
		h.down(i)
		h.up(i)
	}
}

// up moves the entry at i towards the front as far as its time demands, and returns its place.
func (h heap[T]) up(i int) (place int32) {
	e := h[i]
	for i > 0 {
		parent := (i - 1) / 4
		if h[parent].at <= e.at {
			break
		}
		h.put(i, h[parent])
		i = parent
	}
	return h.put(i, e)
}

// down moves the entry at i towards the back.
func (h heap[T]) down(i int) {
	e := h[i]
	for {
		least, at := i, e.at
		for child := 4*i + 1; child <= 4*i+4 && child < len(h); child++ {
			if h[child].at < at {
				least, at = child, h[child].at
			}
		}
		if least == i {
			break
		}
		h.put(i, h[least])
		i = least
	}
	h.put(i, e)
}

func (h heap[T]) put(i int, e entry[T]) (place int32) {
	place = int32(i + 1)
	h[i] = e
	*e.item.Place() = place
	return place
}
