package main

import (
	"container/heap"
	"math"
	"strconv"
	"time"
)

const (
	errNotInteger = replyError("ERR value is not an integer or out of range")
	errOverflow   = replyError("ERR increment or decrement would overflow")
)

// store is the data: one map and no lock, because one goroutine owns it.
//
// A key with a time to live disappears by two ways: every access looks at the time first (lazy),
// and sweep removes what nobody asks for (active). A heap ordered by deadline lets sweep touch
// expired keys only.
type store struct {
	// Immutable.
	now   func() time.Time
	epoch time.Time // the clock at the start; only what passed since is added, so that a step of it expires nothing

	// Owned by the loop.
	items   map[string]*item
	due     dueHeap // the items that have a deadline, the next one first
	expired uint64  // keys that ran out, for INFO
	watched map[string]map[*watch]bool
}

// A watch tells one client whether a key has changed since it asked.
type watch struct {
	keys  []string
	size  int // bytes of them, watchOverhead for each included
	dirty bool
}

// item is one key and its value.
type item struct {
	key      string
	value    []byte
	deadline int64 // milliseconds since 1970, as millis; noDeadline for ever
	index    int   // in the heap, valid while there is a deadline
}

const noDeadline = math.MaxInt64

func newStore(now func() time.Time) *store {
	return &store{now: now, epoch: now(), items: make(map[string]*item), watched: make(map[string]map[*watch]bool)}
}

// millis is the time since 1970, by the monotonic clock where now has one. Counted from there, the
// longest time to live is that of Redis.
func (s *store) millis() int64 { return s.epoch.UnixMilli() + s.now().Sub(s.epoch).Milliseconds() }

// lookup returns the live item of key, nil if there is none.
func (s *store) lookup(key []byte) *item {
	it := s.items[string(key)]
	if it != nil && it.deadline != noDeadline && it.deadline <= s.millis() {
		s.expired++
		s.remove(it)
		return nil
	}
	return it
}

// get returns the value of key. It is the store's and valid until the next change.
func (s *store) get(key []byte) (value []byte, ok bool) {
	it := s.lookup(key)
	if it == nil {
		return nil, false
	}
	return it.value, true
}

// set stores a copy of value until the deadline.
func (s *store) set(key, value []byte, deadline int64) {
	s.expire(s.put(key, value), deadline)
}

// put stores a copy of value and returns the item. A deadline that the key had stays.
func (s *store) put(key, value []byte) *item {
	it := s.lookup(key)
	if it == nil {
		it = &item{key: string(key), deadline: noDeadline}
		s.items[it.key] = it
	}
	s.touch(it.key)
	if cap(it.value) > 2*len(value)+64 {
		it.value = nil // A short value does not keep the room of a long one.
	}
	it.value = append(it.value[:0], value...)
	return it
}

// del removes key and reports whether it was there.
func (s *store) del(key []byte) bool {
	it := s.lookup(key)
	if it == nil {
		return false
	}
	s.remove(it)
	return true
}

func (s *store) remove(it *item) {
	s.expire(it, noDeadline) // touches it, too
	delete(s.items, it.key)
}

// deadline returns the point that is ttl milliseconds from now; ok is false when that is past the
// end of time.
func (s *store) deadline(ttl int64) (at int64, ok bool) {
	now := s.millis()
	if ttl >= noDeadline-now {
		return 0, false
	}
	return now + ttl, true
}

// expire gives the item a deadline, or takes it away with noDeadline.
func (s *store) expire(it *item, deadline int64) {
	s.touch(it.key)
	had := it.deadline != noDeadline
	it.deadline = deadline
	switch {
	case had && deadline != noDeadline:
		heap.Fix(&s.due, it.index)
	case had:
		heap.Remove(&s.due, it.index)
	case deadline != noDeadline:
		heap.Push(&s.due, it)
	}
}

// sweep removes up to limit keys that ran out and returns how many it removed. The limit bounds how
// long connections wait for it.
func (s *store) sweep(limit int) int {
	now := s.millis()
	n := 0
	for n < limit && len(s.due) > 0 && s.due[0].deadline <= now {
		s.remove(s.due[0])
		n++
	}
	s.expired += uint64(n)
	return n
}

// add is INCRBY: it adds delta to the number stored at key, 0 if there is none.
func (s *store) add(key []byte, delta int64) (int64, error) {
	var v int64
	it := s.lookup(key)
	if it != nil {
		var ok bool
		if v, ok = parseInt(it.value); !ok {
			return 0, errNotInteger
		}
	}
	if delta > 0 && v > math.MaxInt64-delta || delta < 0 && v < math.MinInt64-delta {
		return 0, errOverflow
	}
	v += delta
	var digits [20]byte
	s.put(key, strconv.AppendInt(digits[:0], v, 10))
	return v, nil
}

// flush removes everything.
func (s *store) flush() {
	for key := range s.watched {
		if s.items[key] != nil {
			s.touch(key)
		}
	}
	s.items = make(map[string]*item)
	s.due = nil
}

// watch adds key to those whose changes w is told of. A key that has run out goes now, and that is
// no change.
func (s *store) watch(w *watch, key []byte) {
	s.lookup(key)
	if s.watched[string(key)][w] || w.dirty {
		return
	}
	k := string(key)
	if s.watched[k] == nil {
		s.watched[k] = make(map[*watch]bool)
	}
	s.watched[k][w] = true
	w.keys = append(w.keys, k)
	w.size += len(k) + watchOverhead
}

// unwatch forgets w.
func (s *store) unwatch(w *watch) {
	for _, key := range w.keys {
		delete(s.watched[key], w)
		if len(s.watched[key]) == 0 {
			delete(s.watched, key)
		}
	}
	*w = watch{}
}

// changed reports whether one of the keys has changed, or run out.
func (s *store) changed(w *watch) bool {
	for _, key := range w.keys {
		if s.lookup([]byte(key)); w.dirty {
			break
		}
	}
	return w.dirty
}

// touch tells those who watch key that it changes. They need to hear of it once only.
func (s *store) touch(key string) {
	watches, ok := s.watched[key]
	if !ok {
		return
	}
	for w := range watches {
		w.dirty = true
	}
	delete(s.watched, key)
}

// dueHeap orders items by deadline for container/heap; every item knows its place in it.
type dueHeap []*item

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].deadline < h[j].deadline }

func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueHeap) Push(x any) {
	it := x.(*item)
	it.index = len(*h)
	*h = append(*h, it)
}

func (h *dueHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}
