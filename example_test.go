//go:build linux

package tcpio_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
)

// An echo server on the event stream. One goroutine handles all connections.
func Example() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background()) // a program would use signal.NotifyContext
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(ctx) })
	g.Go(func() error {
		buf := make([]byte, 64<<10)
		for ev := range l.Events() { // ends when Serve does
			switch ev.(type) {
			case tcpio.Readable, tcpio.Writable:
			default:
				continue
			}
			c := tcpio.ConnOf(ev)
			if held, ok := c.Data().([]byte); ok {
				if _, err := c.TryWrite(held); err == tcpio.ErrWouldBlock {
					continue // another Writable follows; nothing more is read meanwhile
				}
				c.SetData(nil)
			}
			switch n, err := c.TryRead(buf); err {
			case nil:
				if _, err := c.TryWrite(buf[:n]); err == tcpio.ErrWouldBlock {
					c.SetData(bytes.Clone(buf[:n])) // a Writable follows
				}
			case tcpio.ErrWouldBlock: // a Readable follows
			default: // io.EOF, or the connection failed
				c.Close() // what is queued still goes out
			}
		}
		return nil
	})

	fmt.Print(exchange(l.Addr(), "hello\n"))
	stop() // closes the connections in order
	fmt.Println("end:", g.Wait())
	// Output:
	// hello
	// end: <nil>
}

// A goroutine that owns all the state selects from events, a ticker and functions that other
// goroutines send it.
func ExampleListener_Events() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(ctx) })

	total := 0 // bytes received; only the next goroutine uses it, so it needs no lock
	work := make(chan func())
	g.Go(func() error {
		buf := make([]byte, 64<<10)
		tick := time.NewTicker(time.Minute)
		defer tick.Stop()
		for events := l.Events(); ; {
			select {
			case ev, ok := <-events:
				if !ok {
					return nil // Serve has ended
				}
				if ev, ok := ev.(tcpio.Readable); ok {
					n, err := ev.Conn.TryRead(buf)
					total += n
					if err != nil && err != tcpio.ErrWouldBlock {
						ev.Conn.Close()
					}
				}
			case f := <-work:
				f()
			case <-tick.C:
				log.Println("received so far:", total)
			}
		}
	})

	exchange(l.Addr(), "hello")
	received := make(chan int)
	work <- func() { received <- total }
	fmt.Println("received:", <-received)
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// received: 5
	// end: <nil>
}

// An actor for each connection. It may block: a Write waits until the peer has read enough.
func ExampleActor() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:              "127.0.0.1:0",
		WriteStallTimeout: time.Minute, // for peers that read nothing
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			lines := 0 // Receive is never called twice at once, so this needs no lock
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				if _, ok := ev.(tcpio.Readable); !ok {
					return nil
				}
				for line, err := range c.Frames(bufio.ScanLines) {
					if err != nil {
						return err // io.EOF closes in order
					}
					lines++
					if _, err := fmt.Fprintf(c, "%d %s\n", lines, line); err != nil {
						return err
					}
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

	fmt.Print(exchange(l.Addr(), "one\ntwo\n"))
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// 1 one
	// 2 two
	// end: <nil>
}

// A goroutine for each session selects from its own connection's events and from other channels.
func ExampleConn_Events() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(ctx) })

	news := make(chan string)
	session := func(c *tcpio.Conn, events <-chan tcpio.Event) {
		for {
			select {
			case ev, ok := <-events:
				if !ok {
					return // behind Closed
				}
				if _, ok := ev.(tcpio.Readable); !ok {
					continue
				}
				for line, err := range c.Frames(bufio.ScanLines) {
					if err == nil {
						_, err = fmt.Fprintf(c, "you said %s\n", line) // waits for room
					}
					if err != nil {
						c.Close()
						break
					}
				}
			case text := <-news:
				fmt.Fprintf(c, "news: %s\n", text) // the next read returns an error of the connection
			}
		}
	}
	g.Go(func() error {
		for ev := range l.Events() {
			if ev, ok := ev.(tcpio.Opened); ok {
				events := ev.Conn.Events() // everything behind Opened comes there
				g.Go(func() error { session(ev.Conn, events); return nil })
			}
		}
		return nil
	})

	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(peer, "hello")
	fmt.Print(readLine(peer))
	news <- "it rains"
	fmt.Print(readLine(peer))
	peer.Close()
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// you said hello
	// news: it rains
	// end: <nil>
}

