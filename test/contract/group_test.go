//go:build linux

package contract

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// writtenTo serves connections that are only written to; Closed is handed over.
func writtenTo(t testing.TB, o tcpio.ListenerOptions) (*tcpio.Listener, <-chan *tcpio.Conn) {
	t.Helper()
	closed := make(chan *tcpio.Conn, 16)
	l := harness.Actor(t, o, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Readable:
			return harness.EchoConn(ev.Conn)
		case tcpio.Closed:
			select {
			case closed <- ev.Conn:
			default: // nobody counts so many
			}
		}
		return nil
	}))
	return l, closed
}

func groupWrite(t testing.TB, g *tcpio.Group, p []byte) {
	t.Helper()
	if n, err := g.Write(p); n != len(p) || err != nil {
		t.Errorf("Group.Write: %d, %v", n, err)
	}
}

func TestZeroGroupWorksAndMembersLeaveByThemselves(t *testing.T) {
	var g tcpio.Group
	groupWrite(t, &g, []byte("to nobody"))
	l, closed := writtenTo(t, tcpio.ListenerOptions{})
	const n = 10
	clients := make([]*net.TCPConn, n)
	for i := range clients {
		clients[i] = testnet.DialTCP(t, l)
	}
	conns := harness.Conns(t, l, n)
	for _, c := range conns {
		g.Join(c)
		g.Join(c) // does nothing
	}
	if g.Len() != n {
		t.Errorf("Len %d, want %d", g.Len(), n)
	}
	p := []byte("hello")
	groupWrite(t, &g, p)
	copy(p, "?????") // p is the caller's again
	for _, c := range clients {
		if got := testnet.ReadString(t, c, 5); got != "hello" {
			t.Errorf("read %q", got)
		}
	}
	g.Leave(conns[0])
	g.Leave(conns[0])
	conns[1].Abort()
	conns[2].Close()
	if g.Len() != n-3 {
		t.Errorf("Len %d, want %d: the closing ones and one have left", g.Len(), n-3)
	}
	testnet.Await(t, "Closed", closed)
	g.Join(conns[1]) // a closed one: does nothing
	g.Join(conns[2])
	if g.Len() != n-3 {
		t.Errorf("Len %d after a closed connection joined, want %d", g.Len(), n-3)
	}
	g.Join(conns[0])
	for _, c := range clients {
		c.Close()
	}
	testnet.WaitFor(t, "all members have left", func() bool { return g.Len() == 0 })
}

