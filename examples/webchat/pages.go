package main

import (
	"embed"
	"io/fs"
	"net/http"

	"github.com/rabbit-backend/tcpio/websocket"
)

//go:embed page
var files embed.FS

// policy lets the page load its own two scripts, its style and its WebSocket, and nothing else: no
// inline script, no other host, no frame.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// pages is the handler of the page and its WebSocket.
func pages(ws *websocket.Server) http.Handler {
	page, err := fs.Sub(files, "page")
	if err != nil {
		panic(err) // the folder is embedded
	}
	static := http.FileServerFS(page)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ws", func(w http.ResponseWriter, r *http.Request) {
		_, _ = ws.Upgrade(w, r) // a request that is refused has its answer
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		static.ServeHTTP(w, r)
	})
	return mux
}
