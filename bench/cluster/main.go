// Cluster measures the module cluster beside a goroutine and a NATS subscription for each client,
// and beside Centrifugo's library, on three NATS servers and three nodes of this machine. See
// README.md.
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
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
	flag.IntVar(&b.spread, "spread", 100, "`topics` that each member of the presence run is in")
	flag.DurationVar(&b.claims, "claims", 3*time.Second, "how long keys are claimed")
	smoke := flag.Bool("smoke", false, "seconds only, figures without worth")
	flag.Parse()
	if *smoke {
		b.small()
	}
	if err := b.run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type bench struct {
	clients, messages, spread int
	claims                    time.Duration
	kinds                     []string
	out                       io.Writer

	nats []*child
	urls []string // of NATS
}

func (b *bench) small() { b.clients, b.messages, b.spread, b.claims = 60, 5, 10, 200*time.Millisecond }

func (b *bench) run() error {
	stop, err := b.startNATS()
	defer stop()
	if err != nil {
		return err
	}
	if b.kinds == nil {
		b.kinds = []string{"group", "cluster", "net", "cluster-ws", "centrifuge"}
	}
	for _, topics := range []int{1, 100} {
		fmt.Fprintf(b.out, "\n%d clients, %d topics\n\n", b.clients, topics)
		fmt.Fprintln(b.out, "| | CPU/delivery | and of NATS | p50 | p99 | heap a connection | + joined | deliveries | missing | told |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
		for _, kind := range b.kinds {
			if err := b.fanout(kind, topics); err != nil {
				return fmt.Errorf("%s, %d topics: %w", kind, topics, err)
			}
		}
	}
	return b.presence()
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
	for range 3 {
		// Connections begin at 127.0.0.1, so none takes the port before the server has it.
		ln, err := net.Listen("tcp", "127.0.0.2:0")
		if err != nil {
			return stop, err
		}
		defer ln.Close()
		addrs = append(addrs, ln.Addr().String())
		routes = append(routes, "nats://"+ln.Addr().String())
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

func (b *bench) fanout(kind string, topics int) error {
	nodes, addrs, stop, err := b.startNodes(kind)
	defer stop()
	if err != nil {
		return err
	}
	rest, err := total(nodes, command{Do: "usage"})
	if err != nil {
		return err
	}
	c, err := connect(kind, addrs, b.clients)
	if err != nil {
		return err
	}
	defer c.close()
	time.Sleep(300 * time.Millisecond) // until the servers have accepted them
	connected, err := total(nodes, command{Do: "usage"})
	if err != nil {
		return err
	}
	if err := c.join(kind, topics); err != nil {
		return err
	}
	count, every := b.messages, 100*time.Millisecond
	if topics > 1 {
		count, every = 20*b.messages, 10*time.Millisecond
	}
	// Until each client has got something: then all are joined.
	for end := time.Now().Add(20 * time.Second); c.silent() > 0; {
		if time.Now().After(end) {
			return fmt.Errorf("%d clients get nothing", c.silent())
		}
		if _, err := nodes[0].ask(command{Do: "pub", Topics: topics, Count: topics}); err != nil {
			return err
		}
		for asked := time.Now(); time.Since(asked) < 200*time.Millisecond && c.silent() > 0; {
			time.Sleep(5 * time.Millisecond)
		}
	}
	c.settle()
	joined, err := total(nodes, command{Do: "usage"})
	if err != nil {
		return err
	}
	natsBefore, err := total(b.nats, command{Do: "cpu"})
	if err != nil {
		return err
	}
	c.reset()
	if _, err := nodes[0].ask(command{Do: "pub", Topics: topics, Count: count, Every: every}); err != nil {
		return err
	}
	want := 0
	for i := range count {
		want += (b.clients - i%topics + topics - 1) / topics
	}
	c.await(want)
	after, err := total(nodes, command{Do: "cpu"})
	if err != nil {
		return err
	}
	natsAfter, err := total(b.nats, command{Do: "cpu"})
	if err != nil {
		return err
	}
	got := int(c.got.Load())
	p50, p99 := c.latency()
	missing := want - got
	per := func(a, z reply) int { return (int(z.Heap) - int(a.Heap)) / b.clients }
	fmt.Fprintf(b.out, "| %s | %.1f µs | %.1f µs | %v | %v | %d B | %d B | %d | %d | %d |\n", kind,
		float64((after.CPU-joined.CPU).Nanoseconds())/1e3/float64(max(got, 1)),
		float64((natsAfter.CPU-natsBefore.CPU).Nanoseconds())/1e3/float64(max(got, 1)), p50, p99,
		per(rest, connected), per(connected, joined), got, missing, after.Lost)
	if missing != 0 && after.Lost == 0 && strings.HasPrefix(kind, "cluster") {
		return fmt.Errorf("%d deliveries are missing in silence", missing)
	}
	return nil
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
	time.Sleep(300 * time.Millisecond) // until the servers have accepted them
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

// Clients are connections that look for the time in what they get, whatever is around it.
type clients struct {
	conns []net.Conn
	got   atomic.Int64
	heard []atomic.Bool

	mu    sync.Mutex
	delay []time.Duration
}

func connect(kind string, addrs []string, n int) (*clients, error) {
	c := &clients{heard: make([]atomic.Bool, n)}
	for i := range n {
		conn, err := net.Dial("tcp", addrs[i%len(addrs)])
		if err != nil {
			c.close()
			return nil, err
		}
		c.conns = append(c.conns, conn)
		if isWebSocket(kind) {
			if err := upgrade(conn); err != nil {
				c.close()
				return nil, err
			}
		}
		go c.read(i, conn) // until close
	}
	return c, nil
}

func (c *clients) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
}

func (c *clients) join(kind string, topics int) error {
	for i, conn := range c.conns {
		topic := fmt.Sprint("t", i%topics)
		var err error
		switch kind {
		case "centrifuge":
			err = sendText(conn, `{"id":1,"connect":{}}`+"\n"+`{"id":2,"subscribe":{"channel":"`+topic+`"}}`)
		case "cluster-ws":
			err = sendText(conn, topic)
		default:
			_, err = conn.Write([]byte(topic + "\n"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *clients) read(i int, conn net.Conn) {
	buf := make([]byte, 4096)
	held := 0
	for {
		n, err := conn.Read(buf[held:])
		if err != nil {
			return
		}
		now, b := time.Now().UnixNano(), buf[:held+n]
		for {
			at := slices.Index(b, '@')
			if at < 0 {
				b = nil
				break
			}
			if b = b[at:]; len(b) < 20 {
				break
			}
			if sent, err := strconv.ParseInt(string(b[1:20]), 10, 64); err == nil {
				c.heard[i].Store(true)
				c.got.Add(1)
				c.mu.Lock()
				c.delay = append(c.delay, time.Duration(now-sent))
				c.mu.Unlock()
			}
			b = b[1:]
		}
		held = copy(buf, b)
	}
}

func (c *clients) silent() (n int) {
	for i := range c.heard {
		if !c.heard[i].Load() {
			n++
		}
	}
	return n
}

// settle waits until nothing has come for 300 ms.
func (c *clients) settle() {
	last := c.got.Load()
	for begun := time.Now(); time.Since(begun) < 300*time.Millisecond; time.Sleep(10 * time.Millisecond) {
		if got := c.got.Load(); got != last {
			last, begun = got, time.Now()
		}
	}
}

func (c *clients) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = nil
	c.got.Store(0)
}

// await waits for so many deliveries, or until none has come for two seconds.
func (c *clients) await(want int) {
	last := c.got.Load()
	for begun := time.Now(); int(last) < want && time.Since(begun) < 2*time.Second; time.Sleep(10 * time.Millisecond) {
		if got := c.got.Load(); got != last {
			last, begun = got, time.Now()
		}
	}
}

func (c *clients) latency() (p50, p99 time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.Sort(c.delay)
	if n := len(c.delay); n > 0 {
		p50, p99 = c.delay[n/2], c.delay[n*99/100]
	}
	return p50.Round(10 * time.Microsecond), p99.Round(10 * time.Microsecond)
}

func isWebSocket(kind string) bool { return kind == "cluster-ws" || kind == "centrifuge" }

func upgrade(conn net.Conn) error {
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if err != nil {
		return err
	}
	var head []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); head = append(head, one[0]) {
		if _, err := conn.Read(one); err != nil {
			return err
		}
	}
	if !strings.HasPrefix(string(head), "HTTP/1.1 101") {
		return fmt.Errorf("no WebSocket: %.100q", head)
	}
	return nil
}

// sendText sends a short text message, with a mask of zeros.
func sendText(conn net.Conn, text string) error {
	if len(text) > 125 {
		return fmt.Errorf("%d bytes are too long", len(text))
	}
	_, err := conn.Write(append([]byte{0x81, 0x80 | byte(len(text)), 0, 0, 0, 0}, text...))
	return err
}
