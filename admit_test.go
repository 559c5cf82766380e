//go:build linux

package tcpio

import (
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// ListenerOptions.Actor may turn a connection away. It must not touch the others, nor the counts.
func TestActorHookMayEndItsConnection(t *testing.T) {
	var end atomic.Int32
	closed := make(chan Event, 10)
	r := listen(t, ListenerOptions{Loops: 1, Actor: func(c *Conn) Actor {
		switch end.Load() {
		case 1:
			c.Abort()
		case 2:
			c.Close()
		}
		echoes := echoActor(c)
		return ActorFunc(func(ev Event) error {
			if _, ok := ev.(Closed); ok {
				closed <- ev
			}
			return echoes.Receive(ev)
		})
	}})
	r.serve()
	old := r.dial()
	echo(t, old, []byte("before"))
	for _, how := range []int32{1, 2} {
		end.Store(how)
		if p, err := net.Dial("tcp", r.Addr().String()); err == nil { // else it is reset already
			if _, err := p.Read(make([]byte, 1)); err == nil {
				t.Errorf("%d: the peer got bytes", how)
			}
			p.Close()
		}
		receive(t, "Closed", closed)
		waitFor(t, "only the first is left", func() bool { return r.Len() == 1 })
		if n := len(slices.Collect(r.loops[0].conns.All())); n != 1 {
			t.Errorf("%d: %d connections in the table, want 1", how, n)
		}
		echo(t, old, []byte("after"))
	}
}

// Conns shows a connection while it is still being admitted; to end it then is as good as later.
func TestConnectionsMayEndWhileTheyAreAdmitted(t *testing.T) {
	r := listen(t, ListenerOptions{Loops: 2, Actor: echoActor})
	r.serve()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for c := range r.Conns() {
				c.Abort()
			}
			runtime.Gosched()
		}
	})
	for range 200 {
		p, err := net.Dial("tcp", r.Addr().String())
		if err != nil {
			continue // reset already
		}
		_ = p.SetDeadline(time.Now().Add(testLimit))
		_, _ = p.Read(make([]byte, 1))
		p.Close()
	}
	close(stop)
	wg.Wait()
	waitFor(t, "all are gone", func() bool { return r.Len() == 0 })
	for _, lp := range r.loops {
		if slots, free := lp.conns.Slots(); slots != free {
			t.Errorf("%d slots, %d free ones", slots, free)
		}
	}
}
