package cluster

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// requests are those that wait for answers. Answers come on the node's own subject, so that any
// number of nodes may answer one.
type requests struct {
	mu sync.Mutex // a leaf
	// Guarded by mu.
	last    uint64
	waiting map[string]*request
}

type request struct {
	answers chan *nats.Msg
	failed  chan struct{} // closed when no answer can come any more
	err     error         // why; set before
}

const (
	maxAnswers = 64                    // of one request that wait; more are dropped
	grace      = 50 * time.Millisecond // for better answers behind a refusal
	patience   = 10 * time.Second      // for an answer, if ctx has no deadline
	firstProbe = 100 * time.Millisecond
	lastProbe  = 4 * time.Second
	probeMark  = "-" // ends the token of a probe
)

func (rs *requests) init() { rs.waiting = make(map[string]*request) }

func (rs *requests) begin(room int) (token string, r *request) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.last++
	token = strconv.FormatUint(rs.last, 36)
	r = &request{answers: make(chan *nats.Msg, room), failed: make(chan struct{})}
	rs.waiting[token] = r
	return token, r
}

func (rs *requests) end(token string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.waiting, token)
}

// failAll ends all requests: their answers will not come.
func (rs *requests) failAll(err error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for token, r := range rs.waiting {
		delete(rs.waiting, token)
		r.err = err
		close(r.failed)
	}
}

func (rs *requests) answer(m *nats.Msg) {
	rs.mu.Lock()
	r := rs.waiting[strings.TrimSuffix(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], probeMark)]
	rs.mu.Unlock()
	if r == nil {
		return // it was answered, or given up
	}
	select {
	case r.answers <- m:
	default:
	}
}

func (n *Node) runAnswers() {
	for {
		select {
		case m := <-n.answers:
			n.requests.answer(m)
		case <-n.done:
			return
		}
	}
}

// noResponders reports whether m is the server's word that nobody has the subject.
func noResponders(m *nats.Msg) bool {
	return len(m.Data) == 0 && m.Header.Get("Status") == "503"
}

// request sends data to a subject and returns the first good answer, outcomeTaken or outcomeReply.
// For one that is worse it waits a little for a better one, since several nodes may answer. It is
// never repeated: without an answer the error matches ErrUnknown, if it was sent.
//
// A request may meet a node that is just giving the subject up, or that is killed before it answers:
// no answer will come. So once in a while a probe looks whether anybody has the subject and works on
// the request. An answer that was given before comes before that to the probe.
func (n *Node) request(ctx context.Context, op, subject string, data []byte) (outcome byte, payload []byte, err error) {
	if n.closed.Load() {
		return 0, nil, fmt.Errorf("cluster: %s: %w", op, ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return 0, nil, fmt.Errorf("cluster: %s: %w", op, err)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	token, r := n.requests.begin(maxAnswers)
	defer n.requests.end(token)
	reply := n.subj.node(n.id, "re."+token)
	if err := n.publishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: data}); err != nil {
		return 0, nil, sendError(op, err)
	}
	every := firstProbe
	probe := time.NewTimer(every)
	defer probe.Stop()
	var worse []byte // the best of the outcomes that are no success
	var over <-chan time.Time
	for {
		select {
		case m := <-r.answers:
			outcome, payload, err := byte(outcomeNobody), []byte(nil), error(nil)
			if !noResponders(m) {
				outcome, payload, err = readAnswer(m.Data)
			} else if !strings.HasSuffix(m.Subject, probeMark) {
				return outcomeNobody, nil, nil
			}
			switch {
			case err == nil && strings.HasSuffix(m.Subject, probeMark):
				if worse == nil {
					return 0, nil, fmt.Errorf("cluster: %s: %w: nobody works on it", op, ErrUnknown)
				}
			case err != nil:
				n.malformed(m, err)
			case outcome == outcomeTaken || outcome == outcomeReply:
				return outcome, payload, nil
			default:
				if over == nil {
					over = time.After(grace)
				}
				if worse == nil || outcome != outcomeNobody {
					worse = []byte{outcome}
				}
			}
		case <-probe.C:
			_ = n.publishMsg(&nats.Msg{Subject: subject, Reply: reply + probeMark, Data: []byte{byte(kindProbe)}}) // the next one may be sent
			every = min(2*every, lastProbe)
			probe.Reset(every)
		case <-over:
			return worse[0], nil, nil
		case <-r.failed:
			return 0, nil, fmt.Errorf("cluster: %s: %w: %w", op, ErrUnknown, r.err)
		case <-ctx.Done():
			if worse != nil {
				return worse[0], nil, nil
			}
			return 0, nil, fmt.Errorf("cluster: %s: %w: %w", op, ErrUnknown, ctx.Err())
		}
	}
}
