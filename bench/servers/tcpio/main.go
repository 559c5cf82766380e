// tcpio, on each of its routes: PORT LOOPS stream|streams|mailbox|actor|legacy [POSTS], with so many Posts a second to
// random connections.
package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

const bufSize = 64 << 10

// echo answers one Readable. A peer that is too slow is not this program's subject: the load generator reads.
func echo(c *tcpio.Conn, buf []byte) {
	n, err := c.TryRead(buf)
	if err == nil {
		_, err = c.TryWrite(buf[:n])
	}
	if err != nil && !errors.Is(err, tcpio.ErrWouldBlock) {
		c.Close()
	}
}

func consume(events <-chan tcpio.Event, size int) error {
	buf := make([]byte, size)
	for ev := range events {
		if r, ok := ev.(tcpio.Readable); ok {
			echo(r.Conn, buf)
		}
	}
	return nil
}

// post sends n values a second, a hundredth of them every 10 ms.
func post(ctx context.Context, l *tcpio.Listener, n int) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		conns := slices.Collect(l.Conns())
		for range n / 100 {
			if len(conns) > 0 {
				_ = conns[rand.IntN(len(conns))].Post(n) // a full mailbox is the load's, not ours
			}
		}
	}
}

func main() {
	addr, loops, rest := arg.Parse()
	opts := &tcpio.ListenerOptions{Addr: addr, Loops: loops}
	route := "stream"
	if len(rest) > 0 {
		route = rest[0]
	}
	switch route {
	case "actor":
		bufs := sync.Pool{New: func() any { return new([bufSize]byte) }}
		a := tcpio.ActorFunc(func(ev tcpio.Event) error {
			if r, ok := ev.(tcpio.Readable); ok {
				buf := bufs.Get().(*[bufSize]byte)
				echo(r.Conn, buf[:])
				bufs.Put(buf)
			}
			return nil
		})
		opts.Actor = func(*tcpio.Conn) tcpio.Actor { return a }
	case "legacy":
		buf := make([]byte, bufSize)
		opts.OnConnEvent = func(c net.Conn) error {
			n, err := c.Read(buf)
			if err == nil {
				_, err = c.Write(buf[:n])
			}
			return err
		}
	}
	l, err := tcpio.Listen(opts)
	arg.Must(err)
	g, ctx := errgroup.WithContext(context.Background())
	switch route {
	case "stream":
		events := l.Events()
		g.Go(func() error { return consume(events, bufSize) })
	case "streams":
		for _, events := range l.Streams() {
			g.Go(func() error { return consume(events, bufSize) })
		}
	case "mailbox":
		events := l.Events()
		g.Go(func() error {
			for ev := range events {
				if o, ok := ev.(tcpio.Opened); ok {
					mailbox := o.Conn.Events()
					g.Go(func() error { return consume(mailbox, 4<<10) })
				}
			}
			return nil
		})
	}
	if len(rest) > 1 {
		n, err := strconv.Atoi(rest[1])
		arg.Must(err)
		g.Go(func() error { return post(ctx, l, n) })
	}
	g.Go(func() error { return l.Serve(ctx) })
	arg.Must(g.Wait())
}
