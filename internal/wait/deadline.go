package wait

import (
	"sync"
	"time"
)

// A Deadline ends blocking calls at a time. Its owner guards it with a lock; the zero value is no
// deadline. It has a timer of the runtime's: it must also fire while the caller's event loop waits
// for the very call that is to end.
type Deadline struct {
	timer *time.Timer
	late  chan struct{} // closed when the deadline has passed; nil until the first Channel
	past  bool
	turn  uint32 // counts the deadlines set, so that the timer of an earlier one does nothing
}

// Passed reports whether the deadline has passed.
func (d *Deadline) Passed() bool { return d.past }

// Channel returns a channel that is closed when the deadline passes, also one that is set later.
func (d *Deadline) Channel() <-chan struct{} {
	if d.late == nil {
		d.late = make(chan struct{})
		if d.past {
			close(d.late)
		}
	}
	return d.late
}

// Set moves the deadline to t; the zero time means none. mu is the lock that guards d, and is held
// by the caller.
func (d *Deadline) Set(mu *sync.Mutex, t time.Time) {
	d.Stop()
	if d.past {
		d.past, d.late = false, nil
	}
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.expire()
		return
	}
	turn := d.turn
	d.timer = time.AfterFunc(left, func() {
		mu.Lock()
		defer mu.Unlock()
		if d.turn == turn {
			d.expire()
		}
	})
}

// Stop keeps a deadline that has not passed from passing.
func (d *Deadline) Stop() {
	d.turn++
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *Deadline) expire() {
	d.past = true
	if d.late != nil {
		close(d.late)
	}
}
