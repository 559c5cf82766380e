// Cluster is examples/chat on many nodes: the same rooms, names and lines on all of them. On one
// machine the processes find each other by a directory, and no server is to be installed:
//
//	go run . -cluster /tmp/chat -addr 127.0.0.1:7001
//	go run . -cluster /tmp/chat -addr 127.0.0.1:7002
//	nc 127.0.0.1 7001     and nc 127.0.0.1 7002
//
// On several, -nats nats://HOST:4222 takes the place of -cluster: an external NATS server, with
// JetStream (nats-server -js). Without JetStream there is no history, no one order for all, and
// nobody can say what a reader has missed, so the program does not start.
//
// The commands are those of examples/chat; /help shows them. The package rooms has all but the
// flags: examples/webchat uses it too.
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
	"github.com/rabbit-backend/tcpio/examples/chat/cluster/rooms"
)

type config struct {
	addr string
	rooms.Config
}

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg := config{Config: rooms.Config{Log: log}}
	flag.StringVar(&cfg.addr, "addr", "127.0.0.1:7001", "`address` to listen on")
	flag.StringVar(&cfg.Dir, "cluster", "", "`directory` by which the processes of this machine find each other")
	flag.StringVar(&cfg.URL, "nats", "", "`URL` of a NATS server with JetStream")
	flag.IntVar(&cfg.History, "history", 300, "`lines` of a room that who joins is shown; the same on all nodes")
	flag.DurationVar(&cfg.Grace, "grace", 10*time.Second, "how long a lost member may be away before it is said to have left")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, and returns when every connection is drained and the node has left.
func run(ctx context.Context, out io.Writer, cfg config) error {
	if cfg.History < 1 || cfg.Grace < 0 {
		return errors.New("-history is less than 1, or -grace negative")
	}
	opening, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	chat, err := rooms.Open(opening, cfg.Config)
	if err != nil {
		return err
	}
	defer chat.Close()
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:              cfg.addr,
		WriteBuffer:       256 << 10,
		WriteStallTimeout: time.Minute,
		MaxConns:          10_000,
		RefuseReply:       []byte("* the server is full\n"),
		NewActor:          chat.User,
		Logger:            cfg.Log,
	})
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(context.Background())
	defer stop()
	g, failed := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(serving) })
	fmt.Fprintln(out, "listening on", l.Addr())
	<-failed.Done()
	drain, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	chat.Drain(drain, time.Second)
	stop()
	return g.Wait()
}
