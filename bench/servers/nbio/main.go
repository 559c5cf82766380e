// lesismal/nbio, level-triggered as is its default. It copies what a write leaves over, so the
// answer need not be a copy.
package main

import (
	"github.com/lesismal/nbio"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	addr := arg.Parse()
	e := nbio.NewEngine(nbio.Config{Network: "tcp", Addrs: []string{addr}, NPoller: *arg.Loops, MaxWriteBufferSize: 64 << 20})
	e.OnData(func(c *nbio.Conn, data []byte) {
		if _, err := c.Write(data); err != nil {
			c.Close()
		}
	})
	arg.Must(e.Start())
	select {}
}
