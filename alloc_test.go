//go:build linux

package tcpio

import (
	"io"
	"testing"
	"unsafe"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// connLimit is what an idle connection may cost in the Conn itself, in bytes.
const connLimit = 160

// A Conn that has grown past the limit does not compile: the array would have a negative length.
var _ [connLimit - unsafe.Sizeof(Conn{})]byte

func TestConnIsSmall(t *testing.T) {
	t.Logf("a Conn is %d bytes, what few connections need another %d, a timer %d",
		unsafe.Sizeof(Conn{}), unsafe.Sizeof(connExt{}), unsafe.Sizeof(timer{}))
}

// Sending an event through a channel allocates nothing: it is one pointer, which the interface holds itself.
func TestEventsAreOnePointer(t *testing.T) {
	for name, size := range map[string]uintptr{
		"Opened": unsafe.Sizeof(Opened{}), "Readable": unsafe.Sizeof(Readable{}),
		"Writable": unsafe.Sizeof(Writable{}), "Closed": unsafe.Sizeof(Closed{}),
	} {
		if size != unsafe.Sizeof(uintptr(0)) {
			t.Errorf("%s is %d bytes", name, size)
		}
	}
}

func skipUnderRace(t *testing.T) {
	t.Helper()
	if testnet.Race {
		t.Skip("the race detector allocates")
	}
}

func TestReadAndAnswerOnTheStreamAllocateNothing(t *testing.T) {
	skipUnderRace(t)
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	in, out, got := []byte("0123456789abcdef"), make([]byte, 64), make([]byte, 16)
	avg := testing.AllocsPerRun(2000, func() {
		if _, err := peer.Write(in); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(in); {
			if _, ok := (<-events).(Readable); !ok {
				t.Fatal("not a Readable")
			}
			m, err := c.TryRead(out)
			if err != nil && err != ErrWouldBlock {
				t.Fatal(err)
			}
			if _, err := c.TryWrite(out[:m]); err != nil {
				t.Fatal(err)
			}
			n += m
		}
		if _, err := io.ReadFull(peer, got); err != nil {
			t.Fatal(err)
		}
	})
	if avg != 0 {
		t.Errorf("%v allocations per request, want 0", avg)
	}
}

func TestReadableToAnActorAllocatesNothing(t *testing.T) {
	skipUnderRace(t)
	r := listen(t, ListenerOptions{Loops: 1, Actor: echoActor})
	r.serve()
	peer := r.dial()
	in, got := []byte("0123456789abcdef"), make([]byte, 16)
	avg := testing.AllocsPerRun(2000, func() {
		if _, err := peer.Write(in); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(peer, got); err != nil {
			t.Fatal(err)
		}
	})
	if avg != 0 {
		t.Errorf("%v allocations per request, want 0", avg)
	}
}

// A goroutine in a long write holds the lock.
func TestNamesNeedNoLock(t *testing.T) {
	r := listen(t, ListenerOptions{}).serve()
	_, c := r.open()
	want := c.String()
	c.mu.Lock()
	got, event := c.String(), Closed{c}.String()
	c.mu.Unlock()
	if got != want || event != "Closed("+want+")" {
		t.Errorf("%q and %q, want %q", got, event, want)
	}
}
