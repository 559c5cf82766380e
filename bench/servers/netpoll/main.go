// cloudwego/netpoll, without copying what is long. Its pool of goroutines, which its documentation
// advises against where stacks do not grow, was better but for short connections: 1.17 for 1.66 × C
// in W1 shared, 1.76 for 1.52 in W7 pinned.
package main

import (
	"context"

	"github.com/cloudwego/netpoll"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	addr := arg.Parse()
	config := netpoll.Config{PollerNum: *arg.Loops}
	if *arg.Short {
		config.Runner = func(_ context.Context, f func()) { go f() }
	}
	arg.Must(netpoll.Configure(config))
	l, err := netpoll.CreateListener("tcp", addr)
	arg.Must(err)
	ev, err := netpoll.NewEventLoop(func(_ context.Context, c netpoll.Connection) error {
		r, w := c.Reader(), c.Writer()
		in, err := r.Next(r.Len())
		if err != nil {
			return err
		}
		if _, err := w.WriteBinary(in); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
		return r.Release()
	})
	arg.Must(err)
	arg.Must(ev.Serve(l))
}
