package main

import (
	"bufio"
	"context"
	"errors"
	"expvar"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// What a program without a metrics library needs to be seen: /metrics in the text format of
// Prometheus, with the names that the module tcpio/metrics has, and /debug/vars of expvar.

// vars has the listeners that have a metrics server, by address.
var vars = expvar.NewMap("tcpio")

// A metricsServer shows what a listener counts.
type metricsServer struct {
	http http.Server
	ln   net.Listener
	name string
}

func listenMetrics(addr string, l *tcpio.Listener) (*metricsServer, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /debug/vars", expvar.Handler())
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		out := bufio.NewWriter(w)
		writeMetrics(out, l.Stats())
		_ = out.Flush() // the scraper may have gone
	})
	m := &metricsServer{ln: ln, name: l.Addr().String()}
	m.http = http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	vars.Set(m.name, expvar.Func(func() any { return l.Stats() }))
	return m, nil
}

// serve runs until stop.
func (m *metricsServer) serve() error {
	if err := m.http.Serve(m.ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// stop waits for the scrapes that are under way, a second at most.
func (m *metricsServer) stop() {
	vars.Delete(m.name)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if m.http.Shutdown(ctx) != nil {
		m.http.Close()
	}
}

// writeMetrics writes s: what loops count, loop by loop.
func writeMetrics(w io.Writer, s tcpio.Stats) {
	perLoop := func(kind, name, help string, write func(name string, loop int, s *tcpio.LoopStats)) {
		fmt.Fprintf(w, "# HELP tcpio_%s %s\n# TYPE tcpio_%[1]s %[3]s\n", name, help, kind)
		for i := range s.Loops {
			write("tcpio_"+name, i, &s.Loops[i])
		}
	}
	counter := func(name, help string, value func(*tcpio.LoopStats) uint64) {
		perLoop("counter", name, help, func(name string, i int, s *tcpio.LoopStats) {
			fmt.Fprintf(w, "%s{loop=\"%d\"} %d\n", name, i, value(s))
		})
	}
	together := func(kind, name, help string, value int64) {
		fmt.Fprintf(w, "# HELP tcpio_%s %s\n# TYPE tcpio_%[1]s %[3]s\ntcpio_%[1]s %[4]d\n", name, help, kind, value)
	}
	gauge := func(name, help string, value int64) { together("gauge", name, help, value) }
	type by struct {
		label string
		value uint64
	}
	labelled := func(name, help, label string, values func(*tcpio.LoopStats) []by) {
		perLoop("counter", name, help, func(name string, i int, s *tcpio.LoopStats) {
			for _, v := range values(s) {
				fmt.Fprintf(w, "%s{%s=%q,loop=\"%d\"} %d\n", name, label, v.label, i, v.value)
			}
		})
	}

	perLoop("gauge", "connections_open", "Connections that have a descriptor.", func(name string, i int, s *tcpio.LoopStats) {
		fmt.Fprintf(w, "%s{loop=\"%d\"} %d\n", name, i, s.Open)
	})
	counter("connections_accepted_total", "Connections served, adopted ones too.",
		func(s *tcpio.LoopStats) uint64 { return s.Accepted })
	counter("connections_closed_total", "Accepted connections whose descriptor is gone.",
		func(s *tcpio.LoopStats) uint64 { return s.Closed })
	labelled("connections_refused_total", "Connections closed instead of served, by reason.", "reason", func(s *tcpio.LoopStats) []by {
		r := &s.Refused
		return []by{{"max_conns", r.Conns}, {"max_conns_per_ip", r.PerIP}, {"accept_rate", r.Rate}, {"admit", r.Admit}, {"preface", r.Preface}}
	})
	labelled("connections_timed_out_total", "Connections that a time limit ended, by kind.", "kind", func(s *tcpio.LoopStats) []by {
		t := &s.Timeouts
		return []by{{"idle", t.Idle}, {"read", t.Read}, {"input", t.Input}, {"frame", t.Frame}, {"write", t.Write}, {"preface", t.Preface}, {"handshake", t.Handshake}, {"close", t.Close}, {"drain", t.Drain}, {"eof", t.EOF}}
	})
	perLoop("gauge", "dials_under_way", "Dials that have no answer yet, blocking calls too.", func(name string, i int, s *tcpio.LoopStats) {
		fmt.Fprintf(w, "%s{loop=\"%d\"} %d\n", name, i, s.Dialing)
	})
	counter("dials_failed_total", "Dials whose answer was an error, blocking calls too.",
		func(s *tcpio.LoopStats) uint64 { return s.DialsFailed })
	counter("tls_handshakes_failed_total", "TLS handshakes that failed, those that took too long too.",
		func(s *tcpio.LoopStats) uint64 { return s.HandshakesFailed })
	counter("handler_errors_total", "Errors other than io.EOF that handlers have returned.",
		func(s *tcpio.LoopStats) uint64 { return s.HandlerErrors })
	counter("group_skips_total", "Writes and posts that a member of a group missed since it had no room.",
		func(s *tcpio.LoopStats) uint64 { return s.GroupSkips })
	counter("received_bytes_total", "Bytes read from sockets.",
		func(s *tcpio.LoopStats) uint64 { return s.BytesIn })
	counter("sent_bytes_total", "Bytes taken by sockets.",
		func(s *tcpio.LoopStats) uint64 { return s.BytesOut })
	counter("events_total", "Events of connections.",
		func(s *tcpio.LoopStats) uint64 { return s.Events })
	counter("posted_total", "Values posted to connections, part of the events.",
		func(s *tcpio.LoopStats) uint64 { return s.Posted })
	together("counter", "panics_total", "Panics of the program's handlers, hooks and callbacks.", int64(s.Panics))
	gauge("queued_bytes", "Bytes of output that wait for room in sockets.", s.Buffered)
	gauge("queued_bytes_limit", "Bound of queued_bytes: MaxBuffered, or its default.", s.MaxBuffered)
	gauge("blocked_handlers", "Goroutines in actors' handlers that have blocked and lost their loop.", int64(s.Blocked))
	gauge("connections_refusing", "Refused connections whose peer has not read the reply yet.", int64(s.Refusing))
}
