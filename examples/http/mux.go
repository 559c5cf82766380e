package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// newMux is what both servers serve.
func newMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })
	mux.HandleFunc("/upload", upload)
	mux.HandleFunc("GET /download", download)
	mux.HandleFunc("POST /echo", echo)
	return mux
}

// upload answers with the size of the request's body in bytes, and its hash.
func upload(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%d %x\n", n, h.Sum(nil))
}

// download sends size bytes, with their number in front unless chunked is asked for.
func download(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.ParseInt(r.FormValue("size"), 10, 64)
	if err != nil || size < 0 {
		http.Error(w, "size is how many bytes to send", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if r.FormValue("chunked") == "" {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	}
	if r.Method != http.MethodHead {
		io.CopyN(w, new(letters), size)
	}
}

// letters is an endless body, the alphabet again and again. Its value is how far it was read.
type letters int

func (l *letters) Read(p []byte) (int, error) {
	n := copy(p, alphabets[*l%26:])
	*l += letters(n)
	return n, nil
}

var alphabets = strings.Repeat("abcdefghijklmnopqrstuvwxyz", 2000)

// echo sends the body back while it arrives.
func echo(w http.ResponseWriter, r *http.Request) {
	ctl := http.NewResponseController(w)
	if err := ctl.EnableFullDuplex(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil || ctl.Flush() != nil {
				return
			}
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // the answer has begun: only a cut shows that it is not whole
		}
	}
}
