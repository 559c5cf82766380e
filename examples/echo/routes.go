package main

import (
	"net"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
)

const bufSize = 64 << 10

// serveStream is the default route: one goroutine, which owns all the state.
func serveStream(events <-chan tcpio.Event) error {
	buf := make([]byte, bufSize)
	conns := make(map[*tcpio.Conn]*echoer)
	for ev := range events {
		switch ev := ev.(type) {
		case tcpio.Opened:
			conns[ev.Conn] = &echoer{}
		case tcpio.Closed:
			delete(conns, ev.Conn)
		case tcpio.Readable:
			conns[ev.Conn].handle(ev, buf)
		case tcpio.Writable:
			conns[ev.Conn].handle(ev, buf)
		}
	}
	return nil
}

// serveMailboxes claims every connection for a goroutine of its own.
func serveMailboxes(g *errgroup.Group, events <-chan tcpio.Event) error {
	for ev := range events {
		if ev, ok := ev.(tcpio.Opened); ok {
			mailbox := ev.Conn.Events()
			g.Go(func() error {
				var e echoer
				buf := make([]byte, 4<<10)
				for ev := range mailbox {
					e.handle(ev, buf)
				}
				return nil
			})
		}
	}
	return nil
}

// An actor is run by the loop, without a goroutine. Buffers are shared: an idle connection has
// none.
type actor struct {
	echoer
	buffers *sync.Pool
}

func newBuffers() *sync.Pool {
	return &sync.Pool{New: func() any { return new([bufSize]byte) }}
}

func (a *actor) Receive(ev tcpio.Event) error {
	buf := a.buffers.Get().(*[bufSize]byte)
	defer a.buffers.Put(buf)
	a.handle(ev, buf[:])
	return nil
}

// callback is what programs written for the first tcpio have: blocking calls, one connection at a
// time, so that buf can be shared. A peer that does not read blocks the callbacks of the others;
// the routes above do not have that.
func callback(buf []byte) func(net.Conn) error {
	return func(c net.Conn) error {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		_, err = c.Write(buf[:n])
		return err
	}
}
