package tcpio

import (
	"testing"
)

// revActors serves n connections with one loop and receive as their actor, which Opened does not reach.
func revActors(t *testing.T, n int, handle func(Event) error) (*rig, []*Conn) {
	t.Helper()
	opened := make(chan *Conn, n)
	r := listen(t, ListenerOptions{Loops: 1, Actor: func(*Conn) Actor {
		return ActorFunc(func(ev Event) error {
			if o, ok := ev.(Opened); ok {
				opened <- o.Conn
				return nil
			}
			return handle(ev)
		})
	}}).serve()
	conns := make([]*Conn, n)
	for i := range conns {
		r.dial()
		conns[i] = receive(t, "Opened", opened)
	}
	return r, conns
}

// Two connections wait for a turn, and the handler of the first blocks. The second must not wait for it.
// To see it fail: let takeOver not set kicked.
func TestBlockedHandlerDoesNotHoldTheQueuedTurnsOfOthers(t *testing.T) {
	release, got := make(chan struct{}), make(chan any, 1)
	defer close(release)
	var conns []*Conn
	_, conns = revActors(t, 3, func(ev Event) error {
		m, ok := ev.(Message)
		if !ok {
			return nil
		}
		switch m.Conn {
		case conns[0]: // inside this turn both of the others are queued behind it
			conns[1].Post("block")
			conns[2].Post("hello")
		case conns[1]:
			<-release
		case conns[2]:
			got <- m.Value
		}
		return nil
	})
	conns[0].Post("go")
	receive(t, "the message of the third connection", got)
}
