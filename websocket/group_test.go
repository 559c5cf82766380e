//go:build linux

package websocket

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws/wsflate"

	"github.com/rabbit-backend/tcpio"
)

// joined is a server whose connections join g.
func joined(t *testing.T, g *Group, opts Options, tcp tcpio.ListenerOptions) (*Server, *record, chan *Conn) {
	conns := make(chan *Conn, 100)
	s, r := watched(t, "actor", tcp, opts, func(ev Event) error {
		if ev, ok := ev.(Opened); ok {
			g.Join(ev.Conn)
			g.Join(ev.Conn)
			conns <- ev.Conn
		}
		return nil
	})
	return s, r, conns
}

func TestGroup(t *testing.T) {
	var g Group
	s, r, conns := joined(t, &g, Options{Compress: true, CompressMin: 20}, tcpio.ListenerOptions{})
	var plain, packs []*peer
	for range 3 {
		plain = append(plain, dialPeer(t, s, ""))
		<-conns
		packs = append(packs, dialPeer(t, s, offer))
		<-conns
	}
	text := strings.Repeat("to all of you ", 10)
	if n := g.WriteText([]byte(text)); n != 6 || g.Len() != 6 {
		t.Fatal(n, g.Len())
	}
	g.WriteBinary([]byte("short"))
	for _, p := range plain {
		p.expect(big("text", len(text)), "binary short")
	}
	for _, p := range packs {
		if got := p.packed(); got != text {
			t.Error(got)
		}
		p.expect("binary short")
	}
	for c := range g.All() {
		if !g.Has(c) || g.Has(nil) {
			t.Error("Has")
		}
		if n := g.WriteTextExcept(c, []byte("others")) + g.WriteBinaryExcept(nil, []byte("everybody")); n != 5+6 {
			t.Error(n)
		}
		break
	}
	got := ""
	for _, p := range slices.Concat(plain, packs) {
		if line := p.next(); line != "binary everybody" {
			got += line
			p.expect("binary everybody")
		}
	}
	if want := strings.Repeat("text others", 5); got != want {
		t.Error(got)
	}
	if missed := g.Post("news"); missed != 0 {
		t.Error(missed)
	}
	r.wait(t, "message news")
	plain[0].send(bye)
	plain[0].expect("close 1000", "eof")
	if n := g.WriteText([]byte("x")); n != 5 {
		t.Error(n)
	}
	waitFor(t, func() bool { return g.Len() == 5 })
	for tc := range s.Listener().Conns() {
		g.Leave(tc.Data().(*Conn))
		g.Leave(tc.Data().(*Conn))
	}
	if g.Len() != 0 || g.WriteText([]byte("y")) != 0 {
		t.Error(g.Len())
	}
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(testLimit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come about")
		}
	}
}

// A member that never reads is left out, which is counted and told; it costs what WriteBuffer says,
// and others get everything at once.
func TestGroupSkips(t *testing.T) {
	var g Group
	conns := make(chan *Conn, 2)
	told := make(chan int, 1000) // more than there are messages
	s, _ := watched(t, "actor", tcpio.ListenerOptions{WriteBuffer: 64 << 10}, Options{}, func(ev Event) error {
		switch ev := ev.(type) {
		case Opened:
			g.Join(ev.Conn)
			conns <- ev.Conn
		case Writable:
			told <- ev.Skipped
		}
		return nil
	})
	slow := dialPeer(t, s, "")
	slowConn := <-conns
	fast := dialPeer(t, s, "")
	<-conns
	msg := []byte(long)
	n, took := 0, 0
	for g.Skipped() < 10 {
		n++
		took += g.WriteText(msg)
		fast.expect(big("text", len(msg)))
	}
	if lost := 2*n - took; lost != int(g.Skipped()) {
		t.Errorf("%d lost, %d counted", lost, g.Skipped())
	}
	toldOf := 0
	missed := func() int { // by the slow one, which its Writables and Skipped say
		for len(told) > 0 {
			toldOf += <-told
		}
		return toldOf + slowConn.Skipped()
	}
	waitFor(t, func() bool { return missed() == int(g.Skipped()) })
	if queued := slowConn.Underlying().Buffered(); queued > 64<<10+len(msg)+10 {
		t.Errorf("%d bytes are queued", queued)
	}
	for range n - int(g.Skipped()) {
		slow.expect(big("text", len(msg)))
	}
	waitFor(t, func() bool { return missed() == int(g.Skipped()) && toldOf == int(g.Skipped()) })
	if g.WriteText([]byte("again")) != 2 {
		t.Error("the slow member is not back")
	}
	if n := slowConn.Skipped(); n != 0 {
		t.Errorf("%d are still missed", n)
	}
	slow.expect("text again")
}

