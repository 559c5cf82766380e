package sched

import (
	"slices"
	"sync"
	"testing"
)

type item struct {
	place int32
	at    int64 // of the model
}

func (i *item) Place() *int32 { return &i.place }

func TestDeadlinesAreDueInOrder(t *testing.T) { runModel(t, deadlinesModel) }
func FuzzDeadlines(f *testing.F)              { fuzzModel(f, deadlinesModel) }

// deadlinesModel compares Deadlines with an unordered list. An operation is what to do, and with
// which item or time.
func deadlinesModel(t *testing.T, ops []byte) {
	var d Deadlines[*item]
	var model, gone []*item
	first := func() int64 {
		at := int64(0)
		for _, x := range model {
			if at == 0 || x.at < at {
				at = x.at
			}
		}
		return at
	}
	take := func(x *item) {
		i := slices.Index(model, x)
		if i < 0 {
			t.Fatal("an item came that is not in the list")
		}
		model = slices.Delete(model, i, i+1)
		gone = append(gone, x)
	}
	for i, op := range ops {
		arg := int(op >> 3)
		at := int64(1 + (i*7+arg*13)%50)
		switch op % 8 {
		case 0, 1, 2:
			x := &item{at: at}
			before := first()
			if got := d.Add(x, at); got != (before == 0 || at < before) {
				t.Fatalf("Add of %d before %d: first is %v", at, before, got)
			}
			model = append(model, x)
		case 3, 4:
			if len(model) == 0 {
				continue
			}
			x, before := model[arg%len(model)], first()
			nearer := at < x.at
			x.at = min(x.at, at)
			change := d.Add
			if op%8 == 4 {
				change = d.Advance
			}
			if got := change(x, at); got != (nearer && d.heap[0].item == x) {
				t.Fatalf("moved to %d, with the first at %d: first is %v", at, before, got)
			}
		case 5:
			if len(model) == 0 {
				continue
			}
			x := model[arg%len(model)]
			if !d.Remove(x) {
				t.Fatal("Remove of an item that is there reports false")
			}
			take(x)
		case 6:
			if len(gone) == 0 {
				continue
			}
			x := gone[arg%len(gone)]
			if d.Remove(x) || d.Advance(x, 1) {
				t.Fatal("an item that has gone can still be removed or moved")
			}
		case 7:
			before := first()
			x, ok := d.Due(at)
			if ok != (before != 0 && before <= at) {
				t.Fatalf("Due at %d, with the first at %d: %v", at, before, ok)
			}
			if ok {
				if x.at != before {
					t.Fatalf("the item of %d came, want one of %d", x.at, before)
				}
				take(x)
			}
		}
		if d.First() != first() || d.Len() != len(model) {
			t.Fatalf("%d items, the first at %d; want %d at %d", d.Len(), d.First(), len(model), first())
		}
		if len(model) == 0 && d.heap != nil {
			t.Fatal("an empty heap keeps memory")
		}
		for i, e := range d.heap {
			switch {
			case e.item.place != int32(i+1):
				t.Fatalf("the item at %d believes to be at %d", i, e.item.place-1)
			case e.at != e.item.at:
				t.Fatalf("the item of %d is due at %d", e.item.at, e.at)
			case i > 0 && d.heap[(i-1)/4].at > e.at:
				t.Fatalf("the item at %d is due before its parent", i)
			}
		}
		for _, x := range gone {
			if x.place != 0 {
				t.Fatal("an item that has gone has a place")
			}
		}
	}
}

func TestDeadlinesComeOnceToOneOfManyTakers(t *testing.T) {
	var d Deadlines[*item]
	items := make([]item, 2000)
	var all sync.WaitGroup
	var mu sync.Mutex
	taken := 0
	for w := range 4 {
		all.Go(func() {
			for i := w; i < len(items); i += 4 {
				d.Add(&items[i], int64(i+1))
				if i%3 == 0 && d.Remove(&items[i]) {
					mu.Lock()
					taken++
					mu.Unlock()
				}
				if _, ok := d.Due(1 << 40); ok {
					mu.Lock()
					taken++
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	for {
		if _, ok := d.Due(1 << 40); !ok {
			break
		}
		taken++
	}
	if taken != len(items) || d.First() != 0 {
		t.Errorf("%d items came, want %d; the next is due at %d", taken, len(items), d.First())
	}
}
