package cluster

import (
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// runControl sends and takes heartbeats, and watches the connection. It alone knows the peers.
func (n *Node) runControl() {
	n.tick()
	due := time.Now().Add(n.opts.Heartbeat) // the next heartbeat
	timer := time.NewTimer(n.wait(due))
	defer timer.Stop()
	for {
		select {
		case m := <-n.control:
			n.receiveControl(m)
		case <-n.link.now:
			n.checkConnection()
		case now := <-timer.C:
			if now.Before(due) {
				n.look()
			} else {
				n.tick()
				if due = due.Add(n.opts.Heartbeat); due.Before(now) { // it was held up
					due = now.Add(n.opts.Heartbeat)
				}
			}
			timer.Reset(n.wait(due))
		case sent := <-n.poke:
			n.number++
			_ = n.beat(0)
			close(sent)
		case <-n.done:
			return
		}
	}
}

// wait returns how long there is nothing to do: until the heartbeat that is due, or somebody is down
// if nothing is heard of him. A node that others keep hearing of wakes up for its heartbeats alone.
func (n *Node) wait(due time.Time) time.Duration {
	next := n.peers.next(due, n.opts.Heartbeat/8)
	n.planned = next.Sub(n.peers.last)
	return time.Until(next)
}

// look looks who has not been heard of, and whether NATS is there.
func (n *Node) look() {
	n.checkConnection()
	n.follow(n.peers.tick(time.Now(), n.planned, n.opts.Heartbeat))
}

// tick does what there is to do once in a heartbeat.
func (n *Node) tick() {
	n.look()
	n.link.count(n.heardAt.Load(), n.opts.Heartbeat)
	n.number++
	_ = n.beat(0) // a number that was not sent is a hole, which tells the others
	n.classes.tell(n)
	n.tails.send()
	for _, s := range n.shards {
		s.sweep(time.Now())
	}
	n.keys.sweep(time.Now())
	n.delay.forget()
	n.out.flush()
}

// beat sends a heartbeat with the number of the moment.
func (n *Node) beat(flags byte) error {
	if n.leaving.Load() {
		flags |= flagLeaving
	}
	if n.hello {
		flags |= flagHello
	}
	b := beat{n.id, n.number, uint64(n.opts.Heartbeat.Milliseconds()), flags}
	if !n.link.up.Load() {
		return nats.ErrDisconnected
	}
	return n.nc.Publish(n.subj.heartbeat(), b.append(nil)) // also when it is silent: so it hears itself again
}

func (n *Node) receiveControl(m *nats.Msg) {
	k, r := kindOf(m.Data)
	var err error
	switch k {
	case kindBeat:
		var b beat
		if b, err = readBeat(r); err == nil {
			n.hear(b)
		}
	case kindProbe: // that it has come is no answer, and needs none
	default:
		err = &malformed{"kind"}
	}
	if err != nil {
		n.malformed(m, err)
	}
}

func (n *Node) hear(b beat) {
	now := time.Now()
	if b.node == n.id {
		n.heardAt.Store(int64(now.Sub(n.opened)))
		n.hello = false
	} else if b.flags&flagHello != 0 && now.Sub(n.answered) >= n.opts.Heartbeat/10 {
		n.answered = now
		n.number++
		_ = n.beat(0)
	}
	n.follow(n.peers.hear(b, now))
}

// follow does what follows from a report of the peers.
func (n *Node) follow(r report) {
	self := func(id string) bool { return id == n.id }
	down, up := slices.DeleteFunc(r.down, self), slices.DeleteFunc(r.up, self)
	if r.changed {
		others := slices.DeleteFunc(n.peers.in(peerUp), self)
		alive := append(slices.DeleteFunc(n.peers.in(peerUp, peerLeaving), self), n.id)
		n.others.Store(&others)
		n.alive.Store(&alive)
		for _, s := range n.shards {
			s.dontAsk(alive)
		}
	}
	if len(down) > 0 {
		for _, s := range n.shards {
			s.drop(down)
		}
		n.count.nodesDown.Add(uint64(len(down)))
		n.log(slog.LevelWarn, "nodes are down", "nodes", down, "silent", r.silent)
		n.out.put(NodeDown{down})
		if r.silent && len(*n.others.Load()) == 0 {
			n.out.put(Isolated{})
		}
	}
	if len(up) > 0 {
		n.log(slog.LevelInfo, "nodes are up", "nodes", up)
		n.out.put(NodeUp{up})
	}
	doubts := append(r.doubts, up...)
	if r.late {
		n.count.late.Add(1)
		n.log(slog.LevelWarn, "this node was held up")
		n.skipNumber()
		doubts = *n.alive.Load()
	}
	for _, s := range n.shards {
		s.doubt(doubts)
		s.forget(r.forget)
	}
}

// skipNumber makes a hole in the heartbeats: others then ask for everything.
func (n *Node) skipNumber() { n.number++ }

// checkConnection looks whether the connection has gone or come back since.
func (n *Node) checkConnection() {
	connected, reconnects := n.link.up.Load(), n.reconnects
	if connected {
		reconnects = n.nc.Stats().Reconnects
	}
	if n.connected && (!connected || reconnects != n.reconnects) {
		n.connected, n.lostAt = false, time.Now()
		n.count.disconnects.Add(1)
		n.start(func() { n.log(slog.LevelWarn, "disconnected from NATS", "error", n.nc.LastError()) }) // it may wait
		n.out.put(Disconnected{1})
		n.requests.failAll(ErrDisconnected)
	}
	if !n.connected && connected {
		n.connected, n.reconnects = true, reconnects
		down := time.Since(n.lostAt)
		n.count.downNanos.Add(uint64(down))
		n.log(slog.LevelInfo, "connected to NATS again", "after", down)
		n.out.put(Connected{down})
		if n.sessions != nil {
			n.sessions.check()
		}
		n.skipNumber()
		for _, s := range n.shards {
			s.doubt(*n.alive.Load())
		}
		n.number++
		_ = n.beat(0)
	}
}

// runSync answers requests for parts: of many topics that takes a while, which heartbeats do not have.
func (n *Node) runSync() {
	for {
		select {
		case m := <-n.syncs:
			k, r := kindOf(m.Data)
			q, err := readSync(r)
			if k != kindSync || err != nil {
				n.malformed(m, &malformed{"request for parts"})
				continue
			}
			n.answerSync(q)
		case <-n.done:
			return
		}
	}
}

// answerSync sends this node's parts of topics to who asks.
func (n *Node) answerSync(q syncRequest) {
	to := n.subj.node(q.node, inboxOf(int(q.shard)))
	for _, place := range q.places {
		if n.closed.Load() {
			return
		}
		t := n.shardOf(place).lookup(place)
		if t != nil {
			t.answer(to, q.token)
			continue
		}
		p := appendStamp(nil, kindNone, n.id, n.runs.Load(), 0, 0)
		_ = n.publish(to, piece{token: q.token, place: place, last: true}.appendHead(p))
	}
}
