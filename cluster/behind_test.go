//go:build linux

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// A replica answers for all replicas of a class's stream, and knows what has which sequence up to
// one.
type replica struct {
	nc     *nats.Conn
	stream string
	knows  atomic.Uint64 // up to this sequence
	behind atomic.Uint64 // if not 0: so many records less than what is asked for last
}

// ask asks the stream's leader.
func (r *replica) ask(request string) (m struct {
	Subject    string
	Seq        uint64
	Data, Hdrs []byte
	Time       time.Time
}, ok bool) {
	a, err := r.nc.Request("$JS.API.STREAM.MSG.GET."+r.stream, []byte(request), testnet.Limit)
	if err != nil {
		return m, false
	}
	answer := struct{ Message any }{&m}
	return m, json.Unmarshal(a.Data, &answer) == nil && m.Seq > 0
}

// next returns the first message of the subject from a sequence on that the replica has.
func (r *replica) next(subject string, from uint64) (a *nats.Msg, seq uint64) {
	m, ok := r.ask(fmt.Sprintf(`{"seq":%d,"next_by_subj":%q}`, max(from, 1), subject))
	if !ok || m.Seq > r.knows.Load() {
		return nil, 0
	}
	a = &nats.Msg{Header: nats.Header{}, Data: m.Data}
	if h, err := nats.DecodeHeadersMsg(m.Hdrs); err == nil {
		a.Header = h
	}
	a.Header.Set(hdrSequence, strconv.FormatUint(m.Seq, 10))
	a.Header.Set(hdrTime, m.Time.Format(time.RFC3339Nano))
	return a, m.Seq
}

func (r *replica) serve(q *nats.Msg) {
	send := func(a *nats.Msg) {
		a.Subject = q.Reply
		_ = r.nc.PublishMsg(a) // who asks asks again
	}
	status := func(text string, last uint64) {
		a := &nats.Msg{Header: nats.Header{}}
		a.Header.Set(hdrStatus, text)
		a.Header.Set(hdrLastSequence, strconv.FormatUint(last, 10))
		send(a)
	}
	subject, one := strings.CutPrefix(q.Subject, "$JS.API.DIRECT.GET."+r.stream+".")
	if one {
		found := (*nats.Msg)(nil)
		for at := uint64(1); ; {
			a, seq := r.next(subject, at)
			if a == nil {
				break
			}
			found, at = a, seq+1
		}
		if found == nil {
			status("404", 0)
			return
		}
		send(found)
		return
	}
	var request struct {
		Seq   uint64
		Next  string `json:"next_by_subj"`
		Batch int
	}
	_ = json.Unmarshal(q.Data, &request) // it is ours
	if n := r.behind.Load(); n > 0 {
		if m, ok := r.ask(fmt.Sprintf(`{"last_by_subj":%q}`, request.Next)); ok {
			r.knows.Store(m.Seq - min(n, m.Seq))
		}
	}
	last := uint64(0)
	for range request.Batch {
		a, seq := r.next(request.Next, max(request.Seq, last+1))
		if a == nil {
			break
		}
		a.Header.Set(hdrLastSequence, strconv.FormatUint(last, 10))
		last = seq
		send(a)
	}
	if last == 0 {
		status("404", 0)
	} else {
		status("204", last)
	}
}

// replicaOf has a replica answer for the stream of c from now on, which knows nothing.
func replicaOf(t testing.TB, s *site, c *Class) *replica {
	t.Helper()
	r := &replica{nc: connect(t, s.nc.ConnectedUrl()), stream: c.stream}
	var info streamInfo
	must(t, s.api(testnet.Context(t), "STREAM.INFO."+c.stream, nil, &info))
	info.Config.AllowDirect = false
	must(t, s.api(testnet.Context(t), "STREAM.UPDATE."+c.stream, info.Config, &info))
	for _, subject := range []string{"$JS.API.DIRECT.GET." + c.stream, "$JS.API.DIRECT.GET." + c.stream + ".>"} {
		_, err := r.nc.Subscribe(subject, r.serve)
		must(t, err)
	}
	must(t, r.nc.Flush())
	return r
}

