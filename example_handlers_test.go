//go:build linux

package tcpio_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
)

// A server that anybody may reach begins with bounds on what peers can take.
func ExamplePublicDefaults() {
	opts := tcpio.PublicDefaults()
	opts.Addr = "127.0.0.1:0"
	opts.MaxConnsPerIP = 50
	l, err := tcpio.Listen(&opts)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	fmt.Println(opts.ReadStallTimeout, opts.WriteStallTimeout, opts.IdleTimeout)
	fmt.Println("output is bounded:", l.Stats().MaxBuffered > 0)
	// Output:
	// 10s 30s 5m0s
	// output is bounded: true
}

// A proxy sends a line with its client's address before the client's bytes. The module proxyproto
// has the protocol that HAProxy and others speak.
func ExampleConn_SetRemoteAddr() {
	events := make(chan tcpio.Event, 10)
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:    "127.0.0.1:0",
		Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		Preface: func(c *tcpio.Conn, head []byte) (int, error) {
			line, _, found := bytes.Cut(head, []byte("\n"))
			if !found {
				return 0, tcpio.ErrShortPreface
			}
			client, err := netip.ParseAddrPort(string(line))
			if err != nil {
				return 0, err
			}
			return len(line) + 1, c.SetRemoteAddr(client, nil)
		},
		MaxPreface:    64,
		MaxConnsPerIP: 10, // of each client, however many the proxy has
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error { events <- ev; return nil })
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error { return l.Serve(context.Background()) })

	proxy, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprint(proxy, "192.0.2.7:49152\nhello")
	for range 2 {
		switch ev := (<-events).(type) {
		case tcpio.Opened:
			fmt.Println("opened for", ev.Conn.RemoteAddr())
		case tcpio.Readable:
			buf := make([]byte, 100)
			n, _ := ev.Conn.TryRead(buf)
			fmt.Printf("read %q\n", buf[:n])
		}
	}
	l.Close()
	fmt.Println("end:", g.Wait())
	proxy.Close()
	// Output:
	// opened for 192.0.2.7:49152
	// read "hello"
	// end: <nil>
}

