// Webchat is a chat in the browser: rooms, names, who is there, what was said before.
//
//	go run .
//
// prints the URL of its page. A terminal can take part in two ways:
//
//	go run . -connect http://127.0.0.1:7030/ -name ann -room lobby    (https: -ca FILE has whom to trust)
//	nc 127.0.0.1 7031     (with go run . -nc 127.0.0.1:7031; /help shows the commands)
//
// The page and its WebSocket share one port: net/http serves the page on a tcpio.NetListener, and
// websocket.Upgrade takes the connection over, which from then on is an actor and costs no
// goroutine. The nc port speaks the protocol of examples/chat.
//
// Each room has a log of its last lines, numbered from 1 (room.go). A member has a number: how far
// it was given the log. A member that reads slowly, and one that was away, are the same thing: they
// are given the log from their number on, and what it no longer has is announced as missing. The
// lines a client sends have numbers too, so a line that is sent again is said once (session.go).
// The logs are in memory: after a restart a page says that the room is a new one.
//
// A network can lose a connection without a word. The server and the terminal ping a silent peer
// (-ping), and the page asks every 15 s: who is gone is seen by all, and who was cut off connects
// again.
//
// With -cluster DIR, or -nats URL, the same chat is on many nodes (member.go, and the package rooms
// of examples/chat/cluster):
//
//	go run . -cluster /tmp/webchat -addr 127.0.0.1:7030
//	go run . -cluster /tmp/webchat -addr 127.0.0.1:7040
//	go run . -connect http://127.0.0.1:7030/,http://127.0.0.1:7040/ -name ann
//
// The logs are then in a stream of NATS' JetStream, and outlive the processes. A page or terminal
// that loses its node goes on at another, without a line lost or doubled. A page knows one address:
// put a load balancer before the nodes, examples/proxy/balancer say.
//
// With -cert and -key the page and its WebSocket are https and wss.
//
// SIGTERM and SIGINT drain: every page gets a Close frame with code 1001 and connects again.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/examples/chat/cluster/rooms"
	"github.com/rabbit-backend/tcpio/websocket"
)

type config struct {
	addr, nc    string
	history     int           // lines that a room keeps
	grace       time.Duration // how long a member whose connection was lost may be away
	ping        time.Duration // silence behind which a peer is asked whether it is there
	rate        int           // messages a second that a page may send; 0 is no bound
	writeBuffer int           // bytes that may wait for one member; 0 is tcpio's default
	cluster     string        // a directory, and nats a URL: one of them for a chat on many nodes
	nats        string
	cert, key   string // files, for https
	log         *slog.Logger
}

