package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio"
)

// keys are the names of connections here.
type keys struct {
	n      *Node
	asking chan struct{} // has a value for each goroutine that waits for a handler's reply
	group  tcpio.Group   // of the connections that have a key, for its Left

	sub sync.Mutex // held while NATS is called to subscribe, which may block; taken before mu

	mu sync.Mutex // taken before a Conn's
	// Guarded by mu.
	byToken map[string]*keyed
	byConn  map[*tcpio.Conn][]*keyed
	idle    []idleKey // that have no connection any more, or had none for a while, in this order
	over    bool
	asked   map[string]int // handlers that an Ask waits for, by where the reply goes
}

// A keyed is a key that has connections here.
type keyed struct {
	// Immutable.
	key, token string
	sub        *nats.Subscription
	// Guarded by keys.mu.
	conns []*tcpio.Conn // not changed in place
}

// An idleKey is a key that its last connection has left. It stays subscribed for a heartbeat, so that
// what is under way to it is answered: otherwise the poster would not know whether it has arrived.
type idleKey struct {
	k     *keyed
	until time.Time
}

// maxAsking is how many Asks may wait for handlers on a node at once.
const maxAsking = 4096

func (ks *keys) init(n *Node) {
	ks.n = n
	ks.asking = make(chan struct{}, maxAsking)
	ks.group.Left = ks.left
	ks.byToken, ks.byConn = make(map[string]*keyed), make(map[*tcpio.Conn][]*keyed)
	ks.asked = make(map[string]int)
}

// Register makes c reachable by key, from all nodes: for Post and Ask. Several connections may have
// one key, a user's devices, and a connection several keys. It loses them by Unregister, by
// Conn.LeaveGroups, and by itself when it closes.
//
// Register may block for as long as NATS takes no bytes (FlusherTimeout). It works without a
// connection to NATS: c is reachable when it is there again. It fails with ErrName, ErrClosed, and
// an error that matches net.ErrClosed if c is closing.
func (n *Node) Register(key string, c *tcpio.Conn) error {
	tok, err := token("Register", key)
	if err != nil {
		return err
	}
	if c == nil {
		return errors.New("cluster: Register: the connection is nil")
	}
	if err := n.keys.add(tok, key, c); err != nil {
		return fmt.Errorf("cluster: Register: %w", err)
	}
	return nil
}

// Unregister takes key from c. On a connection that does not have it it does nothing. A message that
// is being posted may still arrive.
func (n *Node) Unregister(key string, c *tcpio.Conn) {
	if tok, err := token("Unregister", key); err == nil {
		n.keys.remove(tok, c)
	}
}

// Registered returns the connections of this node that have key.
func (n *Node) Registered(key string) []*tcpio.Conn {
	n.keys.mu.Lock()
	defer n.keys.mu.Unlock()
	if k := n.keys.byToken[encodeName(key)]; k != nil && len(k.conns) > 0 {
		return slices.Clone(k.conns)
	}
	return nil
}

// add has c reached by the key. Its errors do not say for which call.
func (ks *keys) add(tok, key string, c *tcpio.Conn) error {
	if ks.n.refuses() {
		return ErrClosed
	}
	ks.sub.Lock()
	defer ks.sub.Unlock()
	ks.mu.Lock()
	defer ks.mu.Unlock()
	k := ks.byToken[tok]
	if k == nil {
		subject := ks.n.subj.key(tok)
		ks.mu.Unlock()
		sub, err := ks.n.nc.ChanSubscribe(subject, ks.n.shardOf(subject).ch)
		ks.mu.Lock()
		if err != nil {
			return sendCause(err)
		}
		k = &keyed{key: key, token: tok, sub: sub}
		ks.byToken[tok] = k
	}
	if ks.over {
		ks.dropLocked(k)
		return ErrClosed
	}
	if slices.Contains(k.conns, c) {
		return nil
	}
	ks.group.Join(c)
	if !ks.group.Has(c) {
		ks.dropLocked(k)
		return endedCause(c)
	}
	k.conns = append(slices.Clip(k.conns), c)
	ks.byConn[c] = append(ks.byConn[c], k)
	return nil
}

// dropLocked unsubscribes k if no connection has it. The caller holds sub and mu.
func (ks *keys) dropLocked(k *keyed) {
	if len(k.conns) > 0 || ks.byToken[k.token] != k {
		return
	}
	delete(ks.byToken, k.token)
	ks.mu.Unlock()
	_ = k.sub.Unsubscribe() // fails if the connection to NATS has ended
	ks.mu.Lock()
}