// The replica that a node asks is behind what the stream publishes, for as long as it likes, while
// more comes: every record is delivered.
// To see it fail: have batch never ask the leader.
func TestAReplicaThatStaysBehindLosesNothing(t *testing.T) {
	t.Parallel()
	for name, behind := range map[string]uint64{"a little": 8, "all": 1 << 40} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers := storeServers(t, 1)
			here, there := openSite(t, servers[0], Options{}), openSite(t, servers[0], Options{})
			topic, from := here.class(t, History{PerTopic: 10_000}).Topic("room"), there.class(t, History{PerTopic: 10_000}).Topic("room")
			c := here.client(t)
			must(t, topic.Join(c.conn, nil))
			replicaOf(t, here, topic.class).behind.Store(behind)
			n := 0
			publish := func() { must(t, from.Publish([]byte(strconv.Itoa(n)))); n++ }
			unheard(t, topic, publish)
			for begun := time.Now(); time.Since(begun) < goneAfter+time.Second; {
				publish()
				time.Sleep(20 * time.Millisecond) // the load of a chat
			}
			for want := range n {
				if _, text := c.entry(t); text != strconv.Itoa(want) {
					t.Fatalf("got %q, want %d", text, want)
				}
			}
			// Who comes gets all of them, too.
			d := here.client(t)
			if !d.resume(t, topic, Pos{}) {
				t.Error("not whole")
			}
			for want := range n {
				if _, text := d.entry(t); text != strconv.Itoa(want) {
					t.Fatalf("resumed: got %q, want %d", text, want)
				}
			}
			if s := here.Stats(); s.Lost != 0 || s.Refilled == 0 {
				t.Errorf("%d lost, %d refilled", s.Lost, s.Refilled)
			}
		})
	}
}

// A record that the stream does not have any more is told as lost as soon as its leader says so,
// and what comes behind it is delivered.
// To see it fail: have gone say false.
func TestARecordThatHasGoneIsTold(t *testing.T) {
	t.Parallel()
	s := openSite(t, storeServers(t, 1)[0], Options{})
	topic := s.class(t, History{}).Topic("room")
	c := s.client(t)
	must(t, topic.Join(c.conn, nil))
	must(t, topic.Publish([]byte("first")))
	first, _ := c.entry(t)
	at := uint64(0)
	unheard(t, topic, func() {
		missed, err := topic.PublishRecord(testnet.Context(t), "", []byte("missed"))
		must(t, err)
		purge(t, s, topic.class)
		at = missed.Seq
	})
	s.classes.last(topic, at) // the word of it, which a heartbeat may have told already
	lost := s.losses(t)
	testnet.WaitFor(t, "it is told", func() bool { return lost.of("") > 0 })
	must(t, topic.Publish([]byte("next")))
	if pos, text := c.entry(t); text != "gap next" {
		t.Errorf("got %v %q", pos, text)
	}
	if n := lost.of(""); n != 1 {
		t.Errorf("%d lost", n)
	}
	for since, whole := range map[Pos]bool{first: false, {}: true} {
		if got := s.client(t).resume(t, topic, since); got != whole {
			t.Errorf("since %v: whole is %v", since, got)
		}
	}
	// Nothing is left, and everybody knows it: nobody waits for it. Otherwise each would.
	purge(t, s, topic.class)
	begun := time.Now()
	for since, whole := range map[Pos]bool{first: false, {}: true} {
		if got := s.client(t).resume(t, topic, since); got != whole {
			t.Errorf("nothing is left, since %v: whole is %v", since, got)
		}
	}
	if took := time.Since(begun); took >= 2*goneAfter {
		t.Errorf("it took %v", took)
	}
}

func purge(t testing.TB, s *site, c *Class) {
	t.Helper()
	var answer struct{ Success bool }
	must(t, s.api(testnet.Context(t), "STREAM.PURGE."+c.stream, nil, &answer))
}

