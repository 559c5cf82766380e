//go:build linux

package websocket_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	client "github.com/coder/websocket"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/websocket"
)

// talk sends messages, prints the answers and says goodbye.
func talk(url string, messages ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, _, err := client.Dial(ctx, url, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range messages {
		if err := c.Write(ctx, client.MessageText, []byte(m)); err != nil {
			log.Fatal(err)
		}
		_, answer, err := c.Read(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(answer))
	}
	c.Close(client.StatusNormalClosure, "bye")
}

// serve runs s until stop is called, which returns when Serve has.
func serve(s *websocket.Server) (url string, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	return "ws://" + s.Listener().Addr().String(), func() {
		cancel()
		fmt.Println("end:", <-ended)
	}
}

// An actor for each connection. It may block: a write waits until the peer has read enough.
func Example() {
	s, err := websocket.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"}, &websocket.Options{
		PingInterval: 30 * time.Second,
		NewActor: func(*websocket.Conn) websocket.Actor {
			messages := 0 // Receive is never called twice at once, so this needs no lock
			return websocket.ActorFunc(func(ev websocket.Event) error {
				switch ev := ev.(type) {
				case websocket.Text:
					messages++
					return ev.Conn.WriteText(fmt.Appendf(nil, "%d %s", messages, ev.Data))
				}
				return nil
			})
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	url, stop := serve(s)
	talk(url, "hello", "again")
	stop()
	// Output:
	// 1 hello
	// 2 again
	// end: <nil>
}

// One goroutine handles the events of all connections, and owns all state.
func ExampleServer_Events() {
	s, err := websocket.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"}, nil)
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan bool)
	events := s.Events()
	go func() {
		defer close(ended)
		for ev := range events { // ends when Serve does
			switch ev := ev.(type) {
			case websocket.Opened:
				fmt.Println("opened", ev.Request.URL.Path)
			case websocket.Text:
				if err := ev.Conn.TryWriteText(ev.Data); err == tcpio.ErrWouldBlock {
					ev.Conn.Close(websocket.TryAgainLater, "you read too slowly")
				}
			case websocket.Closed:
				fmt.Println("closed:", ev.Code, "by", ev.By)
			}
		}
	}()
	url, stop := serve(s)
	talk(url+"/room", "hello")
	stop()
	<-ended
	// Unordered output:
	// opened /room
	// hello
	// closed: 1000 normal by Peer
	// end: <nil>
}

// A goroutine that selects from the events of all connections and from other channels: each core
// event is passed to Receive.
func ExampleServer_Receive() {
	s, err := websocket.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"}, nil)
	if err != nil {
		log.Fatal(err)
	}
	events := s.Listener().Events()
	work := make(chan func())
	ended := make(chan bool)
	go func() {
		defer close(ended)
		total := 0 // only this goroutine uses it
		for {
			select {
			case ev, ok := <-events:
				if !ok {
					return // Serve has ended
				}
				for ev := range s.Receive(ev) {
					if ev, ok := ev.(websocket.Text); ok {
						total += len(ev.Data)
						ev.Conn.TryWriteText(fmt.Appendf(nil, "%d bytes so far", total))
					}
				}
			case f := <-work:
				f()
			}
		}
	}()
	url, stop := serve(s)
	talk(url, "hello", "world")
	done := make(chan bool)
	work <- func() {
		fmt.Println("on the same goroutine")
		close(done)
	}
	<-done
	stop()
	<-ended
	// Output:
	// 5 bytes so far
	// 10 bytes so far
	// on the same goroutine
	// end: <nil>
}

// A goroutine for each session selects from its own connection's events and from other channels.
func ExampleConn_Events() {
	news := make(chan string)
	session := func(c *websocket.Conn, events <-chan websocket.Event) {
		for {
			select {
			case ev, ok := <-events:
				if !ok {
					return // behind Closed
				}
				if ev, ok := ev.(websocket.Text); ok {
					c.WriteText(append([]byte("you said "), ev.Data...))
				}
			case text := <-news:
				c.WriteText([]byte(text)) // an error says that the connection ends: Closed follows
			}
		}
	}
	s, err := websocket.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"}, &websocket.Options{
		NewActor: func(c *websocket.Conn) websocket.Actor {
			go session(c, c.Events()) // it has claimed the connection, so there is no actor
			return nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	url, stop := serve(s)
	talk(url, "hello")
	stop()
	// Output:
	// you said hello
	// end: <nil>
}

// One port serves pages and sockets: net/http on tcpio's loops, with connections upgraded in a
// handler. An upgraded one has no goroutine while it is idle.
func ExampleServer_Upgrade() {
	s, err := websocket.New(&websocket.Options{
		NewActor: func(*websocket.Conn) websocket.Actor {
			return websocket.ActorFunc(func(ev websocket.Event) error {
				if ev, ok := ev.(websocket.Text); ok {
					return ev.Conn.WriteText(ev.Data)
				}
				return nil
			})
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "a page") })
	mux.HandleFunc("/socket", func(w http.ResponseWriter, r *http.Request) {
		if _, err := s.Upgrade(w, r); err != nil {
			log.Println(err) // the client has its answer
		}
	})
	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", DeferAccept: true})
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	go srv.Serve(l.NetListener())
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Serve(ctx) }()

	talk("ws://"+l.Addr().String()+"/socket", "hello")
	srv.Shutdown(ctx)
	stop() // sends 1001 to those that are upgraded
	fmt.Println("end:", <-ended)
	// Output:
	// hello
	// end: <nil>
}

// On any other http.Server the connection moves to the loops of a Server made by Listen.
func ExampleUpgrade() {
	s, err := websocket.Listen(&tcpio.ListenerOptions{Network: "none"}, &websocket.Options{
		NewActor: func(*websocket.Conn) websocket.Actor {
			return websocket.ActorFunc(func(ev websocket.Event) error {
				if ev, ok := ev.(websocket.Text); ok {
					return ev.Conn.WriteText(ev.Data)
				}
				return nil
			})
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	_, stop := serve(s)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.Upgrade(w, r) }))
	talk(strings.Replace(web.URL, "http", "ws", 1), "hello")
	web.Close()
	stop()
	// Output:
	// hello
	// end: <nil>
}

// A chat room. A member that does not keep up misses lines, and is told how many.
func ExampleGroup() {
	var room websocket.Group
	s, err := websocket.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"}, &websocket.Options{
		Compress: true, // once for all members
		NewActor: func(*websocket.Conn) websocket.Actor {
			return websocket.ActorFunc(func(ev websocket.Event) error {
				switch ev := ev.(type) {
				case websocket.Opened:
					room.Join(ev.Conn) // until it closes
				case websocket.Text:
					room.WriteText(ev.Data)
				case websocket.Writable:
					if ev.Skipped > 0 {
						return ev.Conn.WriteText(fmt.Appendf(nil, "%d lines are missing here", ev.Skipped))
					}
				}
				return nil
			})
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	url, stop := serve(s)
	talk(url, "hello, everybody")
	stop()
	// Output:
	// hello, everybody
	// end: <nil>
}

// Server.Dial makes clients on the same loops, for load tests or from service to service.
func ExampleServer_Dial() {
	s, err := websocket.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0"}, &websocket.Options{
		NewActor: func(*websocket.Conn) websocket.Actor {
			return websocket.ActorFunc(func(ev websocket.Event) error {
				if ev, ok := ev.(websocket.Text); ok {
					return ev.Conn.WriteText(append([]byte("echo of "), ev.Data...))
				}
				return nil
			})
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	url, stop := serve(s)
	c, err := s.Dial(context.Background(), url, nil)
	if err != nil {
		log.Fatal(err)
	}
	c.WriteText([]byte("hello"))
	for ev := range c.Events() {
		if ev, ok := ev.(websocket.Text); ok {
			fmt.Println(string(ev.Data))
			c.Close(websocket.Normal, "")
		}
	}
	stop()
	// Output:
	// echo of hello
	// end: <nil>
}

// A client by wss, with a listener that has no port. The name that the certificate is checked for
// is the URL's; a server that only some roots know is named in RootCAs.
func ExampleServer_Dial_tls() {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS() // it has a certificate for 127.0.0.1
	defer cert.Close()
	s, err := websocket.Listen(
		&tcpio.ListenerOptions{Addr: "127.0.0.1:0", TLSConfig: &tls.Config{Certificates: cert.TLS.Certificates}},
		&websocket.Options{NewActor: func(*websocket.Conn) websocket.Actor {
			return websocket.ActorFunc(func(ev websocket.Event) error {
				if ev, ok := ev.(websocket.Text); ok {
					return ev.Conn.WriteText(append([]byte("secret "), ev.Data...))
				}
				return nil
			})
		}})
	if err != nil {
		log.Fatal(err)
	}
	_, stop := serve(s)

	roots := x509.NewCertPool()
	roots.AddCert(cert.Certificate())
	clients, err := websocket.Listen(&tcpio.ListenerOptions{Network: "none"},
		&websocket.Options{ClientTLS: &tls.Config{RootCAs: roots}})
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		c, err := clients.Dial(context.Background(), "wss://"+s.Listener().Addr().String(), nil)
		if err != nil {
			log.Fatal(err)
		}
		c.WriteText([]byte("hello"))
	}()
	events := clients.Events()
	go clients.Serve(context.Background())
	for ev := range events {
		switch ev := ev.(type) {
		case websocket.Text:
			fmt.Println(string(ev.Data))
			ev.Conn.Close(websocket.Normal, "")
		case websocket.Closed:
			fmt.Println(ev.Code)
			clients.Listener().Close()
		}
	}
	stop()
	// Output:
	// secret hello
	// 1000 normal
	// end: <nil>
}
