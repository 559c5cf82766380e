//go:build linux

package metrics_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/metrics"
)

// Two listeners in one registry, told apart by a label.
func ExampleNewCollector() {
	registry := prometheus.NewRegistry()
	closed := make(chan error)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error)
	for _, name := range []string{"api", "admin"} {
		l, err := tcpio.Listen(&tcpio.ListenerOptions{
			Addr: "127.0.0.1:0", Loops: 1,
			NewActor: func(*tcpio.Conn) tcpio.Actor {
				return tcpio.ActorFunc(func(ev tcpio.Event) error {
					switch ev := ev.(type) {
					case tcpio.Opened:
						return ev.Conn.Close()
					case tcpio.Closed:
						closed <- ev.Conn.Err()
					}
					return nil
				})
			},
		})
		if err != nil {
			log.Fatal(err)
		}
		registry.MustRegister(metrics.NewCollector(l, prometheus.Labels{"listener": name}))
		go func() { served <- l.Serve(ctx) }()
		if name == "api" {
			peer, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				log.Fatal(err)
			}
			peer.Close()
			<-closed
		}
	}

	page := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	text, _ := io.ReadAll(page.Body)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "tcpio_connections_accepted_total") {
			fmt.Print(line)
		}
	}
	stop()
	fmt.Println("end:", <-served, <-served)
	// Output:
	// tcpio_connections_accepted_total{listener="admin",loop="0"} 0
	// tcpio_connections_accepted_total{listener="api",loop="0"} 1
	// end: <nil> <nil>
}
