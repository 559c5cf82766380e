// Allenxuxu/gev. What it hands out it copies before the next read, so the answer need not be a
// copy.
package main

import (
	"github.com/Allenxuxu/gev"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

type echo struct{}

func (echo) OnConnect(*gev.Connection) {}
func (echo) OnClose(*gev.Connection)   {}

func (echo) OnMessage(_ *gev.Connection, _ any, data []byte) any { return data }

func main() {
	addr := arg.Parse()
	s, err := gev.NewServer(echo{}, gev.Network("tcp"), gev.Address(addr), gev.NumLoops(*arg.Loops))
	arg.Must(err)
	s.Start()
}
