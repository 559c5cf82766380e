//go:build linux

package tcpio

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"
	"time"
)

// To see it fail: count the refused connections in live, or yield them.
func TestNobodySeesARefusedConnection(t *testing.T) {
	for name, end := range map[string]func(r *rig) error{
		"Close":    func(r *rig) error { return r.Close() },
		"Shutdown": func(r *rig) error { return r.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			r := listen(t, ListenerOptions{Loops: 1, MaxConns: 1, RefuseReply: []byte("full"), CloseTimeout: 200 * time.Millisecond})
			r.Events()
			r.serve()
			_, served := r.open()
			stop := make(chan struct{})
			var watching sync.WaitGroup
			watching.Go(func() {
				for {
					if n := r.Len(); n != 1 {
						t.Errorf("Len is %d with one connection", n)
					}
					if n := r.Stats().Open; n != 1 {
						t.Errorf("Stats().Open is %d with one connection", n)
					}
					if got := slices.Collect(r.Conns()); len(got) != 1 || got[0] != served {
						t.Errorf("%d connections, want the one that is served", len(got))
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
			const refused = 20
			for range refused {
				peer := r.dial()
				if _, err := io.ReadFull(peer, make([]byte, 4)); err != nil {
					t.Errorf("the reply: %v", err)
				}
			}
			if n := r.Stats().Refusing; n == 0 {
				t.Error("no refused connection is left for the test")
			}
			close(stop)
			watching.Wait()
			// They end with the listener all the same.
			if err := end(r); err != nil {
				t.Error(err)
			}
			if n := r.Stats().Refusing; n != 0 {
				t.Errorf("%d refused connections are left", n)
			}
		})
	}
}

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
