//go:build linux

package tcpio

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/rabbit-backend/tcpio/internal/sys"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// A step that the table of phases does not have is refused, and the connection stays as it is.
func TestPhasesRefuseWhatTheTableDoesNotHave(t *testing.T) {
	for from := range phases {
		for to := range phases {
			c := &Conn{phase: phase(from)}
			legal := slices.Contains(phases[from], phase(to))
			refused := func() (refused bool) {
				defer func() { refused = recover() != nil }()
				c.enterLocked(phase(to))
				return false
			}()
			if refused == legal || refused != (c.phase == phase(from)) {
				t.Errorf("from %v to %v: legal %v, refused %v, then %v", phase(from), phase(to), legal, refused, c.phase)
			}
		}
	}
}

// A life only goes forward: every step leads to a later phase.
func TestPhasesNeverGoBack(t *testing.T) {
	for from, next := range phases {
		for _, to := range next {
			if to <= phase(from) {
				t.Errorf("the table leads from %v back to %v", phase(from), to)
			}
		}
	}
}

// Every step of the table is one that a connection takes, by what its user and its listener do.
func TestConnectionTakesEveryStepOfTheTable(t *testing.T) {
	t.Parallel()
	// With one loop register has returned before Opened, and uses the descriptor no more.
	r := listen(t, ListenerOptions{Loops: 1, DrainTimeout: time.Hour, CloseTimeout: time.Hour})
	events := r.Events()
	r.serve()
	// Each function takes a connection to a phase, from any that leads there.
	to := map[phase]func(l *heldLife){
		phaseDraining: func(l *heldLife) { l.c.tellShutdown() },
		phaseDrained:  func(l *heldLife) { close(l.goOn); receive0(t, "Draining", l.told) },
		phaseClosing:  func(l *heldLife) { l.c.Close() },
		phaseReleased: func(l *heldLife) { l.c.Abort() },
		phaseGone:     func(l *heldLife) { close(l.letGo); receive0(t, "the descriptor's user has returned", l.left) },
	}
	var paths [][]phase
	var walk func(path []phase)
	walk = func(path []phase) {
		next := phases[path[len(path)-1]]
		if len(next) == 0 {
			paths = append(paths, path)
		}
		for _, p := range next {
			walk(append(slices.Clone(path), p))
		}
	}
	walk([]phase{phaseOpen})
	for _, path := range paths {
		t.Run(fmt.Sprint(path), func(t *testing.T) {
			peer := r.dial()
			defer peer.Close()
			l := &heldLife{c: receiveAs[Opened](t, events).Conn}
			l.begin(t)
			for _, p := range path[1:] {
				to[p](l)
				if got := phaseOf(l.c); got != p {
					t.Fatalf("the phase is %v, want %v", got, p)
				}
			}
			if !slices.Contains(path, phaseDrained) {
				close(l.goOn)
			}
		})
	}
}

// A heldLife is a connection whose descriptor is in use until letGo is closed, and whose actor is
// busy until goOn is.
type heldLife struct {
	c                       *Conn
	goOn, told, letGo, left chan struct{}
}

func (l *heldLife) begin(t *testing.T) {
	l.goOn, l.told, l.letGo, l.left = make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	busy, held := make(chan struct{}), make(chan struct{})
	raw, err := l.c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(l.left)
		if err := raw.Control(func(uintptr) { close(held); <-l.letGo }); err != nil {
			t.Error(err)
		}
	}()
	receive0(t, "the descriptor is in use", held)
	if err := errors.Join(l.c.Attach(ActorFunc(func(ev Event) error {
		switch ev.(type) {
		case Message:
			close(busy)
			<-l.goOn
		case Draining:
			close(l.told)
		}
		return nil
	})), l.c.Post("be busy")); err != nil {
		t.Fatal(err)
	}
	receive0(t, "the actor is busy", busy)
}

// connLimit is what an idle connection may cost in the Conn itself, in bytes.
const connLimit = 160

// A Conn that has grown past the limit does not compile: the array would have a negative length.
var _ [connLimit - unsafe.Sizeof(Conn{})]byte

func TestConnIsSmall(t *testing.T) {
	t.Logf("a Conn is %d bytes, what few connections need another %d, a timer %d",
		unsafe.Sizeof(Conn{}), unsafe.Sizeof(connExt{}), unsafe.Sizeof(timer{}))
}

