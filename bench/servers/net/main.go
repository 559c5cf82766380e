// The package net: a goroutine for each connection.
package main

import (
	"net"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	addr := arg.Parse()
	l, err := net.Listen("tcp", addr)
	arg.Must(err)
	for {
		c, err := l.Accept()
		arg.Must(err)
		go func() {
			defer c.Close()
			buf := make([]byte, *arg.Buf)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}
