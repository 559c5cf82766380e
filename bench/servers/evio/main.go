// tidwall/evio.
package main

import (
	"github.com/tidwall/evio"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	addr, loops, _ := arg.Parse()
	ev := evio.Events{
		NumLoops: loops,
		Data:     func(_ evio.Conn, in []byte) ([]byte, evio.Action) { return in, evio.None },
	}
	arg.Must(evio.Serve(ev, "tcp://"+addr))
}
