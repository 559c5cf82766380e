package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// Drain takes the node out, before a restart say. Its members and keys leave at once for the other
// nodes, as a goodbye and not as a loss; Ready fails, and so do Join and Register from then on,
// with ErrClosed. Every connection that has joined a topic or has a key gets a [Moved] with a delay
// of its own, spread evenly over over, so that not all clients reconnect at once: choose over so
// that the other nodes can take them. A Moved does not count against MailboxSize. Publishing goes
// on working both ways.
//
// Drain blocks until these connections have closed, then returns nil, or until ctx ends. Stop
// accepting before it; call Close, and Listener.Shutdown for the rest, after it. A second Drain
// sends Moved once more.
func (n *Node) Drain(ctx context.Context, over time.Duration) error {
	if n.closed.Load() {
		return fmt.Errorf("cluster: Drain: %w", ErrClosed)
	}
	if over < 0 {
		return fmt.Errorf("cluster: Drain: over is %v: it must not be negative", over)
	}
	n.leaving.Store(true)
	sent := make(chan struct{})
	select {
	case n.poke <- sent:
		<-sent
	case <-n.done:
	}
	n.keys.mu.Lock()
	conns := make(map[*tcpio.Conn]struct{})
	for c := range n.keys.byConn {
		conns[c] = struct{}{}
	}
	n.keys.mu.Unlock()
	n.keys.close()
	for _, s := range n.shards {
		for _, t := range s.subscribed() {
			for c := range t.all() {
				conns[c] = struct{}{}
			}
		}
	}
	all := make([]*tcpio.Conn, 0, len(conns))
	for c := range conns {
		all = append(all, c)
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i, c := range all {
		c.After(0, Moved{over * time.Duration(i) / time.Duration(len(all))})
	}
	for _, c := range all {
		select {
		case <-c.Context().Done():
		case <-ctx.Done():
			return fmt.Errorf("cluster: Drain: %w", ctx.Err())
		case <-n.done:
			return fmt.Errorf("cluster: Drain: %w", ErrClosed)
		}
	}
	return nil
}
