//go:build linux

package contract

import (
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// Corners of actors where several promises meet.

func TestActorsInARingWithFullMailboxesAllGoOn(t *testing.T) {
	const n, turns = 16, 300
	var handled [n]atomic.Int64
	var full atomic.Int64
	var ring atomic.Pointer[[]*tcpio.Conn]
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 3, MailboxSize: 4}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		m, ok := ev.(tcpio.Message)
		if !ok {
			return nil
		}
		me := m.Value.(int)
		handled[me].Add(1)
		next := (me + 1) % n
		for range 2 { // more than the next one can take
			switch err := (*ring.Load())[next].Post(next); {
			case err == tcpio.ErrMailboxFull:
				full.Add(1)
			case err != nil && !errors.Is(err, net.ErrClosed):
				return err
			}
		}
		return nil
	}))
	for range n {
		testnet.DialTCP(t, l)
	}
	conns := harness.Conns(t, l, n)
	ring.Store(&conns)
	for i, c := range conns {
		if err := c.Post(i); err != nil && err != tcpio.ErrMailboxFull { // those before it are at it already
			t.Fatal(err)
		}
	}
	for i := range handled {
		testnet.WaitFor(t, "everybody has had many turns", func() bool { return handled[i].Load() >= turns })
	}
	if full.Load() == 0 {
		t.Error("no mailbox was ever full")
	}
}

// All of them are on one loop, which each question takes away from its asker for a while.
func TestAHandlerMayAskAnotherOnItsOwnLoop(t *testing.T) {
	t.Parallel()
	const askers = 50
	var answerer atomic.Pointer[tcpio.Conn]
	answers := make(chan any, askers)
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 1}, tcpio.ActorFunc(func(ev tcpio.Event) error {
		m, ok := ev.(tcpio.Message)
		if !ok {
			return nil
		}
		if m.Conn == answerer.Load() {
			m.Reply(-m.Value.(int))
			return nil
		}
		v, err := answerer.Load().Ask(t.Context(), m.Value)
		if err != nil || v != -m.Value.(int) {
			t.Errorf("Ask(%v) = %v, %v", m.Value, v, err)
		}
		answers <- v
		return err
	}))
	for range askers + 1 {
		testnet.DialTCP(t, l)
	}
	conns := harness.Conns(t, l, askers+1)
	answerer.Store(conns[0])
	for i, c := range conns[1:] {
		if err := c.Post(i); err != nil {
			t.Fatal(err)
		}
	}
	for range askers {
		testnet.Await(t, "answer", answers)
	}
}

func TestAHandlerThatBlocksInWriteGoesOnAtMaxBlocked(t *testing.T) {
	const size = 8 << 20
	o := tcpio.ListenerOptions{Loops: 1, MaxBlocked: 1, WriteBuffer: 1000}
	l := harness.Actor(t, o, tcpio.ActorFunc(func(ev tcpio.Event) error {
		rd, ok := ev.(tcpio.Readable)
		if !ok {
			return nil
		}
		var p [1]byte
		if _, err := rd.Conn.Read(p[:]); err != nil {
			return nil
		}
		var err error
		if p[0] == 'w' {
			_, err = rd.Conn.Write(make([]byte, size)) // needs the loop to flush
		} else {
			_, err = rd.Conn.TryWrite(p[:])
		}
		return err
	}))
	var slow []*net.TCPConn
	for range 5 {
		c := testnet.DialTCP(t, l)
		testnet.Send(t, c, "w")
		slow = append(slow, c)
	}
	testnet.WaitFor(t, "five handlers are blocked", func() bool { return l.Blocked() == 5 })
	good := testnet.DialTCP(t, l)
	for range 20 {
		testnet.Ping(t, good, "e")
	}
	for _, c := range slow {
		if n, err := io.CopyN(io.Discard, c, size); err != nil {
			t.Errorf("%d bytes, then %v", n, err)
		}
	}
}

