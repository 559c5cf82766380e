package main

import (
	"context"
	"embed"
	"encoding/json"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

//go:embed page
var files embed.FS

// policy lets the page load its own script and style and fetch from its own host, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// An admin serves the status page:
//
//	GET  /             the page
//	GET  /status.json  what it shows
//	POST /drain        pool, upstream and on of a form: drains an upstream, or ends that
//	GET  /metrics      for Prometheus
type admin struct {
	proxy   *proxy
	history history
}

// onLoopback gives an address without a host that of the loopback.
func onLoopback(addr string) string {
	if host, port, err := net.SplitHostPort(addr); err == nil && host == "" {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// serveAdmin serves on ln until ctx ends.
func serveAdmin(ctx context.Context, ln net.Listener, p *proxy, metrics prometheus.Gatherer) error {
	a := &admin{proxy: p}
	srv := &http.Server{
		Handler:           a.handler(metrics),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.history.keep(ctx, p.status)
		_ = srv.Close()
	}()
	err := srv.Serve(ln)
	if ctx.Err() != nil {
		<-done
		return nil
	}
	return err
}

func (a *admin) handler(metrics prometheus.Gatherer) http.Handler {
	page, err := fs.Sub(files, "page")
	if err != nil {
		panic(err) // the folder is embedded
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(page))
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /status.json", a.serveStatus)
	mux.HandleFunc("POST /drain", a.serveDrain)
	sameOrigin := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		if !knownHost(r.Host) {
			http.Error(w, "this page is reached by an address or by localhost", http.StatusMisdirectedRequest)
			return
		}
		sameOrigin.ServeHTTP(w, r)
	})
}

// knownHost reports whether a browser may have meant this server. A name that somebody else owns
// may lead here too (DNS rebinding), and a page from there would be of the same origin.
func knownHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	if host == "localhost" {
		return true
	}
	_, err = netip.ParseAddr(host)
	return err == nil
}

func (a *admin) serveStatus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(struct {
		*status
		History []point `json:"history"`
	}{a.proxy.status(), a.history.all()})
}

func (a *admin) serveDrain(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	on := r.PostFormValue("on")
	if on != "true" && on != "false" {
		http.Error(w, `on has to be "true" or "false"`, http.StatusBadRequest)
		return
	}
	if !a.proxy.drain(r.PostFormValue("pool"), r.PostFormValue("upstream"), on == "true") {
		http.Error(w, "there is no such upstream", http.StatusNotFound)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
