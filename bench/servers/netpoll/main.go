// cloudwego/netpoll, with its pool of goroutines (faster here than without) and without copying what is long.
package main

import (
	"context"

	"github.com/cloudwego/netpoll"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	addr := arg.Parse()
	arg.Must(netpoll.Configure(netpoll.Config{PollerNum: *arg.Loops}))
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