// Every field but the addresses, and what has a meaning only beside another, keeps an ext. One that
// is added has to be thought of.
func TestAnExtThatHoldsSomethingIsNotBlank(t *testing.T) {
	idle := map[string]bool{ // true without being of use: see blank
		"remote": true, "local": true, "client": true, "closeBy": true, "heard": true, "counted": true,
		"edges": true, "preface": true, "inputTimeout": true, "toldAt": true,
	}
	if !new(connExt).blank() {
		t.Error("an empty ext is not blank")
	}
	held := map[string]func(x *connExt){
		"err": func(x *connExt) { x.err = io.EOF }, "readErr": func(x *connExt) { x.readErr = io.EOF },
		"sendErr": func(x *connExt) { x.sendErr = io.EOF }, "timer": func(x *connExt) { x.timer = new(timer) },
		"timers": func(x *connExt) { x.timers = new(timer) }, "mailbox": func(x *connExt) { x.mailbox.Push(mail{}) },
		"posted": func(x *connExt) { x.posted = 1 }, "copies": func(x *connExt) { x.copies = 1 },
		"fdUsers": func(x *connExt) { x.fdUsers = 1 }, "late": func(x *connExt) { x.late = 1 },
		"raw": func(x *connExt) { x.raw = true }, "given": func(x *connExt) { x.given = true },
		"connecting": func(x *connExt) { x.connecting = true }, "ownInput": func(x *connExt) { x.ownInput = true },
		"groups": func(x *connExt) { x.groups = make([]membership, 1) }, "tls": func(x *connExt) { x.tls = new(tlsState) },
		"frames":  func(x *connExt) { x.frames.busy = true },
		"context": func(x *connExt) { x.context.ctx = t.Context() },
		"dial":    func(x *connExt) { x.dial = new(dialing) }, "dialed": func(x *connExt) { x.dialed = new(Dialed) },
		"waits": func(x *connExt) { x.waits = new(waits) },
	}
	for i := range reflect.TypeFor[connExt]().NumField() {
		f := reflect.TypeFor[connExt]().Field(i)
		x, hold := new(connExt), held[f.Name]
		if hold != nil {
			hold(x)
		}
		if hold == nil && !idle[f.Name] || hold != nil && x.blank() {
			t.Errorf("%s: an ext that holds it is blank, or the test does not know it", f.Name)
		}
	}
}

// Sending an event through a channel allocates nothing: it is one pointer, which the interface
// holds itself.
func TestEventsAreOnePointer(t *testing.T) {
	for name, size := range map[string]uintptr{
		"Opened": unsafe.Sizeof(Opened{}), "Readable": unsafe.Sizeof(Readable{}),
		"Writable": unsafe.Sizeof(Writable{}), "RelayEnded": unsafe.Sizeof(RelayEnded{}), "Closed": unsafe.Sizeof(Closed{}),
	} {
		if size != unsafe.Sizeof(uintptr(0)) {
			t.Errorf("%s is %d bytes", name, size)
		}
	}
}

func skipUnderRace(t *testing.T) {
	t.Helper()
	if testnet.Race {
		t.Skip("the race detector allocates")
	}
}

func TestReadAndAnswerOnTheStreamAllocateNothing(t *testing.T) {
	skipUnderRace(t)
	r := listen(t, ListenerOptions{})
	events := r.Events()
	r.serve()
	peer, c := r.open()
	in, out, got := []byte("0123456789abcdef"), make([]byte, 64), make([]byte, 16)
	avg := testing.AllocsPerRun(2000, func() {
		if _, err := peer.Write(in); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(in); {
			if _, ok := (<-events).(Readable); !ok {
				t.Fatal("not a Readable")
			}
			m, err := c.TryRead(out)
			if err != nil && err != ErrWouldBlock {
				t.Fatal(err)
			}
			if _, err := c.TryWrite(out[:m]); err != nil {
				t.Fatal(err)
			}
			n += m
		}
		if _, err := io.ReadFull(peer, got); err != nil {
			t.Fatal(err)
		}
	})
	if avg != 0 {
		t.Errorf("%v allocations per request, want 0", avg)
	}
}

func TestReadableToAnActorAllocatesNothing(t *testing.T) {
	skipUnderRace(t)
	r := listen(t, ListenerOptions{Loops: 1, NewActor: echoActor})
	r.serve()
	peer := r.dial()
	in, got := []byte("0123456789abcdef"), make([]byte, 16)
	avg := testing.AllocsPerRun(2000, func() {
		if _, err := peer.Write(in); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(peer, got); err != nil {
			t.Fatal(err)
		}
	})
	if avg != 0 {
		t.Errorf("%v allocations per request, want 0", avg)
	}
}

