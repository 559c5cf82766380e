package quota

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestLogLimitIsTenLinesAndThenOneASecond(t *testing.T) {
	var l LogLimit
	const start = int64(100 * time.Hour)
	take := func(after time.Duration) (uint64, bool) { return l.Take(start + int64(after)) }
	for i := range 10 {
		if n, ok := take(0); !ok || n != 0 {
			t.Fatalf("line %d of the burst: %d suppressed, %v", i, n, ok)
		}
	}
	for range 3 {
		if _, ok := take(time.Second - 1); ok {
			t.Fatal("an eleventh line within the first second")
		}
	}
	l.Suppress()
	if n, ok := take(time.Second); !ok || n != 4 {
		t.Errorf("after a second: %d suppressed, %v; want 4, true", n, ok)
	}
	if _, ok := take(time.Second); ok {
		t.Error("two lines in the second second")
	}
	if n := l.Suppressed(); n != 1 {
		t.Errorf("%d suppressed at the end, want 1", n)
	}
	if n := l.Suppressed(); n != 0 {
		t.Errorf("%d suppressed, which have been reported", n)
	}
	got := 0
	for range 20 { // after a long silence the burst is whole, and no larger
		if _, ok := take(time.Hour); ok {
			got++
		}
	}
	if got != 10 {
		t.Errorf("%d lines at once after an hour, want 10", got)
	}
}

func TestOneAddressIsAnIPv4AddressOrAnIPv6Network(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true}, // as a dual-stack socket shows it
		{"::ffff:192.0.2.1", "::ffff:192.0.2.2", false},
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true},
		{"2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{"::1", "::2", true},
		{"fe80::1", "fe80::2", true},
		{"fe80::1%1", "fe80::2%2", true},
	} {
		var p PerAddress
		a, b := netip.MustParseAddr(tt.a), netip.MustParseAddr(tt.b)
		if !p.Take(a, 1) {
			t.Fatalf("%s is refused the first place", a)
		}
		if same := !p.Take(b, 1); same != tt.same {
			t.Errorf("%s and %s: one address is %v, want %v", a, b, same, tt.same)
		}
		p.Give(a)
		if !tt.same {
			p.Give(b)
		}
		if len(p.conns) != 0 {
			t.Errorf("%v are left", p.conns)
		}
	}
}

func TestPerAddressGivesPlacesBack(t *testing.T) {
	var p PerAddress
	a := netip.MustParseAddr("192.0.2.1")
	for round := range 3 {
		for i := range 4 {
			if got, want := p.Take(a, 3), i < 3; got != want {
				t.Errorf("round %d: place %d is %v", round, i, got)
			}
		}
		for range 3 {
			p.Give(a)
		}
	}
}

func TestBudgetRefusesUntilHalfIsFree(t *testing.T) {
	b := Budget[string]{Most: 100}
	b.Add(50)
	if !b.Fits(1000) {
		t.Error("with half of it free a large write is refused")
	}
	b.Add(40)
	if !b.Fits(10) || b.Fits(11) || b.Left() != 10 {
		t.Errorf("of 10 bytes left: 10 fit %v, 11 fit %v, %d are left", b.Fits(10), b.Fits(11), b.Left())
	}
	for _, k := range []string{"a", "b", "b", "c"} {
		if wake := b.Wait(k); wake != nil {
			t.Errorf("%v wait no more, and nothing was freed", wake)
		}
	}
	b.Leave("c")
	if wake := b.Free(39); wake != nil || b.Waiting() != 2 {
		t.Errorf("at 51 bytes %v are woken, %d wait", wake, b.Waiting())
	}
	if got := slices.Sorted(maps.Keys(b.Free(1))); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("at 50 bytes %v are woken, want a and b", got)
	}
	if wake := b.Free(50); wake != nil || b.Used() != 0 {
		t.Errorf("%v are woken twice, %d bytes are used", wake, b.Used())
	}
	if wake := b.Wait("late"); len(wake) != 1 {
		t.Errorf("one that was refused before the budget was freed is not woken: %v", wake)
	}
}

func TestBudgetWithoutABoundCounts(t *testing.T) {
	var b Budget[int]
	b.Add(1 << 30)
	if !b.Fits(1<<31-1) || b.Used() != 1<<30 {
		t.Errorf("%d bytes are used", b.Used())
	}
}

// Each that waits is woken, whichever order Wait and Free run in.
func TestBudgetLosesNobody(t *testing.T) {
	b := Budget[int]{Most: 2}
	const n = 1000
	woken := make(chan int, 2*n)
	wake := func(m map[int]struct{}) {
		for k := range m {
			woken <- k
		}
	}
	for i := range n {
		b.Add(2)
		var both sync.WaitGroup
		both.Go(func() { wake(b.Wait(i)) })
		both.Go(func() { wake(b.Free(2)) })
		both.Wait()
	}
	if b.Waiting() != 0 || len(woken) != n {
		t.Errorf("%d of %d are woken, %d wait", len(woken), n, b.Waiting())
	}
}
