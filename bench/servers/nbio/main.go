// lesismal/nbio.
package main

import (
	"github.com/lesismal/nbio"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	addr, loops, _ := arg.Parse()
	e := nbio.NewEngine(nbio.Config{Network: "tcp", Addrs: []string{addr}, NPoller: loops, MaxWriteBufferSize: 64 << 20})
	e.OnData(func(c *nbio.Conn, data []byte) {
		if _, err := c.Write(append([]byte(nil), data...)); err != nil {
			c.Close()
		}
	})
	arg.Must(e.Start())
	select {}
}
