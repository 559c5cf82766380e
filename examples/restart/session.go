package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/rabbit-backend/tcpio/examples/http/park"
)

const (
	headerTimeout = 10 * time.Second // of a request, also for its first byte
	idleTimeout   = 2 * time.Minute
	stallTimeout  = 30 * time.Second // of a body, or of an answer that its client does not read
)

// newServer serves GET /, with ?pause=300ms after that time, on parked connections.
func newServer(grace time.Duration) *park.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		if pause, err := time.ParseDuration(r.FormValue("pause")); err == nil && pause > 0 {
			select {
			case <-time.After(pause):
			case <-r.Context().Done(): // the client has gone
			}
		}
		io.WriteString(w, self())
	})
	return park.New(&http.Server{
		Handler:           park.LimitStalls(mux, stallTimeout),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
	}, grace)
}

// self is what this process answers.
func self() string { return fmt.Sprintf("process %d version %s\n", os.Getpid(), version) }
