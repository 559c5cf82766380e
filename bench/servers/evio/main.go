// tidwall/evio: the input buffer reused, connections given to the loops in turn.
package main

import (
	"github.com/tidwall/evio"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	addr := arg.Parse()
	ev := evio.Events{
		NumLoops:    *arg.Loops,
		LoadBalance: evio.RoundRobin,
		Opened: func(evio.Conn) ([]byte, evio.Options, evio.Action) {
			return nil, evio.Options{ReuseInputBuffer: true}, evio.None
		},
		Data: func(_ evio.Conn, in []byte) ([]byte, evio.Action) { return in, evio.None },
	}
	arg.Must(evio.Serve(ev, "tcp://"+addr))
}
