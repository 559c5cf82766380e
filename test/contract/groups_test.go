//go:build linux

package contract

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestWriteExceptReachesAllButOneMember(t *testing.T) {
	var g tcpio.Group
	l, _ := writtenTo(t, tcpio.ListenerOptions{})
	clients := []*net.TCPConn{testnet.DialTCP(t, l), testnet.DialTCP(t, l), testnet.DialTCP(t, l)}
	conns := make(map[string]*tcpio.Conn)
	for _, c := range harness.Conns(t, l, 3) {
		conns[c.RemoteAddr().String()] = c
		g.Join(c)
	}
	from := conns[clients[0].LocalAddr().String()]
	if n, err := g.WriteExcept(from, []byte("not to 0")); n != 8 || err != nil {
		t.Errorf("WriteExcept: %d, %v", n, err)
	}
	groupWrite(t, &g, []byte("to all"))
	if got := testnet.ReadString(t, clients[0], 6); got != "to all" {
		t.Errorf("the sender read %q", got)
	}
	for _, c := range clients[1:] {
		if got := testnet.ReadString(t, c, 14); got != "not to 0to all" {
			t.Errorf("read %q", got)
		}
	}
	g.Leave(from)
	if n, err := g.WriteExcept(from, []byte("x")); n != 1 || err != nil {
		t.Errorf("WriteExcept of no member: %d, %v", n, err)
	}
}

func TestAllIteratesOverTheMembersAndItsBodyMayLeave(t *testing.T) {
	var g tcpio.Group
	l, _ := writtenTo(t, tcpio.ListenerOptions{})
	for range 5 {
		testnet.DialTCP(t, l)
	}
	want := harness.Conns(t, l, 5)
	for _, c := range want {
		g.Join(c)
	}
	n := 0
	for c := range g.All() {
		if !slices.Contains(want, c) {
			t.Errorf("%v is no member", c)
		}
		g.Leave(c)
		n++
	}
	if n != 5 || g.Len() != 0 {
		t.Errorf("%d of 5 came, %d are left", n, g.Len())
	}
	g.Join(want[0])
	g.Join(want[1])
	for range g.All() {
		break
	}
}

func TestGroupPostReachesEveryMemberAndCountsFullMailboxes(t *testing.T) {
	var g tcpio.Group
	got := make(chan any, 10)
	inside, block := make(chan struct{}), make(chan struct{})
	var once sync.Once
	unblock := func() { once.Do(func() { close(block) }) }
	l := harness.Actor(t, tcpio.ListenerOptions{MailboxSize: 1, Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if m, ok := ev.(tcpio.Message); ok {
			if m.Value == "block" {
				close(inside)
				<-block
			} else {
				got <- m.Value
			}
		}
		return nil
	}))
	defer unblock()
	testnet.DialTCP(t, l)
	testnet.DialTCP(t, l)
	conns := harness.Conns(t, l, 2)
	for _, c := range conns {
		g.Join(c)
	}
	if missed := g.Post("a"); missed != 0 {
		t.Errorf("Post: %d missed it", missed)
	}
	for range 2 {
		if v := testnet.Receive(t, "a value", got); v != "a" {
			t.Errorf("got %v", v)
		}
	}
	// One member's handler blocks, and its mailbox of one is full.
	if err := conns[0].Post("block"); err != nil {
		t.Fatal(err)
	}
	testnet.AwaitClosed(t, "the handler", inside)
	testnet.WaitFor(t, "it blocks", func() bool { return l.Stats().Blocked > 0 })
	if err := conns[0].Post("fill"); err != nil {
		t.Fatal(err)
	}
	if missed := g.Post("b"); missed != 1 {
		t.Errorf("Post: %d missed it, want 1", missed)
	}
	if v := testnet.Receive(t, "the other's value", got); v != "b" {
		t.Errorf("got %v", v)
	}
	if g.Skipped() != 1 || l.Stats().GroupSkips != 1 {
		t.Errorf("Skipped %d, Stats %d, want 1", g.Skipped(), l.Stats().GroupSkips)
	}
	unblock()
}

