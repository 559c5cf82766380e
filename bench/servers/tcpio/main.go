// tcpio, on each of its routes: -route stream, streams, mailbox, actor, legacy or group.
//
// With -posts N it makes N Posts a second to random connections. With -http PORT it has a second
// user of the network, an HTTP port. With -bad it misbehaves towards some of its peers, see bad.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

const bufSize = 64 << 10

// echo answers one Readable. A peer that is too slow is not this program's subject: the load
// generator reads.
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

// actor returns an echo for all connections. The buffers are the program's, pooled as a handler
// would have them.
func actor() tcpio.Actor {
	bufs := sync.Pool{New: func() any { return new([bufSize]byte) }}
	return tcpio.ActorFunc(func(ev tcpio.Event) error {
		if r, ok := ev.(tcpio.Readable); ok {
			buf := bufs.Get().(*[bufSize]byte)
			echo(r.Conn, buf[:])
			bufs.Put(buf)
		}
		return nil
	})
}

// greet makes every peer a member of a group, and tells it so with a byte; what a member says goes
// to all.
func greet(events <-chan tcpio.Event) error {
	var members tcpio.Group
	buf := make([]byte, bufSize)
	for ev := range events {
		switch ev := ev.(type) {
		case tcpio.Opened:
			members.Join(ev.Conn)
			_, _ = ev.Conn.TryWrite([]byte("j"))
		case tcpio.Readable:
			n, err := ev.Conn.TryRead(buf)
			switch {
			case err == nil:
				_, _ = members.Write(buf[:n])
			case !errors.Is(err, tcpio.ErrWouldBlock):
				ev.Conn.Close()
			}
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
	route := flag.String("route", "stream", "stream, streams, mailbox, actor, legacy or group")
	posts := flag.Int("posts", 0, "Posts a second to random connections")
	httpPort := flag.Int("http", 0, "another `port`, for HTTP")
	bad := flag.String("bad", "", "how to misbehave: none, hold, sleep or pool")
	opts := &tcpio.ListenerOptions{Addr: arg.Parse(), Loops: *arg.Loops}
	if *bad == "" {
		switch *route {
		case "actor":
			a := actor()
			opts.NewActor = func(*tcpio.Conn) tcpio.Actor { return a }
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
	}
	l, err := tcpio.Listen(opts)
	arg.Must(err)
	g, ctx := errgroup.WithContext(context.Background())
	switch {
	case *bad != "":
		m := &misbehaving{how: *bad, route: *route, actor: actor(), g: g}
		events := l.Events()
		g.Go(func() error { return m.consume(events) })
	case *route == "stream":
		events := l.Events()
		g.Go(func() error { return consume(events, bufSize) })
	case *route == "streams":
		for _, events := range l.EventsPerLoop() {
			g.Go(func() error { return consume(events, bufSize) })
		}
	case *route == "mailbox":
		events := l.Events()
		g.Go(func() error {
			for ev := range events {
				if o, ok := ev.(tcpio.Opened); ok {
					mailbox := o.Conn.Events()
					g.Go(func() error { return consume(mailbox, *arg.Buf) })
				}
			}
			return nil
		})
	case *route == "group":
		events := l.Events()
		g.Go(func() error { return greet(events) })
	}
	if *posts > 0 {
		g.Go(func() error { return post(ctx, l, *posts) })
	}
	if *httpPort > 0 {
		g.Go(func() error {
			return http.ListenAndServe(fmt.Sprintf("127.0.0.1:%d", *httpPort), http.HandlerFunc(
				func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine\n") }))
		})
	}
	g.Go(func() error { return l.Serve(ctx) })
	arg.Must(g.Wait())
}
