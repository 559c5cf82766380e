// Echo sends back what it gets. It is the smallest complete tcpio server, once for each route that
// events can take.
//
//	go run ./examples/echo -addr 127.0.0.1:7000 -loops 1 -route stream -metrics 127.0.0.1:9100
//	curl http://127.0.0.1:9100/metrics
package main

import (
	"bytes"
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
	addr := flag.String("addr", "127.0.0.1:7000", "`address` to listen on")
	loops := flag.Int("loops", 0, "epoll loops; 0 is the library's default")
	route := flag.String("route", "stream", "how events come: stream, mailbox, actor or legacy")
	metrics := flag.String("metrics", "", "`address` of an HTTP server with /metrics and /debug/vars; empty for none")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *addr, *loops, *route, *metrics); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, and returns when every connection is drained and every goroutine has
// ended.
func run(ctx context.Context, out io.Writer, addr string, loops int, route, metrics string) error {
	opts := &tcpio.ListenerOptions{
		Addr:  addr,
		Loops: loops,
		// Who takes nothing of its echo for so long is cut off, and with it goes what was kept for it.
		WriteStallTimeout: time.Minute,
	}
	switch route {
	case "actor":
		buf := newBuffers()
		opts.NewActor = func(*tcpio.Conn) tcpio.Actor { return &actor{buffers: buf} }
	case "legacy":
		opts.OnConnEvent = callback(make([]byte, bufSize))
	}
	l, err := tcpio.Listen(opts)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	switch route {
	case "stream":
		g.Go(func() error { return serveStream(l.Events()) })
	case "mailbox":
		g.Go(func() error { return serveMailboxes(g, l.Events()) })
	case "actor", "legacy":
	default:
		l.Close()
		return fmt.Errorf("unknown route %q", route)
	}
	var m *metricsServer
	if metrics != "" {
		if m, err = listenMetrics(metrics, l); err != nil {
			l.Close()
			return errors.Join(err, g.Wait())
		}
		g.Go(m.serve)
	}
	g.Go(func() error {
		if m != nil {
			defer m.stop() // behind the draining, so that it is seen
		}
		return l.Serve(ctx)
	})
	fmt.Fprintln(out, "listening on", l.Addr())
	if m != nil {
		fmt.Fprintln(out, "metrics on", m.ln.Addr())
	}
	return g.Wait()
}

// An echoer is the state of one connection: what the peer sent and was too slow to take back. While
// there is any, the connection is not read, and the peer feels TCP flow control.
type echoer struct{ owed []byte }

// handle does what an event asks for. buf is the caller's, for any connection. What goes wrong ends
// this connection and is no error of the server's.
func (e *echoer) handle(ev tcpio.Event, buf []byte) {
	switch ev := ev.(type) {
	case tcpio.Readable:
		if e.owed == nil {
			e.echo(ev.Conn, buf)
		}
	case tcpio.Writable:
		owed := e.owed
		e.owed = nil
		if e.send(ev.Conn, owed) {
			e.echo(ev.Conn, buf)
		}
	}
}

// echo reads once; when there is more, another Readable comes by itself.
func (e *echoer) echo(c *tcpio.Conn, buf []byte) {
	n, err := c.TryRead(buf)
	switch {
	case err == nil:
		e.send(c, buf[:n])
	case errors.Is(err, tcpio.ErrWouldBlock):
	default: // io.EOF, or the connection failed; Close flushes first
		c.Close()
	}
}

// send reports whether p is on its way and more may be read.
func (e *echoer) send(c *tcpio.Conn, p []byte) bool {
	_, err := c.TryWrite(p)
	switch {
	case err == nil:
		return true
	case errors.Is(err, tcpio.ErrWouldBlock):
		e.owed = bytes.Clone(p) // until Writable
	default:
		c.Close()
	}
	return false
}
