package sched

import (
	"sync"
	"testing"
)

func TestDemandCountsAnswersOfItsOwnBatch(t *testing.T) {
	var d Demand
	a, b := d.Add(), d.Add()
	if !d.Outstanding() {
		t.Fatal("two delivered, none outstanding")
	}
	if d.Done(a) {
		t.Error("the first of two was the last")
	}
	if !d.Done(b) {
		t.Error("the second of two was not the last")
	}
	if d.Outstanding() {
		t.Error("all answered, some outstanding")
	}
	old := d.Add()
	d.WriteOff()
	if d.Outstanding() {
		t.Error("written off, and still outstanding")
	}
	young := d.Add()
	if d.Done(old) || !d.Outstanding() {
		t.Error("a late answer to what was written off has settled another Readable")
	}
	if !d.Done(young) {
		t.Error("the only one was not the last")
	}
	if d.Done(young) || d.Outstanding() {
		t.Error("a second answer counts")
	}
}

// To see it fail: let Done load and store.
func TestDemandHasOneLastAnswer(t *testing.T) {
	for range 200 {
		var d Demand
		const n = 8
		var stamps [n]uint32
		for i := range stamps {
			stamps[i] = d.Add()
		}
		var last [n]bool
		var wg sync.WaitGroup
		for i := range stamps {
			wg.Go(func() { last[i] = d.Done(stamps[i]) })
		}
		wg.Wait()
		count := 0
		for _, l := range last {
			if l {
				count++
			}
		}
		if count != 1 || d.Outstanding() {
			t.Fatalf("%d last answers, outstanding %v", count, d.Outstanding())
		}
	}
}
