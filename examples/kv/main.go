// Kv is a small server for the Redis protocol: strings with expiry, for redis-cli and
// redis-benchmark to talk to.
//
// It shows tcpio's event stream in a select beside a ticker. One goroutine receives every event of
// every connection and the ticks, so the data is one map without a lock, and a command is atomic
// because nothing runs beside it.
//
//	resp.go         requests and replies in wire form
//	store.go        the map and its expiry
//	commands.go     the table of commands, and those on keys
//	admin.go        HELLO, INFO, COMMAND, CONFIG and CLIENT
//	transaction.go  MULTI, EXEC and WATCH
//	server.go       the event loop, and what happens to a peer that does not read
//	tls.go          the certificate of -tls
//
//	go run ./examples/kv -tls
//	redis-cli --tls --insecure ping
//
// Nothing else knows of TLS: events and calls are the same.
//
// It is an example and not a database: nothing is stored on disk, and there is no limit on the
// number of keys.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:6379", "`address` to listen on")
	useTLS := flag.Bool("tls", false, "speak TLS; without -tls-cert with a certificate made for this run, which signs itself")
	certFile := flag.String("tls-cert", "", "`file` with the certificate chain in PEM; implies -tls")
	keyFile := flag.String("tls-key", "", "`file` with its private key in PEM")
	flag.Parse()
	config, err := tlsConfig(*useTLS, *certFile, *keyFile)
	if err == nil {
		err = run(*addr, config)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kv:", err)
		os.Exit(1)
	}
}

// run serves until the process is told to stop.
func run(addr string, config *tls.Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	l, err := listen(addr, config)
	if err != nil {
		return err
	}
	fmt.Println("listening on", l.Addr())
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	return serve(ctx, l, newServer(newStore(time.Now), slog.Default()), ticker.C)
}
