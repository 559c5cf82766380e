package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/rabbit-backend/tcpio"
)

// History says what is kept of the topics of a class. It needs JetStream of NATS 2.11 or newer. It is
// kept on the servers' disks, and survives that any of their processes are killed. When most of the
// servers lose power at once, the last two minutes may be lost, unless their jetstream has
// sync_interval: always.
type History struct {
	// PerTopic is how many records of each topic are kept, the newest; 0 is 1,000, and 1,000,000 is
	// the most.
	PerTopic int
	// Age is how long a record is kept; 0 is for as long as it is among the newest.
	Age time.Duration
	// Replicas is how many servers keep them: 1, 3 or 5; 0 is 3 in a NATS cluster and 1 without.
	Replicas int
	// Encode returns the bytes that members get for a record, with its position in them say, from
	// which a client can resume; nil is Record.Data. It is called once for each record and node, under
	// no lock; it must not block. Nodes may have different ones.
	Encode func(Record) []byte
}

const (
	defaultPerTopic = 1000
	maxPerTopic     = 1_000_000
	// A message id is known for so long.
	duplicates = 2 * time.Minute
	// recordPatience is how long Publish tries.
	recordPatience = 5 * time.Second
	epochKey       = "tcpio_epoch"
)

// A Record is a message of a recorded topic.
type Record struct {
	Topic string
	Pos   Pos
	Time  time.Time // at which the stream got it, by its server's clock
	Data  []byte    // it belongs to all who get the record, and must not be changed
	// Gap says that records before this one are missing, and are not kept any more.
	Gap bool
}

// A Pos is a position in a recorded topic: that of a record, after which a client wants to go on. The
// zero value is the beginning. Positions of one class and Epoch grow with every record; those of one
// topic need not follow each other.
type Pos struct {
	// Epoch is another one when everything was lost that was stored.
	Epoch string
	Seq   uint64
}

// String returns a text for clients, of letters, digits and one dash; the zero value's is "0".
func (p Pos) String() string {
	if p == (Pos{}) {
		return "0"
	}
	return p.Epoch + "-" + strconv.FormatUint(p.Seq, 10)
}

// ParsePos undoes String. Clients send what they like: it fails for anything else.
func ParsePos(s string) (Pos, error) {
	if s == "0" {
		return Pos{}, nil
	}
	epoch, digits, ok := strings.Cut(s, "-")
	seq, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil || digits[0] == '0' && digits != "0" || epoch == "" || len(epoch) > idLen || encodeName(epoch) != epoch {
		return Pos{}, fmt.Errorf("cluster: %q is no position", s[:min(len(s), 64)])
	}
	return Pos{epoch, seq}, nil
}

// A Class is a set of topics that are recorded in one stream. [Node.Class] returns it.
type Class struct {
	// Immutable.
	n      *Node
	name   string
	token  string
	stream string
	h      History

	epoch atomic.Pointer[string]
	open  chan struct{} // has a value while the stream is being opened

	opened time.Time // when ensure began that succeeded last; of who has put a value into open
}

// classes are those of a node.
type classes struct {
	mu sync.Mutex // a leaf
	// Guarded by mu.
	byToken map[string]*Class
	lasts   map[*Topic]uint64 // of which the last record is to be told
}

// Class makes or opens the stream of a class. Its topics keep their newest messages, and all members
// on all nodes see them in one order, and each of them: what is lost on the way is got from the
// stream. Call it with the same History on all nodes; of those that differ in PerTopic, Age or
// Replicas, the last call decides. A second call on a node returns the same Class.
//
// It blocks until JetStream has answered, 4 s at most. It fails with ErrNoQuorum, ErrDisconnected,
// ErrName, ErrClosed, ctx's error, and an error that names the field of h.
func (n *Node) Class(ctx context.Context, name string, h History) (*Class, error) {
	c, err := n.class(ctx, name, h)
	if err != nil {
		return nil, fmt.Errorf("cluster: Class: %w", err)
	}
	return c, nil
}