// A goroutine in a long write holds the lock.
func TestNamesNeedNoLock(t *testing.T) {
	r := listen(t, ListenerOptions{}).serve()
	_, c := r.open()
	want := c.String()
	c.mu.Lock()
	got, event := c.String(), Closed{c}.String()
	c.unlock()
	if got != want || event != "Closed("+want+")" {
		t.Errorf("%q and %q, want %q", got, event, want)
	}
}

// More than 3 GiB queued over TLS: the product has more than 63 bits.
func TestShareOfWhatIsQueuedOverTLSDoesNotOverflow(t *testing.T) {
	check := func(size int, plain, sealed int64) {
		t.Helper()
		want := new(big.Int).Mul(big.NewInt(int64(size)), big.NewInt(plain))
		want.Add(want, big.NewInt(sealed-1)).Div(want, big.NewInt(sealed))
		if most := big.NewInt(math.MaxInt); want.Cmp(most) > 0 {
			want = most
		}
		if got := plainShare(size, plain, sealed); int64(got) != want.Int64() {
			t.Errorf("the share of %d in %d of %d is %d, want %d", size, plain, sealed, got, want)
		}
	}
	for _, size := range []int64{0, 1, 1 << 20, 3<<30 + 1, 4 << 30, 1 << 40, math.MaxInt} {
		size := int(min(size, math.MaxInt))
		for _, plain := range []int64{0, 1, 3<<30 + 1, 1 << 40, math.MaxInt64} {
			for _, sealed := range []int64{1, 3<<30 + 22, 1 << 40, math.MaxInt64} {
				check(size, plain, sealed)
			}
		}
	}
	for range 10000 {
		check(rand.IntN(math.MaxInt), rand.Int64(), rand.Int64N(math.MaxInt64)+1)
	}
}

func TestLongWaitIsNotAShortOneOrForEver(t *testing.T) {
	for d, want := range map[time.Duration]int{
		math.MinInt64: -1, -1: -1, 0: 0, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2,
		time.Hour: 3600_000, math.MaxInt32 * time.Millisecond: math.MaxInt32, 1 << 62: math.MaxInt32,
		math.MaxInt64: math.MaxInt32, math.MaxInt64 - 1: math.MaxInt32,
	} {
		if got := waitMillis(d); got != want {
			t.Errorf("waitMillis(%d) = %d, want %d", d, got, want)
		}
	}
}

// A time limit costs 24 bytes a connection, besides its entry in the loop's list.
var _ [24 - unsafe.Sizeof(limitState{})]byte

// A connection that has only been read from for 30 days is idle when that ends.
func TestOldLastWriteDoesNotPutTheIdleTimeoutOff(t *testing.T) {
	c := &Conn{sh: &shard{shared: new(shared)}, sock: set[sockMark]{sockTimed | sockHeard}}
	now := 100 * 24 * int64(time.Hour)
	c.limit.idle = 500
	c.limit.lastIn, c.limit.lastOut = now-600*int64(time.Millisecond), now-30*24*int64(time.Hour)
	if _, _, wait := c.nextLimitLocked(now); wait != -100*time.Millisecond {
		t.Errorf("idle in %v, want 100 ms ago", wait)
	}
}

func TestLimitsThatAreDueTogetherLeaveOthersTheirTurn(t *testing.T) {
	lp := newLoop(&Listener{}, 0)
	const all = 2*limitBudget + 1
	for range all {
		c := &Conn{sh: &lp.shard, phase: phaseClosing}
		lp.limits.Add(limited{c}, 1)
	}
	for left := all - limitBudget; left > 0; left -= limitBudget {
		lp.kicked.Store(false)
		lp.runLimits(1)
		if n := lp.limits.Len(); n != left {
			t.Fatalf("%d connections left behind a turn, want %d", n, left)
		}
		if !lp.kicked.Load() {
			t.Fatal("the loop might sleep although limits are due")
		}
	}
	lp.runLimits(1)
	if n := lp.limits.Len(); n != 0 {
		t.Fatalf("%d connections left behind the last turn", n)
	}
}

