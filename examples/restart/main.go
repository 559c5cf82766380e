// Restart is an HTTP server that replaces its own program without a failed request: on SIGHUP it
// starts its executable anew, which may be another file by then, hands it the listening socket, and
// ends when its own requests are answered. It serves on until the successor has served for a while,
// and stays if that ends first.
//
//	go build -o /tmp/server ./examples/restart && /tmp/server -addr 127.0.0.1:7090 &
//	curl http://127.0.0.1:7090/
//	kill -HUP $!
//
// The socket is passed by the convention of systemd, see sd_listen_fds(3), so that the server runs
// under socket activation too, and its successor may be any program that knows the convention. A
// service manager that watches its main process has to learn the successor's number, which the
// server prints.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
)

// version is what the server says of itself; go build -ldflags "-X main.version=2" makes another
// one.
var version = "1"

// config is what the flags say.
type config struct {
	addr         string
	grace        time.Duration
	drainTimeout time.Duration
	readyTimeout time.Duration
	trial        time.Duration
}

func main() {
	if err := becomeSuccessor(); err != nil {
		fmt.Fprintln(os.Stderr, "restart:", err)
		os.Exit(1)
	}
	var cfg config
	flag.StringVar(&cfg.addr, "addr", "127.0.0.1:7090", "`address` to listen on, unless a socket is passed")
	flag.DurationVar(&cfg.grace, "grace", time.Second, "how long an idle connection is kept when the server ends, in case a request is on its way")
	flag.DurationVar(&cfg.drainTimeout, "drain-timeout", 30*time.Second, "how long requests may take when the server ends")
	flag.DurationVar(&cfg.readyTimeout, "ready-timeout", 10*time.Second, "how long a successor may take to get ready")
	flag.DurationVar(&cfg.trial, "trial", time.Second, "how long a successor must have served beside this server before that ends")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "restart:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or a successor has taken over, and returns when every request is
// answered.
func run(ctx context.Context, out io.Writer, cfg config) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	opts := &tcpio.ListenerOptions{
		NewActor:          newServer(cfg.grace).Actor,
		ReadStallTimeout:  headerTimeout,
		WriteStallTimeout: stallTimeout,
		EOFTimeout:        time.Hour, // http.Server closes; a client that has ended waits for its handler
		DrainTimeout:      cfg.drainTimeout,
		Logger:            slog.Default(),
	}
	inherited, err := inheritedListener()
	switch {
	case err != nil:
		return err
	case inherited != nil:
		opts.Listener = inherited
	default:
		opts.Addr = cfg.addr
	}
	l, err := tcpio.Listen(opts)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(ctx) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hup:
			}
			successor, err := replace(ctx, l, cfg.readyTimeout, cfg.trial)
			if err != nil {
				slog.Error("restart failed, going on", "pid", os.Getpid(), "err", err)
				continue
			}
			go func() { // whoever asks meanwhile wants a server newer than the successor
				for range hup {
					_ = successor.Signal(syscall.SIGHUP) // it fails when that has ended too
				}
			}()
			return l.Shutdown(context.Background()) // DrainTimeout bounds it
		}
	})
	fmt.Fprintln(out, "process", os.Getpid(), "version", version, "listening on", l.Addr())
	if err := tellReady(ctx, l.Addr()); err != nil && ctx.Err() == nil {
		err = fmt.Errorf("telling the predecessor: %w", err)
		return errors.Join(err, l.Close(), g.Wait())
	}
	return g.Wait()
}
