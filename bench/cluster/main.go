// Cluster measures the module cluster beside a goroutine and a NATS subscription for each client,
// and beside Centrifugo's library, on three NATS servers and three nodes of this machine. See
// README.md.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	if part() {
		return
	}
	b := &bench{out: os.Stdout}
	flag.IntVar(&b.clients, "clients", 3000, "`clients` on three nodes")
	flag.IntVar(&b.messages, "messages", 50, "`messages` to one topic; twenty times as many to 100 topics")
	flag.IntVar(&b.rounds, "rounds", 3, "how often each server is measured, in turn; the median counts")
	only := flag.String("kinds", strings.Join(kinds, ","), "`servers` to measure; presence, claims and a kill only with all of them")
	flag.IntVar(&b.spread, "spread", 100, "`topics` that each member of the presence run is in")
	flag.DurationVar(&b.claims, "claims", 3*time.Second, "how long keys are claimed")
	smoke := flag.Bool("smoke", false, "seconds only, figures without worth")
	flag.Parse()
	if *smoke {
		b.small()
	}
	b.kinds = strings.Split(*only, ",")
	if err := b.run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// kinds are the servers that are measured; README.md says what they are.
var kinds = []string{"group", "groups", "cluster", "net", "cluster-ws", "centrifuge"}

type bench struct {
	clients, messages, spread, rounds int
	claims                            time.Duration
	kinds                             []string
	out                               io.Writer

	nats []*child
	urls []string // of NATS
}

func (b *bench) small() {
	b.clients, b.messages, b.spread, b.rounds, b.claims = 60, 5, 10, 1, 200*time.Millisecond
}