// A posted value is delivered or refused, also while the connection changes its routes and is closed.
func TestNoPostIsLostWhenRoutesChangeBesideClose(t *testing.T) {
	t.Parallel()
	l := harness.Actor(t, tcpio.ListenerOptions{Loops: 2}, tcpio.ActorFunc(func(tcpio.Event) error { return nil }))
	for range 20 {
		peer := testnet.DialTCP(t, l)
		c := harness.Conns(t, l, 1)[0]
		var mu sync.Mutex
		seen := map[int]int{}
		over := make(chan struct{}) // Closed was received; closing it twice panics
		handle := func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Message:
				mu.Lock()
				seen[ev.Value.(int)]++
				mu.Unlock()
			case tcpio.Closed:
				close(over)
			}
			return nil
		}
		if err := c.Attach(tcpio.ActorFunc(handle)); err != nil {
			t.Fatal(err)
		}
		posted := 0
		var work sync.WaitGroup
		work.Go(func() {
			for {
				switch err := c.Post(posted); {
				case err == nil:
					posted++
				case err != tcpio.ErrMailboxFull:
					return
				}
			}
		})
		work.Go(func() {
			for {
				ch := c.Events()
				work.Go(func() {
					for ev := range ch {
						_ = handle(ev)
					}
				})
				if c.Attach(tcpio.ActorFunc(handle)) != nil {
					return
				}
			}
		})
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		c.Close()
		peer.Close()
		work.Wait()
		testnet.Await(t, "Closed", over)
		if len(seen) != posted {
			t.Errorf("%d values were received, %d accepted", len(seen), posted)
		}
		for v, n := range seen {
			if n != 1 {
				t.Errorf("%d was received %d times", v, n)
			}
		}
	}
}

func TestAClaimedChannelNotReceivedFromPausesOnlyItsConnection(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{EventBuffer: 1, MailboxSize: 4})
	c, peer := harness.Open(t, l, events)
	own := c.Events()
	posted := 0
	for ; c.Post(posted) == nil; posted++ {
		if posted > 1000 {
			t.Fatal("the mailbox is never full")
		}
	}
	testnet.Send(t, peer, "later")
	_, other := harness.Open(t, l, events)
	testnet.Send(t, other, "now")
	harness.Expect[tcpio.Readable](t, events)
	read := false
	for got := 0; got < posted || !read; {
		switch ev := testnet.Await(t, "an event", own).(type) {
		case tcpio.Message:
			if ev.Value != got {
				t.Fatalf("received %v, want %d", ev.Value, got)
			}
			got++
		case tcpio.Readable:
			buf := make([]byte, 64)
			if n, err := c.TryRead(buf); string(buf[:n]) != "later" || err != nil {
				t.Fatalf("read %q, %v", buf[:n], err)
			}
			read = true
		}
	}
}

func TestAfterTakesAnyDuration(t *testing.T) {
	_, c, got := actBox(t, tcpio.ListenerOptions{})
	far := []func() bool{c.After(math.MaxInt64, "far"), c.After(200*365*24*time.Hour, "far")}
	stop := c.After(math.MinInt64, "at once")
	if v := testnet.Await(t, "timer", got); v != "at once" {
		t.Errorf("received %v", v)
	}
	if stop() {
		t.Error("a timer was stopped that had been delivered")
	}
	for _, stop := range far {
		if !stop() || stop() {
			t.Error("a pending timer is stopped once")
		}
	}
}

func TestAHandlerMayWriteToGroupsThatItsConnectionIsIn(t *testing.T) {
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

func TestHijackBesideBlockedReadersAndQueuedOutputLosesNothing(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.ShrinkSendBuffer(t, c)
	out, in := harness.Fill(t, c, 64<<10), testnet.Pattern(1<<20)
	hijacked := make(chan *net.TCPConn, 1)
	go func() {
		tc, err := c.Hijack()
		if err != nil {
			t.Errorf("Hijack: %v", err)
		}
		hijacked <- tc
	}()
	waitBlocked(t, 1, "(*Conn).Hijack")
	early := make(chan []byte, 1)
	go func() {
		var got []byte
		for p := make([]byte, 1000); ; {
			n, err := c.Read(p)
			if got = append(got, p[:n]...); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("Read: %v", err)
				}
				early <- got
				return
			}
		}
	}()
	go func() {
		if _, err := peer.Write(in); err != nil {
			t.Errorf("the peer's write: %v", err)
		}
	}()
	testnet.ExpectBytes(t, peer, out)
	tc := testnet.Await(t, "the hijacked connection", hijacked)
	defer tc.Close()
	_ = tc.SetDeadline(time.Now().Add(testnet.Limit))
	got := testnet.Await(t, "what was read before", early)
	rest := make([]byte, len(in)-len(got))
	if n, err := io.ReadFull(tc, rest); err != nil {
		t.Fatalf("%d bytes read before, %d of %d behind: %v", len(got), n, len(rest), err)
	}
	if i := testnet.FirstDifference(append(got, rest...), in); i >= 0 {
		t.Errorf("byte %d of %d is wrong", i, len(in))
	}
	for {
		if _, last := testnet.Await(t, "Closed", events).(tcpio.Closed); last {
			break
		}
	}
	if c.Err() != tcpio.ErrHijacked {
		t.Errorf("Err: %v", c.Err())
	}
}
