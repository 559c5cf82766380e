// xtaci/gaio.
package main

import (
	"net"

	"github.com/xtaci/gaio"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	addr, _, _ := arg.Parse()
	w, err := gaio.NewWatcher()
	arg.Must(err)
	go func() {
		for {
			results, err := w.WaitIO()
			arg.Must(err)
			for _, r := range results {
				switch {
				case r.Error != nil || r.Operation == gaio.OpRead && r.Size == 0:
					_ = w.Free(r.Conn)
				case r.Operation == gaio.OpRead:
					_ = w.Write(nil, r.Conn, append([]byte(nil), r.Buffer[:r.Size]...))
				case r.Operation == gaio.OpWrite:
					_ = w.Read(nil, r.Conn, nil)
				}
			}
		}
	}()
	l, err := net.Listen("tcp", addr)
	arg.Must(err)
	for {
		c, err := l.Accept()
		arg.Must(err)
		_ = w.Read(nil, c, nil)
	}
}