// Frames takes any bufio.SplitFunc. Here a frame is two bytes of length and as many of payload as
// they say.
func ExampleConn_Frames() {
	split := func(data []byte, atEOF bool) (advance int, frame []byte, err error) {
		if len(data) < 2 {
			return 0, nil, nil // more is needed
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		if len(data) < end {
			return 0, nil, nil
		}
		return end, data[2:end], nil
	}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:     "127.0.0.1:0",
		MaxFrame: 1024, // a longer frame closes the connection
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				if _, ok := ev.(tcpio.Readable); !ok {
					return nil
				}
				for frame, err := range c.Frames(split) {
					if err != nil {
						return err // io.EOF; io.ErrUnexpectedEOF inside a frame
					}
					fmt.Printf("%q\n", frame) // valid until the next one
				}
				return nil // a Readable follows
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

	exchange(l.Addr(), "\x00\x05hello\x00\x00\x00\x03you")
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// "hello"
	// ""
	// "you"
	// end: <nil>
}

// A LengthSplitter cuts the messages of a binary protocol, here MQTT's: a type, a varint, and as
// many bytes as that says. bufio.Scanner takes it too.
// Frames on the stream, with answers that may find no room: 1 MiB for each line that comes in.
func ExampleConn_Frames_stream() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(ctx) })
	g.Go(func() error {
		for ev := range l.Events() {
			switch ev.(type) {
			case tcpio.Readable, tcpio.Writable:
				serveLines(tcpio.ConnOf(ev))
			}
		}
		return nil
	})

	fmt.Println("bytes:", len(exchange(l.Addr(), strings.Repeat("more\n", 20)))>>20, "MiB")
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// bytes: 20 MiB
	// end: <nil>
}

// serveLines sends what is owed, and then answers lines until there is none, or no room.
func serveLines(c *tcpio.Conn) {
	if owed, ok := c.Data().([]byte); ok {
		if _, err := c.TryWrite(owed); err == tcpio.ErrWouldBlock {
			return // a Writable follows
		}
		c.SetData(nil)
	}
	for line, err := range c.Frames(bufio.ScanLines) {
		if err != nil { // io.EOF, or the connection failed
			c.Close()
			return
		}
		answer := bytes.Repeat(line, 1<<20/len(line))
		if _, err := c.TryWrite(answer); err == tcpio.ErrWouldBlock {
			c.SetData(answer) // a Writable follows; the lines behind this one stay in Frames
			return
		}
	}
}

func ExampleLengthSplitter() {
	split := tcpio.LengthSplitter{Offset: 1, Keep: true, Max: 1 << 20}.Split
	s := bufio.NewScanner(strings.NewReader("\x30\x05hello\xc0\x00"))
	s.Split(split) // c.Frames(split)
	for s.Scan() {
		fmt.Printf("%q\n", s.Bytes())
	}
	// Output:
	// "0\x05hello"
	// "\xc0\x00"
}

// The lines of a protocol that ends them with CRLF, 512 bytes at most. A line that ends otherwise
// is an error: two programs that see different lines in the same bytes can be played off against
// each other.
func ExampleLineSplitter() {
	s := bufio.NewScanner(strings.NewReader("NICK ann\r\nJOIN #go\r\nQUIT\n"))
	s.Split(tcpio.LineSplitter{Max: 512}.Split) // c.Frames(split)
	for s.Scan() {
		fmt.Printf("%q\n", s.Text())
	}
	fmt.Println(errors.Is(s.Err(), tcpio.ErrBareNewline))
	// Output:
	// "NICK ann"
	// "JOIN #go"
	// true
}

// Ask asks a connection's handler from another goroutine and waits for the answer. Post does not
// wait.
func ExampleConn_Ask() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr: "127.0.0.1:0",
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			last := ""
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				switch ev := ev.(type) {
				case tcpio.Readable:
					for line, err := range c.Frames(bufio.ScanLines) {
						if err != nil {
							return err
						}
						last = string(line)
						fmt.Fprintln(c, "ok")
					}
				case tcpio.Message:
					ev.Reply(last)
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

	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(peer, "hello")
	readLine(peer) // ok
	for c := range l.Conns() {
		answer, err := c.Ask(ctx, "what was the last line?")
		fmt.Println(answer, err)
	}
	peer.Close()
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// hello <nil>
	// end: <nil>
}

// A timer costs no goroutine, and its value comes as a Message, in order with the connection's
// other events.
func ExampleConn_After() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr: "127.0.0.1:0",
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			var stop func() bool
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				switch ev := ev.(type) {
				case tcpio.Opened:
					stop = c.After(10*time.Millisecond, "nothing came, goodbye")
				case tcpio.Readable:
					stop()
					for _, err := range c.Frames(bufio.ScanLines) {
						if err != nil {
							return err
						}
					}
				case tcpio.Message:
					fmt.Fprintln(c, ev.Value)
					return io.EOF // closes in order
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

	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	said, _ := io.ReadAll(peer)
	peer.Close()
	fmt.Print(string(said))
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// nothing came, goodbye
	// end: <nil>
}

// A port for everybody, and one of this machine alone for its operator, on the same loops.
func ExampleEndpoint() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr: "127.0.0.1:0",
		More: []tcpio.Endpoint{{Name: "admin", Addr: "127.0.0.1:0"}}, // each may have TLS, or be a unix socket
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				if _, ok := ev.(tcpio.Opened); ok {
					fmt.Fprintf(c, "welcome, admin: %v", c.Endpoint() == "admin")
					return c.Close()
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
	for _, addr := range l.Addrs() {
		c, err := net.Dial(addr.Network(), addr.String())
		if err != nil {
			log.Fatal(err)
		}
		said, _ := io.ReadAll(c)
		fmt.Println(string(said))
		c.Close()
	}
	l.Close()
	fmt.Println("end:", g.Wait())
	// Output:
	// welcome, admin: false
	// welcome, admin: true
	// end: <nil>
}
