package sched

import "sync/atomic"

// A Demand counts what was delivered and has not been answered. The upper half of the word is the
// batch that the lower half counts: answers to batches that were written off do not count.
type Demand struct{ word atomic.Uint64 }

// Add counts a delivery, and returns its batch, for Done.
func (d *Demand) Add() (batch uint32) { return uint32(d.word.Add(1) >> 32) }

// Done counts the answer to a delivery of batch. It reports whether that was the last one
// outstanding.
func (d *Demand) Done(batch uint32) bool {
	for {
		w := d.word.Load()
		if uint32(w>>32) != batch || uint32(w) == 0 {
			return false
		}
		if d.word.CompareAndSwap(w, w-1) {
			return uint32(w) == 1
		}
	}
}

// Outstanding reports whether there are deliveries without an answer.
func (d *Demand) Outstanding() bool { return uint32(d.word.Load()) > 0 }

// Word returns the state. Two words that differ mean that something happened in between.
func (d *Demand) Word() uint64 { return d.word.Load() }

// WriteOff begins a new batch: it stops waiting for what is outstanding.
func (d *Demand) WriteOff() {
	for {
		w := d.word.Load()
		if d.word.CompareAndSwap(w, (w>>32+1)<<32) {
			return
		}
	}
}