// A handler that asks a database gives up when its peer has gone.
func ExampleConn_Context() {
	asked, gaveUp := make(chan struct{}), make(chan error)
	query := func(ctx context.Context) error { // of a database that does not answer
		close(asked)
		<-ctx.Done()
		return ctx.Err()
	}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr: "127.0.0.1:0",
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				if _, ok := ev.(tcpio.Opened); ok {
					err := query(c.Context())
					gaveUp <- err
					return err
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
	<-asked
	peer.(*net.TCPConn).SetLinger(0) // Close is a reset
	peer.Close()
	fmt.Println("gave up:", <-gaveUp)
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// gave up: context canceled
	// end: <nil>
}

// A chat room. A member that does not keep up is closed, so that none misses a line without
// noticing.
func ExampleGroup() {
	left := make(chan *tcpio.Conn, 10)
	room := tcpio.Group{
		Slow: tcpio.CloseSlow, Notice: []byte("you are too slow\n"),
		Left: func(c *tcpio.Conn) { left <- c }, // what belonged to the membership ends here
	}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr: "127.0.0.1:0",
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				switch ev.(type) {
				case tcpio.Opened:
					room.Join(c) // until it closes
					fmt.Fprintln(c, "welcome")
				case tcpio.Readable:
					for line, err := range c.Frames(bufio.ScanLines) {
						if err != nil {
							return err
						}
						fmt.Fprintf(&room, "%s\n", line)
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

	var members []net.Conn
	for range 2 {
		peer, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		readLine(peer) // welcome
		members = append(members, peer)
	}
	fmt.Fprintln(members[0], "hello, everybody")
	for i, peer := range members {
		fmt.Print("member ", i, " got ", readLine(peer))
		peer.Close()
		<-left
	}
	fmt.Println("members:", room.Len())
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// member 0 got hello, everybody
	// member 1 got hello, everybody
	// members: 0
	// end: <nil>
}

// A document that several people edit: a change goes to all but its author, whoever comes is told
// who else is there, and the program tells all handlers what they are to know.
func ExampleGroup_WriteExcept() {
	var editors tcpio.Group
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr: "127.0.0.1:0",
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				switch ev := ev.(type) {
				case tcpio.Opened:
					others := 0
					for range editors.All() {
						others++
					}
					editors.Join(c) // until it closes; c.LeaveGroups ends that before
					fmt.Fprintln(c, "others:", others)
				case tcpio.Message:
					fmt.Fprintln(c, ev.Value)
				case tcpio.Readable:
					for line, err := range c.Frames(bufio.ScanLines) {
						if err != nil {
							return err
						}
						if _, err := editors.WriteExcept(c, append(line, '\n')); err != nil {
							return err
						}
						fmt.Fprintln(c, "done, skipped:", editors.Skipped()) // 0: all had room for it
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

	var peers []net.Conn
	for range 2 {
		peer, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		defer peer.Close()
		fmt.Print(readLine(peer))
		peers = append(peers, peer)
	}
	fmt.Fprintln(peers[0], "insert 7 x")
	fmt.Print("author: ", readLine(peers[0]))
	fmt.Print("other: ", readLine(peers[1]))
	missed := editors.Post("saved") // by those whose mailbox is full
	fmt.Print("author: ", readLine(peers[0]), "other: ", readLine(peers[1]), "missed: ", missed, "\n")
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// others: 0
	// others: 1
	// author: done, skipped: 0
	// other: insert 7 x
	// author: saved
	// other: saved
	// missed: 0
	// end: <nil>
}

// A news ticker that sends each subscriber what it has room for, and counts what it has not: the
// queues of all that are slow share one copy of the news.
func ExampleConn_TryWriteShared() {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"})
	if err != nil {
		log.Fatal(err)
	}
	events := l.Events()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return l.Serve(ctx) })
	var peers []net.Conn
	for range 3 {
		peer, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		peers = append(peers, peer)
		<-events // Opened
	}

	news := tcpio.Share([]byte("it rains\n"))
	took, missed := 0, 0
	for c := range l.Conns() {
		switch c.TryWriteShared(news) {
		case nil:
			took++
		case tcpio.ErrWouldBlock:
			missed++ // a Writable follows
		}
	}
	news.Release()
	fmt.Println(took, "took it,", missed, "missed it")
	for _, peer := range peers {
		fmt.Print(readLine(peer))
		peer.Close()
	}
	stop()
	for range events {
	}
	fmt.Println("end:", g.Wait())
	// Output:
	// 3 took it, 0 missed it
	// it rains
	// it rains
	// it rains
	// end: <nil>
}

// Chat rooms by name. Groups makes a room for its first member and lets go of it behind its last.
func ExampleGroups() {
	changed := make(chan string, 10)
	rooms := tcpio.Groups[string]{Changed: func(name string, occupied bool) {
		changed <- fmt.Sprint(name, " is in use: ", occupied) // subscribe to it elsewhere, or end that
	}}
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
					name, text, said := strings.Cut(string(line), ": ")
					if !said {
						rooms.Join(name, c) // until it closes
						fmt.Fprintln(c, "welcome to", name)
						continue
					}
					_, _ = rooms.Group(name).WriteExcept(c, []byte(text+"\n"))
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

	var members []net.Conn
	for range 2 {
		peer, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintln(peer, "lobby")
		fmt.Print(readLine(peer))
		members = append(members, peer)
	}
	fmt.Println(<-changed)
	fmt.Fprintln(members[0], "lobby: is anybody here?")
	fmt.Print(readLine(members[1]))
	for _, peer := range members {
		peer.Close()
	}
	fmt.Println(<-changed)
	fmt.Println("rooms:", rooms.Len())
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// welcome to lobby
	// welcome to lobby
	// lobby is in use: true
	// is anybody here?
	// lobby is in use: false
	// rooms: 0
	// end: <nil>
}

// A keep-alive that the client names first, as MQTT has it. What goes out to the client is no sign
// of life.
func ExampleConn_SetInputTimeout() {
	ended := make(chan error)
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:         "127.0.0.1:0",
		InputTimeout: time.Minute, // until the client has named its own
		NewActor: func(c *tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				switch ev.(type) {
				case tcpio.Readable:
					for line, err := range c.Frames(bufio.ScanLines) {
						if err != nil {
							return err
						}
						if every, err := time.ParseDuration(string(line)); err == nil {
							return c.SetInputTimeout(every)
						}
					}
				case tcpio.Closed:
					ended <- c.Err()
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
	fmt.Fprintln(peer, "20ms") // and then nothing more
	io.Copy(io.Discard, peer)  // until the server closes
	peer.Close()
	fmt.Println(<-ended)
	stop()
	fmt.Println("end:", g.Wait())
	// Output:
	// tcpio: input time limit of 20ms reached
	// end: <nil>
}

// A package that calls handlers of its users' has their failures counted and logged with the others.
func ExampleConn_HandlerFailed() {
	handle := func(*tcpio.Conn) error { panic("a nil map") } // the user's
	call := func(c *tcpio.Conn) {
		defer func() {
			if v := recover(); v != nil {
				c.HandlerFailed(&tcpio.PanicError{Value: v, Stack: debug.Stack()})
				c.Abort()
			}
		}()
		c.HandlerFailed(handle(c)) // nil is no failure
	}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
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
			call(ev.Conn)
		case tcpio.Closed:
			stop()
		}
	}
	fmt.Println("serve:", g.Wait(), "panics:", l.Stats().Panics)
	peer.Close()
	// Output:
	// serve: <nil> panics: 1
}
