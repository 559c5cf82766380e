//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/cluster/internal/proc"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// positioned is an Encode that has the position in each line.
func positioned(rec Record) []byte {
	gap := ""
	if rec.Gap {
		gap = "gap "
	}
	return fmt.Appendf(nil, "%s %s%s\n", rec.Pos, gap, rec.Data)
}

// class opens a class as soon as JetStream has a leader.
func (s *site) class(t testing.TB, h History) *Class {
	t.Helper()
	if h.Encode == nil {
		h.Encode = positioned
	}
	var c *Class
	proc.Eventually(t, "the class is there", func() bool {
		var err error
		c, err = s.Class(testnet.Context(t), "log", h)
		if err != nil && !errors.Is(err, ErrNoQuorum) {
			t.Fatal(err)
		}
		return err == nil
	})
	return c
}

// entry returns the position and the text of the client's next line.
func (c *client) entry(t testing.TB) (Pos, string) {
	t.Helper()
	text, rest, _ := strings.Cut(c.line(t), " ")
	pos, err := ParsePos(text)
	if err != nil {
		t.Fatal(err)
	}
	return pos, rest
}

// resume resumes the client, whose lines come by its connection.
func (c *client) resume(t testing.TB, topic *Topic, since Pos) (whole bool) {
	t.Helper()
	whole, err := topic.Resume(testnet.Context(t), c.conn, nil, since, func(rec Record) error {
		_, err := c.conn.Write(positioned(rec))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return whole
}

// publishOnce publishes a record once, as soon as there is a majority.
func publishOnce(t testing.TB, topic *Topic, id, text string) {
	t.Helper()
	proc.Eventually(t, "the record is taken", func() bool {
		_, err := topic.PublishRecord(testnet.Context(t), id, []byte(text))
		if err != nil && !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNoQuorum) {
			t.Errorf("PublishRecord: %v", err)
			return true
		}
		return err == nil
	})
}

func TestAllMembersSeeOneOrder(t *testing.T) {
	t.Parallel()
	sites := openSites(t, storeServers(t, 3), Options{})
	var clients []*client
	for _, s := range sites {
		room := s.class(t, History{}).Topic("room")
		c := s.client(t)
		must(t, room.Join(c.conn, &Member{ID: "x"}))
		clients = append(clients, c)
	}
	const each = 50
	var wg sync.WaitGroup
	for i, s := range sites {
		wg.Go(func() {
			for k := range each {
				text := fmt.Sprintf("%d %d", i, k)
				publishOnce(t, s.class(t, History{}).Topic("room"), text, text)
			}
		})
	}
	var first []string
	for i, c := range clients {
		var got []string
		last := Pos{}
		for range each * len(sites) {
			pos, text := c.entry(t)
			if pos.Seq <= last.Seq || last.Epoch != "" && pos.Epoch != last.Epoch {
				t.Fatalf("%v behind %v", pos, last)
			}
			last = pos
			got = append(got, text)
		}
		if i == 0 {
			first = got
		}
		if !slices.Equal(got, first) {
			t.Errorf("client %d has another order than the first", i)
		}
	}
	wg.Wait()
	testnet.WaitFor(t, "all members are in the list", func() bool {
		all, ok := sites[1].class(t, History{}).Topic("room").Members()
		return ok && len(all) == 3
	})
}

// unheard has the node not hear what is published in a topic during a function.
func unheard(t testing.TB, topic *Topic, during func()) {
	t.Helper()
	nc := topic.n.nc
	topic.pub.Lock()
	must(t, topic.sub.Unsubscribe())
	topic.pub.Unlock()
	must(t, nc.Flush())
	during()
	sub, err := nc.ChanSubscribe(topic.subject, topic.sh.ch)
	must(t, err)
	topic.pub.Lock()
	topic.sub = sub
	topic.pub.Unlock()
	must(t, nc.Flush())
}

// What the stream's publishing has lost is got from the stream, in order: in the middle, and at the
// end, behind which nothing comes.
func TestHolesAreFilled(t *testing.T) {
	t.Parallel()
	servers := storeServers(t, 1)
	here, there := openSite(t, servers[0], Options{}), openSite(t, servers[0], Options{})
	topic := here.class(t, History{}).Topic("room")
	from := there.class(t, History{}).Topic("room")
	c := here.client(t)
	must(t, topic.Join(c.conn, nil))
	deaf := func(during func()) { unheard(t, topic, during) }
	n := 0
	last := Pos{}
	publish := func(count int) {
		for range count {
			var err error
			last, err = from.PublishRecord(testnet.Context(t), "", []byte(strconv.Itoa(n)))
			must(t, err)
			n++
		}
	}
	publish(3)
	deaf(func() { publish(2*batchMessages + 7) })
	publish(1)
	deaf(func() { publish(5) })
	there.classes.last(from, last.Seq) // the word of it, which a heartbeat may have told already
	for want := range n {
		if _, text := c.entry(t); text != strconv.Itoa(want) {
			t.Fatalf("got %q, want %d", text, want)
		}
	}
	if got := here.Stats(); got.Lost != 0 || got.Refilled < 2*batchMessages {
		t.Errorf("lost %d, refilled %d", got.Lost, got.Refilled)
	}
	// The connection to NATS goes while others publish.
	topic.n.nc.ForceReconnect()
	for range 20 {
		publish(5)
		time.Sleep(time.Millisecond) // so that it is away for some of them
	}
	for want := n - 100; want < n; want++ {
		if _, text := c.entry(t); text != strconv.Itoa(want) {
			t.Fatalf("behind a reconnect: got %q, want %d", text, want)
		}
	}
}

// Clients come and go under load, and each sees every record once, in order, on whichever node.
func TestResumeLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	sites := openSites(t, storeServers(t, 3), Options{})
	var topics []*Topic
	for _, s := range sites {
		topics = append(topics, s.class(t, History{PerTopic: 100_000}).Topic("room"))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	seen := make([][]uint64, 4)
	var published, got atomic.Int64 // records; how many of them the clients have got, together
	for i, topic := range topics {
		wg.Go(func() {
			for n := 0; ; {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
					if published.Load() > got.Load()/int64(len(seen))+200 { // so that clients can keep up
						continue
					}
					publishOnce(t, topic, fmt.Sprint(i, " ", n), "x")
					n++
					published.Add(1)
				}
			}
		})
	}
	rounds := 5
	if testnet.Long {
		rounds = 15
	}
	var clients sync.WaitGroup
	for k := range seen {
		clients.Go(func() {
			at := Pos{}
			for round := range rounds {
				c := sites[(k+round)%3].client(t)
				whole, err := topics[(k+round)%3].Resume(testnet.Context(t), c.conn, nil, at, func(rec Record) error {
					if rec.Pos.Seq%4 == 0 {
						time.Sleep(time.Millisecond) // so that others publish meanwhile
					}
					_, err := c.conn.Write(positioned(rec))
					return err
				})
				if err != nil || !whole {
					t.Errorf("whole is %v, %v", whole, err)
					return
				}
				for range 30 {
					pos, text := c.entry(t)
					if text != "x" {
						t.Errorf("got %q", text)
					}
					at = pos
					seen[k] = append(seen[k], pos.Seq)
					got.Add(1)
				}
				c.Close()
			}
		})
	}
	clients.Wait()
	close(stop)
	wg.Wait()
	all, _, err := sites[0].batchOf(testnet.Context(t), topics[0].class.stream, topics[0].streamSubject(), 1)
	must(t, err)
	first := all[0].seq
	for k, seqs := range seen {
		for i, seq := range seqs { // one topic in the stream: its positions follow each other
			if seq != first+uint64(i) {
				t.Fatalf("client %d: record %d has position %d, want %d", k, i, seq, first+uint64(i))
			}
		}
	}
}

