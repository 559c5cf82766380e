// Session is a small auction: a goroutine for each bidder, with a select over the bidder's own
// mailbox, a ticker, and a channel of announcements that all share.
//
//	go run ./examples/session -addr 127.0.0.1:7003
//
// Talk to it with nc 127.0.0.1 7003, several at once:
//
//	name ann        says who you are; until then nothing else is taken
//	bid 12          bids, if it is the highest so far
//	best            asks for the highest bid
//	quit
//
// Every -every the highest bid is told to those who have a name, and every new one at once.
package main

import (
	"context"
	"errors"
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

func main() {
	addr := flag.String("addr", "127.0.0.1:7003", "`address` to listen on")
	every := flag.Duration("every", 10*time.Second, "how often the highest bid is told")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *addr, *every); err != nil {
		fmt.Fprintln(os.Stderr, "session:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, and returns when every goroutine has.
func run(ctx context.Context, out io.Writer, addr string, every time.Duration) error {
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:        addr,
		MaxFrame:    maxLine,
		MaxConns:    10_000,
		IdleTimeout: time.Hour,
		// Who takes nothing for so long is cut off, and its goroutine ends.
		WriteStallTimeout: time.Minute,
	})
	if err != nil {
		return err
	}
	events := l.Events()
	a := newAuction()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(ctx) })
	g.Go(func() error {
		for ev := range events {
			if ev, ok := ev.(tcpio.Opened); ok {
				// Claimed while Opened is handled: everything after it comes to the mailbox.
				s := &session{conn: ev.Conn, auction: a, mailbox: ev.Conn.Events()}
				g.Go(func() error { return s.run(every) })
			}
		}
		return nil
	})
	fmt.Fprintln(out, "listening on", l.Addr())
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
