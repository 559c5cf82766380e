//go:build linux

package tcpio_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// An http.Server on tcpio's loops. With DeferAccept a connection that has sent nothing costs no
// goroutine.
func ExampleListener_NetListener() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", DeferAccept: true})
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello from", r.URL.Path)
	})}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var g errgroup.Group
	ln := l.NetListener()
	g.Go(func() error { return l.Serve(ctx) })
	g.Go(func() error {
		if err := srv.Serve(ln); err != http.ErrServerClosed {
			return err
		}
		return nil
	})

	resp, err := http.Get("http://" + l.Addr().String() + "/here")
	if err != nil {
		log.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	fmt.Print(string(body))
	fmt.Println("requests:", srv.Shutdown(ctx)) // waits for those that are being served
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// hello from /here
	// requests: <nil>
	// end: <nil>
}

// A protocol that begins in plain text and changes to TLS when the client says so. Afterwards
// everything works as before.
func ExampleConn_StartTLS() {
	// Configurations with a certificate for localhost, and with trust in it.
	config, trusting := testnet.ServerTLS(), testnet.ClientTLS()
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr: "127.0.0.1:0",
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				if _, ok := ev.(tcpio.Readable); !ok {
					return nil
				}
				for line, err := range c.Frames(bufio.ScanLines) {
					if err != nil {
						return err
					}
					if string(line) == "STARTTLS" {
						fmt.Fprintln(c, "go ahead")
						if err := c.StartTLS(config); err != nil {
							return err
						}
						continue // a handshake that came with the command is begun; frames go on behind it
					}
					fmt.Fprintf(c, "%s, TLS: %t\n", line, c.TLS() != nil)
				}
				return nil
			})
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return l.Serve(ctx) })

	plain, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	ask := func(peer net.Conn, question string) {
		fmt.Fprintln(peer, question)
		fmt.Print(readLine(peer))
	}
	ask(plain, "hello")
	ask(plain, "STARTTLS")
	sealed := tls.Client(plain, trusting)
	ask(sealed, "hello")
	sealed.Close()
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// hello, TLS: false
	// go ahead
	// hello, TLS: true
	// end: <nil>
}

// Two names on one port. TLS for app.example ends here; everything else goes on to an upstream as
// it is, still encrypted.
func ExampleParseClientHello() {
	config, trusting := testnet.ServerTLS(), testnet.ClientTLS()
	trusting.ServerName = "localhost"
	passedOn := make(chan string, 1)
	route := func(c *tcpio.Conn, head []byte) (int, error) {
		hello, err := tcpio.ParseClientHello(head)
		if err != nil {
			return 0, err // more is needed, or it is no TLS
		}
		c.SetData(hello.ServerName)
		return 0, nil // only looked at
	}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:       "127.0.0.1:0",
		Preface:    route,
		MaxPreface: 8 << 10,
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				switch ev.(type) {
				case tcpio.Opened:
					if c.Data() != "localhost" {
						passedOn <- c.Data().(string) // dial the upstream, and Relay
						return c.Close()
					}
					return c.StartTLS(config)
				case tcpio.Readable:
					for line, err := range c.Frames(bufio.ScanLines) {
						if err != nil {
							return err
						}
						fmt.Fprintf(c, "%s over TLS\n", line)
					}
				}
				return nil
			})
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error { return l.Serve(context.Background()) })

	client, err := tls.Dial("tcp", l.Addr().String(), trusting)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(client, "hello")
	answer, _ := bufio.NewReader(client).ReadString('\n')
	fmt.Print(answer)
	client.Close()
	trusting.ServerName = "elsewhere.example"
	_, err = tls.Dial("tcp", l.Addr().String(), trusting)
	fmt.Println("for", <-passedOn+":", err != nil)
	l.Close()
	fmt.Println("end:", g.Wait())
	// Output:
	// hello over TLS
	// for elsewhere.example: true
	// end: <nil>
}

// A proxy: every client is joined with a connection to the upstream. The actor dials, which may
// block, and reports how the pair ended; the bytes pass it by.
func ExampleConn_Relay() {
	upstream := echoServer()
	defer upstream.Close()

	ended := make(chan string, 1)
	dial := func(ev tcpio.Event) error {
		switch ev := ev.(type) {
		case tcpio.Opened:
			ctx, cancel := context.WithTimeout(ev.Conn.Context(), 10*time.Second)
			defer cancel()
			back, err := ev.Conn.Listener().Dial(ctx, "tcp", upstream.Addr().String())
			if err != nil {
				return err
			}
			_, err = ev.Conn.Relay(back, &tcpio.RelayOptions{IdleTimeout: time.Hour})
			if err != nil {
				back.Abort() // the client has gone meanwhile
			}
			return err
		case tcpio.RelayEnded:
			out, in := ev.Conn.Relayed().Passed()
			end, _ := ev.Conn.Relayed().End()
			ended <- fmt.Sprintf("%d bytes out, %d in; the client ended it: %t, %v", out, in, end.By == ev.Conn, end.Err)
		}
		return nil
	}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:              "127.0.0.1:0",
		WriteStallTimeout: time.Minute, // for peers that read nothing
		NewActor:          func(*tcpio.Conn) tcpio.Actor { return tcpio.ActorFunc(dial) },
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return l.Serve(ctx) })

	fmt.Print(exchange(l.Addr(), "hello\n"))
	fmt.Println(<-ended)
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// hello
	// 6 bytes out, 6 in; the client ended it: true, <nil>
	// end: <nil>
}