// A member that is closed for being slow gets what it was owed and a Close frame, if it reads on;
// if not, CloseTimeout ends it.
func TestGroupClosesSlow(t *testing.T) {
	for _, reads := range []bool{false, true} {
		limit := 100 * time.Millisecond
		if reads {
			limit = testLimit
		}
		g := Group{Slow: tcpio.CloseSlow}
		s, r, conns := joined(t, &g, Options{CloseTimeout: limit}, tcpio.ListenerOptions{WriteBuffer: 64 << 10, CloseTimeout: limit})
		p := dialPeer(t, s, "")
		c := <-conns
		waitFor(t, func() bool { g.WriteText([]byte(long)); return c.Err() != nil })
		if reads {
			for line := ""; line != "close 1013 too slow"; line = p.next() {
				if line == "eof" {
					t.Fatal(line)
				}
			}
			p.Close()
		}
		r.wait(t, "closed 1013 too slow Local: tcpio: connection did not keep up with its group")
		waitFor(t, func() bool { return g.Len() == 0 && s.Listener().Len() == 0 })
		p.Close()
	}
}

// A member that is writing a long message of its own, which waits for its peer, is not slow.
// To see it fail: let put close a member that is sending.
func TestGroupDuringAWrite(t *testing.T) {
	g := Group{Slow: tcpio.CloseSlow}
	s, _, conns := joined(t, &g, Options{}, tcpio.ListenerOptions{})
	p := dialPeer(t, s, "")
	c := <-conns
	const size = 16 << 20 // more than the sockets and the queue take
	wrote := make(chan error, 1)
	go func() { wrote <- c.WriteText(make([]byte, size)) }()
	p.parts = true
	p.expect(big("text-", fragmentSize))
	for range 1000 {
		if g.WriteText([]byte("group")) != 0 {
			t.Fatal("the group's message is among the fragments")
		}
	}
	for got := fragmentSize; got < size; got += fragmentSize {
		if line := p.next(); line != big("more-", fragmentSize) && line != big("more", fragmentSize) {
			t.Fatal(line)
		}
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	if n := g.WriteText([]byte("group")); n != 1 {
		t.Errorf("%d members, Err %v", n, c.Err())
	}
	p.expect("text group")
}

// Members that write long messages of their own get none of the group's in between.
func TestGroupBesideWrites(t *testing.T) {
	var g Group
	s, _, conns := joined(t, &g, Options{}, tcpio.ListenerOptions{})
	p := dialPeer(t, s, "")
	c := <-conns
	var writers sync.WaitGroup
	writers.Go(func() {
		for i := range 20 {
			if err := c.WriteText([]byte(strings.Repeat("w", 300000+i))); err != nil {
				t.Error(err)
			}
		}
		c.Close(Normal, "")
	})
	stop := make(chan bool)
	writers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				g.WriteText([]byte("group"))
			}
		}
	})
	next := 0
	for {
		switch line := p.next(); line {
		case "text group":
			continue
		case fmt.Sprintf("text (%d bytes)", 300000+next):
			next++
			continue
		case "close 1000":
		default:
			t.Error(line)
		}
		break
	}
	close(stop)
	writers.Wait()
	if next != 20 {
		t.Error(next)
	}
}

// What waits of a frame for members that do not read is one copy, compressed or not.
func TestGroupSharesFrames(t *testing.T) {
	const members, size = 50, 1 << 20
	var g Group
	s, _, conns := joined(t, &g, Options{Compress: true}, tcpio.ListenerOptions{WriteBuffer: 16 << 20})
	var peers []*peer
	for i := range members {
		peers = append(peers, dialPeer(t, s, []string{"", offer}[i%2]))
		<-conns
	}
	msg := make([]byte, size)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range msg {
		msg[i] = byte(rnd.Uint32()) // nothing to compress
	}
	before := heapInUse()
	waiting, writes := 0, 0
	for waiting < 4*members*size {
		g.WriteBinary(msg)
		writes++
		waiting = 0
		for c := range g.All() {
			waiting += c.Underlying().Buffered()
		}
	}
	if used := heapInUse() - before; used > waiting/5 {
		t.Errorf("%d KiB are in use for %d KiB that wait", used>>10, waiting>>10)
	} else {
		t.Logf("%d KiB are in use for %d KiB that wait", used>>10, waiting>>10)
	}
	for i, p := range peers[:2] {
		_ = p.SetDeadline(time.Now().Add(testLimit))
		for range writes {
			h, b, err := readFrame(p.br)
			if err == nil && h.Rsv1() {
				b, err = wsflate.DefaultHelper.Decompress(b)
			}
			if err != nil || h.Rsv1() != (i == 1) || !bytes.Equal(b, msg) {
				t.Fatalf("peer %d: %v, %d bytes, %v", i, h, len(b), err)
			}
		}
	}
}
