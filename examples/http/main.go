// Http serves net/http handlers on tcpio twice from one program, both times by an http.Server: on a
// net.Listener, with a goroutine for every connection, and on actors, where an idle keep-alive
// connection has neither goroutine nor buffer; see the package park.
//
//	go run ./examples/http -listen-net 127.0.0.1:7080 -listen-actor 127.0.0.1:7081
//	curl -T main.go http://127.0.0.1:7081/upload
package main

import (
	"context"
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
	"github.com/rabbit-backend/tcpio/examples/http/park"
)

// config is what the flags say.
type config struct {
	listenNet     string
	listenActor   string
	headerTimeout time.Duration
	idleTimeout   time.Duration
	stallTimeout  time.Duration
	maxHeader     int
}

func main() {
	var cfg config
	flag.StringVar(&cfg.listenNet, "listen-net", "127.0.0.1:7080", "`address` for http.Server on a net.Listener; empty for none")
	flag.StringVar(&cfg.listenActor, "listen-actor", "127.0.0.1:7081", "`address` for the actor; empty for none")
	flag.DurationVar(&cfg.headerTimeout, "header-timeout", 10*time.Second, "how long a request's header may take")
	flag.DurationVar(&cfg.idleTimeout, "idle-timeout", 2*time.Minute, "how long a connection may be idle between two requests")
	flag.DurationVar(&cfg.stallTimeout, "stall-timeout", 30*time.Second, "how long a body may make no progress")
	flag.IntVar(&cfg.maxHeader, "max-header", 64<<10, "how large a request's header may be, in bytes")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, cfg, newMux()); err != nil {
		fmt.Fprintln(os.Stderr, "http:", err)
		os.Exit(1)
	}
}

// drainTime is how long requests that are being served have when the program ends.
const drainTime = 10 * time.Second

// run serves until ctx ends, and returns when the requests that were being served have been
// answered.
func run(ctx context.Context, out io.Writer, cfg config, h http.Handler) error {
	g, ctx := errgroup.WithContext(ctx)
	if cfg.listenNet != "" {
		l, err := tcpio.Listen(&tcpio.ListenerOptions{
			Addr:              cfg.listenNet,
			DeferAccept:       true,
			ReadStallTimeout:  cfg.headerTimeout, // of the first byte: until then http.Server does not know the connection
			WriteStallTimeout: cfg.stallTimeout,
			Logger:            slog.Default(),
		})
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "net/http listening on", l.Addr())
		g.Go(func() error { return serveNet(ctx, l, newServer(cfg, h)) })
	}
	if cfg.listenActor != "" {
		l, err := tcpio.Listen(&tcpio.ListenerOptions{
			Addr:              cfg.listenActor,
			NewActor:          park.New(newServer(cfg, h), 0).Actor,
			ReadStallTimeout:  cfg.headerTimeout, // of the first byte
			EOFTimeout:        time.Hour,         // http.Server closes; a client that has ended waits for its handler
			WriteStallTimeout: cfg.stallTimeout,
			DrainTimeout:      drainTime,
			Logger:            slog.Default(),
		})
		if err != nil {
			g.Go(func() error { return err }) // ends the other one
			return g.Wait()
		}
		fmt.Fprintln(out, "actor listening on", l.Addr())
		g.Go(func() error { return l.Serve(ctx) })
	}
	return g.Wait()
}

// newServer is what both ways have in common.
func newServer(cfg config, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           park.LimitStalls(h, cfg.stallTimeout),
		ReadHeaderTimeout: cfg.headerTimeout,
		IdleTimeout:       cfg.idleTimeout,
		MaxHeaderBytes:    cfg.maxHeader,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
	}
}

// serveNet is all that a server written for the package net needs: NetListener, and Serve beside
// it.
func serveNet(ctx context.Context, l *tcpio.Listener, srv *http.Server) error {
	serveCtx, stop := context.WithCancel(context.Background())
	defer stop()
	var g errgroup.Group
	ln := l.NetListener()
	g.Go(func() error { return l.Serve(serveCtx) })
	g.Go(func() error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	<-ctx.Done()
	drain, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		srv.Close()
	}
	stop()
	return g.Wait()
}