// Shutdown tells every connection that the server stops, and waits until they are closed.
func ExampleListener_Shutdown() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:         "127.0.0.1:0",
		DrainTimeout: 20 * time.Second, // for handlers to finish
		CloseTimeout: 5 * time.Second,  // then, for the last bytes to go out
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				switch ev.(type) {
				case tcpio.Readable:
					for line, err := range c.Frames(bufio.ScanLines) {
						if err != nil {
							return err
						}
						fmt.Fprintf(c, "you said %s\n", line)
					}
				case tcpio.Draining:
					fmt.Fprintln(c, "goodbye")
					return io.EOF // closes in order
				}
				return nil
			})
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error { return l.Serve(context.Background()) })

	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(peer, "hello")
	fmt.Print(readLine(peer))
	rest := make(chan string)
	go func() {
		text, _ := io.ReadAll(peer)
		peer.Close()
		rest <- string(text)
	}()

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	fmt.Println("shutdown:", l.Shutdown(ctx)) // ctx's error if connections had to be cut off
	fmt.Println("serve:", g.Wait())
	fmt.Print("the client got: ", <-rest)
	// Output:
	// you said hello
	// shutdown: <nil>
	// serve: <nil>
	// the client got: goodbye
}

// A connection that Shutdown ends, since neither its handler nor its peer has, says so. Stats and a
// line of the log count such connections.
func Example_errDrainTimeout() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", DrainTimeout: 50 * time.Millisecond})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return l.Serve(ctx) })
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	for ev := range l.Events() {
		switch ev := ev.(type) {
		case tcpio.Opened:
			stop() // in the middle of an upload, say
		case tcpio.Closed:
			err := ev.Conn.Err() // what was read is not known to be all
			fmt.Println(errors.Is(err, tcpio.ErrDrainTimeout), err)
		}
	}
	fmt.Println("serve:", g.Wait(), "cut off:", l.Stats().Timeouts.Drain)
	peer.Close()
	// Output:
	// true tcpio: Shutdown ended the connection before its peer had
	// serve: <nil> cut off: 1
}

// Functions written for the first tcpio's callbacks, as an actor. Those of one Callback are called
// one at a time.
func ExampleCallback() {
	calls := 0 // needs no lock
	callback := tcpio.Callback(func(conn net.Conn) error {
		buf := make([]byte, 1024)
		n, err := conn.Read(buf)
		if err != nil {
			return err // io.EOF at the end; the connection is closed
		}
		calls++
		_, err = conn.Write(buf[:n])
		return err
	}, func(err error) {
		if err != io.EOF {
			log.Println(err)
		}
	})
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:     "127.0.0.1:0",
		NewActor: func(*tcpio.Conn) tcpio.Actor { return callback },
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return l.Serve(ctx) })

	fmt.Print(exchange(l.Addr(), "hello\n"))
	stop()
	fmt.Println("end:", g.Wait(), "calls:", calls)
	// Output:
	// hello
	// end: <nil> calls: 1
}

// exchange is a client: it sends text and an end of stream, and returns everything that the server
// sends.
func exchange(addr net.Addr, text string) string {
	peer, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		log.Fatal(err)
	}
	defer peer.Close()
	if _, err := io.Copy(peer, strings.NewReader(text)); err != nil {
		log.Fatal(err)
	}
	if err := peer.(*net.TCPConn).CloseWrite(); err != nil {
		log.Fatal(err)
	}
	answer, err := io.ReadAll(peer)
	if err != nil {
		log.Fatal(err)
	}
	return string(answer)
}

// readLine reads a line at a client, or what there is before the end.
func readLine(peer net.Conn) string {
	var line []byte
	for b := make([]byte, 1); len(line) == 0 || b[0] != '\n'; {
		if _, err := io.ReadFull(peer, b); err != nil {
			break
		}
		line = append(line, b[0])
	}
	return string(line)
}

// echoServer sends one client back what it sends.
func echoServer() net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			peer, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer peer.Close()
				io.Copy(struct{ io.Writer }{peer}, peer) // without a pipe of the kernel, which the package net would keep
			}()
		}
	}()
	return ln
}
