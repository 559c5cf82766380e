package wait

import "testing"

func isClosed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestGateOpensForAllThatHaveEntered(t *testing.T) {
	var g Gate
	if g.Open() {
		t.Error("an empty gate let somebody through")
	}
	a, b := g.Enter(), g.Enter()
	if isClosed(a) || isClosed(b) || g.Waiting() != 2 {
		t.Fatalf("before it opens: %v, %v, %d waiting", isClosed(a), isClosed(b), g.Waiting())
	}
	if !g.Open() {
		t.Error("two waited, and Open reports none")
	}
	later := g.Enter()
	if !isClosed(a) || !isClosed(b) || isClosed(later) {
		t.Errorf("after it has opened: %v, %v; the next one %v", isClosed(a), isClosed(b), isClosed(later))
	}
	if g.Waiting() != 1 {
		t.Errorf("%d waiting, want the one that came later", g.Waiting())
	}
}

func TestGateLeaveTellsWhetherItHasOpened(t *testing.T) {
	var g Gate
	a, b := g.Enter(), g.Enter()
	if g.Leave(a) {
		t.Error("a closed gate is said to have opened")
	}
	g.Open()
	c := g.Enter()
	if !g.Leave(b) {
		t.Error("a gate that has opened is said to be closed")
	}
	if isClosed(c) || g.Waiting() != 1 {
		t.Errorf("a late Leave changed the next round: closed %v, %d waiting", isClosed(c), g.Waiting())
	}
	if g.Leave(c) || g != (Gate{}) {
		t.Errorf("the last one has left, and the gate holds %+v", g)
	}
	if g.Open() {
		t.Error("all have left, and Open reports some")
	}
}