// remove takes a key from c, or all of them if tok is "".
func (ks *keys) remove(tok string, c *tcpio.Conn) {
	ks.sub.Lock()
	defer ks.sub.Unlock()
	ks.mu.Lock()
	defer ks.mu.Unlock()
	var left, gone []*keyed
	for _, k := range ks.byConn[c] {
		if tok != "" && k.token != tok {
			left = append(left, k)
		} else {
			gone = append(gone, k)
		}
	}
	if left == nil {
		delete(ks.byConn, c)
		ks.group.Leave(c)
	} else {
		ks.byConn[c] = left
	}
	for _, k := range gone {
		k.conns = slices.DeleteFunc(slices.Clone(k.conns), func(x *tcpio.Conn) bool { return x == c })
		if len(k.conns) == 0 {
			ks.idle = append(ks.idle, idleKey{k, time.Now().Add(ks.n.opts.Heartbeat)})
		}
	}
}

// sweep unsubscribes keys that have had no connection for long enough.
func (ks *keys) sweep(now time.Time) {
	ks.sub.Lock()
	defer ks.sub.Unlock()
	ks.mu.Lock()
	defer ks.mu.Unlock()
	for len(ks.idle) > 0 && !ks.idle[0].until.After(now) {
		k := ks.idle[0].k
		if ks.idle = ks.idle[1:]; len(ks.idle) == 0 {
			ks.idle = nil
		}
		ks.dropLocked(k)
	}
}

// left takes all its keys from c, which has left the group.
func (ks *keys) left(c *tcpio.Conn) {
	ks.mu.Lock()
	again := ks.group.Has(c)
	ks.mu.Unlock()
	if !again {
		ks.remove("", c)
	}
}

// close takes all keys from all connections: posts from other nodes then meet nobody.
func (ks *keys) close() {
	ks.sub.Lock()
	defer ks.sub.Unlock()
	ks.mu.Lock()
	ks.over = true
	all := ks.byToken
	ks.byToken, ks.byConn, ks.idle = make(map[string]*keyed), make(map[*tcpio.Conn][]*keyed), nil
	ks.mu.Unlock()
	for _, k := range all {
		_ = k.sub.Unsubscribe() // fails if the connection to NATS has ended
	}
}

// receive takes a post or an ask. It runs on a shard's goroutine.
func (ks *keys) receive(kd kind, r reader, place string, m *nats.Msg) {
	r.take(idLen) // who it is from
	wait := time.Duration(0)
	if kd == kindAsk {
		wait = time.Duration(min(r.uint(), uint64(time.Hour.Milliseconds()))) * time.Millisecond
	}
	if r.bad || m.Reply == "" {
		ks.n.malformed(m, &malformed{"post"})
		return
	}
	ks.mu.Lock()
	key, conns := "", []*tcpio.Conn(nil)
	if k := ks.byToken[place[min(2, len(place)):]]; k != nil {
		key, conns = k.key, k.conns
	}
	ks.mu.Unlock()
	if kd == kindAsk && len(conns) > 0 {
		ks.ask(m, Posted{key, r.p}, conns, wait)
		return
	}
	outcome := byte(outcomeNobody)
	for i, c := range conns {
		p := Posted{key, r.p}
		if i > 0 {
			p.Data = slices.Clone(r.p) // each handler's own
		}
		outcome = better(outcome, outcomeOf(c.Post(p)))
	}
	ks.answer(m, outcome, nil)
}

// receiveProbe answers a probe if the request before it has not come, or was answered: what is posted
// is answered at once, so only an Ask can be waiting. It runs on a shard's goroutine.
func (ks *keys) receiveProbe(m *nats.Msg) {
	ks.mu.Lock()
	waiting := ks.asked[strings.TrimSuffix(m.Reply, probeMark)] > 0
	ks.mu.Unlock()
	if !waiting && m.Reply != "" {
		ks.answer(m, outcomeIdle, nil)
	}
}

// better returns the better of two outcomes.
func better(a, b byte) byte {
	rank := [outcomeEnd]int{outcomeReply: 0, outcomeTaken: 1, outcomeNoReply: 2, outcomeFull: 3, outcomeNobody: 4, outcomeIdle: 5}
	if rank[b] < rank[a] {
		return b
	}
	return a
}

func outcomeOf(err error) byte {
	switch {
	case err == nil:
		return outcomeTaken
	case errors.Is(err, tcpio.ErrMailboxFull):
		return outcomeFull
	}
	return outcomeNobody // it is closing
}

