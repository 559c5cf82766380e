//go:build linux

package cluster

import (
	"io"
	"net"
	"sync"
	"testing"
)

// A gate is a TCP proxy in front of a server. It can hold what passes, as a network does that drops
// everything, and cut what is connected, with all that it holds.
type gate struct {
	ln     net.Listener
	target string
	wg     sync.WaitGroup

	mu   sync.Mutex
	cond sync.Cond
	// Guarded by mu.
	shut  bool // new connections are refused
	held  bool
	conns map[net.Conn]struct{}
	over  bool
}

func newGate(t testing.TB, target string) *gate {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{ln: ln, target: target, conns: make(map[net.Conn]struct{})}
	g.cond.L = &g.mu
	g.wg.Go(g.accept) // until the listener is closed
	t.Cleanup(func() {
		ln.Close()
		g.mu.Lock()
		g.over = true
		g.mu.Unlock()
		g.cut()
		g.wg.Wait()
	})
	return g
}

func (g *gate) url() string { return "nats://" + g.ln.Addr().String() }

func (g *gate) accept() {
	for {
		a, err := g.ln.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", g.target)
		g.mu.Lock()
		if err != nil || g.shut || g.over {
			g.mu.Unlock()
			a.Close()
			if err == nil {
				b.Close()
			}
			continue
		}
		g.conns[a], g.conns[b] = struct{}{}, struct{}{}
		g.mu.Unlock()
		g.wg.Go(func() { g.pass(a, b) })
		g.wg.Go(func() { g.pass(b, a) })
	}
}

func (g *gate) pass(from, to net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		g.mu.Lock()
		for g.held && !g.over {
			if _, there := g.conns[from]; !there {
				break
			}
			g.cond.Wait()
		}
		_, there := g.conns[from]
		g.mu.Unlock()
		if !there || err != nil {
			break
		}
		if _, err := to.Write(buf[:n]); err != nil {
			break
		}
	}
	from.Close()
	to.Close()
	_, _ = io.Copy(io.Discard, from)
}

// hold lets nothing pass until release; it is kept.
func (g *gate) hold() { g.set(func() { g.held = true }) }

// release lets pass what was held, and new connections.
func (g *gate) release() { g.set(func() { g.held, g.shut = false, false }) }

// close cuts the connections and refuses new ones until release.
func (g *gate) close() {
	g.set(func() { g.shut = true })
	g.cut()
}

// cut ends the connections; what is held is lost.
func (g *gate) cut() {
	g.set(func() {
		for c := range g.conns {
			c.Close()
		}
		clear(g.conns)
	})
}

func (g *gate) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	g.cond.Broadcast()
}
