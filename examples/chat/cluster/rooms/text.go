package rooms

import (
	"encoding/json"
	"fmt"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
)

// asText is the format of users of nc.
var asText = new(textFormat)

type textFormat struct{ _ byte } // not empty, so that pointers differ

// NewOutlet is for the package cluster.
func (*textFormat) NewOutlet(*cluster.Topic) cluster.Outlet {
	o := new(textOutlet)
	o.group.Slow = tcpio.CloseSlow
	o.group.Notice = []byte("* you read too slowly, goodbye\n")
	return o
}

// A textOutlet writes a room's lines to users of nc.
type textOutlet struct{ group tcpio.Group }

// Join makes c one that is written to.
func (o *textOutlet) Join(c *tcpio.Conn, _ any) bool {
	o.group.Join(c)
	return o.group.Has(c)
}

// Leave ends that.
func (o *textOutlet) Leave(c *tcpio.Conn) { o.group.Leave(c) }

// Write makes text of what Lines has made.
func (o *textOutlet) Write(p []byte, except *tcpio.Conn) int {
	var m struct {
		Room  string `json:"room"`
		Lines []Line `json:"lines"`
	}
	if json.Unmarshal(p, &m) != nil {
		return 0
	}
	var out []byte
	for _, l := range m.Lines {
		out = append(out, l.text(m.Room)...)
	}
	before := o.group.Skipped()
	_, _ = o.group.WriteExcept(except, out) // never fails: members that do are its business
	return max(0, o.group.Len()-int(o.group.Skipped()-before))
}

// text is l as users of nc see it.
func (l *Line) text(room string) []byte {
	var out []byte
	if l.Gap {
		out = fmt.Appendf(nil, "[%s] * lines are missing here\n", room)
	}
	switch l.Kind {
	case "say":
		return fmt.Appendf(out, "[%s] %s: %s\n", room, l.Name, l.Text)
	case "came":
		return fmt.Appendf(out, "[%s] * %s joined\n", room, l.Name)
	case "left":
		return fmt.Appendf(out, "[%s] * %s %s\n", room, l.Name, l.Text)
	case "named":
		return fmt.Appendf(out, "[%s] * %s is now %s\n", room, l.Name, l.Text)
	}
	return out
}
