package tcpio

import (
	"maps"
	"slices"
	"sync"
)

// A dialler is a DialAsync under way. Of a connection that it is making nothing is read, written or
// announced.
type dialler interface {
	poke() // has its loop call step; may be called under any lock
	step() // goes on as far as it can; is called under no lock
}

// dials has the diallers of a listener, from the request until nothing of it is left. The zero
// value is empty and open.
type dials struct {
	mu sync.Mutex
	// Guarded by mu.
	set    map[dialler]struct{}
	closed bool // none is added any more
}

// add returns false if s is closed.
func (s *dials) add(d dialler) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.set == nil {
		s.set = make(map[dialler]struct{})
	}
	s.set[d] = struct{}{}
	return true
}

func (s *dials) remove(d dialler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.set, d)
}

// over reports whether s is closed and empty.
func (s *dials) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed && len(s.set) == 0
}

// end closes s and has what is in it see that the listener is stopping: by step, since Serve may
// not run, or a loop may have failed.
func (s *dials) end() {
	s.mu.Lock()
	s.closed = true
	left := slices.Collect(maps.Keys(s.set))
	s.mu.Unlock()
	for _, d := range left {
		d.step()
	}
}
