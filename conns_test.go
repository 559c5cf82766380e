//go:build linux

package tcpio

import (
	"testing"
)

// To see it fail: walk the table with its lock held, or by anything but slots.
func TestConnsYieldsWhatIsThereAllTheWhileExactlyOnce(t *testing.T) {
	var tab table
	var stay, go_ []*Conn
	for i := range 5*tablePiece + 7 {
		c := &Conn{id: uint64(i + 1)}
		tab.add(c)
		if i%3 == 0 {
			go_ = append(go_, c)
		} else {
			stay = append(stay, c)
		}
	}
	seen := make(map[*Conn]int)
	n := 0
	for c := range tab.all() {
		seen[c]++
		if !tab.mu.TryLock() {
			t.Fatal("the table is locked while the body runs")
		}
		tab.mu.Unlock()
		// Others come and go, into the same slots and behind the last.
		if n++; n%2 == 0 && len(go_) > 0 {
			tab.remove(go_[0])
			go_ = go_[1:]
		}
		if n%5 == 0 && n < 3000 {
			tab.add(&Conn{id: uint64(1e6 + n)})
		}
	}
	for _, c := range stay {
		if seen[c] != 1 {
			t.Fatalf("connection %d came %d times", c.id, seen[c])
		}
	}
	for c, n := range seen {
		if n != 1 {
			t.Fatalf("connection %d came %d times", c.id, n)
		}
	}
	for from, piece := 0, []*Conn(nil); from >= 0; {
		if from, piece = tab.piece(from, piece[:0]); len(piece) > tablePiece {
			t.Fatalf("%d connections under one hold of the lock", len(piece))
		}
	}
	n = 0
	for range tab.all() {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("%d came before the break", n)
	}
	for range new(table).all() {
		t.Error("an empty table yields something")
	}
}
