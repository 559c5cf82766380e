package wait

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// These tests run on a clock of their own, see testing/synctest.

// blockUntilLate waits for d as a blocked read does, and sends the time at which it has passed.
func blockUntilLate(mu *sync.Mutex, d *Deadline) <-chan time.Time {
	ended := make(chan time.Time, 1)
	go func() {
		for {
			mu.Lock()
			passed, late := d.Passed(), d.Channel()
			mu.Unlock()
			if passed {
				ended <- time.Now()
				return
			}
			<-late
		}
	}()
	return ended
}

func setDeadline(mu *sync.Mutex, d *Deadline, t time.Time) {
	mu.Lock()
	d.Set(mu, t)
	mu.Unlock()
}

// Whatever a deadline was before, a blocked caller is told when the last one is due, to the
// nanosecond.
func TestADeadlineEndsBlockedCallersWhenTheLastOneSetIsDue(t *testing.T) {
	const ms = time.Millisecond
	type step struct{ at, deadline time.Duration } // deadline from the beginning on; never is none
	const never = -time.Hour
	for name, tt := range map[string]struct {
		steps []step
		want  time.Duration
	}{
		"future":                   {[]step{{0, 30 * ms}}, 30 * ms},
		"past":                     {[]step{{5 * ms, 1 * ms}}, 5 * ms},
		"now":                      {[]step{{5 * ms, 5 * ms}}, 5 * ms},
		"later":                    {[]step{{0, 30 * ms}, {29 * ms, 70 * ms}}, 70 * ms},
		"earlier":                  {[]step{{0, 70 * ms}, {10 * ms, 30 * ms}}, 30 * ms},
		"cleared and set":          {[]step{{0, 30 * ms}, {20 * ms, never}, {60 * ms, 90 * ms}}, 90 * ms},
		"cleared and past":         {[]step{{0, 30 * ms}, {20 * ms, never}, {60 * ms, 1 * ms}}, 60 * ms},
		"many":                     {[]step{{0, 9 * ms}, {1 * ms, 8 * ms}, {2 * ms, 7 * ms}, {3 * ms, 40 * ms}}, 40 * ms},
		"the same again":           {[]step{{0, 30 * ms}, {10 * ms, 30 * ms}, {20 * ms, 30 * ms}}, 30 * ms},
		"a nanosecond before due":  {[]step{{0, 30 * ms}, {30*ms - 1, 50 * ms}}, 50 * ms},
		"a nanosecond behind due":  {[]step{{0, 30 * ms}, {30*ms + 1, 50 * ms}}, 30 * ms},
		"moved nearer by a second": {[]step{{0, 2000 * ms}, {500 * ms, 1000 * ms}}, 1000 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mu, d := new(sync.Mutex), new(Deadline)
				begin := time.Now()
				first, second := blockUntilLate(mu, d), blockUntilLate(mu, d)
				for _, s := range tt.steps {
					time.Sleep(s.at - time.Since(begin))
					deadline := begin.Add(s.deadline)
					if s.deadline == never {
						deadline = time.Time{}
					}
					setDeadline(mu, d, deadline)
					synctest.Wait()
				}
				for _, ended := range []<-chan time.Time{first, second} {
					if at := (<-ended).Sub(begin); at != tt.want {
						t.Errorf("a blocked caller was told at %v, want %v", at, tt.want)
					}
				}
			})
		})
	}
}

// A deadline that has passed is over when another one is set.
func TestADeadlineThatHasPassedMayBeSetAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mu, d := new(sync.Mutex), new(Deadline)
		begin := time.Now()
		for i := range 3 {
			due := begin.Add(time.Duration(i+1) * time.Second)
			setDeadline(mu, d, due)
			for range 2 { // who comes when it has passed is told at once
				if at := <-blockUntilLate(mu, d); !at.Equal(due) {
					t.Fatalf("told at %v, want %v", at.Sub(begin), due.Sub(begin))
				}
			}
		}
	})
}

// Many setters and many blocked callers at once: in the end everybody is told at the last deadline.
func TestDeadlinesSetByManyAtOnceLeaveNobodyBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mu, d := new(sync.Mutex), new(Deadline)
		begin := time.Now()
		var setters sync.WaitGroup
		for range 20 {
			setters.Go(func() {
				for range 100 {
					setDeadline(mu, d, time.Now().Add(time.Hour+time.Duration(rand.IntN(1000))))
					time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
				}
			})
		}
		var callers []<-chan time.Time
		for range 20 {
			callers = append(callers, blockUntilLate(mu, d))
			time.Sleep(time.Millisecond)
		}
		setters.Wait()
		last := begin.Add(time.Minute)
		setDeadline(mu, d, last)
		for _, ended := range callers {
			if at := <-ended; !at.Equal(last) {
				t.Errorf("told at %v, want %v", at.Sub(begin), last.Sub(begin))
			}
		}
	})
}