// When the stream no longer has everything, Resume says so, and marks the place.
func TestResumeSaysWhatIsNotWhole(t *testing.T) {
	t.Parallel()
	servers := storeServers(t, 1)
	s := openSite(t, servers[0], Options{})
	topic := s.class(t, History{PerTopic: 10}).Topic("room")
	ctx := testnet.Context(t)
	var at []Pos
	for i := range 30 {
		pos, err := topic.PublishRecord(ctx, "", []byte(strconv.Itoa(i)))
		must(t, err)
		at = append(at, pos)
	}
	for _, test := range []struct {
		since Pos
		whole bool
		want  int // the first record that comes
		gap   bool
	}{
		{at[25], true, 26, false},
		{at[20], true, 21, false},
		{at[19], false, 20, true}, // it cannot be told
		{at[3], false, 20, true},
		{Pos{}, true, 20, false},
		{Pos{"another", at[25].Seq}, false, 20, true},
		{Pos{at[0].Epoch, at[29].Seq + 1000}, false, 20, true}, // which a client has made up
		{at[29], true, 30, false},
	} {
		c := s.client(t)
		whole := c.resume(t, topic, test.since)
		if whole != test.whole {
			t.Errorf("since %v: whole is %v, want %v", test.since, whole, test.whole)
		}
		if test.want == 30 {
			continue
		}
		want := strconv.Itoa(test.want)
		if test.gap {
			want = "gap " + want
		}
		if _, text := c.entry(t); text != want {
			t.Errorf("since %v: got %q, want %q", test.since, text, want)
		}
		for i := test.want + 1; i < 30; i++ {
			if _, text := c.entry(t); text != strconv.Itoa(i) {
				t.Errorf("since %v: got %q, want %d", test.since, text, i)
			}
		}
	}
	// All is lost: positions grow, and there is another epoch.
	var answer struct{ Success bool }
	must(t, s.api(ctx, "STREAM.DELETE."+topic.class.stream, nil, &answer))
	pos, err := topic.PublishRecord(ctx, "", []byte("new"))
	must(t, err)
	if pos.Epoch == at[0].Epoch || pos.Seq <= at[29].Seq {
		t.Errorf("position %v behind %v", pos, at[29])
	}
	c := s.client(t)
	if c.resume(t, topic, at[29]) {
		t.Error("whole in another epoch")
	}
	if _, text := c.entry(t); text != "gap new" {
		t.Errorf("got %q", text)
	}
	// An error of write ends it, and c is no member.
	d := s.client(t)
	broken := errors.New("broken")
	if _, err := topic.Resume(ctx, d.conn, nil, Pos{}, func(Record) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if topic.Group().Has(d.conn) {
		t.Error("a member in spite of the error")
	}
}

// A replica may be behind what the members here have got already: who resumes waits for it.
func TestResumeWaitsForAReplicaThatIsBehind(t *testing.T) {
	t.Parallel()
	s := openSite(t, storeServers(t, 1)[0], Options{})
	topic := s.class(t, History{}).Topic("room")
	c := s.client(t)
	must(t, topic.Join(c.conn, nil))
	pos, err := topic.PublishRecord(testnet.Context(t), "", []byte("0"))
	must(t, err)
	c.entry(t)
	topic.mu.Lock()
	topic.rec.last, topic.rec.seen = pos.Seq+5, pos.Seq+5 // as if
	topic.mu.Unlock()
	d := s.client(t)
	done := make(chan bool)
	go func() { // until it has all
		done <- d.resume(t, topic, Pos{})
	}()
	if _, text := d.entry(t); text != "0" {
		t.Errorf("got %q", text)
	}
	for i := 1; i <= 5; i++ {
		must(t, topic.Publish([]byte(strconv.Itoa(i))))
	}
	if !testnet.Receive(t, "Resume returns", done) {
		t.Error("not whole")
	}
	must(t, topic.Publish([]byte("6")))
	for i := 1; i <= 6; i++ {
		if _, text := d.entry(t); text != strconv.Itoa(i) {
			t.Errorf("got %q, want %d", text, i)
		}
	}
}

func TestPublishRecord(t *testing.T) {
	t.Parallel()
	servers := storeServers(t, 1)
	s := openSite(t, servers[0], Options{})
	topic := s.class(t, History{}).Topic("a room. with * odd > name")
	ctx := testnet.Context(t)
	a, b := s.client(t), s.client(t)
	must(t, topic.Join(a.conn, nil))
	must(t, topic.Join(b.conn, nil))
	first, err := topic.PublishRecord(ctx, "id", []byte("once"))
	must(t, err)
	second, err := topic.PublishRecord(ctx, "id", []byte("once"))
	if err != nil || first != second {
		t.Errorf("%v, %v, %v", first, second, err)
	}
	must(t, topic.PublishExcept(a.conn, []byte("not a")))
	must(t, topic.Publish([]byte("all")))
	for c, want := range map[*client]string{a: "once all", b: "once not a all"} {
		var got []string
		for len(strings.Join(got, " ")) < len(want) {
			_, text := c.entry(t)
			got = append(got, text)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if _, err := s.Topic("plain").PublishRecord(ctx, "", nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without a class: %v", err)
	}
	if err := topic.Publish(make([]byte, 2<<20)); !errors.Is(err, ErrTooLong) {
		t.Errorf("2 MiB: %v", err)
	}
	same, err := s.Class(ctx, "log", History{})
	if err != nil || same != topic.class {
		t.Errorf("a second Class: %v", err)
	}
	for want, h := range map[string]History{"PerTopic": {PerTopic: -1}, "Age": {Age: 1}, "Replicas": {Replicas: 4}} {
		if _, err := s.Class(ctx, "log", h); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	// Another node opens it with another length.
	other := openSite(t, servers[0], Options{})
	_, err = other.Class(ctx, "log", History{PerTopic: 1})
	must(t, err)
	testnet.WaitFor(t, "the older records have gone", func() bool {
		all, _, err := s.batchOf(ctx, topic.class.stream, topic.streamSubject(), 1)
		return err == nil && len(all) == 1
	})
	// Without JetStream nobody has it, which Publish says.
	stop(servers[0])
	testnet.WaitFor(t, "the node knows", func() bool { return errors.Is(s.Ready(), ErrDisconnected) })
	_, err = topic.PublishRecord(ctx, "", nil)
	if unknown := (*UnknownError)(nil); err == nil || errors.As(err, &unknown) || !errors.Is(err, ErrDisconnected) {
		t.Errorf("without NATS: %v", err)
	}
}

// Without an answer it may be there or not. The same id makes sure.
func TestPublishRecordUnknown(t *testing.T) {
	t.Parallel()
	servers := storeServers(t, 3)
	s := openSite(t, servers[0], Options{})
	topic := s.class(t, History{}).Topic("room")
	must(t, topic.Publish(nil))
	stop(servers[1])
	stop(servers[2])
	ctx, cancel := context.WithTimeout(testnet.Context(t), callLimit+time.Second)
	defer cancel()
	_, err := topic.PublishRecord(ctx, "", []byte("x"))
	unknown := (*UnknownError)(nil)
	if err == nil || !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNoQuorum) {
		t.Errorf("without a majority: %v", err)
	}
	if errors.As(err, &unknown) && unknown.ID == "" {
		t.Errorf("no id: %v", err)
	}
}

// A connection that is lost after a record was sent leaves in doubt whether it is there, and one that
// was lost before leaves no doubt.
// To see it fail: have put take any error of the connection for one of a record that was not sent, or
// of one that was.
func TestPublishRecordWhoseConnectionIsLost(t *testing.T) {
	t.Parallel()
	g := newGate(t, strings.TrimPrefix(storeServers(t, 1)[0].ClientURL(), "nats://"))
	s := openSiteAt(t, g.url(), Options{Heartbeat: time.Minute}) // it sends nothing else
	topic := s.class(t, History{}).Topic("room")
	g.hold()
	before := s.nc.Stats().OutMsgs
	published := make(chan error, 1)
	go func() { published <- topic.Publish([]byte("x")) }()
	testnet.WaitFor(t, "it is sent", func() bool { return s.nc.Stats().OutMsgs > before })
	g.close() // with the record
	testnet.WaitFor(t, "the node knows", func() bool {
		s.requests.mu.Lock()
		defer s.requests.mu.Unlock()
		return errors.Is(s.Ready(), ErrDisconnected) && len(s.requests.waiting) == 0
	})
	s.link.up.Store(true) // as if the node did not know yet what NATS' client does
	_, err := topic.PublishRecord(testnet.Context(t), "", nil)
	if !errors.Is(err, ErrDisconnected) || errors.Is(err, ErrUnknown) {
		t.Errorf("a record that was not sent: %v", err)
	}
	g.release()
	if err := testnet.Receive(t, "the end of the call", published); err != nil && !errors.Is(err, ErrUnknown) {
		t.Errorf("a record that was sent before: %v", err)
	}
}
