// xtaci/gaio as its documentation has it: a watcher and a goroutine for each loop, a buffer for
// each connection.
package main

import (
	"net"

	"github.com/xtaci/gaio"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func serve(w *gaio.Watcher) {
	for {
		results, err := w.WaitIO()
		arg.Must(err)
		for _, r := range results {
			switch {
			case r.Error != nil || r.Operation == gaio.OpRead && r.Size == 0:
				_ = w.Free(r.Conn)
			case r.Operation == gaio.OpRead:
				_ = w.Write(nil, r.Conn, r.Buffer[:r.Size])
			case r.Operation == gaio.OpWrite:
				_ = w.Read(nil, r.Conn, r.Buffer[:cap(r.Buffer)])
			}
		}
	}
}

func main() {
	addr := arg.Parse()
	watchers := make([]*gaio.Watcher, *arg.Loops)
	for i := range watchers {
		w, err := gaio.NewWatcher()
		arg.Must(err)
		watchers[i] = w
		go serve(w)
	}
	l, err := net.Listen("tcp", addr)
	arg.Must(err)
	for i := 0; ; i++ {
		c, err := l.Accept()
		arg.Must(err)
		_ = watchers[i%len(watchers)].Read(nil, c, make([]byte, *arg.Buf))
	}
}
