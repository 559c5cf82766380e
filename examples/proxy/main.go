// Proxy passes TCP connections on to another address.
//
//	go run ./examples/proxy -listen 127.0.0.1:7010 -to 127.0.0.1:7000
//
// A pair of connections costs no goroutine: the dial is answered by an event, and a Relay passes
// the bytes. SIGTERM or Ctrl-C stops accepting, and lets the pairs end by themselves for as long as
// -drain. The module in balancer is this with pools of upstreams, health checks, TLS, and a status
// page.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
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
	usage := flag.Usage
	flag.Usage = func() {
		usage()
		fmt.Fprintln(os.Stderr, "For several upstreams and a configuration file: cd examples/proxy/balancer; go run . -h")
	}
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
	if _, _, err := net.SplitHostPort(cfg.to); err != nil {
		return fmt.Errorf("-to: %w", err)
	}
	p := &proxy{to: cfg.to, dialer: &net.Dialer{Timeout: cfg.dialTimeout}, log: log}
	l, err := tcpio.Listen(&tcpio.ListenerOptions{
		Addr:              cfg.listen,
		MaxConns:          20000,          // both sides of 10,000 pairs
		WriteStallTimeout: time.Minute,    // nobody has to wait longer for a peer that takes nothing
		DrainTimeout:      24 * time.Hour, // -drain is the limit
		NewActor:          func(*tcpio.Conn) tcpio.Actor { return p },
	})
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.Go(func() error { return l.Serve(context.Background()) })
	fmt.Fprintln(out, "listening on", l.Addr())
	<-ctx.Done()
	limit, cancel := context.WithTimeout(context.Background(), cfg.drain)
	defer cancel()
	_ = l.Shutdown(limit) // whoever has not ended by then is reset
	return g.Wait()
}

// A proxy is the actor of every client's connection: it dials, and joins the two. It keeps nothing
// of a connection, so that one does for all.
type proxy struct {
	to     string
	dialer *net.Dialer
	log    io.Writer
}

// Receive resets a client that gets no upstream: a reset is no answer, and the client sees that it
// is none.
func (p *proxy) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Opened:
		_, err := ev.Conn.Listener().DialAsync(tcpio.DialRequest{
			Address: p.to, Dialer: p.dialer, To: ev.Conn,
		})
		if err != nil {
			p.fail(ev.Conn, err)
		}
	case tcpio.Dialed:
		if ev.Err != nil {
			p.fail(ev.To, ev.Err)
		} else if _, err := ev.To.Relay(ev.Conn, nil); err != nil {
			ev.Conn.Abort() // the client has gone meanwhile
		}
	}
	return nil
}

func (p *proxy) fail(client *tcpio.Conn, err error) {
	client.Abort()
	fmt.Fprintf(p.log, "proxy: %v: %v\n", client.RemoteAddr(), err)
}