func TestAllMembersSeeConcurrentWritesInTheSameOrder(t *testing.T) {
	const members, writers, each = 8, 4, 300
	var g tcpio.Group
	l, _ := writtenTo(t, tcpio.ListenerOptions{Loops: 2})
	clients := make([]*net.TCPConn, members)
	for i := range clients {
		clients[i] = testnet.DialTCP(t, l)
	}
	for _, c := range harness.Conns(t, l, members) {
		g.Join(c)
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				p := make([]byte, 100)
				binary.BigEndian.PutUint64(p, uint64(w*each+i))
				groupWrite(t, &g, p)
			}
		})
	}
	got := make([][]byte, members)
	for i, c := range clients {
		wg.Go(func() {
			got[i] = make([]byte, writers*each*100)
			if _, err := io.ReadFull(c, got[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	next := make([]int, writers)
	for p := got[0]; len(p) > 0; p = p[100:] {
		v := int(binary.BigEndian.Uint64(p))
		if w := v / each; v%each != next[w] {
			t.Fatalf("writer %d: %d, want %d", w, v%each, next[w])
		}
		next[v/each]++
	}
	for i := range got {
		if !bytes.Equal(got[i], got[0]) {
			t.Errorf("member %d saw another order than member 0", i)
		}
	}
}

// Every member reads whole writes with ascending numbers, whatever joins, leaves and closes beside
// it.
func TestJoinLeaveAndCloseWhileAWriteRuns(t *testing.T) {
	members, writes := 40, 100
	if testnet.Long && !testnet.Race {
		writes = 400
	}
	var g tcpio.Group
	l, _ := writtenTo(t, tcpio.ListenerOptions{Loops: 2, WriteBuffer: 16 << 20})
	const size = 2000
	var readers, others sync.WaitGroup
	var stop atomic.Bool
	var whole atomic.Int64
	for range members {
		cl := testnet.DialTCP(t, l)
		readers.Go(func() {
			last := uint64(0)
			p := make([]byte, size)
			for {
				if _, err := io.ReadFull(cl, p); err != nil {
					return // the end: cut short only by a reset
				}
				v := binary.BigEndian.Uint64(p)
				if v <= last || p[size-1] != byte(v) {
					t.Errorf("read write %d behind %d, its last byte %d", v, last, p[size-1])
					return
				}
				last = v
				whole.Add(1)
			}
		})
	}
	conns := harness.Conns(t, l, members)
	for i, c := range conns {
		others.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			for !stop.Load() {
				g.Join(c)
				time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond)
				if rng.IntN(3) == 0 {
					g.Leave(c)
				}
				if i%4 == 0 && rng.IntN(20) == 0 {
					if rng.IntN(2) == 0 {
						c.Abort()
					} else {
						c.Close()
					}
					return
				}
			}
		})
	}
	p := make([]byte, size)
	end := time.Now().Add(testnet.Limit)
	for v := 0; (v < writes || whole.Load() < int64(20*writes)) && time.Now().Before(end); v++ {
		binary.BigEndian.PutUint64(p, uint64(v+1))
		p[size-1] = byte(v + 1)
		groupWrite(t, &g, p)
	}
	stop.Store(true)
	others.Wait()
	for _, c := range conns {
		c.Close()
	}
	readers.Wait()
	if g.Len() != 0 {
		t.Errorf("%d members left", g.Len())
	}
	if n := whole.Load(); n < int64(20*writes) {
		t.Errorf("%d writes were read: the test shows nothing", n)
	}
}

// fillMember makes the queue of g's only member as full as it gets, and returns how many whole
// pieces it took.
func fillMember(t testing.TB, g *tcpio.Group, p []byte) (taken int) {
	t.Helper()
	for before := g.Skipped(); g.Skipped() == before; taken++ {
		groupWrite(t, g, p)
		if taken > 10_000 {
			t.Fatal("the queue grows without bound")
		}
	}
	return taken - 1
}

func TestSkipSlowLeavesASlowMemberOutOfWholeWrites(t *testing.T) {
	const size, limit = 64 << 10, 512 << 10
	var g tcpio.Group
	l, _ := writtenTo(t, tcpio.ListenerOptions{WriteBuffer: limit})
	slow := testnet.DialTCP(t, l)
	c := harness.Conns(t, l, 1)[0]
	g.Join(c)
	p := counting(size)
	taken := fillMember(t, &g, p)
	if c.Buffered() > limit {
		t.Errorf("%d bytes queued, over WriteBuffer %d", c.Buffered(), limit)
	}
	if g.Len() != 1 {
		t.Fatal("a slow member was thrown out")
	}
	got := testnet.ReadString(t, slow, taken*size)
	for i := range taken {
		if got[i*size:(i+1)*size] != string(p) {
			t.Fatalf("write %d of %d is damaged", i, taken)
		}
	}
	testnet.WaitFor(t, "the queue is flushed", func() bool { return c.Buffered() == 0 })
	groupWrite(t, &g, []byte("again"))
	if got := testnet.ReadString(t, slow, 5); got != "again" {
		t.Errorf("after it has caught up: %q", got)
	}
}

func TestCloseSlowClosesWithANoticeAndTouchesNobodyElse(t *testing.T) {
	const size, limit = 64 << 10, 512 << 10
	g := tcpio.Group{Slow: tcpio.CloseSlow, Notice: []byte("too slow\n")}
	l, closed := writtenTo(t, tcpio.ListenerOptions{WriteBuffer: limit, CloseTimeout: testnet.Limit})
	slow := testnet.DialTCP(t, l)
	c := harness.Conns(t, l, 1)[0]
	g.Join(c)
	p := counting(size)
	taken := 0
	for ; g.Len() == 1; taken++ {
		groupWrite(t, &g, p)
		if taken > 10_000 {
			t.Fatal("a slow member is kept")
		}
	}
	taken-- // the one that found no room
	fast := testnet.DialTCP(t, l)
	for _, x := range harness.Conns(t, l, 2) {
		if x != c {
			g.Join(x)
		}
	}
	groupWrite(t, &g, []byte("you go on"))
	if got := testnet.ReadString(t, fast, 9); got != "you go on" {
		t.Errorf("the other member read %q", got)
	}
	got, err := io.ReadAll(slow)
	if err != nil {
		t.Error(err)
	}
	slow.Close()
	if want := string(bytes.Repeat(p, taken)) + "too slow\n"; string(got) != want {
		t.Errorf("the slow member read %d bytes that end in %q; want %d and the notice", len(got), got[max(0, len(got)-12):], len(want))
	}
	if x := testnet.Await(t, "Closed", closed); x != c || x.Err() != tcpio.ErrSlow {
		t.Errorf("Err: %v, want ErrSlow", x.Err())
	}
}

func TestWriteIsNotCopiedForEachMember(t *testing.T) {
	if testnet.Race {
		t.Skip("the race detector keeps its own books in the heap, and pools drop at random")
	}
	const members, size = 50, 256 << 10
	var g tcpio.Group
	l, _ := writtenTo(t, tcpio.ListenerOptions{WriteBuffer: 64 << 20})
	clients := make([]*net.TCPConn, members)
	for i := range clients {
		clients[i] = testnet.DialTCP(t, l)
		_ = clients[i].SetReadBuffer(4 << 10)
	}
	for _, c := range harness.Conns(t, l, members) {
		g.Join(c)
	}
	// Fill the sockets first: from then on every member's part is queued whole.
	p := counting(size)
	queued := func() (n int) {
		for c := range l.Conns() {
			n += c.Buffered()
		}
		return n
	}
	for i := 0; ; i++ {
		before := queued()
		groupWrite(t, &g, p)
		if queued()-before == members*size {
			break
		}
		if i > 500 {
			t.Fatal("the sockets take everything: the test shows nothing")
		}
	}
	const writes = 8
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	was := queued()
	for range writes {
		groupWrite(t, &g, p)
	}
	runtime.ReadMemStats(&after)
	if got := queued() - was; got != writes*members*size {
		t.Fatalf("%d bytes queued, want %d", got, writes*members*size)
	}
	// One copy of each write, and some for the queues' lists.
	if got, want := after.TotalAlloc-before.TotalAlloc, uint64(3*writes*size); got > want {
		t.Errorf("%d bytes allocated for %d bytes queued, want %d at most", got, writes*members*size, want)
	}
}

func TestTwoThousandMembers(t *testing.T) {
	members := 200
	if testnet.Long {
		members = 2000
	}
	var g tcpio.Group
	l, _ := writtenTo(t, tcpio.ListenerOptions{Loops: 2})
	clients := make([]*net.TCPConn, members)
	for i := range clients {
		clients[i] = testnet.DialTCP(t, l)
	}
	for _, c := range harness.Conns(t, l, members) {
		g.Join(c)
	}
	for round := range 3 {
		groupWrite(t, &g, []byte{byte(round), 'x'})
		for i, c := range clients {
			if got := testnet.ReadString(t, c, 2); got[0] != byte(round) {
				t.Fatalf("member %d read %q in round %d", i, got, round)
			}
		}
	}
	for _, c := range clients {
		_ = c.SetLinger(0) // no port is left in TIME_WAIT
		c.Close()
	}
	testnet.WaitFor(t, "all members have left", func() bool { return g.Len() == 0 })
}

func TestHandlerMayWriteToGroupsThatItsConnectionIsIn(t *testing.T) {
	const n = 10
	all, quiet := tcpio.Group{Slow: tcpio.CloseSlow}, tcpio.Group{}
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 2}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			all.Join(ev.Conn)
			quiet.Join(ev.Conn)
		case tcpio.Readable:
			var p [8]byte
			m, err := ev.Conn.TryRead(p[:])
			if err != nil {
				return err
			}
			_, _ = all.Write(p[:m])
			quiet.Leave(ev.Conn)
			_, _ = quiet.Write(nil)
			quiet.Join(ev.Conn)
		}
		return nil
	}))
	var peers []*net.TCPConn
	for range n {
		peers = append(peers, testnet.DialTCP(t, l))
	}
	testnet.WaitFor(t, "all have joined", func() bool { return all.Len() == n && quiet.Len() == n })
	for _, p := range peers {
		testnet.Send(t, p, "x")
	}
	for _, p := range peers {
		testnet.ReadString(t, p, n)
	}
	for _, p := range peers {
		p.Close()
	}
	testnet.WaitFor(t, "all have left", func() bool { return all.Len() == 0 && quiet.Len() == 0 })
}

