// Gateway passes the requests of thousands of Redis clients on to one Redis, by a few connections.
//
//	go run ./examples/gateway -listen :7050 -to 127.0.0.1:6379 -conns 8
//
// Replies come to the client that has asked, in its order. Commands that block, transactions, and
// what changes the connection itself, SUBSCRIBE or AUTH say, have a connection of their own. One
// goroutine receives all events, those of the dials too, and has all state:
//
//	resp.go      where requests and replies end; requests in one line
//	commands.go  where a command is carried out
//	client.go    requests, one after the other
//	upstream.go  the connections to Redis: who waits for which reply; loss, and coming back
//	gateway.go   the event loop
//
// The password of Redis is in the environment variable REDISCLI_AUTH, as for redis-cli; whoever can
// connect to the gateway then needs none. Redis 6 or later is needed, for HELLO.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	cfg := config{user: "default", password: os.Getenv("REDISCLI_AUTH")}
	flag.StringVar(&cfg.listen, "listen", "127.0.0.1:7050", "`address` to listen on")
	flag.StringVar(&cfg.to, "to", "127.0.0.1:6379", "`address` of Redis; a path is that of a unix socket")
	flag.IntVar(&cfg.conns, "conns", 8, "connections to Redis for each version of the protocol that clients speak")
	flag.IntVar(&cfg.private, "private", 1000, "connections to Redis for one client each, for commands that block, transactions and the like")
	flag.DurationVar(&cfg.timeout, "timeout", 5*time.Second, "how long Redis may take to accept a connection, and to send the next byte of what it owes")
	flag.IntVar(&cfg.maxRequest, "max-request", 16<<20, "`bytes` of a request")
	flag.IntVar(&cfg.clientBuffer, "client-buffer", 32<<20, "`bytes` of replies that may wait for a client that does not read; it is cut off then")
	flag.IntVar(&cfg.maxBuffered, "max-buffered", 1<<30, "`bytes` that may wait for all clients and for Redis")
	flag.IntVar(&cfg.maxClients, "max-clients", 10000, "clients; more are refused")
	flag.DurationVar(&cfg.drain, "drain", 5*time.Second, "how long clients may wait for replies at the end")
	flag.StringVar(&cfg.user, "user", cfg.user, "`name` of the user of Redis, for the password in REDISCLI_AUTH")
	flag.Parse()
	if err := cfg.check(); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Stderr, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}

func (c *config) check() error {
	switch {
	case c.conns < 1 || c.conns > 1000:
		return errors.New("-conns: not between 1 and 1000")
	case c.private < 0:
		return errors.New("-private: negative")
	case c.timeout < 10*time.Millisecond:
		return errors.New("-timeout: below 10ms")
	case c.maxRequest < 1<<10 || c.maxRequest > 512<<20:
		return errors.New("-max-request: not between 1 KiB and 512 MiB")
	case c.clientBuffer < 64<<10:
		return errors.New("-client-buffer: below 64 KiB")
	case c.maxBuffered < c.clientBuffer:
		return errors.New("-max-buffered: below -client-buffer")
	case c.maxClients < 1:
		return errors.New("-max-clients: below 1")
	case c.drain <= 0:
		return errors.New("-drain: not above zero")
	}
	return nil
}
