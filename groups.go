package tcpio

import (
	"iter"
	"sync"
)

// Groups is a map of groups by a key, the names of chat rooms say. It makes a group when its first
// member joins, and lets go of it when its last member has left or closed: the user keeps no map
// and removes nothing. The zero value is empty. Its methods may be called from any goroutine and do
// not block; its fields must not be changed after the first use.
type Groups[K comparable] struct {
	// Slow and Notice are those of every group.
	Slow   SlowPolicy
	Notice []byte
	// Changed is called after a key has got its first member, with true, and after it has lost its
	// last one, with false: the place to subscribe to the key elsewhere, and to end that. Calls are
	// made one at a time, under no lock, on a goroutine that lives while there is something to say.
	// For each key they alternate, beginning with true, and the last one is true to the state that
	// lasts. Changes of a key that undo each other before their call are left out, so a Changed that
	// takes long is not called for ever more. It may block and may call any method; a panic in it is
	// logged.
	Changed func(key K, occupied bool)

	mu sync.Mutex
	// Guarded by mu, which is taken under a Conn's mu and before a Group's.
	groups  map[K]*Group   // each has members
	told    map[K]struct{} // those that Changed knows as occupied
	waiting map[K]*shared  // those in queue; whose Logger a panic goes to
	queue   []K            // keys that have changed, the first to do so in front
	telling bool           // a goroutine calls Changed
}

// A keyed is the home of a group under a key.
type keyed[K comparable] struct {
	in  *Groups[K]
	key K
}

// Join makes c a member of key's group. Joining twice, or a connection that is closing, does
// nothing. A member leaves by itself when it closes.
func (gs *Groups[K]) Join(key K, c *Conn) { gs.Group(key).Join(c) }

// Leave ends c's membership in key's group. On a connection that is no member it does nothing.
// Conn.LeaveGroups leaves every group.
func (gs *Groups[K]) Leave(key K, c *Conn) { gs.Group(key).Leave(c) }

// Group returns key's group, to write to it and for all else that a Group does. It is never nil:
// for a key that has no members it is an empty group that is not in the map. Do not keep it: when
// it has become empty, later members are in another Group. Its Join is Groups.Join with key.
func (gs *Groups[K]) Group(key K) *Group {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if g := gs.groups[key]; g != nil {
		return g
	}
	return gs.make(key)
}

// make makes a group that is not in the map.
func (gs *Groups[K]) make(key K) *Group {
	return &Group{Slow: gs.Slow, Notice: gs.Notice, home: keyed[K]{gs, key}}
}

// Len returns the number of groups, each of which has members.
func (gs *Groups[K]) Len() int {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return len(gs.groups)
}

// All iterates over the groups of the moment at which the iteration begins, in no order. No lock is
// held while the body runs, so a group may have become empty by then.
func (gs *Groups[K]) All() iter.Seq2[K, *Group] {
	return func(yield func(K, *Group) bool) {
		for _, g := range gs.snapshot() {
			if !yield(g.home.(keyed[K]).key, g) {
				return
			}
		}
	}
}

func (gs *Groups[K]) snapshot() []*Group {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	all := make([]*Group, 0, len(gs.groups))
	for _, g := range gs.groups {
		all = append(all, g)
	}
	return all
}

func (k keyed[K]) join(c *Conn) *Group {
	gs := k.in
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.groups[k.key]
	first := g == nil
	if first {
		g = gs.make(k.key)
	}
	if !g.insert(c) {
		return nil
	}
	if first {
		if gs.groups == nil {
			gs.groups = make(map[K]*Group)
		}
		gs.groups[k.key] = g
		gs.changedLocked(k.key, c.sh.shared)
	}
	return g
}

func (k keyed[K]) leave(g *Group, c *Conn) {
	gs := k.in
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g.remove(c)
	if g.Len() == 0 && gs.groups[k.key] == g {
		delete(gs.groups, k.key)
		gs.changedLocked(k.key, c.sh.shared)
	}
}

// changedLocked has Changed called for key. The logger of sh, of its member's listener, gets a
// panic.
func (gs *Groups[K]) changedLocked(key K, sh *shared) {
	if gs.Changed == nil {
		return
	}
	if gs.waiting == nil {
		gs.waiting, gs.told = make(map[K]*shared), make(map[K]struct{})
	}
	if gs.waiting[key] == nil {
		gs.waiting[key] = sh
		gs.queue = append(gs.queue, key)
	}
	if !gs.telling {
		gs.telling = true
		go gs.tell() // it ends behind the last change
	}
}

// tell calls Changed until there is nothing more to say.
func (gs *Groups[K]) tell() {
	for {
		key, occupied, sh := gs.nextChange()
		if sh == nil {
			return
		}
		guard("Groups.Changed", func() { gs.Changed(key, occupied) }, func(p *PanicError, exiting bool) {
			sh.logPanic("Groups.Changed", p)
			if exiting {
				go gs.tell() // this goroutine does not return from Changed
			}
		})
	}
}

// nextChange takes a change that Changed does not know; a nil sh when there is none.
func (gs *Groups[K]) nextChange() (key K, occupied bool, sh *shared) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for len(gs.queue) > 0 {
		key = gs.queue[0]
		gs.queue = gs.queue[1:]
		sh = gs.waiting[key]
		delete(gs.waiting, key)
		_, told := gs.told[key]
		if occupied = gs.groups[key] != nil; occupied == told {
			continue
		}
		if occupied {
			gs.told[key] = struct{}{}
		} else {
			delete(gs.told, key)
		}
		return key, occupied, sh
	}
	gs.queue, gs.telling = nil, false
	return key, false, nil
}