func main() {
	cfg := config{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flag.StringVar(&cfg.addr, "addr", "127.0.0.1:7030", "`address` to serve the page on")
	flag.StringVar(&cfg.nc, "nc", "", "`address` for nc; empty is none")
	flag.IntVar(&cfg.history, "history", 300, "`lines` that a room keeps, at least 1")
	flag.DurationVar(&cfg.grace, "grace", 10*time.Second, "how long a lost member may be away before it is said to have left")
	flag.IntVar(&cfg.rate, "rate", 200, "`messages` a second that a page may send, 0 for no bound; our own page sends half as many")
	flag.DurationVar(&cfg.ping, "ping", 25*time.Second, "silence behind which the other end is asked whether it is there, at least 1ms")
	flag.StringVar(&cfg.cluster, "cluster", "", "`directory` by which the processes of this machine find each other: one chat on all of them")
	flag.StringVar(&cfg.nats, "nats", "", "`URL` of a NATS server with JetStream: one chat on all nodes there")
	flag.StringVar(&cfg.cert, "cert", "", "`file` with a certificate, for https and wss")
	flag.StringVar(&cfg.key, "key", "", "`file` with its key")
	var r remote
	flag.StringVar(&r.pages, "connect", "", "be a client in the terminal: the `URLs` of pages, with commas between: the next one when one cannot be reached")
	flag.StringVar(&r.ca, "ca", "", "with -connect to https: `file` with the certificates to trust; empty are the system's")
	flag.StringVar(&r.name, "name", "", "with -connect: your `name`")
	flag.StringVar(&r.room, "room", "lobby", "with -connect: the `room`")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if r.pages != "" {
		r.ping = cfg.ping
		err = terminal(ctx, os.Stdin, os.Stdout, r)
	} else {
		err = run(ctx, os.Stdout, cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "webchat:", err)
		os.Exit(1)
	}
}

// actors are what handles connections: of one process alone, or of a node.
type actors struct {
	page  func(*websocket.Conn) websocket.Actor
	nc    func(*tcpio.Conn) tcpio.Actor
	drain func(context.Context)
	stop  func()
}

func (cfg *config) open(ctx context.Context) (*actors, error) {
	if cfg.cluster == "" && cfg.nats == "" {
		h := newHub(cfg.history, cfg.grace)
		return &actors{
			page:  func(c *websocket.Conn) websocket.Actor { return &visitor{h: h, c: c} },
			nc:    func(c *tcpio.Conn) tcpio.Actor { return newUser(h, c) },
			drain: func(context.Context) {},
			stop:  h.stop,
		}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	chat, err := rooms.Open(ctx, rooms.Config{
		Dir: cfg.cluster, URL: cfg.nats, History: cfg.history, Grace: cfg.grace, Log: cfg.log,
	})
	if err != nil {
		return nil, err
	}
	return &actors{
		page:  func(c *websocket.Conn) websocket.Actor { return &member{chat: chat, c: c} },
		nc:    chat.User,
		drain: func(ctx context.Context) { chat.Drain(ctx, time.Second) },
		stop:  chat.Close,
	}, nil
}

// check names the flag that is wrong. With -cert and -key it returns the configuration of TLS.
func (cfg *config) check() (*tls.Config, error) {
	switch {
	case cfg.history < 1:
		return nil, fmt.Errorf("-history is less than 1: %d", cfg.history)
	case cfg.grace < 0:
		return nil, fmt.Errorf("-grace is negative: %v", cfg.grace)
	case cfg.ping < time.Millisecond:
		return nil, errPing(cfg.ping)
	case cfg.rate < 0:
		return nil, fmt.Errorf("-rate is negative: %d; 0 is no bound", cfg.rate)
	case cfg.cluster != "" && cfg.nats != "":
		return nil, errors.New("-cluster and -nats are both given")
	case cfg.cert == "" && cfg.key == "":
		return nil, nil
	case cfg.cert == "" || cfg.key == "":
		return nil, errors.New("-cert and -key are given together or not at all")
	}
	pair, err := tls.LoadX509KeyPair(cfg.cert, cfg.key)
	if err != nil {
		return nil, fmt.Errorf("-cert, -key: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}, nil
}

func errPing(d time.Duration) error { return fmt.Errorf("-ping is less than 1ms: %v", d) }

// run serves until ctx ends, and returns when every connection is drained.
func run(ctx context.Context, out io.Writer, cfg config) error {
	secure, err := cfg.check()
	if err != nil {
		return err
	}
	serve, err := cfg.open(ctx)
	if err != nil {
		return err
	}
	defer serve.stop()
	ws, err := websocket.New(&websocket.Options{
		NewActor:     serve.page,
		MaxMessage:   8 << 10, // a line of chatline.MaxLine bytes, all of them escaped
		MaxRate:      cfg.rate,
		NoBinary:     true,
		PingInterval: cfg.ping,
		PongTimeout:  pongTimeout(cfg.ping),
	})
	if err != nil {
		return err
	}
	tcp := tcpio.ListenerOptions{
		Addr:              cfg.addr,
		WriteBuffer:       cfg.writeBuffer,
		WriteStallTimeout: time.Minute, // a peer that takes nothing for so long is cut off
		MaxConns:          10_000,
		Logger:            cfg.log,
	}
	var lines *tcpio.Listener
	if cfg.nc != "" {
		o := tcp
		o.Addr = cfg.nc
		o.RefuseReply = []byte("* the server is full\n")
		o.NewActor = serve.nc
		if lines, err = tcpio.Listen(&o); err != nil {
			return err
		}
	}
	tcp.DeferAccept, tcp.TLSConfig = true, secure
	l, err := tcpio.Listen(&tcp)
	if err != nil {
		if lines != nil {
			lines.Close()
		}
		return err
	}
	ln := l.NetListener()
	srv := &http.Server{
		Handler:           pages(ws),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          slog.NewLogLogger(cfg.log.Handler(), slog.LevelWarn),
	}
	serving, stop := context.WithCancel(context.Background())
	defer stop()
	g, failed := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(serving) })
	if lines != nil {
		g.Go(func() error { return lines.Serve(serving) })
	}
	g.Go(func() error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	scheme := "http"
	if secure != nil {
		scheme = "https"
	}
	fmt.Fprintf(out, "%s://%v/\n", scheme, l.Addr())
	if lines != nil {
		fmt.Fprintln(out, "for nc:", lines.Addr())
	}
	<-failed.Done()
	drain, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	serve.drain(drain)
	if srv.Shutdown(drain) != nil { // it knows nothing of upgraded connections
		srv.Close()
	}
	stop() // closes those with 1001
	return g.Wait()
}

// pongTimeout is how long an answer may take to a question that was asked behind so much silence.
func pongTimeout(ping time.Duration) time.Duration { return min(ping, 10*time.Second) }
