package main

import (
	"bufio"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/gobwas/ws"
	"golang.org/x/sync/errgroup"
)

// idle is the part of the program that connects, makes one round trip on each connection, and holds
// them until it is killed. It prints "warm" when all are there.
func idle(args []string) error {
	f := flag.NewFlagSet("idle", flag.ExitOnError)
	addr := f.String("addr", "", "server's address")
	n := f.Int("conns", 1, "connections")
	raw := f.Bool("raw", false, "the server knows no frames")
	secure := f.Bool("tls", false, "with TLS")
	_ = f.Parse(args)
	frame := frameOf(ws.OpBinary, "hello", true)
	answer, err := ws.CompileFrame(ws.NewBinaryFrame([]byte("hello")))
	if err != nil {
		return err
	}
	if *raw {
		answer = frame
	}
	conns := make([]net.Conn, *n)
	var g errgroup.Group
	g.SetLimit(32)
	for i := range conns {
		g.Go(func() (err error) {
			conns[i], err = one(*addr, *secure, frame, string(answer))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	fmt.Println("warm")
	select {}
}

func one(addr string, secure bool, frame []byte, answer string) (net.Conn, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	if secure {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true}) // its own server's, on loopback
	}
	if _, err := io.WriteString(nc, request+"\r\n"); err != nil {
		return nil, err
	}
	br := bufio.NewReader(nc)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("the handshake's answer is %v, %w", resp, err)
	}
	if _, err := nc.Write(frame); err != nil {
		return nil, err
	}
	p := make([]byte, len(answer))
	if _, err := io.ReadFull(br, p); err != nil || string(p) != answer {
		return nil, fmt.Errorf("the answer is %q, %w", p, err)
	}
	return nc, nil
}