// A poll never ends before the timer it waits for: it would poll again with nothing to do.
func TestWaitIsRoundedUpToMilliseconds(t *testing.T) {
	for _, tc := range []struct {
		d    time.Duration
		want int
	}{
		{-1, -1}, {0, 0}, {1, 1}, {time.Millisecond, 1}, {time.Millisecond + 1, 2}, {1<<63 - 1 - time.Second, 1<<31 - 1},
	} {
		if got := waitMillis(tc.d); got != tc.want {
			t.Errorf("waitMillis(%d) is %d, want %d", tc.d, got, tc.want)
		}
	}
}

func TestTimersThatAreDueTogetherLeaveOthersTheirTurn(t *testing.T) {
	lp := newLoop(&Listener{}, 0)
	const all = 2*timerBudget + 1
	for range all {
		lp.addTimer(&timer{kind: timerWake}, 0)
	}
	for left := all - timerBudget; left > 0; left -= timerBudget {
		lp.kicked.Store(false)
		lp.runTimers()
		if n := lp.timers.Len(); n != left {
			t.Fatalf("%d timers left behind a turn, want %d", n, left)
		}
		if !lp.kicked.Load() {
			t.Fatal("the loop might sleep although timers are due")
		}
	}
	lp.kicked.Store(false)
	lp.runTimers()
	if lp.timers.Len() != 0 || lp.kicked.Load() {
		t.Fatalf("%d timers left behind the last turn, kicked %v", lp.timers.Len(), lp.kicked.Load())
	}
}

// To see it fail: let the sum of now and the longest Duration overflow.
func TestLongestTimerIsNotDueAtOnce(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 1})
	r.Events()
	lp := r.loops[0]
	lp.addTimer(&timer{kind: timerWake}, math.MaxInt64)
	if _, due := lp.timers.Due(now()); due || lp.untilDue() <= 0 {
		t.Errorf("due: %v, wait %v", due, lp.untilDue())
	}
}

// contradiction names what cannot be together of the states that c has, once unlock has settled
// them; "" if they agree. To see it fail: leave withdrawReadableLocked out of closeLocked.
func (c *Conn) contradiction() string {
	switch x := c.ext; {
	case c.todo.has(todoSettle):
		return "mu was free with something to settle"
	case c.ended() && (c.user.has(userReadable|userWantsRoom) || c.pending.has(pendReadable|pendWritable)):
		return "a Readable or a Writable of a connection that has ended"
	case c.phase == phaseClosing && (x == nil || x.timer == nil):
		return "closing without a time limit"
	case c.released() && (c.out != nil || x != nil && (x.timer != nil || x.timers != nil)):
		return "a released connection has output or timers"
	case c.phase == phaseGone && c.fd >= 0, !c.released() && c.fd < 0:
		return "the descriptor does not go with the phase"
	case c.phase == phaseOpen && c.wants.has(wantDiscard):
		return "an open connection throws input away"
	case c.peerEnd == peerTimed && c.claim != claimed:
		return "EOFTimeout of a connection that nobody has claimed"
	case !c.opened() && c.pending.has(^event(0)):
		return "events before Opened"
	case c.stream == nil && c.route.has(routeQueued), c.stream != nil && c.wants.has(wantTurn):
		return "in the queue of a route that it does not have"
	}
	return ""
}

// The edge of a socket that connects may have been that of its first bytes too. To see it fail:
// leave out what beginLocked does about unread.
func TestBytesThatCameWithTheConnectAreAnnounced(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r := listen(t, ListenerOptions{Network: "none"})
	events := r.Events()
	r.serve()
	testnet.WaitFor(t, "Serve", func() bool { return r.mayAdd() == nil })
	d, err := r.newDialing(&DialRequest{Network: "tcp", Address: ln.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.routeOf(d); err != nil {
		t.Fatal(err)
	}
	fd, err := d.open(d.addrs[0][0])
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	testnet.Send(t, peer, "hello")
	testnet.WaitFor(t, "the bytes", func() bool { return sys.Unread(fd) == 5 })
	d.sh.count.dialing.Add(1)
	r.dials.add(d)
	d.lanes[0].begun, d.lanes[0].next = true, 1
	d.steps.Store(1) // as inside a step
	d.register(0, madeSocket{fd: fd})
	testnet.WaitFor(t, "the edge has poked", func() bool { return d.steps.Load() > 1 })
	d.steps.Store(0)
	d.step()
	c := receiveAs[Dialed](t, events).Conn
	receiveAs[Opened](t, events)
	receiveAs[Readable](t, events)
	buf := make([]byte, 10)
	if n, err := c.TryRead(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}
