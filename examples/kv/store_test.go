package main

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// fakeClock stands still until it is advanced.
type fakeClock struct{ offset atomic.Int64 }

func (c *fakeClock) now() time.Time          { return time.Unix(1_000_000, c.offset.Load()) }
func (c *fakeClock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// expiring sets a key that has ttl milliseconds to live.
func expiring(t testing.TB, s *store, key, value string, ttl int64) {
	t.Helper()
	at, ok := s.deadline(ttl)
	if !ok {
		t.Fatalf("no deadline in %d ms", ttl)
	}
	s.set([]byte(key), []byte(value), at)
}

func TestStoreExpiresOnAccess(t *testing.T) {
	var clock fakeClock
	s := newStore(clock.now)
	expiring(t, s, "a", "1", 10)
	clock.advance(9 * time.Millisecond)
	if v, ok := s.get([]byte("a")); string(v) != "1" || !ok {
		t.Fatalf("1 ms before its deadline: %q, %v", v, ok)
	}
	clock.advance(time.Millisecond)
	if v, ok := s.get([]byte("a")); ok {
		t.Fatalf("at its deadline: %q", v)
	}
	if len(s.items) != 0 || len(s.due) != 0 || s.expired != 1 {
		t.Errorf("%d items, %d deadlines, %d expired", len(s.items), len(s.due), s.expired)
	}
	expiring(t, s, "a", "1", 10)
	clock.advance(time.Hour)
	if s.del([]byte("a")) {
		t.Error("an expired key was deleted")
	}
}

func TestStoreSweep(t *testing.T) {
	var clock fakeClock
	s := newStore(clock.now)
	for i := range 100 {
		expiring(t, s, fmt.Sprint("short", i), "x", 10)
		expiring(t, s, fmt.Sprint("long", i), "x", 1000)
		s.set(fmt.Append(nil, "ever", i), nil, noDeadline)
	}
	if n := s.sweep(1000); n != 0 {
		t.Fatalf("%d keys went before their time", n)
	}
	clock.advance(10 * time.Millisecond)
	if n := s.sweep(30); n != 30 || len(s.items) != 270 {
		t.Fatalf("removed %d, %d left; the limit was 30", n, len(s.items))
	}
	if n := s.sweep(1000); n != 70 || len(s.items) != 200 || len(s.due) != 100 {
		t.Fatalf("removed %d, %d left, %d deadlines", n, len(s.items), len(s.due))
	}
}

func TestStoreDeadlineOfAChangedKey(t *testing.T) {
	var clock fakeClock
	s := newStore(clock.now)
	for _, key := range []string{"kept", "cleared", "moved", "counted"} {
		expiring(t, s, key, "1", 10)
	}
	s.put([]byte("kept"), []byte("2"))
	s.set([]byte("cleared"), []byte("2"), noDeadline)
	expiring(t, s, "moved", "2", 20)
	if _, err := s.add([]byte("counted"), 1); err != nil {
		t.Fatal(err)
	}
	clock.advance(10 * time.Millisecond)
	for key, want := range map[string]bool{"kept": false, "cleared": true, "moved": true, "counted": false} {
		if _, ok := s.get([]byte(key)); ok != want {
			t.Errorf("%s: there %v, want %v", key, ok, want)
		}
	}
}

func TestStoreDeadlineOverflow(t *testing.T) {
	var clock fakeClock
	s := newStore(clock.now)
	clock.advance(time.Second)
	left := math.MaxInt64 - s.millis() // Redis counts from 1970 too, so what is too long there is too long here.
	if at, ok := s.deadline(left - 1); !ok || at == noDeadline {
		t.Errorf("the last moment: %d, %v", at, ok)
	}
	for _, ttl := range []int64{left, math.MaxInt64} {
		if at, ok := s.deadline(ttl); ok {
			t.Errorf("%d: %d", ttl, at)
		}
	}
}

func TestStoreAdd(t *testing.T) {
	for _, tt := range []struct {
		value string
		delta int64
		want  int64
		err   error
	}{
		{"", 0, 0, errNotInteger},
		{"10", 5, 15, nil},
		{"-1", 1, 0, nil},
		{"abc", 1, 0, errNotInteger},
		{"1.5", 1, 0, errNotInteger},
		{"9223372036854775806", 1, math.MaxInt64, nil},
		{"9223372036854775807", 1, 0, errOverflow},
		{"-9223372036854775808", -1, 0, errOverflow},
		{"-1", math.MinInt64, 0, errOverflow},
		{"0", math.MinInt64, math.MinInt64, nil},
	} {
		s := newStore(time.Now)
		s.set([]byte("k"), []byte(tt.value), noDeadline)
		got, err := s.add([]byte("k"), tt.delta)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%q + %d: %d, %v, want %d, %v", tt.value, tt.delta, got, err, tt.want, tt.err)
		}
		want := tt.value
		if tt.err == nil {
			want = strconv.FormatInt(tt.want, 10)
		}
		if v, _ := s.get([]byte("k")); string(v) != want {
			t.Errorf("%q + %d left %q", tt.value, tt.delta, v)
		}
	}
	s := newStore(time.Now)
	if v, err := s.add([]byte("new"), -3); v != -3 || err != nil {
		t.Errorf("a new key: %d, %v", v, err)
	}
}