// All that is stored goes away. A node that only reads makes the stream anew when a connection
// resumes, and tells that records are lost; so does one that gets the first record of a new stream.
func TestALostStreamIsMadeAnewByWhoReads(t *testing.T) {
	t.Parallel()
	servers := storeServers(t, 1)
	reads, other := openSite(t, servers[0], Options{}), openSite(t, servers[0], Options{})
	topic, from := reads.class(t, History{}).Topic("room"), other.class(t, History{}).Topic("room")
	lost := reads.losses(t)
	c := reads.client(t)
	must(t, topic.Join(c.conn, nil))
	must(t, from.Publish([]byte("old")))
	old, _ := c.entry(t)
	remove := func() {
		var answer struct{ Success bool }
		must(t, other.api(testnet.Context(t), "STREAM.DELETE."+topic.class.stream, nil, &answer))
	}
	remove()
	if !reads.client(t).resume(t, topic, Pos{}) {
		t.Error("what is kept did not come")
	}
	if reads.client(t).resume(t, topic, old) {
		t.Error("a lost stream is whole")
	}
	testnet.WaitFor(t, "the loss is told", func() bool { return lost.of("") > 0 })
	must(t, from.Publish([]byte("new")))
	second, text := c.entry(t)
	if second.Epoch == old.Epoch || second.Seq <= old.Seq || text != "gap new" {
		t.Errorf("%v %q behind %v", second, text, old)
	}
	// The publisher makes it anew.
	told := lost.of("")
	remove()
	must(t, from.Publish([]byte("newer")))
	third, text := c.entry(t)
	if third.Epoch == second.Epoch || third.Seq <= second.Seq || text != "gap newer" {
		t.Errorf("%v %q behind %v", third, text, second)
	}
	testnet.WaitFor(t, "the loss is told", func() bool { return lost.of("") > told })
	must(t, from.Publish([]byte("newest")))
	if pos, text := c.entry(t); pos.Epoch != third.Epoch || text != "newest" {
		t.Errorf("%v %q behind %v", pos, text, third)
	}
}

// A record that comes when the one before it was kept long enough is no loss.
func TestARecordBehindOneThatHasExpiredIsNoLoss(t *testing.T) {
	t.Parallel()
	s := openSite(t, storeServers(t, 1)[0], Options{})
	topic := s.class(t, History{Age: time.Second}).Topic("room") // each is delivered before, also on a busy machine
	c := s.client(t)
	must(t, topic.Join(c.conn, nil))
	for want := range 4 {
		must(t, topic.Publish([]byte(strconv.Itoa(want))))
		if _, text := c.entry(t); text != strconv.Itoa(want) {
			t.Errorf("got %q, want %d", text, want)
		}
		testnet.WaitFor(t, "it has expired", func() bool {
			last, err := s.lastOf(testnet.Context(t), topic.class.stream, topic.streamSubject())
			return err == nil && last.seq == 0
		})
	}
	if n := s.Stats().Lost; n != 0 {
		t.Errorf("%d lost", n)
	}
}

// While another node makes the stream, which is not there until its servers have a leader, there is no
// majority, and nothing else is wrong.
// To see it fail: have openStream return what JetStream says.
func TestAStreamThatIsBeingMadeIsNoQuorumYet(t *testing.T) {
	t.Parallel()
	s := openSite(t, natsServers(t, 1)[0], withSessions(Sessions{})) // without JetStream, whose part the test has
	jetStream := connect(t, s.nc.ConnectedUrl())
	for subject, code := range map[string]int{"INFO": codeNotFound, "CREATE": codeNameInUse} {
		_, err := jetStream.Subscribe("$JS.API.STREAM."+subject+".*", func(m *nats.Msg) {
			_ = m.Respond(fmt.Appendf(nil, `{"error":{"code":400,"err_code":%d}}`, code)) // who asks asks again
		})
		must(t, err)
	}
	must(t, jetStream.Flush())
	if _, err := s.Class(testnet.Context(t), "log", History{}); !errors.Is(err, ErrNoQuorum) {
		t.Errorf("Class: %v", err)
	}
	if _, err := s.Claim(testnet.Context(t), "k", s.client(t).conn); !errors.Is(err, ErrNoQuorum) {
		t.Errorf("Claim: %v", err)
	}
}
