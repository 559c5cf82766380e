package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// What sessions and recorded topics need of JetStream, NATS' store: make a stream, publish with an
// acknowledgement, get messages. Answers come on the node's own subject, so that a node needs no
// other inbox. Without a leader JetStream does not answer at all: every call has a limit of its own.

// callLimit is how long a call of JetStream may take. A majority answers within milliseconds.
const callLimit = 2 * time.Second

// Headers of JetStream.
const (
	hdrSequence     = "Nats-Sequence"
	hdrLastSequence = "Nats-Last-Sequence"
	hdrTime         = "Nats-Time-Stamp"
	hdrExpected     = "Nats-Expected-Last-Subject-Sequence"
	hdrMsgID        = "Nats-Msg-Id"
	hdrTTL          = "Nats-TTL"
	hdrStatus       = "Status"
)

// Codes of JetStream's errors.
const (
	codeNameInUse     = 10058
	codeNotFound      = 10059
	codeWrongLast     = 10071
	codeWrongLastToo  = 10164 // the same, without the number
	codeNotAvailable  = 10008
	codeNoMessage     = 10037
	codeNoResources   = 10023
	codeNoPeers       = 10005
	codeNotClustered  = 10074 // more than one replica
	codeOutOfStorage  = 10047
	codeUnknownStream = 10052 // stream offline, or not ready
)

var (
	errNoResponders = errors.New("nobody answers")
	errNoAnswer     = errors.New("no answer")
	errConflict     = errors.New("another has written")
)

// An unsentError says that a request was not sent: nobody has it.
type unsentError struct{ error }

func (e unsentError) Unwrap() error { return e.error }

// A jsError is what JetStream says.
type jsError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *jsError) Error() string {
	return fmt.Sprintf("JetStream: %s (%d)", e.Description, e.ErrCode)
}

// transient reports whether the call may work later.
func (e *jsError) transient() bool {
	switch e.ErrCode {
	case codeNotFound, codeNotAvailable, codeNoResources, codeNoPeers, codeUnknownStream, codeOutOfStorage:
		return true
	}
	return e.Code == 503
}

// call sends a request and returns the first answer. The error matches ErrNoQuorum if nobody
// answers, with errNoResponders if that is certain; ErrDisconnected; or ctx's. It is an unsentError if
// the request was not sent.
func (n *Node) call(ctx context.Context, m *nats.Msg, limit time.Duration) (*nats.Msg, error) {
	if n.closed.Load() {
		return nil, unsentError{ErrClosed}
	}
	token, r := n.requests.begin(1)
	defer n.requests.end(token)
	m.Reply = n.subj.node(n.id, "re."+token)
	if err := n.publishMsg(m); err != nil {
		return nil, unsentError{sendCause(err)}
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a := <-r.answers:
		if noResponders(a) {
			return nil, fmt.Errorf("%w: %w", ErrNoQuorum, errNoResponders)
		}
		return a, nil
	case <-r.failed:
		return nil, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, fmt.Errorf("%w: %w within %v", ErrNoQuorum, errNoAnswer, limit)
	}
}

// api calls JetStream's API. answer is where to put what it says.
func (n *Node) api(ctx context.Context, subject string, request, answer any) error {
	data := []byte(nil)
	if request != nil {
		var err error
		if data, err = json.Marshal(request); err != nil {
			return err
		}
	}
	a, err := n.call(ctx, &nats.Msg{Subject: "$JS.API." + subject, Data: data}, callLimit)
	if err != nil {
		return err
	}
	var failed struct {
		Error *jsError `json:"error"`
	}
	if err := json.Unmarshal(a.Data, &failed); err != nil {
		return fmt.Errorf("JetStream's answer: %w", err)
	}
	if failed.Error != nil {
		if failed.Error.transient() {
			return fmt.Errorf("%w: %w", ErrNoQuorum, failed.Error)
		}
		return failed.Error
	}
	return json.Unmarshal(a.Data, answer)
}

// put publishes a message into a stream and returns its sequence. With expect it fails with
// errConflict unless the last message of the subject has that sequence, 0 for none.
func (n *Node) put(ctx context.Context, m *nats.Msg, expect *uint64, limit time.Duration) (seq uint64, err error) {
	if expect != nil {
		m.Header.Set(hdrExpected, strconv.FormatUint(*expect, 10))
	}
	a, err := n.call(ctx, m, limit)
	if err != nil {
		return 0, err
	}
	var ack struct {
		Seq   uint64   `json:"seq"`
		Error *jsError `json:"error"`
	}
	if err := json.Unmarshal(a.Data, &ack); err != nil {
		return 0, fmt.Errorf("JetStream's answer: %w", err)
	}
	switch e := ack.Error; {
	case e == nil:
		return ack.Seq, nil
	case e.ErrCode == codeWrongLast || e.ErrCode == codeWrongLastToo:
		return 0, errConflict
	case e.transient():
		return 0, fmt.Errorf("%w: %w", ErrNoQuorum, e)
	}
	return 0, ack.Error
}

