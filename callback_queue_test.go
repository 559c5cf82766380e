//go:build linux

package tcpio

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// queuedCallback serves two connections: the callback of one blocks until release is closed, and that of the other, which
// has sent a byte, waits for its turn.
func queuedCallback(t *testing.T) (l *Listener, release chan struct{}, c *Conn, peer net.Conn) {
	release = make(chan struct{})
	entered := make(chan *Conn, 2)
	r := listen(t, ListenerOptions{CloseTimeout: 5 * time.Second, OnConnEvent: func(conn net.Conn) error {
		var b [1]byte
		if _, err := conn.Read(b[:]); err != nil {
			return err
		}
		if b[0] == 'b' {
			entered <- conn.(*Conn)
			<-release
		}
		_, err := conn.Write([]byte("answer"))
		return err
	}}).serve()
	write(t, r.dial(), []byte("b"))
	first := receive(t, "the call that blocks", entered)
	tcp := r.dial()
	peer = tcp
	write(t, tcp, []byte("x"))
	waitFor(t, "the call that waits", func() bool {
		for other := range r.Conns() {
			other.mu.Lock()
			waits := other != first && other.callWaitsLocked()
			other.mu.Unlock()
			if waits {
				c = other
			}
		}
		return c != nil
	})
	return r.Listener, release, c, peer
}

// What was sent before the Shutdown is answered, whoever's callback had to come first.
func TestShutdownWaitsForACallbackThatWaitsForItsTurn(t *testing.T) {
	l, release, c, peer := queuedCallback(t)
	down := make(chan error, 1)
	go func() { down <- l.Shutdown(context.Background()) }()
	waitFor(t, "the end of Draining", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.phase == phaseDrained && !c.route.has(routeRunning)
	})
	close(release)
	answer, err := io.ReadAll(peer)
	if string(answer) != "answer" || err != nil {
		t.Errorf("the peer got %q, %v", answer, err)
	}
	peer.Close()
	// The other peer keeps its side open, which takes Shutdown up to CloseTimeout.
	if err := receive(t, "the end of Shutdown", down); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// It takes along what it has not yet read.
func TestAConnectionMayLeaveACallbackThatWaitsForItsTurn(t *testing.T) {
	l, release, c, peer := queuedCallback(t)
	events := c.Events()
	if _, ok := receive(t, "Readable", events).(Readable); !ok {
		t.Fatal("no Readable")
	}
	// The queue goes on, over the call: the calls behind it are made.
	over := make(chan struct{}, 1)
	l.callbacks.calls.Post(func() { over <- struct{}{} })
	close(release)
	receive(t, "the turn behind the call", over)
	var b [2]byte
	if n, err := c.TryRead(b[:]); n != 1 || b[0] != 'x' || err != nil {
		t.Errorf("TryRead on the new route: %q, %v", b[:n], err)
	}
	c.Close()
	if answer, err := io.ReadAll(peer); len(answer) > 0 || err != nil {
		t.Errorf("the old route answered %q, %v", answer, err)
	}
}

// More that arrives while such a call runs is for another call, which is not lost when the first one ends.
func TestACallThatWaitsIsNotLostToOneThatRuns(t *testing.T) {
	entered, release := make(chan *Conn, 2), make(chan struct{})
	r := listen(t, ListenerOptions{OnConnEvent: func(conn net.Conn) error {
		var b [1]byte
		if _, err := conn.Read(b[:]); err != nil {
			return err
		}
		if b[0] == 'b' {
			entered <- conn.(*Conn)
			<-release
		}
		_, err := conn.Write(b[:])
		return err
	}}).serve()
	late := func(n int32) func() bool {
		return func() bool {
			for c := range r.Conns() {
				c.mu.Lock()
				calls := int32(0)
				if c.ext != nil {
					calls = c.ext.late
				}
				c.mu.Unlock()
				if calls == n {
					return true
				}
			}
			return false
		}
	}
	write(t, r.dial(), []byte("b"))
	receive(t, "the call that blocks", entered)
	peer := r.dial()
	write(t, peer, []byte("b"))
	waitFor(t, "a call that waits", late(1))
	release <- struct{}{}
	receive(t, "the late call", entered)
	write(t, peer, []byte("x"))
	waitFor(t, "another call that waits", late(2))
	release <- struct{}{}
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(peer); string(answer) != "bx" || err != nil {
		t.Errorf("the peer got %q, %v", answer, err)
	}
}
