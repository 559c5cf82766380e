package cluster

import (
	"errors"
	"log/slog"
	"runtime/debug"
	"slices"

	"github.com/rabbit-backend/tcpio"
)

// A Format is a way in which members take a topic's messages other than as the bytes that were
// published: as WebSocket messages, for which the package ws has formats, or as lines that are made
// of JSON. It must be comparable, a pointer say.
type Format interface {
	// NewOutlet returns the outlet for the members of t on this node. It is called for the first of
	// them; the outlet is let go of behind the last.
	NewOutlet(t *Topic) Outlet
}

// An Outlet writes a topic's messages to the members that have one format. No method may block or
// call the topic.
type Outlet interface {
	// Join makes c one of those to whom Write writes; as is what JoinAs was given. It reports false
	// if c is closing.
	Join(c *tcpio.Conn, as any) bool
	// Leave ends that. It is called once for each Join that succeeded, also when c has closed.
	Leave(c *tcpio.Conn)
	// Write writes p to all but except, which may be nil, without waiting for any, and returns how
	// many took it. Calls come one at a time, in the order of the messages; Join and Leave may come
	// meanwhile. p is not the outlet's.
	Write(p []byte, except *tcpio.Conn) (took int)
}

// others are the members of a topic that an Outlet writes to. The topic's mu guards it.
type others struct {
	group tcpio.Group // of them all, for its Left; it is not written to
	via   map[*tcpio.Conn]*use
	uses  []*use // not changed in place
}

// A use is an outlet and how many members it has.
type use struct {
	format Format
	outlet Outlet
	users  int
}

// JoinAs is Join for a member that takes messages in the format f. as is what f's outlet knows c
// as. A member has one format: the last Join or JoinAs says which.
func (t *Topic) JoinAs(f Format, c *tcpio.Conn, as any, who *Member) error {
	if f == nil {
		return errors.New("cluster: JoinAs: the format is nil")
	}
	return t.join(f, c, as, who)
}

// hasLocked reports whether c is a member.
func (t *Topic) hasLocked(c *tcpio.Conn) bool {
	return t.group.Has(c) || t.others != nil && t.others.group.Has(c)
}

// enterLocked makes c one of those that are written to. It reports false if c is closing.
func (t *Topic) enterLocked(f Format, c *tcpio.Conn, as any) bool {
	if f == nil {
		if t.others != nil {
			t.leaveOutletLocked(c)
		}
		t.group.Join(c)
		return t.group.Has(c)
	}
	o := t.others
	if o == nil {
		o = &others{via: make(map[*tcpio.Conn]*use)}
		o.group.Left = t.left
		t.others = o
	}
	if u := o.via[c]; u != nil && u.format == f {
		return o.group.Has(c)
	}
	t.leaveOutletLocked(c)
	i := slices.IndexFunc(o.uses, func(u *use) bool { return u.format == f })
	var u *use
	if i >= 0 {
		u = o.uses[i]
	} else {
		u = &use{format: f, outlet: f.NewOutlet(t)}
	}
	if !u.outlet.Join(c, as) {
		return false
	}
	o.group.Join(c)
	if !o.group.Has(c) {
		u.outlet.Leave(c)
		return false
	}
	if u.users++; u.users == 1 {
		o.uses = append(slices.Clone(o.uses), u)
	}
	o.via[c] = u
	t.group.Leave(c)
	return true
}

// leaveOutletLocked takes c out of the outlet that writes to it, if there is one.
func (t *Topic) leaveOutletLocked(c *tcpio.Conn) {
	o := t.others
	if o == nil || o.via[c] == nil {
		return
	}
	u := o.via[c]
	delete(o.via, c)
	if u.users--; u.users == 0 {
		o.uses = slices.DeleteFunc(slices.Clone(o.uses), func(x *use) bool { return x == u })
	}
	o.group.Leave(c)
	u.outlet.Leave(c)
}

// outletsLocked returns the outlets of the moment; the slice is not changed afterwards.
func (t *Topic) outletsLocked() []*use {
	if t.others == nil {
		return nil
	}
	return t.others.uses
}

// writeOutlet writes to an outlet, which is the user's.
func (n *Node) writeOutlet(o Outlet, p []byte, not *tcpio.Conn) (took int) {
	n.guard("Outlet.Write", func() { took = o.Write(p, not) })
	return took
}

// guard calls f, which calls user code. A panic is logged, and over.
func (n *Node) guard(in string, f func()) {
	returned := false
	defer func() {
		if returned {
			return
		}
		if p := recover(); p != nil { // otherwise the goroutine exits
			n.log(slog.LevelError, in+" panicked", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	f()
	returned = true
}