func TestSkippedMemberIsCountedAndGetsAWritableWhenItHasRoom(t *testing.T) {
	const size, limit = 64 << 10, 256 << 10
	var g tcpio.Group
	writable := make(chan *tcpio.Conn, 100)
	l := harness.Actor(t, tcpio.ListenerOptions{WriteBuffer: limit}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		if ev, ok := ev.(tcpio.Writable); ok {
			writable <- ev.Conn
		}
		return nil
	}))
	slow := testnet.DialTCP(t, l)
	c := harness.Conns(t, l, 1)[0]
	g.Join(c)
	p := make([]byte, size)
	writes := 0
	for ; g.Skipped() < 3; writes++ {
		groupWrite(t, &g, p)
	}
	if n := l.Stats().GroupSkips; n != 3 {
		t.Errorf("Stats: %d, want 3", n)
	}
	select {
	case <-writable:
		t.Fatal("a Writable before there is room")
	default:
	}
	testnet.ReadString(t, slow, (writes-3)*size)
	if x := testnet.Receive(t, "Writable", writable); x != c {
		t.Errorf("Writable of %v", x)
	}
	if _, err := c.TryWrite([]byte("news")); err != nil {
		t.Error(err)
	}
	if got := testnet.ReadString(t, slow, 4); got != "news" {
		t.Errorf("read %q", got)
	}
}

func TestLeaveGroupsLeavesVeryManyGroupsAtOnce(t *testing.T) {
	l, _ := writtenTo(t, tcpio.ListenerOptions{})
	testnet.DialTCP(t, l)
	c := harness.Conns(t, l, 1)[0]
	c.LeaveGroups() // of none: does nothing
	rooms := make([]tcpio.Group, 1000)
	var keyed tcpio.Groups[int]
	for i := range rooms {
		rooms[i].Join(c)
		keyed.Join(i, c)
	}
	if keyed.Len() != 1000 {
		t.Errorf("%d groups", keyed.Len())
	}
	c.LeaveGroups()
	for i := range rooms {
		if n := rooms[i].Len(); n != 0 {
			t.Fatalf("group %d has %d members", i, n)
		}
	}
	if keyed.Len() != 0 {
		t.Errorf("%d groups are left", keyed.Len())
	}
	rooms[0].Join(c)
	if rooms[0].Len() != 1 {
		t.Error("it cannot join again")
	}
	c.Close()
	c.LeaveGroups()
}

func TestGroupsHoldsAGroupWhileItHasMembers(t *testing.T) {
	var gs tcpio.Groups[string]
	l, _ := writtenTo(t, tcpio.ListenerOptions{})
	a, b := testnet.DialTCP(t, l), testnet.DialTCP(t, l)
	conns := harness.Conns(t, l, 2)
	groupWrite(t, gs.Group("none"), []byte("to nobody"))
	gs.Leave("none", conns[0])
	if gs.Len() != 0 {
		t.Error("an empty group is in the map")
	}
	gs.Join("x", conns[0])
	gs.Join("x", conns[0]) // does nothing
	old := gs.Group("x")
	gs.Join("x", conns[1])
	gs.Join("y", conns[1])
	if got := slices.Sorted(maps.Keys(maps.Collect(gs.All()))); !slices.Equal(got, []string{"x", "y"}) {
		t.Errorf("keys %q", got)
	}
	groupWrite(t, gs.Group("x"), []byte("to x"))
	for _, c := range []net.Conn{a, b} {
		if got := testnet.ReadString(t, c, 4); got != "to x" {
			t.Errorf("read %q", got)
		}
	}
	gs.Leave("x", conns[0])
	conns[1].Close()
	if gs.Len() != 0 {
		t.Errorf("%d groups are left", gs.Len())
	}
	gs.Join("x", conns[1]) // closing: does nothing
	if gs.Len() != 0 {
		t.Error("a closing connection made a group")
	}
	old.Join(conns[0]) // joins the group of the key, whichever that is now
	if g := gs.Group("x"); g == old || g.Len() != 1 || old.Len() != 0 {
		t.Errorf("the group of the moment has %d members, the old one %d", g.Len(), old.Len())
	}
	for range gs.All() {
		break
	}
}

