//go:build linux

package harness

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// Order checks the order of events on one route. It is not for several goroutines.
type Order struct {
	Open map[uint64]bool // by Conn.ID
	Seen int             // connections opened
}

// Check returns what is wrong with ev, behind the events that it was given before.
func (o *Order) Check(ev tcpio.Event) error {
	if o.Open == nil {
		o.Open = make(map[uint64]bool)
	}
	c := tcpio.ConnOf(ev)
	if c == nil {
		return nil
	}
	id := c.ID()
	switch ev.(type) {
	case tcpio.Opened:
		if o.Open[id] {
			return fmt.Errorf("connection %d opened twice", id)
		}
		o.Open[id] = true
		o.Seen++
	case tcpio.Closed:
		if !o.Open[id] {
			return fmt.Errorf("connection %d: Closed without Opened, or twice", id)
		}
		delete(o.Open, id)
	default:
		if !o.Open[id] {
			return fmt.Errorf("connection %d: %T before Opened or after Closed", id, ev)
		}
	}
	return nil
}

// Alone finds out when two goroutines are inside at the same time.
type Alone struct{ in atomic.Int32 }

// Enter goes inside.
func (a *Alone) Enter(t testing.TB) (leave func()) {
	if a.in.Add(1) != 1 {
		t.Error("two events of one connection were handled together")
	}
	return func() { a.in.Add(-1) }
}

// Expect takes the next event, which must be an E.
func Expect[E tcpio.Event](t testnet.T, events <-chan tcpio.Event) E {
	t.Helper()
	var want E
	ev := testnet.Receive(t, fmt.Sprintf("%T", want), events)
	e, ok := ev.(E)
	if !ok {
		t.Fatalf("got %T, want %T", ev, want)
	}
	return e
}

// ExpectSilence fails the test when an event comes within d.
func ExpectSilence(t testnet.T, events <-chan tcpio.Event, d time.Duration) {
	t.Helper()
	select {
	case ev, ok := <-events:
		if !ok {
			t.Fatalf("the channel was closed, want nothing")
		}
		t.Fatalf("got %T, want nothing", ev)
	case <-time.After(d):
	}
}

// ReadStream takes events until c's input has given n bytes or ended, and returns what was read and
// the end's error.
func ReadStream(t testnet.T, events <-chan tcpio.Event, c *tcpio.Conn, n, bufSize int) ([]byte, error) {
	t.Helper()
	var got []byte
	buf := make([]byte, bufSize)
	for n < 0 || len(got) < n {
		ev := Expect[tcpio.Readable](t, events)
		if ev.Conn != c {
			t.Fatalf("Readable of connection %d, want %d", ev.Conn.ID(), c.ID())
		}
		m, err := c.TryRead(buf)
		got = append(got, buf[:m]...)
		if err != nil && err != tcpio.ErrWouldBlock {
			return got, err
		}
	}
	return got, nil
}

// Fill writes chunks of size until the connection refuses, and returns everything accepted.
func Fill(t testnet.T, c *tcpio.Conn, size int) []byte {
	t.Helper()
	source := testnet.Pattern(size)
	var accepted []byte
	for {
		n, err := c.TryWrite(source)
		switch {
		case err == nil && n == size:
			accepted = append(accepted, source...)
		case err == tcpio.ErrWouldBlock && n == 0:
			return accepted
		default:
			t.Fatalf("TryWrite = %d, %v, want all or ErrWouldBlock", n, err)
		}
		if len(accepted) > 256<<20 {
			t.Fatalf("%d bytes accepted while the peer reads nothing", len(accepted))
		}
	}
}