func (n *Node) class(ctx context.Context, name string, h History) (*Class, error) {
	if h.PerTopic == 0 {
		h.PerTopic = defaultPerTopic
	}
	tok := encodeName(name)
	switch {
	case n.closed.Load():
		return nil, ErrClosed
	case len(tok) > maxName:
		return nil, fmt.Errorf("%w: it has %d bytes once encoded, %d are the limit", ErrName, len(tok), maxName)
	case h.PerTopic < 0 || h.PerTopic > maxPerTopic:
		return nil, fmt.Errorf("History.PerTopic is %d: it must be between 1 and %d, or 0 for %d", h.PerTopic, maxPerTopic, defaultPerTopic)
	case h.Age < 0 || h.Age > 0 && h.Age < 100*time.Millisecond:
		return nil, fmt.Errorf("History.Age is %v: it must be 100ms or more, or 0 for no limit", h.Age)
	}
	if err := checkReplicas("History.Replicas", h.Replicas); err != nil {
		return nil, err
	}
	c := &Class{n: n, name: name, token: tok, stream: "tcpio+" + encodeName(n.opts.Name) + "+" + tok, h: h,
		open: make(chan struct{}, 1)}
	if err := c.ensure(ctx); err != nil {
		return nil, err
	}
	n.classes.mu.Lock()
	defer n.classes.mu.Unlock()
	if known := n.classes.byToken[tok]; known != nil {
		return known, nil
	}
	n.classes.byToken[tok] = c
	return c, nil
}

