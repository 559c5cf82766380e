package sched

import (
	"sync"
	"testing"
)

func TestQueueKeepsOrder(t *testing.T) { runModel(t, queueModel) }
func FuzzQueue(f *testing.F)           { fuzzModel(f, queueModel) }

// queueModel compares a Queue with a slice. An operation is a number of pushes, or of pops.
func queueModel(t *testing.T, ops []byte) {
	var q Queue[*int]
	var want []*int
	for _, op := range ops {
		for range op >> 1 % 16 {
			if op&1 == 0 {
				item := new(int)
				q.Push(item)
				want = append(want, item)
			} else if item, ok := q.Pop(); ok != (len(want) > 0) {
				t.Fatalf("Pop: %v with %d items", ok, len(want))
			} else if ok {
				if item != want[0] {
					t.Fatal("Pop: not the oldest item")
				}
				want = want[1:]
			}
			if q.Len() != len(want) {
				t.Fatalf("length %d, want %d", q.Len(), len(want))
			}
			if len(want) == 0 && cap(q.items) > keepItems {
				t.Fatalf("an empty queue has memory for %d items", cap(q.items))
			}
			for i, item := range q.items[:cap(q.items)] {
				if item != nil && (i < q.head || i >= len(q.items)) {
					t.Fatal("the queue keeps an item alive that it does not hold")
				}
			}
		}
	}
}

// To see it fail: let Push only append.
func TestAQueueThatIsNeverEmptyDoesNotGrow(t *testing.T) {
	var q Queue[int]
	for i := range 3 {
		q.Push(i)
	}
	for i := range 10_000 {
		if item, _ := q.Pop(); item != i {
			t.Fatalf("turn %d goes to %d", i, item)
		}
		q.Push(i + 3)
	}
	if got := cap(q.items); got > 16 {
		t.Errorf("memory for %d items, of 3", got)
	}
}

// To see it fail: let Pop make the queue nil whenever it is empty.
func TestAQueueThatIsOftenEmptyAllocatesOnce(t *testing.T) {
	var q Queue[int]
	q.Push(0)
	q.Pop()
	if n := testing.AllocsPerRun(100, func() { q.Push(1); q.Pop() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestASharedQueueGivesEachItemOnce(t *testing.T) {
	var q SharedQueue[int]
	const workers, each = 4, 500
	var seen [workers * each]int
	var mu sync.Mutex
	var all sync.WaitGroup
	left := int64(len(seen))
	for w := range workers {
		all.Go(func() {
			for i := range each {
				q.Push(w*each + i)
			}
		})
		all.Go(func() {
			for {
				item, ok := q.Pop()
				mu.Lock()
				if ok {
					seen[item]++
					left--
				}
				done := left == 0
				mu.Unlock()
				if done {
					return
				}
			}
		})
	}
	all.Wait()
	for item, n := range seen {
		if n != 1 {
			t.Errorf("item %d was given %d times", item, n)
		}
	}
	if n := q.Len(); n != 0 {
		t.Errorf("%d items are left", n)
	}
}
