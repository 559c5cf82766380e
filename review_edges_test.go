//go:build linux

package tcpio

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/sys"
)

// To see it fail: let register begin the limits behind the hook.
func TestAnIdleTimeoutSetByTheActorHookHolds(t *testing.T) {
	hooked := make(chan *Conn, 1)
	r := listen(t, ListenerOptions{Loops: 1, IdleTimeout: time.Hour, Actor: func(c *Conn) Actor {
		if err := c.SetIdleTimeout(time.Minute); err != nil {
			t.Error(err)
		}
		hooked <- c
		return ActorFunc(func(Event) error { return nil })
	}}).serve()
	r.dial()
	c := receive(t, "the hook", hooked)
	waitFor(t, "Opened", func() bool { return markedRoute(c, routeOpened) })
	if got := locked(c, func() uint32 { return c.limit.idle }); got != uint32(time.Minute/time.Millisecond) {
		t.Errorf("the limit is %d ms", got)
	}
}

// Bytes that the kernel copies count as activity like any other. To see it fail: let account do nothing.
func TestCopiesInTheKernelCount(t *testing.T) {
	const size = 300 << 10
	r := listen(t, ListenerOptions{Loops: 1, ReadTimeout: time.Hour}).serve()
	left, a := r.open()
	right, b := r.open()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	copied := make(chan error, 2)
	go func() {
		_, err := io.Copy(b, a)
		copied <- err
		_, err = io.Copy(b, file)
		copied <- err
	}()
	go func() {
		left.Write(make([]byte, size))
		left.CloseWrite()
	}()
	if _, err := io.ReadFull(right, make([]byte, 2*size)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := receive(t, "the end of a copy", copied); err != nil {
			t.Fatal(err)
		}
	}
	if s := r.Stats(); s.BytesIn != size || s.BytesOut != 2*size {
		t.Errorf("counted %d in, %d out", s.BytesIn, s.BytesOut)
	}
	if !markedSock(a, sockHeard) {
		t.Error("the first byte was not noticed: ReadTimeout would close the connection")
	}
}

// A reader that was woken for bytes and then finds its deadline passed leaves them announced for whoever reads next.
// To see it fail: let Read only look at the deadline.
func TestBytesThatWokeAReaderAreAnnouncedWhenItsDeadlineHasPassed(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1}).serve()
	for range 50 {
		_, c := r.open()
		asleep(t, r.Listener)
		read := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			read <- err
		}()
		waitFor(t, "the reader to block", func() bool {
			return locked(c, func() bool { return c.ext != nil && c.ext.canRead.Waiting() > 0 })
		})
		// Both at once, as far as the reader can tell: it cannot look before mu is released.
		c.mu.Lock()
		c.readableLocked()
		c.ext.readLimit.Set(&c.mu, time.Unix(1, 0))
		c.unlock()
		if err := receive(t, "the end of Read", read); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		receiveAs[Readable](t, r.Events())
		c.Abort()
		for {
			if _, ok := receive(t, "Closed", r.Events()).(Closed); ok {
				break
			}
		}
	}
}

// To see it fail: let Streams look at finished instead.
func TestStreamsBesideCloseDoesNotPanic(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1})
	r.stopAccepting() // what Close does first
	if chans := r.Streams(); len(chans) != 0 {
		t.Errorf("%d channels", len(chans))
	}
	r.Close()
	r.Streams()
}

// The goroutine that Close leaves behind ends also when Serve never ran. To see it fail: drop finishUnserved from Close;
// the leak check of TestMain reports it.
func TestNetListenerClosedWithoutServeLeavesNothing(t *testing.T) {
	r := listen(t, ListenerOptions{})
	nl := r.NetListener().(*netListener)
	if err := nl.Close(); err != nil {
		t.Fatal(err)
	}
	if ev, ok := <-nl.l.accepted.ch; ok {
		t.Errorf("got %T", ev)
	}
}

// To see it fail: let the sum of now and the longest Duration overflow.
func TestTheLongestTimerIsNotDueAtOnce(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1})
	r.Events()
	lp := r.loops[0]
	lp.addTimer(&timer{kind: timerWake}, math.MaxInt64)
	if _, due := lp.timers.Due(now()); due || lp.untilDue() <= 0 {
		t.Errorf("due: %v, wait %v", due, lp.untilDue())
	}
}

// To see it fail: let acceptRest go on for as long as peers come.
func TestShutdownEndsThoughPeersKeepComing(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1})
	var forever atomic.Bool
	accept := r.socket.call
	r.socket.call = func(fd int32) (int32, sys.Addr, syscall.Errno) {
		if forever.Load() {
			return -1, sys.Addr{}, syscall.ECONNABORTED
		}
		return accept(fd)
	}
	r.Events()
	r.serve()
	r.open()
	forever.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.Shutdown(ctx) }()
	if err := receive(t, "the end of Shutdown", done); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
}