// The calls for one key alternate, and the last one is true to what lasts, whoever joins, leaves
// and closes meanwhile.
// To see it fail: have nextChange call Changed also when occupied == told.
func TestChangedAlternatesForEachKeyAndEndsTrue(t *testing.T) {
	var mu sync.Mutex
	told := make(map[int]bool)
	calls := 0
	gs := tcpio.Groups[int]{Changed: func(key int, occupied bool) {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if told[key] == occupied {
			t.Errorf("key %d: told %v twice", key, occupied)
		}
		told[key] = occupied
	}}
	l, _ := writtenTo(t, tcpio.ListenerOptions{Loops: 2})
	const keys, members = 3, 4
	for range members {
		testnet.DialTCP(t, l)
	}
	conns := harness.Conns(t, l, members)
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			for n := range 500 {
				key := (n + i) % keys
				gs.Join(key, c)
				if n%7 == 0 {
					c.LeaveGroups()
				} else {
					gs.Leave(key, c)
				}
			}
			gs.Join(0, c)
			if i == 0 {
				gs.Join(1, c)
			}
		})
	}
	wg.Wait()
	testnet.WaitFor(t, "what lasts is told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return told[0] && told[1] && !told[2]
	})
	l.Close()
	testnet.WaitFor(t, "the end is told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return !told[0] && !told[1] && !told[2] && calls > 0
	})
	if gs.Len() != 0 {
		t.Errorf("%d groups are left", gs.Len())
	}
}

func TestChangedMayUseTheGroupsAndPanicAndExit(t *testing.T) {
	h := new(testnet.Log)
	seen := make(chan string, 20)
	var gs tcpio.Groups[string]
	gs.Changed = func(key string, occupied bool) {
		for c := range gs.Group(key).All() { // it is under no lock
			gs.Leave(key, c)
		}
		seen <- fmt.Sprint(key, " ", occupied)
		switch key {
		case "panic":
			panic("in Changed")
		case "exit":
			runtime.Goexit()
		}
	}
	l, _ := writtenTo(t, tcpio.ListenerOptions{Logger: slog.New(h)})
	testnet.DialTCP(t, l)
	c := harness.Conns(t, l, 1)[0]
	for _, key := range []string{"panic", "exit", "calm"} {
		gs.Join(key, c)
		for _, want := range []string{key + " true", key + " false"} {
			if got := testnet.Receive(t, "a call", seen); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
	}
	testnet.WaitFor(t, "panics and exits are logged", func() bool { return h.Count("Groups.Changed panicked") == 4 })
}

// Left is told of each that leaves, however it does, once for each time, and may use the group,
// panic and exit.
// To see it fail: do without the append in remove, or have tell not go on behind a panic.
func TestLeftIsToldOfEachThatLeaves(t *testing.T) {
	h := new(testnet.Log)
	left := make(chan *tcpio.Conn, 20)
	var g tcpio.Group
	calls := 0
	g.Left = func(c *tcpio.Conn) {
		if g.Has(c) { // it is under no lock
			t.Error("a member that has left is there")
		}
		left <- c
		switch calls++; calls {
		case 1:
			panic("in Left")
		case 2:
			runtime.Goexit()
		}
	}
	l, _ := writtenTo(t, tcpio.ListenerOptions{Logger: slog.New(h)})
	const n = 5
	for range n {
		testnet.DialTCP(t, l)
	}
	conns := harness.Conns(t, l, n)
	for _, c := range conns {
		g.Join(c)
		if !g.Has(c) {
			t.Fatal("a member is not there")
		}
	}
	want := func(what string, c *tcpio.Conn) {
		t.Helper()
		if got := testnet.Receive(t, what, left); got != c {
			t.Fatalf("%s: Left of %v, want %v", what, got, c)
		}
	}
	g.Leave(conns[0])
	g.Leave(conns[0]) // is no member
	want("Leave", conns[0])
	conns[1].LeaveGroups()
	want("LeaveGroups", conns[1])
	conns[2].Abort()
	want("Abort", conns[2])
	g.Leave(conns[3])
	want("Leave", conns[3])
	g.Join(conns[0])
	g.Leave(conns[0])
	want("Leave after another Join", conns[0])
	l.Close()
	want("the listener's end", conns[4])
	select {
	case c := <-left:
		t.Errorf("one call more, of %v", c)
	default:
	}
	testnet.WaitFor(t, "a panic and an exit are logged", func() bool { return h.Count("Group.Left panicked") == 2 })
	if n := l.Stats().Panics; n != 2 {
		t.Errorf("Stats has %d panics, want 2", n)
	}
}
