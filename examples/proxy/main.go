// Proxy passes TCP connections on to another address.
//
//	go run ./examples/proxy -listen 127.0.0.1:7010 -to 127.0.0.1:7000
//
// A pair of connections costs no goroutine once the upstream has answered: two actors pass bytes to each other, and each
// stops reading while the other is full. SIGTERM or Ctrl-C stops accepting, and lets the pairs end by themselves for as
// long as -drain.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
)

type config struct {
	listen, to  string
	dialTimeout time.Duration
	drain       time.Duration
}

func main() {
	var cfg config
	flag.StringVar(&cfg.listen, "listen", "127.0.0.1:7010", "`address` to listen on")
	flag.StringVar(&cfg.to, "to", "127.0.0.1:7000", "`address` to pass connections on to")
	flag.DurationVar(&cfg.dialTimeout, "dial-timeout", 5*time.Second, "how long the upstream may take to answer")
	flag.DurationVar(&cfg.drain, "drain", 30*time.Second, "how long pairs may go on at the end")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Stderr, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, and returns when every pair and every goroutine has ended.
func run(ctx context.Context, out, log io.Writer, cfg config) error {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:              cfg.listen,
		MaxConns:          10000,
		WriteBuffer:       256 << 10,
		WriteStallTimeout: time.Minute, // nobody has to wait longer for a peer that takes nothing
		CloseTimeout:      time.Minute, // the last bytes of a pair may be for a slow peer
		EOFTimeout:        time.Hour,   // an upstream may think for long about what a client that has ended sent
	})
	if err != nil {
		return err
	}
	// What a NetListener hands out has no events yet, and so nothing is read, until the pair is complete; and it leaves
	// connections alone when it is closed.
	ln := l.NetListener()
	g, ctx := errgroup.WithContext(ctx)
	served, ended := context.WithCancel(context.Background())
	g.Go(func() error {
		defer ended()
		return l.Serve(context.Background()) // until the last pair has ended
	})
	g.Go(func() error {
		<-ctx.Done()
		ln.Close()
		limit, cancel := context.WithTimeout(served, cfg.drain)
		defer cancel()
		<-limit.Done()
		return l.Close()
	})
	g.Go(func() error {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return nil // closed
			}
			g.Go(func() error {
				if err := connect(l, nc.(*tcpio.Conn), cfg); err != nil {
					fmt.Fprintf(log, "proxy: %v: %v\n", nc.RemoteAddr(), err)
				}
				return nil
			})
		}
	})
	fmt.Fprintln(out, "listening on", l.Addr())
	return g.Wait()
}

// connect makes a pair of front. It blocks for the dial only.
func connect(l *tcpio.Listener, front *tcpio.Conn, cfg config) error {
	ctx, cancel := context.WithTimeout(context.Background(), cfg.dialTimeout)
	defer cancel()
	back, err := l.Dial(ctx, "tcp", cfg.to)
	if err != nil {
		front.Abort() // a reset is no answer, and the client sees that it is none
		return err
	}
	p := new(pair)
	if err := front.Attach(&side{pair: p, other: back}); err != nil {
		back.Abort()
		return err
	}
	if err := back.Attach(&side{pair: p, other: front}); err != nil {
		front.Abort()
		return err
	}
	// Both have their events from here on. Before, one might have been written to and nobody told that it has
	// room again.
	for _, c := range []*tcpio.Conn{front, back} {
		_ = c.Post(room{}) // one that has closed meanwhile takes the other along
	}
	return nil
}
