// Allenxuxu/gev.
package main

import (
	"github.com/Allenxuxu/gev"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

type echo struct{}

func (echo) OnConnect(*gev.Connection) {}
func (echo) OnClose(*gev.Connection)   {}

func (echo) OnMessage(_ *gev.Connection, _ any, data []byte) any {
	return append([]byte(nil), data...)
}

func main() {
	addr, loops, _ := arg.Parse()
	s, err := gev.NewServer(echo{}, gev.Network("tcp"), gev.Address(addr), gev.NumLoops(loops))
	arg.Must(err)
	s.Start()
}