func TestStoreKeepsNoLongRoom(t *testing.T) {
	s := newStore(time.Now)
	it := s.put([]byte("k"), make([]byte, maxBulk))
	s.put([]byte("k"), []byte("short"))
	if cap(it.value) > 128 {
		t.Errorf("%d bytes of room for a value of %d", cap(it.value), len(it.value))
	}
}

func TestStoreCopies(t *testing.T) {
	s := newStore(time.Now)
	key, value := []byte("key"), []byte("value")
	s.set(key, value, noDeadline)
	key[0], value[0] = 'X', 'X'
	if v, ok := s.get([]byte("key")); string(v) != "value" || !ok {
		t.Errorf("%q, %v after the caller's bytes changed", v, ok)
	}
}

// Random operations on the store and on a plain map with a deadline beside each value give the
// same.
func TestStoreAgainstModel(t *testing.T) {
	type entry struct {
		value    string
		deadline int64
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var clock fakeClock
	s := newStore(clock.now)
	model := map[string]entry{}
	for step := range 20_000 {
		now := s.millis()
		key := fmt.Sprint("k", rng.IntN(50))
		live, ok := model[key]
		if ok && live.deadline <= now {
			delete(model, key)
			live, ok = entry{}, false
		}
		switch rng.IntN(7) {
		case 0:
			value := fmt.Sprint(step)
			s.set([]byte(key), []byte(value), noDeadline)
			model[key] = entry{value, noDeadline}
		case 1:
			ttl := rng.Int64N(50) + 1
			expiring(t, s, key, "x", ttl)
			model[key] = entry{"x", now + ttl}
		case 2:
			s.put([]byte(key), []byte("y"))
			if !ok {
				live.deadline = noDeadline
			}
			model[key] = entry{"y", live.deadline}
		case 3:
			if s.del([]byte(key)) != ok {
				t.Fatalf("step %d: del %s, want %v", step, key, ok)
			}
			delete(model, key)
		case 4:
			if it := s.lookup([]byte(key)); it != nil && ok {
				s.expire(it, now+5)
				model[key] = entry{live.value, now + 5}
			}
		case 5:
			clock.advance(time.Duration(rng.IntN(3)) * time.Millisecond)
		case 6:
			s.sweep(math.MaxInt)
			for k, e := range model {
				if e.deadline <= now {
					delete(model, k)
				}
			}
			if len(s.items) != len(model) {
				t.Fatalf("step %d: %d keys behind a sweep, want %d", step, len(s.items), len(model))
			}
			continue
		}
		want, ok := model[key]
		ok = ok && want.deadline > s.millis()
		if v, found := s.get([]byte(key)); found != ok || ok && string(v) != want.value {
			t.Fatalf("step %d: %s is %q, %v, want %q, %v", step, key, v, found, want.value, ok)
		}
		timed := 0
		for _, it := range s.items {
			if it.deadline != noDeadline {
				timed++
			}
		}
		for i, it := range s.due {
			if it.index != i || it.deadline < s.due[(i-1)/2].deadline || s.items[it.key] != it {
				t.Fatalf("step %d: %s is at the wrong place in the heap", step, it.key)
			}
		}
		if timed != len(s.due) {
			t.Fatalf("step %d: %d deadlines for %d keys", step, len(s.due), timed)
		}
	}
}
