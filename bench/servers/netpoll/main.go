// cloudwego/netpoll.
package main

import (
	"context"

	"github.com/cloudwego/netpoll"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	addr, loops, _ := arg.Parse()
	arg.Must(netpoll.Configure(netpoll.Config{PollerNum: loops}))
	l, err := netpoll.CreateListener("tcp", addr)
	arg.Must(err)
	ev, err := netpoll.NewEventLoop(func(_ context.Context, c netpoll.Connection) error {
		r, w := c.Reader(), c.Writer()
		n := r.Len()
		in, err := r.Next(n)
		if err != nil {
			return err
		}
		out, err := w.Malloc(n)
		if err != nil {
			return err
		}
		copy(out, in)
		if err := r.Release(); err != nil {
			return err
		}
		return w.Flush()
	})
	arg.Must(err)
	arg.Must(ev.Serve(l))
}
