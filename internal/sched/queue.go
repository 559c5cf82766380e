// Package sched has what an event loop keeps its work in: queues, deadlines, a table of what it
// serves, and the count of answers it waits for.
package sched

import "sync"

// keepItems is how many items an empty Queue has memory for; it gives back more than that.
const keepItems = 64

// A Queue is first in, first out. Its owner guards it with a lock; the zero value is empty and
// holds no memory.
type Queue[T any] struct {
	items []T
	head  int // items[:head] are taken
}

// Push appends item. The queue moves its items to the front of its memory before it takes more
// memory, if half of that is free: a queue that is never empty would otherwise grow for ever.
func (q *Queue[T]) Push(item T) {
	if q.head > 0 && len(q.items) == cap(q.items) && q.head >= len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, item)
}

// Pop takes the oldest item. It returns false if there is none.
func (q *Queue[T]) Pop() (item T, ok bool) {
	if q.head == len(q.items) {
		return item, false
	}
	var none T
	item, q.items[q.head] = q.items[q.head], none
	if q.head++; q.head == len(q.items) {
		if q.items, q.head = q.items[:0], 0; cap(q.items) > keepItems {
			q.items = nil
		}
	}
	return item, true
}

// Len returns the number of items.
func (q *Queue[T]) Len() int { return len(q.items) - q.head }

// A SharedQueue is a Queue with a lock.
type SharedQueue[T any] struct {
	mu sync.Mutex
	q  Queue[T] // guarded by mu
}

// Push appends item.
func (s *SharedQueue[T]) Push(item T) {
	s.mu.Lock()
	s.q.Push(item)
	s.mu.Unlock()
}

// Pop takes the oldest item. It returns false if there is none.
func (s *SharedQueue[T]) Pop() (item T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.Pop()
}

// Len returns the number of items.
func (s *SharedQueue[T]) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.Len()
}
