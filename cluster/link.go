package cluster

import (
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// A link knows, without asking NATS' client, whether there is a connection that carries something, so
// that publishing without one is an error at once. The client holds a lock while it dials: whoever
// publishes meanwhile waits, for seconds, and so does whoever asks it for its status.
type link struct {
	up     atomic.Bool   // NATS' client is connected
	silent atomic.Bool   // the node has not heard itself for long
	now    chan struct{} // has a value when up has changed

	// Owned by the control goroutine.
	heard int64 // when it had heard itself at the last heartbeat
	beats int   // that came since and were not heard: while the node is held up it counts none
}

// silence is how long a node does not hear itself, at least, before it takes NATS for gone: servers
// that hang are not told from servers under load sooner.
const silence = 4 * time.Second

// cut reports whether nothing can be sent.
func (l *link) cut() bool { return !l.up.Load() || l.silent.Load() }

// count counts a heartbeat.
func (l *link) count(heard int64, every time.Duration) {
	if l.beats++; heard != l.heard || heard == 0 || !l.up.Load() {
		l.heard, l.beats = heard, 0
	}
	l.silent.Store(l.beats > max(missed, int((silence+every-1)/every)))
}

// runLink watches the connection.
func (n *Node) runLink() {
	again := (<-chan time.Time)(nil)
	for {
		up := false
		select {
		case s, ok := <-n.status:
			if !ok { // Close has begun, and still has something to send
				return
			}
			up = s == nats.CONNECTED
		case <-again: // in case that the channel was full when it came back
			up = n.nc.IsConnected()
		case <-n.done:
			return
		}
		if again = nil; !up {
			again = time.After(n.opts.Heartbeat)
		}
		if n.link.up.Swap(up) != up {
			select {
			case n.link.now <- struct{}{}:
			default: // control will look
			}
		}
	}
}

// publish publishes to a subject, unless NATS is away.
func (n *Node) publish(subject string, p []byte) error {
	if n.link.cut() {
		return nats.ErrDisconnected
	}
	return n.nc.Publish(subject, p)
}

func (n *Node) publishMsg(m *nats.Msg) error {
	if n.link.cut() {
		return nats.ErrDisconnected
	}
	return n.nc.PublishMsg(m)
}