func (ks *keys) answer(m *nats.Msg, outcome byte, p []byte) {
	_ = ks.n.publish(m.Reply, appendAnswer(nil, outcome, p)) // otherwise who waits does not know
}

// ask asks all conns, and answers with the first reply.
func (ks *keys) ask(m *nats.Msg, p Posted, conns []*tcpio.Conn, wait time.Duration) {
	var replied atomic.Bool
	var mu sync.Mutex
	left, best := len(conns), byte(outcomeNobody)
	failed := func(outcome byte) {
		mu.Lock()
		defer mu.Unlock()
		best = better(best, outcome)
		if left--; left == 0 && !replied.Load() {
			ks.answer(m, best, nil)
		}
	}
	ks.mu.Lock()
	ks.asked[m.Reply] += len(conns)
	ks.mu.Unlock()
	over := func() {
		ks.mu.Lock()
		defer ks.mu.Unlock()
		if ks.asked[m.Reply]--; ks.asked[m.Reply] == 0 {
			delete(ks.asked, m.Reply)
		}
	}
	for _, c := range conns {
		select {
		case ks.asking <- struct{}{}:
		default:
			failed(outcomeFull)
			over()
			continue
		}
		own := Posted{p.Key, slices.Clone(p.Data)}
		started := ks.n.start(func() { // until wait is over, or the node is closed
			defer func() { <-ks.asking }()
			defer over()
			ctx, cancel := context.WithTimeout(ks.n.ctx, wait)
			defer cancel()
			v, err := c.Ask(ctx, own)
			reply, ok := v.([]byte)
			switch {
			case errors.Is(err, tcpio.ErrMailboxFull):
				failed(outcomeFull)
			case err != nil || !ok:
				failed(outcomeNoReply)
			case !replied.Swap(true):
				ks.answer(m, outcomeReply, reply)
			}
		})
		if !started {
			<-ks.asking
			failed(outcomeNobody)
			over()
		}
	}
}

// Post sends p to every connection that has key, on all nodes: it arrives as a Message with a
// [Posted]. It waits until the first mailbox has taken it, and is never repeated. What one goroutine
// posts to a connection arrives in that order.
//
// nil means that it is in a mailbox; whether the peer gets anything is the handler's affair.
// ErrNobody: no connection has key, so it has not arrived; that is known at once, or after 50 ms if
// one had it until a heartbeat ago. tcpio.ErrMailboxFull: the mailboxes refused it. ErrDisconnected: it was not sent. ErrUnknown, with ctx's error, or ErrDisconnected if
// the connection to NATS was lost meanwhile: it may have arrived or not. Without a deadline of ctx
// that is so after 10 s. p is the caller's again afterwards.
func (n *Node) Post(ctx context.Context, key string, p []byte) error {
	tok, err := token("Post", key)
	if err != nil {
		return err
	}
	data := append(append([]byte{byte(kindPost)}, n.id...), p...)
	outcome, _, err := n.request(ctx, "Post", n.subj.key(tok), data)
	n.count.posts.Add(1)
	return outcomeError("Post", outcome, err)
}

// Ask is Post that returns what a handler gave to Message.Reply, a []byte: the first reply, if
// several connections have key. It fails as Post does, and with ErrNoReply if the reply was no
// []byte or the connection ended without one. A node waits for 4,096 replies at once, with a
// goroutine each; more are refused with tcpio.ErrMailboxFull.
func (n *Node) Ask(ctx context.Context, key string, p []byte) ([]byte, error) {
	tok, err := token("Ask", key)
	if err != nil {
		return nil, err
	}
	wait := patience
	if d, ok := ctx.Deadline(); ok {
		wait = time.Until(d)
	}
	data := append([]byte{byte(kindAsk)}, n.id...)
	data = binary.AppendUvarint(data, uint64(max(wait.Milliseconds(), 1)))
	outcome, reply, err := n.request(ctx, "Ask", n.subj.key(tok), append(data, p...))
	n.count.posts.Add(1)
	if err := outcomeError("Ask", outcome, err); err != nil {
		return nil, err
	}
	return reply, nil
}

func outcomeError(op string, outcome byte, err error) error {
	if err == nil {
		switch outcome {
		case outcomeFull:
			err = tcpio.ErrMailboxFull
		case outcomeNobody:
			err = ErrNobody
		case outcomeNoReply:
			err = ErrNoReply
		default:
			return nil
		}
		err = fmt.Errorf("cluster: %s: %w", op, err)
	}
	return err
}
