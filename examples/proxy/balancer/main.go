// Balancer is a layer-4 proxy and load balancer on tcpio. README.md has its configuration.
//
//	go run . -listen :7010 -to 127.0.0.1:7000,127.0.0.1:7001
//	go run . -config balancer.yaml
//
// SIGHUP reads the file anew without dropping a connection; -check says what is wrong in it.
// SIGTERM or Ctrl-C stops accepting and lets connections end by themselves for as long as "drain"
// says; the second one ends the program at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	err := command(ctx, os.Args[1:], os.Stdout, os.Stderr, hup)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	if !errors.Is(err, errTold) {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1)
}

// errTold is a mistake in the flags, which the package flag has told.
var errTold = errors.New("a bad flag")

// command is the program with these arguments.
func command(ctx context.Context, args []string, out, log io.Writer, hup <-chan os.Signal) error {
	flags := flag.NewFlagSet("balancer", flag.ContinueOnError)
	flags.SetOutput(log)
	path := flags.String("config", "", "configuration `file`")
	check := flags.Bool("check", false, "check the file, and end")
	listen := flags.String("listen", "127.0.0.1:7010", "without a file: `address` to listen on")
	to := flags.String("to", "", "without a file: `addresses` of the upstreams, between commas")
	admin := flags.String("admin", "", "`address` of the status page, in place of the file's")
	drain := flags.Duration("drain", 30*time.Second, "without a file: how long connections may go on at the end")
	debug := flags.Bool("debug", false, "log every connection that is refused")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return errTold
	}
	cfg, err := configOf(flags, *path, *listen, *to, *drain)
	if err != nil {
		return err
	}
	if *admin != "" {
		cfg.Admin = *admin
	}
	switch {
	case *check && *path == "":
		return errors.New("balancer: -check is for -config")
	case *check:
		fmt.Fprintf(out, "%s: %d listeners, %d pools: no mistake found\n", *path, len(cfg.Listeners), len(cfg.Pools))
		return nil
	}
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	return run(ctx, cfg, *path, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level})), hup)
}

// configOf is the file's configuration, or that of the flags.
func configOf(flags *flag.FlagSet, path, listen, to string, drain time.Duration) (*config, error) {
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("balancer: what is %q?", flags.Arg(0))
	case path != "":
		var err error
		flags.Visit(func(f *flag.Flag) {
			if f.Name == "to" || f.Name == "listen" || f.Name == "drain" {
				err = fmt.Errorf("balancer: -config and -%s exclude each other", f.Name)
			}
		})
		if err != nil {
			return nil, err
		}
		return load(path)
	case to == "":
		return nil, errors.New("balancer: -config FILE or -to ADDRESSES is needed; -h tells more")
	}
	cfg := simple(listen, strings.Split(to, ","), "", drain)
	c := checker{cfg: cfg}
	c.check()
	if len(c.faults) > 0 {
		return nil, fmt.Errorf("balancer: %w", c.faults[0])
	}
	return cfg, nil
}

// run serves until ctx ends, and then as long as connections may go on.
func run(ctx context.Context, cfg *config, path string, log *slog.Logger, hup <-chan os.Signal) error {
	p, err := newProxy(log)
	if err != nil {
		return fmt.Errorf("balancer: %w", err)
	}
	var page net.Listener
	if cfg.Admin != "" {
		if page, err = net.Listen("tcp", onLoopback(cfg.Admin)); err != nil {
			return fmt.Errorf("balancer: admin: %w", err)
		}
		defer page.Close()
	}
	if err := p.apply(cfg); err != nil {
		_ = p.spare.Close()
		return fmt.Errorf("balancer: %w", err)
	}
	var g errgroup.Group
	pageCtx, endPage := context.WithCancel(context.Background())
	if page != nil {
		log.Info("status page", "url", "http://"+page.Addr().String()+"/")
		g.Go(func() error { return serveAdmin(pageCtx, page, p, p.registry) })
	}
	g.Go(func() error {
		defer endPage() // one can look at the end
		for {
			select {
			case <-ctx.Done():
				return p.end()
			case <-hup:
				if path != "" {
					p.reload(path)
				}
			}
		}
	})
	return g.Wait()
}
