// Echo sends WebSocket messages back as they came, on any of tcpio's routes.
//
//	go run ./examples/echo -addr 127.0.0.1:7020
//	go run ./examples/echo -route stream -compress -cert cert.pem -key key.pem
//
// SIGTERM and SIGINT drain it: every peer gets a Close frame with code 1001, and the program ends
// with status 0.
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
	"github.com/rabbit-backend/tcpio/websocket"
)

// config is what the flags say.
type config struct {
	addr, route string
	cert, key   string
	opts        websocket.Options
}

func main() {
	var cfg config
	flag.StringVar(&cfg.addr, "addr", "127.0.0.1:7020", "`address` to listen on")
	flag.StringVar(&cfg.route, "route", "actor", "stream, mailbox, actor, or http: upgraded from a net/http handler")
	flag.BoolVar(&cfg.opts.Compress, "compress", false, "negotiate permessage-deflate")
	flag.IntVar(&cfg.opts.MaxMessage, "max-message", 1<<20, "largest message, in `bytes`, at most 1 GiB")
	flag.StringVar(&cfg.cert, "cert", "", "`file` with a certificate, for wss")
	flag.StringVar(&cfg.key, "key", "", "`file` with its key")
	flag.Parse()
	cfg.opts.PingInterval = 30 * time.Second
	cfg.opts.AnyOrigin = true // an echo has no secrets

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, and returns when all peers are gone.
func run(ctx context.Context, out io.Writer, cfg config) error {
	if n := cfg.opts.MaxMessage; n < 1 || n > 1<<30 {
		return fmt.Errorf("-max-message is not between 1 and %d: %d", 1<<30, n)
	}
	if (cfg.cert == "") != (cfg.key == "") {
		return errors.New("-cert and -key are given together or not at all")
	}
	tcp := tcpio.ListenerOptions{Addr: cfg.addr, WriteStallTimeout: 30 * time.Second, Logger: slog.Default()}
	scheme := "ws"
	if cfg.cert != "" {
		cert, err := tls.LoadX509KeyPair(cfg.cert, cfg.key)
		if err != nil {
			return fmt.Errorf("-cert, -key: %w", err)
		}
		tcp.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
		scheme = "wss"
	}
	if cfg.route == "http" {
		return runHTTP(ctx, out, scheme, tcp, cfg.opts)
	}
	switch cfg.route {
	case "stream":
	case "actor":
		cfg.opts.NewActor = func(*websocket.Conn) websocket.Actor { return websocket.ActorFunc(echo) }
	case "mailbox":
		cfg.opts.NewActor = func(c *websocket.Conn) websocket.Actor {
			go session(c, c.Events())
			return nil
		}
	default:
		return fmt.Errorf("-route is none of stream, mailbox, actor and http: %q", cfg.route)
	}
	s, err := websocket.Listen(&tcp, &cfg.opts)
	if err != nil {
		return err
	}
	var g errgroup.Group
	if cfg.route == "stream" {
		events := s.Events()
		g.Go(func() error {
			for ev := range events {
				echoStream(ev)
			}
			return nil
		})
	}
	fmt.Fprintf(out, "listening on %s://%s/\n", scheme, s.Listener().Addr())
	g.Go(func() error { return s.Serve(ctx) })
	return g.Wait()
}

// runHTTP serves pages and sockets on one port, by an http.Server on tcpio's loops.
func runHTTP(ctx context.Context, out io.Writer, scheme string, tcp tcpio.ListenerOptions, opts websocket.Options) error {
	opts.NewActor = func(*websocket.Conn) websocket.Actor { return websocket.ActorFunc(echo) }
	s, err := websocket.New(&opts)
	if err != nil {
		return err
	}
	tcp.DeferAccept = true
	l, err := tcpio.Listen(&tcp)
	if err != nil {
		return err
	}
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = s.Upgrade(w, r) // a refused request has its answer
		}),
	}
	ln := l.NetListener()
	serving, stop := context.WithCancel(context.Background())
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return l.Serve(serving) })
	g.Go(func() error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	fmt.Fprintf(out, "listening on %s://%s/\n", scheme, l.Addr())
	<-ctx.Done()
	drain, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if srv.Shutdown(drain) != nil { // it knows nothing of upgraded connections
		srv.Close()
	}
	stop() // tells those
	return g.Wait()
}

// echo is the actor: it may block until the peer has read enough.
func echo(ev websocket.Event) error {
	var err error
	switch ev := ev.(type) {
	case websocket.Text:
		err = ev.Conn.WriteText(ev.Data)
	case websocket.Binary:
		err = ev.Conn.WriteBinary(ev.Data)
	}
	return err
}

// session is a connection's own goroutine.
func session(c *websocket.Conn, events <-chan websocket.Event) {
	for ev := range events {
		if echo(ev) != nil {
			c.Abort() // events end all the same
		}
	}
}

// echoStream must not block: what a peer does not take is held, and nothing more is read from it.
func echoStream(ev websocket.Event) {
	switch ev := ev.(type) {
	case websocket.Text:
		answer(ev.Conn, websocket.Text{Data: ev.Data})
	case websocket.Binary:
		answer(ev.Conn, websocket.Binary{Data: ev.Data})
	case websocket.Writable:
		if held := ev.Conn.Data(); held != nil {
			ev.Conn.SetData(nil)
			if answer(ev.Conn, held) {
				ev.Conn.Resume()
			}
		}
	}
}

// answer reports whether the connection took the message. If not, it holds it and pauses c.
func answer(c *websocket.Conn, msg any) bool {
	var err error
	switch m := msg.(type) {
	case websocket.Text:
		if err = c.TryWriteText(m.Data); err == tcpio.ErrWouldBlock {
			c.SetData(websocket.Text{Data: append([]byte(nil), m.Data...)})
		}
	case websocket.Binary:
		if err = c.TryWriteBinary(m.Data); err == tcpio.ErrWouldBlock {
			c.SetData(websocket.Binary{Data: append([]byte(nil), m.Data...)})
		}
	}
	if err == tcpio.ErrWouldBlock {
		c.Pause() // a Writable follows
		return false
	}
	return true
}