// Members that are dealt with one by one get a Shared whole, or refuse it whole, and keep what they
// took when it has been released and its bytes have changed.
func TestSharedIsTakenWholeOrNotAtAllByEachConnection(t *testing.T) {
	const limit = 256 << 10
	for _, size := range []int{0, 1, 1 << 10, 1<<10 + 1, 64 << 10, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l, _ := writtenTo(t, tcpio.ListenerOptions{WriteBuffer: limit})
			peers := []*net.TCPConn{testnet.DialTCP(t, l), testnet.DialTCP(t, l)}
			conns := harness.Conns(t, l, 2)
			p := counting(size)
			taken := make(map[*tcpio.Conn]int)
			for range 3 {
				s := tcpio.Share(slices.Clone(p))
				for _, c := range conns {
					queued := c.Buffered() // it only falls meanwhile
					switch err := c.TryWriteShared(s); err {
					case nil:
						taken[c]++
					case tcpio.ErrWouldBlock:
						if queued == 0 {
							t.Error("refused with an empty queue")
						}
					default:
						t.Error(err)
					}
				}
				s.Release()
				s.Release() // does nothing
			}
			for _, peer := range peers {
				i := slices.IndexFunc(conns, func(c *tcpio.Conn) bool { return c.RemoteAddr().String() == peer.LocalAddr().String() })
				for n := range taken[conns[i]] {
					if at := testnet.FirstDifference([]byte(testnet.ReadString(t, peer, size)), p); at >= 0 {
						t.Fatalf("write %d differs at byte %d", n, at)
					}
				}
				if n := taken[conns[i]]; n == 0 || n < 3 && size <= 64<<10 {
					t.Errorf("%d of 3 writes were taken", n)
				}
			}
			conns[0].Abort()
			if err := conns[0].TryWriteShared(tcpio.Share(p)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Abort: %v", err)
			}
		})
	}
}
