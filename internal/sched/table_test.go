package sched

import (
	"math"
	"slices"
	"testing"
)

func TestTableFindsByGeneration(t *testing.T) { runModel(t, tableModel) }
func FuzzTable(f *testing.F)                  { fuzzModel(f, tableModel) }

func find(t *Table[*int], k Key) *int {
	t.Lock()
	defer t.Unlock()
	return t.Find(k)
}

// tableModel compares a Table with a map.
func tableModel(t *testing.T, ops []byte) {
	var tab Table[*int]
	live := map[Key]*int{}
	var keys, dead []Key
	for _, op := range ops {
		if op%2 == 0 || len(keys) == 0 {
			var k Key
			item := new(int)
			tab.Add(item, &k)
			if live[k] != nil || slices.Contains(dead, k) {
				t.Fatalf("key %v was given twice", k)
			}
			live[k] = item
			keys = append(keys, k)
		} else {
			i := int(op>>1) % len(keys)
			tab.Remove(keys[i])
			delete(live, keys[i])
			dead = append(dead, keys[i])
			keys = slices.Delete(keys, i, i+1)
		}
		for _, k := range keys {
			if find(&tab, k) != live[k] {
				t.Fatalf("key %v finds another item", k)
			}
		}
		for _, k := range dead {
			if find(&tab, k) != nil {
				t.Fatalf("key %v finds something, and was removed", k)
			}
		}
		if slots, free := tab.Slots(); slots-free != len(keys) || slots > len(keys)+len(dead) {
			t.Fatalf("%d slots, %d free, for %d items", slots, free, len(keys))
		}
	}
	all := slices.Collect(tab.All())
	for _, item := range live {
		if !slices.Contains(all, item) {
			t.Fatal("All does not yield an item")
		}
	}
	if len(all) != len(live) {
		t.Fatalf("All yields %d items, want %d", len(all), len(live))
	}
}

func TestKeysOfNothingFindNothing(t *testing.T) {
	var tab Table[*int]
	var k Key
	item := new(int)
	if find(&tab, Key{}) != nil || find(&tab, Key{0, 1}) != nil {
		t.Error("an empty table has something")
	}
	tab.Add(item, &k)
	for _, slot := range []uint32{1, 1 << 31, math.MaxUint32} { // an int may be as short
		if find(&tab, Key{slot, k.Gen}) != nil {
			t.Errorf("slot %d has something", slot)
		}
	}
	if find(&tab, Key{0, 0}) != nil || find(&tab, k) != item {
		t.Error("the item is not found by its own key, or by generation zero")
	}
	tab.Remove(k)
	if find(&tab, Key{0, 0}) != nil {
		t.Error("a free slot has something")
	}
}

func TestTableReusesSlotsAndSkipsGenerationZero(t *testing.T) {
	var tab Table[int]
	var k Key
	tab.Add(1, &k)
	for range 100 {
		tab.Remove(k)
		if tab.Add(1, &k); k.Slot != 0 {
			t.Fatalf("slot %d while 0 was free", k.Slot)
		}
	}
	tab.gen = math.MaxUint32
	if tab.Add(2, &k); k.Gen != 1 {
		t.Errorf("generation %d after the last one, want 1", k.Gen)
	}
}

// To see it fail: walk the table with its lock held, or by anything but slots.
func TestAllYieldsWhatIsThereAllTheWhileExactlyOnce(t *testing.T) {
	type entry struct {
		key  Key
		seen int
	}
	var tab Table[*entry]
	var stay, leave []*entry
	for i := range 5*piece + 7 {
		e := new(entry)
		tab.Add(e, &e.key)
		if i%3 == 0 {
			leave = append(leave, e)
		} else {
			stay = append(stay, e)
		}
	}
	n := 0
	for e := range tab.All() {
		if e.seen++; e.seen > 1 {
			t.Fatalf("the item of slot %d came twice", e.key.Slot)
		}
		if !tab.mu.TryLock() {
			t.Fatal("the table is locked while the body runs")
		}
		tab.mu.Unlock()
		// Others come and go, into the same slots and behind the last.
		if n++; n%2 == 0 && len(leave) > 0 {
			tab.Remove(leave[0].key)
			leave = leave[1:]
		}
		if n%5 == 0 && n < 3000 {
			e := new(entry)
			tab.Add(e, &e.key)
		}
	}
	for _, e := range stay {
		if e.seen != 1 {
			t.Fatalf("the item of slot %d came %d times", e.key.Slot, e.seen)
		}
	}
	for from, items := 0, []*entry(nil); from >= 0; {
		if from, items = tab.piece(from, items[:0]); len(items) > piece {
			t.Fatalf("%d items under one hold of the lock", len(items))
		}
	}
	n = 0
	for range tab.All() {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("%d came before the break", n)
	}
}
