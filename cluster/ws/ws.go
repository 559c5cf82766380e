// Package ws makes WebSocket connections members of a cluster's topics, beside those that take
// plain bytes: a chat for browsers and for nc.
//
//	asText := new(ws.Format)
//	...
//	err := asText.Join(node.Topic("room 1"), conn, &cluster.Member{ID: "ann"})
//
// Everything else is as for other members, by the connection under the WebSocket:
//
//	topic.PublishExcept(conn.Underlying(), p)
//	topic.Leave(conn.Underlying())
//	node.Register("user ann", conn.Underlying()) // a Posted comes as a websocket.Message
//
// A member leaves by itself when the connection under it closes: behind the closing handshake.
package ws

import (
	"bytes"
	"context"
	"sync"
	"unicode/utf8"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/cluster"
	"github.com/rabbit-backend/tcpio/websocket"
)

// A Format is how WebSocket members get a topic's messages. One may be used for any number of
// topics. Its fields must not be changed after the first use.
type Format struct {
	// Binary sends binary messages instead of text.
	Binary bool
	// Render makes what these members get of what was published, or of what the class's Encode has
	// made of that; nil leaves it as it is, and a nil
	// result sends nothing. It is called once for each message and node, on a goroutine that all
	// messages of the topic need, so it must not block.
	Render func(published []byte) []byte
	// Slow is what happens to a member that does not keep up, see websocket.Group.
	Slow tcpio.SlowPolicy
}

var _ cluster.Format = (*Format)(nil)

// Join makes c a member of t, as t.Join does. A text message is made valid UTF-8. It fails as
// t.Join does, with an error that matches net.ErrClosed also for a connection that is in its
// handshake, or in its closing handshake.
func (f *Format) Join(t *cluster.Topic, c *websocket.Conn, who *cluster.Member) error {
	return t.JoinAs(f, c.Underlying(), c, who)
}

// Resume makes c a member of a topic of a Class, and has write called with every record behind
// since before, as t.Resume does. write is the place to send what Encode and Render make of live
// ones.
func (f *Format) Resume(ctx context.Context, t *cluster.Topic, c *websocket.Conn, who *cluster.Member,
	since cluster.Pos, write func(cluster.Record) error) (whole bool, err error) {
	return t.ResumeAs(ctx, f, c.Underlying(), c, who, since, write)
}

// NewOutlet is for the package cluster.
func (f *Format) NewOutlet(*cluster.Topic) cluster.Outlet {
	o := &outlet{format: f, conns: make(map[*tcpio.Conn]*websocket.Conn)}
	o.group.Slow = f.Slow
	return o
}

// An outlet is the WebSocket members of a topic on this node.
type outlet struct {
	format *Format
	group  websocket.Group

	mu    sync.Mutex
	conns map[*tcpio.Conn]*websocket.Conn
}

func (o *outlet) Join(c *tcpio.Conn, as any) bool {
	wc, ok := as.(*websocket.Conn)
	if !ok {
		return false
	}
	o.group.Join(wc)
	if !o.group.Has(wc) {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conns[c] = wc
	return true
}

func (o *outlet) Leave(c *tcpio.Conn) {
	if wc := o.conn(c); wc != nil {
		o.group.Leave(wc)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, c)
}

func (o *outlet) conn(c *tcpio.Conn) *websocket.Conn {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.conns[c]
}

func (o *outlet) Write(p []byte, except *tcpio.Conn) int {
	if o.format.Render != nil {
		if p = o.format.Render(p); p == nil {
			return 0
		}
	}
	var not *websocket.Conn
	if except != nil {
		not = o.conn(except)
	}
	if o.format.Binary {
		return o.group.WriteBinaryExcept(not, p)
	}
	if !utf8.Valid(p) {
		p = bytes.ToValidUTF8(p, []byte("\uFFFD"))
	}
	return o.group.WriteTextExcept(not, p)
}