// A streamConfig is what we say of a stream.
type streamConfig struct {
	Name        string            `json:"name"`
	Subjects    []string          `json:"subjects"`
	Retention   string            `json:"retention"`
	Discard     string            `json:"discard"`
	Storage     string            `json:"storage"`
	Replicas    int               `json:"num_replicas"`
	MaxMsgs     int64             `json:"max_msgs"`
	MaxBytes    int64             `json:"max_bytes"`
	MaxMsgsPer  int64             `json:"max_msgs_per_subject"`
	MaxAge      time.Duration     `json:"max_age"`
	Duplicates  time.Duration     `json:"duplicate_window,omitempty"`
	FirstSeq    uint64            `json:"first_seq,omitempty"`
	AllowDirect bool              `json:"allow_direct"`
	AllowMsgTTL bool              `json:"allow_msg_ttl,omitempty"`
	RePublish   *republish        `json:"republish,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

type republish struct {
	Src  string `json:"src"`
	Dest string `json:"dest"`
}

// newStreamConfig is what our streams have in common. They are on disk: a stream in memory begins
// with its first sequence again when all its servers have restarted, under the same name and with
// the same description, and fences and positions would come twice.
func newStreamConfig(name string, replicas int) streamConfig {
	return streamConfig{Name: name, Retention: "limits", Discard: "old", Storage: "file",
		Replicas: replicas, MaxMsgs: -1, MaxBytes: -1, AllowDirect: true}
}

// replicasOr returns how many replicas a stream has for which the user has said 0: three in a
// cluster, one with a server that is alone.
func (n *Node) replicasOr(said int) int {
	switch {
	case said > 0:
		return said
	case n.nc.ConnectedClusterName() != "":
		return 3
	}
	return 1
}

type streamInfo struct {
	Config  streamConfig `json:"config"`
	Created time.Time    `json:"created"`
}

// openStream makes the stream, or returns what there is under its name.
func (n *Node) openStream(ctx context.Context, c streamConfig) (info streamInfo, made bool, err error) {
	for begun := time.Now(); ; {
		err = n.api(ctx, "STREAM.INFO."+c.Name, nil, &info)
		if !isCode(err, codeNotFound) {
			return info, false, err
		}
		err = n.api(ctx, "STREAM.CREATE."+c.Name, c, &info)
		if !isCode(err, codeNameInUse) {
			return info, true, err
		}
		// Another node makes it at this moment, which takes as long as its servers elect a leader.
		if time.Since(begun) > callLimit {
			return info, false, fmt.Errorf("%w: the stream is being made: %w", ErrNoQuorum, err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return info, false, ctx.Err()
		}
	}
}

func isCode(err error, code int) bool {
	var said *jsError
	return errors.As(err, &said) && said.ErrCode == code
}

// checkReplicas says what is wrong with a number of replicas.
func checkReplicas(field string, n int) error {
	switch n {
	case 0, 1, 3, 5:
		return nil
	}
	return fmt.Errorf("cluster: %s is %d: it must be 1, 3 or 5, or 0 for 3 in a cluster and 1 without", field, n)
}

// A stored is a message of a stream.
type stored struct {
	seq  uint64
	at   time.Time
	id   string // its message id
	data []byte
}

func readStored(m *nats.Msg) (s stored, err error) {
	s.seq, err = strconv.ParseUint(m.Header.Get(hdrSequence), 10, 64)
	if err != nil {
		return s, &malformed{"sequence"}
	}
	s.at, err = time.Parse(time.RFC3339Nano, m.Header.Get(hdrTime))
	if err != nil {
		return s, &malformed{"time"}
	}
	s.id, s.data = m.Header.Get(hdrMsgID), m.Data
	return s, nil
}

// lastOf returns the last message of a subject in a stream; its seq is 0 if there is none. A replica
// answers, which may be behind: by milliseconds, and by more after its server has started.
func (n *Node) lastOf(ctx context.Context, stream, subject string) (stored, error) {
	a, err := n.call(ctx, &nats.Msg{Subject: "$JS.API.DIRECT.GET." + stream + "." + subject}, callLimit)
	if err != nil {
		return stored{}, err
	}
	switch status := a.Header.Get(hdrStatus); status {
	case "":
		return readStored(a)
	case "404":
		return stored{}, nil
	default:
		return stored{}, fmt.Errorf("JetStream: status %s", strings.TrimSpace(status+" "+a.Header.Get("Description")))
	}
}

const (
	batchMessages = 256     // of one request
	batchBytes    = 1 << 20 // likewise
	// maxBatches is how many are under way at once: their answers do not fill the channel on which
	// those to other calls come, too.
	maxBatches = (controlRoom - 1) / (batchMessages + 1)
)

// A getRequest asks for messages of a stream.
type getRequest struct {
	Seq      uint64 `json:"seq,omitempty"`
	Next     string `json:"next_by_subj,omitempty"` // from Seq on
	Last     string `json:"last_by_subj,omitempty"`
	Batch    int    `json:"batch,omitempty"`
	MaxBytes int    `json:"max_bytes,omitempty"`
}

// atLeader asks the leader of a stream for a message; its seq is 0 if there is none. It is slower
// than a replica, and never behind, but for the moment in which it becomes the leader.
func (n *Node) atLeader(ctx context.Context, stream string, q getRequest) (stored, error) {
	var answer struct {
		Message struct {
			Seq     uint64    `json:"seq"`
			Time    time.Time `json:"time"`
			Headers []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
		} `json:"message"`
	}
	err := n.api(ctx, "STREAM.MSG.GET."+stream, q, &answer)
	if isCode(err, codeNoMessage) {
		return stored{}, nil
	}
	if err != nil {
		return stored{}, err
	}
	m := answer.Message
	s := stored{seq: m.Seq, at: m.Time, data: m.Data}
	if len(m.Headers) > 0 {
		h, err := nats.DecodeHeadersMsg(m.Headers)
		if err != nil {
			return stored{}, &malformed{"header"}
		}
		s.id = h.Get(hdrMsgID)
	}
	return s, nil
}

// leaderBatch is batchOf by the stream's leader.
func (n *Node) leaderBatch(ctx context.Context, stream, subject string, from uint64) (all []stored, left int, err error) {
	for size := 0; len(all) < batchMessages && size < batchBytes; {
		s, err := n.atLeader(ctx, stream, getRequest{Seq: max(from, 1), Next: subject})
		if err != nil && len(all) == 0 {
			return nil, 0, err
		}
		if err != nil || s.seq == 0 {
			return all, 0, nil
		}
		all = append(all, s)
		size += len(s.data)
		from = s.seq + 1
	}
	return all, 1, nil
}

// lastSequence returns the sequence that a stream gave last, by its leader's word.
func (n *Node) lastSequence(ctx context.Context, stream string) (uint64, error) {
	var info struct {
		State struct {
			Last uint64 `json:"last_seq"`
		} `json:"state"`
	}
	err := n.api(ctx, "STREAM.INFO."+stream, nil, &info)
	return info.State.Last, err
}

// noStream reports whether a call has failed since there is no such stream, or since none of its
// servers is there.
func noStream(err error) bool { return errors.Is(err, errNoResponders) || isCode(err, codeNotFound) }

// batchOf returns messages of a subject from a sequence on, batchMessages at most, and how many
// there are behind them. One that was lost on the way ends them.
func (n *Node) batchOf(ctx context.Context, stream, subject string, from uint64) (all []stored, left int, err error) {
	request, err := json.Marshal(getRequest{Seq: max(from, 1), Next: subject, Batch: batchMessages, MaxBytes: batchBytes})
	if err != nil {
		return nil, 0, err
	}
	select {
	case n.batches <- struct{}{}:
		defer func() { <-n.batches }()
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	case <-n.done:
		return nil, 0, ErrClosed
	}
	token, r := n.requests.begin(batchMessages + 1)
	defer n.requests.end(token)
	m := &nats.Msg{Subject: "$JS.API.DIRECT.GET." + stream, Reply: n.subj.node(n.id, "re."+token), Data: request}
	if err := n.publishMsg(m); err != nil {
		return nil, 0, sendCause(err)
	}
	timer := time.NewTimer(callLimit)
	defer timer.Stop()
	last := uint64(0)
	for {
		var a *nats.Msg
		select {
		case a = <-r.answers:
		case <-r.failed:
			return nil, 0, r.err
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		case <-timer.C:
			if len(all) > 0 {
				return all, 1, nil // the rest was lost
			}
			return nil, 0, fmt.Errorf("%w: %w within %v", ErrNoQuorum, errNoAnswer, callLimit)
		}
		switch status := a.Header.Get(hdrStatus); {
		case noResponders(a):
			return nil, 0, fmt.Errorf("%w: %w", ErrNoQuorum, errNoResponders)
		case status == "404":
			return all, 0, nil
		case status == "204":
			left, _ = strconv.Atoi(a.Header.Get("Nats-Num-Pending"))
			if end, _ := strconv.ParseUint(a.Header.Get(hdrLastSequence), 10, 64); end != last {
				left = max(left, 1)
			}
			return all, left, nil
		case status != "":
			return nil, 0, fmt.Errorf("JetStream: status %s %s", status, a.Header.Get("Description"))
		}
		s, err := readStored(a)
		if err != nil {
			return nil, 0, err
		}
		if before, _ := strconv.ParseUint(a.Header.Get(hdrLastSequence), 10, 64); before != last {
			return all, 1, nil // one was lost between
		}
		last = s.seq
		all = append(all, s)
		timer.Reset(callLimit)
	}
}
