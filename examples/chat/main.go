// Chat is a chat server for people with a terminal: lines of text, rooms, nicknames.
//
//	go run ./examples/chat -addr 127.0.0.1:7001
//
// and in other terminals
//
//	nc 127.0.0.1 7001
//	/nick ann
//	/join go
//	hello, everybody
//	/who
//	/quit
//
// /help shows the other commands. -history, -idle-warn and -idle-close change how much a newcomer
// is shown of what was said before, and how long one may be silent.
//
// The same chat on many nodes is examples/chat/cluster, with -cluster DIR or -nats URL: a module of
// its own, since this one depends on no NATS.
//
// Every connection is an actor, so a silent one costs no goroutine. What belongs to one connection
// is in its user and is touched by that actor only (user.go); what connections share, names and
// rooms, is in the hub (hub.go), with a comment about who locks what. Nothing that a peer sends
// reaches another terminal as a control sequence (package chatline).
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

type config struct {
	addr        string
	loops       int
	history     int           // lines that a room remembers
	idleWarn    time.Duration // 0: no warning
	idleClose   time.Duration // 0: never
	writeBuffer int           // bytes that may wait for one user; 0 is the library's default
	log         *slog.Logger
}

func main() {
	cfg := config{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flag.StringVar(&cfg.addr, "addr", "127.0.0.1:7001", "`address` to listen on")
	flag.IntVar(&cfg.loops, "loops", 0, "epoll loops; 0 is the library's default")
	flag.IntVar(&cfg.history, "history", 20, "`lines` of a room that who joins is shown")
	flag.DurationVar(&cfg.idleWarn, "idle-warn", 9*time.Minute, "warn who sent no line for so long; 0 is never")
	flag.DurationVar(&cfg.idleClose, "idle-close", 10*time.Minute, "close who sent no line for so long; 0 is never")
	flag.IntVar(&cfg.writeBuffer, "write-buffer", 256<<10, "`bytes` that may wait for one user before the user is dropped")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}

func (cfg *config) check() error {
	switch {
	case cfg.history < 0:
		return errors.New("-history is negative")
	case cfg.idleWarn < 0 || cfg.idleClose < 0:
		return errors.New("-idle-warn or -idle-close is negative")
	case cfg.idleWarn > 0 && cfg.idleWarn >= cfg.idleClose:
		return errors.New("-idle-warn warns of -idle-close and must be shorter")
	}
	return nil
}

// run serves until ctx ends, and returns when every connection is drained and every goroutine has
// ended.
func run(ctx context.Context, out io.Writer, cfg config) error {
	return serve(ctx, out, cfg, newHub(cfg.history))
}

func serve(ctx context.Context, out io.Writer, cfg config, h *hub) error {
	if err := cfg.check(); err != nil {
		return err
	}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:        cfg.addr,
		Loops:       cfg.loops,
		WriteBuffer: cfg.writeBuffer,
		// Who sends and does not read is held back, and dropped when it has taken nothing for so long.
		WriteStallTimeout: time.Minute,
		MaxConns:          10_000,
		RefuseReply:       []byte("* the server is full\n"),
		NewActor:          func(c *tcpio.Conn) tcpio.Actor { return newUser(h, c, cfg.idleWarn, cfg.idleClose) },
		Logger:            cfg.log,
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(ctx) })
	fmt.Fprintln(out, "listening on", l.Addr())
	return g.Wait()
}
