// panjf2000/gnet. TCP_NODELAY and read buffers of 64 KiB are its defaults.
package main

import (
	"github.com/panjf2000/gnet/v2"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

type echo struct{ gnet.BuiltinEventEngine }

func (*echo) OnTraffic(c gnet.Conn) gnet.Action {
	in, err := c.Next(-1)
	if err != nil {
		return gnet.Close
	}
	if _, err := c.Write(in); err != nil {
		return gnet.Close
	}
	return gnet.None
}

func main() {
	addr := arg.Parse()
	arg.Must(gnet.Run(&echo{}, "tcp://"+addr, gnet.WithNumEventLoop(*arg.Loops)))
}
