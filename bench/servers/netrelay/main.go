// The package net as a layer-4 proxy: two goroutines for each connection, and io.Copy, which uses
// splice(2).
package main

import (
	"flag"
	"io"
	"net"

	"github.com/rabbit-backend/tcpio/bench/internal/arg"
)

func main() {
	to := flag.String("to", "", "`address` of the upstream")
	addr := arg.Parse()
	l, err := net.Listen("tcp", addr)
	arg.Must(err)
	for {
		c, err := l.Accept()
		arg.Must(err)
		go func() {
			up, err := net.Dial("tcp", *to)
			if err != nil {
				c.Close()
				return
			}
			pass := func(dst, src *net.TCPConn, done chan<- struct{}) {
				_, _ = io.Copy(dst, src)
				_ = dst.CloseWrite()
				close(done)
			}
			there, back := make(chan struct{}), make(chan struct{})
			go pass(up.(*net.TCPConn), c.(*net.TCPConn), there)
			pass(c.(*net.TCPConn), up.(*net.TCPConn), back)
			<-there
			c.Close()
			up.Close()
		}()
	}
}
