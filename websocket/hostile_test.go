//go:build linux

package websocket

import (
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// honest talks to s until stop is closed, and returns the longest time an echo took at the 99th
// percentile.
func honest(t *testing.T, s *Server, stop chan bool) time.Duration {
	p := dialPeer(t, s, "")
	var took []time.Duration
	for {
		select {
		case <-stop:
			if len(took) > 0 {
				slices.Sort(took)
				return took[len(took)*99/100]
			}
		default:
		}
		begin := time.Now()
		_ = p.Conn.SetDeadline(begin.Add(testLimit))
		p.send(fr(opText, "x"))
		if line := p.next(); line != "text x" {
			t.Error(line)
			return 0
		}
		took = append(took, time.Since(begin))
	}
}

func heapInUse() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse)
}

// What hostile peers do keeps no honest one waiting, and costs no memory that grows.
func TestHostilePeers(t *testing.T) {
	bomb := pack(strings.Repeat("\x00", 64<<20))
	var g Group
	handle := func(ev Event) error {
		text, ok := ev.(Text)
		switch {
		case ok && len(text.Data) == 10000:
			g.WriteText(text.Data)
			return nil
		case ok && string(text.Data) == "join":
			g.Join(text.Conn)
			return nil // what the others send may have taken all the room by now
		}
		return echo(ev)
	}
	for _, c := range []struct {
		name   string
		peers  int
		attack func(s *Server, p *peer)
	}{
		{"pings", 1, func(_ *Server, p *peer) {
			go func() {
				for line := "pong"; strings.HasPrefix(line, "pong"); line = p.next() {
				}
			}()
			burst := slices.Repeat(fr(opPing, ""), 1000)
			for range 100 {
				p.send(burst)
			}
		}},
		{"pings, and never reads", 1, func(_ *Server, p *peer) {
			burst := slices.Repeat(fr(opPing, long[:125]), 1000)
			for range 50 {
				p.Write(burst)
			}
		}},
		{"fragments of a byte", 1, func(_ *Server, p *peer) {
			p.send(fr(opBinary, "x", "-"))
			burst := slices.Repeat(fr(opMore, "x", "-"), 1000)
			n := byteFragments / 1000
			if raceEnabled {
				n = min(n, 500)
			}
			for range n {
				p.send(burst)
			}
		}},
		{"empty fragments for ever", 1, func(_ *Server, p *peer) {
			p.send(fr(opBinary, "", "-"))
			burst := slices.Repeat(fr(opMore, "", "-"), 1000)
			for range 500 {
				p.send(burst)
			}
		}},
		{"headers that promise much", 200, func(_ *Server, p *peer) {
			p.send(fr(opBinary, strings.Repeat("x", 1<<20))[:100])
		}},
		{"a fragment every 10 ms, for ever", 200, func(_ *Server, p *peer) {
			p.send(fr(opText, "x", "-"))
			for range 100 {
				p.send(fr(opMore, "x", "-"))
				time.Sleep(10 * time.Millisecond) // the rate of the drip
			}
		}},
		{"messages that inflate without end", 2, func(s *Server, _ *peer) {
			n := 5
			if raceEnabled {
				n = 1
			}
			for range n {
				p := dialPeer(t, s, offer)
				_, _ = p.Write(fr(opBinary, bomb, "1"))
				if line := p.next(); !strings.HasPrefix(line, "close 1009") {
					t.Error(line)
				}
				p.Close()
			}
		}},
		{"members of a group that never read", 10, func(_ *Server, p *peer) {
			p.send(fr(opText, "join"))
			for range 300 {
				p.send(fr(opText, long[:10000]))
			}
		}},
		{"echoes that nobody reads", 1, func(_ *Server, p *peer) {
			p.Conn.SetWriteDeadline(time.Now().Add(time.Second))
			msg := fr(opBinary, long)
			for {
				if _, err := p.Write(msg); err != nil {
					return // it is held back
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, tcpio.ListenerOptions{WriteBuffer: 256 << 10}, Options{NewActor: func(*Conn) Actor { return ActorFunc(handle) }, MaxMessage: 17 << 20, Compress: true}, nil)
			before := heapInUse()
			stop := make(chan bool)
			var worst time.Duration
			var running, attacks sync.WaitGroup
			running.Go(func() { worst = honest(t, s, stop) })
			var peers []*peer
			for range c.peers {
				p := dialPeer(t, s, "")
				_ = p.SetDeadline(time.Now().Add(3 * testLimit)) // for a whole load
				peers = append(peers, p)
				attacks.Go(func() { c.attack(s, p) })
			}
			attacks.Wait()
			after := heapInUse()
			close(stop)
			running.Wait()
			t.Logf("99%% of the honest peer's echoes took at most %v; %d KiB more are in use", worst, (after-before)>>10)
			if grown := after - before; grown > 8<<20+3*byteFragments && !raceEnabled {
				t.Errorf("%d KiB more are in use", grown>>10)
			}
			if worst > 10*time.Second { // it tells who is kept waiting; bench/websocket has times
				t.Errorf("an honest peer waited for %v", worst)
			}
			runtime.KeepAlive(peers)
		})
	}
}