// ensure makes or opens the stream, and learns its epoch. Of many callers at one moment one does so.
func (c *Class) ensure(ctx context.Context) error {
	called := time.Now()
	select {
	case c.open <- struct{}{}:
		defer func() { <-c.open }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if c.opened.After(called) {
		return nil
	}
	begun := time.Now()
	want := newStreamConfig(c.stream, c.n.replicasOr(c.h.Replicas))
	want.Subjects = []string{c.n.subj.prefix + "h." + c.token + ".*"}
	want.MaxMsgsPer, want.MaxAge = int64(c.h.PerTopic), c.h.Age
	want.Duplicates = duplicates
	if want.MaxAge > 0 {
		want.Duplicates = min(duplicates, want.MaxAge)
	}
	want.RePublish = &republish{Src: want.Subjects[0], Dest: c.n.subj.prefix + "r." + c.token + ".{{wildcard(1)}}"}
	want.Metadata = map[string]string{epochKey: nuid.Next()}
	// Positions grow too when all of JetStream was lost.
	want.FirstSeq = uint64(time.Now().UnixMicro())
	info, made, err := c.n.openStream(ctx, want)
	if err != nil {
		return err
	}
	epoch := info.Config.Metadata[epochKey]
	if epoch == "" {
		return fmt.Errorf("the stream %s is not one of this package's", c.stream)
	}
	is := info.Config
	if !made && is.Storage != want.Storage {
		return fmt.Errorf("the stream %s has storage %q, and must have %q", c.stream, is.Storage, want.Storage)
	}
	if !made && (is.MaxMsgsPer != want.MaxMsgsPer || is.MaxAge != want.MaxAge ||
		c.h.Replicas != 0 && is.Replicas != want.Replicas) {
		want.Metadata, want.FirstSeq = is.Metadata, is.FirstSeq
		if c.h.Replicas == 0 {
			want.Replicas = is.Replicas
		}
		if err := c.n.api(ctx, "STREAM.UPDATE."+c.stream, want, &info); err != nil {
			return err
		}
	}
	c.opened = begun
	if before := c.epoch.Swap(&epoch); before != nil && *before != epoch {
		c.n.log(slog.LevelWarn, "all records of a class were lost", "class", c.name)
		for _, s := range c.n.shards {
			for _, t := range s.subscribed() {
				if t.class == c {
					t.missed() // or not: nobody knows any more
				}
			}
		}
	}
	return nil
}

// Name returns the class's name.
func (c *Class) Name() string { return c.name }

// Topic returns the topic of that name in the class. It is another one than Node.Topic's. Its Publish
// waits until the stream has the message: see [Topic.PublishRecord]. Join gives what comes after it,
// Resume what came before, too. The first Join on a node asks how far the stream is; without an
// answer it returns after 2 s, and c gets what comes from when there is one.
func (c *Class) Topic(name string) *Topic {
	tok, err := token("Topic", name)
	if err != nil {
		return &Topic{n: c.n, name: name, err: err}
	}
	place := "r." + c.token + "." + tok
	return c.n.shardOf(place).topicOf(place, name, c)
}

// An UnknownError says that a record may be in the stream or not. It matches ErrUnknown. To be
// certain publish it again by PublishRecord with the same ID, within two minutes: then it is there
// once.
type UnknownError struct {
	ID  string
	Err error
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("%v, record %q: %v", ErrUnknown, e.ID, e.Err)
}

// Unwrap returns ErrUnknown and the cause.
func (e *UnknownError) Unwrap() []error { return []error{ErrUnknown, e.Err} }

// PublishRecord is Publish for a topic of a Class: it returns when a majority of the stream's servers
// has the message, with its position. Members get it in the order of positions, this node's too. id
// makes it unique: of two records with one id within two minutes (or Age, if that is shorter) the
// second is not stored, and has the position of the first; "" is a new id.
//
// It tries again by itself, with the same id, until ctx ends, for 5 s at most. An [UnknownError],
// whatever its cause: it may be there or not. Otherwise nobody has it, with ErrNoQuorum,
// ErrDisconnected, which comes at once, ErrTooLong, ErrName, ErrClosed or ctx's error. On a topic
// without a class it fails with errors.ErrUnsupported. p is the caller's again afterwards.
func (t *Topic) PublishRecord(ctx context.Context, id string, p []byte) (Pos, error) {
	return t.record(ctx, "PublishRecord", id, nil, p)
}

func (t *Topic) record(ctx context.Context, op, id string, not *tcpio.Conn, p []byte) (pos Pos, err error) {
	if t.err != nil {
		return Pos{}, t.err
	}
	if t.class == nil {
		return Pos{}, fmt.Errorf("cluster: %s: topic %q has no Class: %w", op, t.name, errors.ErrUnsupported)
	}
	if t.n.closed.Load() {
		return Pos{}, fmt.Errorf("cluster: %s: %w", op, ErrClosed)
	}
	if id == "" {
		id = nuid.Next()
	}
	if not != nil {
		t.mu.Lock()
		if t.hasLocked(not) {
			if t.rec.excepts == nil {
				t.rec.excepts = make(map[string]*tcpio.Conn)
			}
			t.rec.excepts[id] = not
		}
		t.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(ctx, recordPatience)
	defer cancel()
	seq, err := t.put(ctx, id, p)
	if err != nil {
		if not != nil {
			t.mu.Lock()
			delete(t.rec.excepts, id)
			t.mu.Unlock()
		}
		return Pos{}, fmt.Errorf("cluster: %s: %w", op, err)
	}
	t.n.count.published.Add(1)
	t.n.count.recorded.Add(1)
	t.n.classes.last(t, seq)
	return Pos{*t.class.epoch.Load(), seq}, nil
}

// put stores a record. Once it may have arrived, an error is an UnknownError.
func (t *Topic) put(ctx context.Context, id string, p []byte) (seq uint64, err error) {
	doubt := error(nil)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		m := &nats.Msg{Subject: t.streamSubject(), Header: nats.Header{}, Data: p}
		m.Header.Set(hdrMsgID, id)
		if err = ctx.Err(); err == nil {
			seq, err = t.n.put(ctx, m, nil, callLimit)
		} else {
			err = unsentError{err}
		}
		if err == nil {
			return seq, nil
		}
		switch unsent := errors.As(err, new(unsentError)); {
		case noStream(err):
			// No leader, or no stream any more. This try has not arrived.
			_ = t.class.ensure(ctx)
		case unsent && doubt != nil && errors.Is(err, ErrDisconnected):
			// An earlier try may have arrived, and the connection may be back in time.
		case !unsent && (errors.Is(err, ErrNoQuorum) || errors.Is(err, ErrDisconnected) || ctx.Err() != nil):
			doubt = err // it was sent, and there is no answer
		default:
			if !unsent && errors.Is(err, ErrClosed) {
				doubt = err
			}
			if doubt != nil {
				err = &UnknownError{id, errors.Join(doubt, err)}
			}
			return 0, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			if doubt != nil {
				return 0, &UnknownError{id, doubt}
			}
			return 0, errors.Join(err, ctx.Err())
		}
	}
}

// last notes that the last record of t is to be told.
func (cs *classes) last(t *Topic, seq uint64) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.lasts[t] = max(cs.lasts[t], seq)
}

// tell tells which records were the last: who has missed one, and hears of none behind it, learns of
// it so.
func (cs *classes) tell(n *Node) {
	cs.mu.Lock()
	lasts := cs.lasts
	cs.lasts = make(map[*Topic]uint64)
	cs.mu.Unlock()
	for t, seq := range lasts {
		_ = n.publish(t.subject, appendLast(seq)) // without NATS everybody asks when it is back
	}
}
