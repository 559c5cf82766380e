//go:build linux

package tcpio_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// A program that is only a client has no address. Its connections are as cheap as a server's.
func ExampleListener_Dial_clientOnly() {
	server := echoServer()
	defer server.Close()
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "none"})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	events := l.Events()
	var g errgroup.Group
	g.Go(func() error { return l.Serve(ctx) })

	for i := range 3 { // Dial waits until Serve runs
		c, err := l.Dial(ctx, "tcp", server.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		c.SetData(i)
		fmt.Fprintln(c, "hello")
	}
	answers, closed := 0, 0
	for ev := range events { // of all three
		switch ev := ev.(type) {
		case tcpio.Readable:
			for line, err := range ev.Conn.Frames(bufio.ScanLines) {
				if err == nil && string(line) == "hello" {
					answers++
				}
				ev.Conn.Close()
				break
			}
		case tcpio.Closed:
			if closed++; closed == 3 {
				stop()
			}
		}
	}
	fmt.Println("answers:", answers)
	fmt.Println("end:", g.Wait())
	// Output:
	// answers: 3
	// end: <nil>
}

// A connection from an address of this machine's, and within a time limit: what a net.Dialer can
// do, DialWith does.
func ExampleListener_DialWith() {
	server := echoServer()
	defer server.Close()
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "none"})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	l.NetListener() // nobody wants events
	var g errgroup.Group
	g.Go(func() error { return l.Serve(ctx) })

	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, Timeout: 10 * time.Second}
	c, err := l.DialWith(ctx, from, "tcp", server.Addr().String())
	if err != nil {
		log.Fatal(err) // a *net.OpError, as net.Dialer returns it
	}
	fmt.Fprintln(c, "hello")
	fmt.Print(readLine(c), "from ", c.LocalAddr().(*net.TCPAddr).IP, "\n")
	c.Close()
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// hello
	// from 127.0.0.2
	// end: <nil>
}

// A client with TLS. Once the handshake is done the connection has no goroutine; here it is a plain
// blocking net.Conn, and Attach would give it a handler.
func ExampleListener_DialTLS() {
	// Configurations with a certificate for localhost, and with trust in it.
	config, trusting := testnet.ServerTLS(), testnet.ClientTLS()
	server, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	go func() {
		peer, err := server.Accept()
		if err != nil {
			return
		}
		defer peer.Close()
		io.Copy(peer, peer)
	}()

	l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "none"})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	l.NetListener() // nobody wants events
	var g errgroup.Group
	g.Go(func() error { return l.Serve(ctx) })
	c, err := l.DialTLS(ctx, nil, "tcp", server.Addr().String(), trusting)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(c, "hello")
	fmt.Print(readLine(c), "name: ", c.TLS().ServerName, "\n")
	c.Close()
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// hello
	// name: localhost
	// end: <nil>
}

// STARTTLS from the client's side, as SMTP, IMAP and PostgreSQL have it: plain text until the
// server agrees, TLS from then on.
func ExampleConn_StartTLSClient() {
	// Configurations with a certificate for localhost, and with trust in it.
	config, trusting := testnet.ServerTLS(), testnet.ClientTLS()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	go func() {
		peer, err := server.Accept()
		if err != nil {
			return
		}
		readLine(peer)
		fmt.Fprintln(peer, "go ahead")
		sealed := tls.Server(peer, config)
		defer sealed.Close()
		io.Copy(sealed, sealed)
	}()

	l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "none"})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	l.NetListener() // nobody wants events
	var g errgroup.Group
	g.Go(func() error { return l.Serve(ctx) })
	c, err := l.Dial(ctx, "tcp", server.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(c, "STARTTLS")
	fmt.Print(readLine(c))
	if err := c.StartTLSClient(trusting); err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(c, "hello") // waits for the handshake
	fmt.Print(readLine(c), "TLS: ", c.TLS() != nil, "\n")
	c.Close()
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// go ahead
	// hello
	// TLS: true
	// end: <nil>
}

// A loop that owns its state asks for connections, and waits for none: the answers are events.
func ExampleListener_DialAsync() {
	server := echoServer()
	defer server.Close()
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: "none"}) // a program that only dials
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	events := l.Events()
	var g errgroup.Group
	g.Go(func() error { return l.Serve(ctx) })

	ask := func(name, network, address string) {
		r := tcpio.DialRequest{Network: network, Address: address, Value: name, Dialer: &net.Dialer{Timeout: 10 * time.Second}}
		if _, err := l.DialAsync(r); err != nil {
			log.Fatal(err) // of the request; what fails later is in the answer
		}
	}
	ask("the server", "tcp", server.Addr().String())
	for ev := range events {
		switch ev := ev.(type) {
		case tcpio.Dialed:
			if ev.Err != nil {
				fmt.Println(ev.Value, "is not there:", errors.Is(ev.Err, fs.ErrNotExist))
				stop()
				break
			}
			ev.Conn.SetData(ev.Value)
			_, _ = ev.Conn.TryWrite([]byte("hello\n")) // a new connection has room
		case tcpio.Readable:
			for line, err := range ev.Conn.Frames(bufio.ScanLines) {
				if err != nil {
					ev.Conn.Close() // it has failed, or is closed already
					break
				}
				fmt.Printf("%v says %s\n", ev.Conn.Data(), line)
				ev.Conn.Close()
				ask("a socket", "unix", "/no/such/socket")
				break
			}
		}
	}
	fmt.Println("end:", g.Wait())
	// Output:
	// the server says hello
	// a socket is not there: true
	// end: <nil>
}