func (b *bench) run() error {
	for _, kind := range b.kinds {
		if variants[kind] == nil {
			return fmt.Errorf("no server is called %q; there are %v", kind, kinds)
		}
	}
	stop, err := b.startNATS()
	defer stop()
	if err != nil {
		return err
	}
	for _, topics := range []int{1, 100} {
		rows := make(map[string][]row)
		for range b.rounds {
			for _, kind := range b.kinds {
				r, err := b.fanout(kind, topics)
				if err != nil {
					return fmt.Errorf("%s, %d topics: %w", kind, topics, err)
				}
				rows[kind] = append(rows[kind], r)
			}
		}
		fmt.Fprintf(b.out, "\n%d clients, %d topics\n\n", b.clients, topics)
		fmt.Fprintln(b.out, "| | CPU/delivery | and of NATS | p50 | p99 | heap a connection | + joined | deliveries | missing | told |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
		for _, kind := range b.kinds {
			fmt.Fprintf(b.out, "| %s | %v |\n", kind, medians(rows[kind]))
		}
	}
	if !slices.Equal(b.kinds, kinds) {
		return nil
	}
	return b.presence()
}

// A row is what is measured of a server.
type row struct {
	cpu, nats    time.Duration // of all deliveries
	p50, p99     time.Duration
	heap, joined int // bytes a client
	got, missing int
	told         uint64
}

// medians returns the median of each column, and the sum of what is missing and of what is told.
func medians(rows []row) (m row) {
	m.cpu = median(rows, func(r row) time.Duration { return r.cpu / time.Duration(max(r.got, 1)) })
	m.nats = median(rows, func(r row) time.Duration { return r.nats / time.Duration(max(r.got, 1)) })
	m.p50 = median(rows, func(r row) time.Duration { return r.p50 })
	m.p99 = median(rows, func(r row) time.Duration { return r.p99 })
	m.heap = median(rows, func(r row) int { return r.heap })
	m.joined = median(rows, func(r row) int { return r.joined })
	for _, r := range rows {
		m.got, m.missing, m.told = m.got+r.got, m.missing+r.missing, m.told+r.told
	}
	return m
}

func median[T cmp.Ordered](rows []row, of func(row) T) T {
	all := make([]T, 0, len(rows))
	for _, r := range rows {
		all = append(all, of(r))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func (r row) String() string {
	return fmt.Sprintf("%.1f µs | %.1f µs | %v | %v | %d B | %d B | %d | %d | %d",
		float64(r.cpu)/1e3, float64(r.nats)/1e3, r.p50, r.p99, r.heap, r.joined, r.got, r.missing, r.told)
}

// startNATS starts three servers of one cluster.
func (b *bench) startNATS() (stop func(), err error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return func() {}, err
	}
	var all []*child
	stop = func() {
		for _, c := range all {
			c.kill()
		}
		os.RemoveAll(dir)
	}
	var addrs, routes []string
	var held []net.Listener
	for range 3 {
		// Connections begin at 127.0.0.1, so none takes the port before the server has it.
		ln, err := net.Listen("tcp", "127.0.0.2:0")
		if err != nil {
			return stop, err
		}
		held = append(held, ln) // until all are chosen, so that none is chosen twice
		addrs = append(addrs, ln.Addr().String())
		routes = append(routes, "nats://"+ln.Addr().String())
	}
	for _, ln := range held {
		ln.Close()
	}
	for i := range 3 {
		c, url, err := start(fmt.Sprintf("nats n%d %s/%d %s %s", i, dir, i, addrs[i], strings.Join(routes, " ")))
		if err != nil {
			return stop, err
		}
		all, b.urls = append(all, c), append(b.urls, url)
		b.nats = all
	}
	return stop, nil
}

// startNodes starts three nodes of a kind, or the one of "group".
func (b *bench) startNodes(kind string) (nodes []*child, addrs []string, stop func(), err error) {
	stop = func() {
		for _, c := range nodes {
			c.kill()
		}
	}
	urls := b.urls
	if kind == "group" {
		urls = []string{""}
	}
	for _, url := range urls {
		c, addr, err := start(kind + " " + url)
		if err != nil {
			return nodes, addrs, stop, err
		}
		nodes, addrs = append(nodes, c), append(addrs, addr)
	}
	return nodes, addrs, stop, nil
}

// total asks all nodes and sums up.
func total(nodes []*child, q command) (sum reply, err error) {
	for _, c := range nodes {
		r, err := c.ask(q)
		if err != nil {
			return sum, err
		}
		sum.CPU += r.CPU
		sum.Heap += r.Heap
		sum.Lost += r.Lost
		sum.Members += r.Members
		sum.Count += r.Count
	}
	return sum, nil
}

// fanout measures a server of a kind with so many topics.
func (b *bench) fanout(kind string, topics int) (r row, err error) {
	nodes, addrs, stop, err := b.startNodes(kind)
	defer stop()
	if err != nil {
		return r, err
	}
	rest, err := total(nodes, command{Do: "usage"})
	if err != nil {
		return r, err
	}
	c, err := connect(kind, addrs, b.clients)
	if err != nil {
		return r, err
	}
	defer c.close()
	time.Sleep(300 * time.Millisecond) // until the servers have accepted them
	connected, err := total(nodes, command{Do: "usage"})
	if err != nil {
		return r, err
	}
	if err := c.join(kind, topics); err != nil {
		return r, err
	}
	publishers := nodes[:1]
	if kind == "groups" { // each is a world of its own
		publishers = nodes
	}
	// Until each client has got something: then all are joined.
	for end := time.Now().Add(20 * time.Second); c.silent() > 0; {
		if time.Now().After(end) {
			return r, fmt.Errorf("%d clients get nothing", c.silent())
		}
		if err := publish(publishers, command{Topics: topics, Count: topics}); err != nil {
			return r, err
		}
		for asked := time.Now(); time.Since(asked) < 200*time.Millisecond && c.silent() > 0; {
			time.Sleep(5 * time.Millisecond)
		}
	}
	c.settle()
	joined, err := total(nodes, command{Do: "usage"})
	if err != nil {
		return r, err
	}
	natsBefore, err := total(b.nats, command{Do: "cpu"})
	if err != nil {
		return r, err
	}
	c.reset()
	pub := command{Topics: topics, Count: b.messages, Every: 100 * time.Millisecond}
	if topics > 1 {
		pub.Count, pub.Every = 20*b.messages, 10*time.Millisecond
	}
	if err := publish(publishers, pub); err != nil {
		return r, err
	}
	want := 0
	for i := range pub.Count {
		want += (b.clients - i%topics + topics - 1) / topics
	}
	c.await(want)
	after, err := total(nodes, command{Do: "cpu"})
	if err != nil {
		return r, err
	}
	natsAfter, err := total(b.nats, command{Do: "cpu"})
	if err != nil {
		return r, err
	}
	r.cpu, r.nats = after.CPU-joined.CPU, natsAfter.CPU-natsBefore.CPU
	r.heap = (int(connected.Heap) - int(rest.Heap)) / b.clients
	r.joined = (int(joined.Heap) - int(connected.Heap)) / b.clients
	r.p50, r.p99 = c.latency()
	r.got, r.told = int(c.got.Load()), after.Lost
	r.missing = want - r.got
	if r.missing != 0 && r.told == 0 && strings.HasPrefix(kind, "cluster") {
		return r, fmt.Errorf("%d deliveries are missing in silence", r.missing)
	}
	return r, nil
}

// publish has all publishers publish at the same moments, and returns when they have.
func publish(publishers []*child, q command) error {
	q.Do = "pub"
	errs := make([]error, len(publishers))
	var wg sync.WaitGroup
	for i, n := range publishers {
		wg.Go(func() { _, errs[i] = n.ask(q) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// presence has members in 100 topics at once, so that few connections make many, then claims, then
// kills a node.
func (b *bench) presence() error {
	nodes, addrs, stop, err := b.startNodes("cluster")
	defer stop()
	if err != nil {
		return err
	}
	conns := min(b.clients/3, 1000)
	c, err := connect("cluster", addrs, conns)
	if err != nil {
		return err
	}
	defer c.close()
	// Until the servers have accepted them.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r, err := total(nodes, command{Do: "conns"})
		if err != nil {
			return err
		}
		if r.Count == conns {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("the servers have %d connections of %d", r.Count, conns)
		}
	}
	// A topic that is not joined at a node is not held there, so each has members of all topics.
	before, err := total(nodes, command{Do: "usage"})
	if err != nil {
		return err
	}
	begun := time.Now()
	if _, err := total(nodes, command{Do: "spread", Topics: b.spread, Count: b.spread}); err != nil {
		return err
	}
	want := conns * b.spread
	for _, n := range nodes {
		if _, err := awaitMembers(n, b.spread, func(r reply) bool { return r.Whole && r.Members == want }); err != nil {
			return err
		}
	}
	took := time.Since(begun)
	after, err := total(nodes, command{Do: "usage"})
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\npresence: %d members, known on three nodes %v after the first Join; %d B a member and node\n",
		want, took.Round(time.Millisecond), (int(after.Heap)-int(before.Heap))/want/3)

	var claimed atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			r, err := n.ask(command{Do: "claims", Count: 16, Every: b.claims, Name: fmt.Sprint("key ", i)})
			if err != nil {
				failed.Store(&err)
			}
			claimed.Add(int64(r.Count))
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	fmt.Fprintf(b.out, "claims: %.0f a second, 16 at once on each of three nodes, three replicas on disk\n",
		float64(claimed.Load())/b.claims.Seconds())

	killed := time.Now()
	nodes[2].kill()
	left := want - conns/3*b.spread // the third has the rest of the division last
	for _, n := range nodes[:2] {
		if _, err := awaitMembers(n, b.spread, func(r reply) bool { return r.Members == left }); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.out, "kill -9: the lists of the others are clean after %v\n", time.Since(killed).Round(10*time.Millisecond))
	return nil
}

func awaitMembers(n *child, topics int, done func(reply) bool) (r reply, err error) {
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if r, err = n.ask(command{Do: "members", Topics: topics, Name: "p"}); err != nil || done(r) {
			return r, err
		}
		if time.Now().After(end) {
			return r, fmt.Errorf("the lists have %d members after a minute", r.Members)
		}
	}
}
