// Legacy is the program that the first tcpio had in its README, unchanged: one callback for every
// connection.
//
//	go run ./examples/legacy
//
// It answers OK to whatever it reads; try it with nc 127.0.0.1 8080. New programs want another
// route; docs/callbacks.md shows this one on each of them.
package main

import (
	"fmt"
	"net"

	"github.com/rabbit-backend/tcpio"
)

func main() {
	listener, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr: ":8080",
		OnConnEvent: func(conn net.Conn) error {
			buf := make([]byte, 1024)
			n, err := conn.Read(buf)
			if err != nil {
				return err
			}
			fmt.Println("Received:", string(buf[:n]))
			conn.Write([]byte("OK\n"))
			return nil
		},
		OnErrorEvent: func(err error) { fmt.Println("Error:", err) },
	})
	if err != nil {
		panic(err)
	}
	listener.Start()
}
