package main

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A response is the http.ResponseWriter of one request. It frames the answer as RFC 9112 asks: with its length when that
// is known before the first byte has to go, else in chunks, or up to the connection's end for HTTP/1.0. Trailers and
// Hijack are not supported, and the request's context does not end with the connection.
type response struct {
	n    *session
	req  *http.Request
	body *requestBody // nil when there is none

	mu sync.Mutex // handlers may read the body on one goroutine and answer on another
	// Guarded by mu.
	header  http.Header
	status  int         // 0 until WriteHeader
	fixed   http.Header // what header was then
	hold    []byte      // written, and not framed yet
	sent    bool        // the header has gone to out
	length  int64       // what the handler has declared; -1: nothing
	written int64       // of the body
	chunked bool
	bare    bool // no body is sent: HEAD, 204 and the like
	last    bool // the connection closes behind this response
	duplex  bool // the handler reads on while it writes
	err     error

	wantsContinue bool // the client waits for 100 Continue before it sends the body
}

const (
	holdSize   = 2 << 10   // bytes of body for which the header waits, since they may be all
	discardMax = 256 << 10 // bytes of a body, not read by its handler, that are read to keep the connection
)

func newResponse(n *session, req *http.Request) *response {
	w := &response{n: n, req: req, length: -1, last: req.Close, hold: n.buf.hold[:0]}
	if req.Body != nil && req.Body != http.NoBody {
		w.body = &requestBody{w: w, from: req.Body}
		req.Body = w.body
		w.wantsContinue = req.ProtoAtLeast(1, 1) && strings.EqualFold(req.Header.Get("Expect"), "100-continue")
	}
	return w
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeaderLocked(status)
}

func (w *response) writeHeaderLocked(status int) {
	switch {
	case status < 100 || status > 999:
		panic("http: no such status: " + strconv.Itoa(status))
	case w.err != nil:
		return
	case w.status != 0:
		slog.Warn("http: WriteHeader called a second time", "path", w.req.URL.Path)
		return
	case status < 200 && status != http.StatusSwitchingProtocols:
		w.statusLine(status)
		w.header.Write(w.n.buf.out)
		w.n.buf.out.WriteString("\r\n")
		w.keep(w.n.buf.out.Flush())
		return
	}
	w.status = status
	w.fixed = w.header.Clone()
	if w.fixed == nil {
		w.fixed = make(http.Header)
	}
	w.bare = w.req.Method == http.MethodHead || status < 200 || status == http.StatusNoContent || status == http.StatusNotModified
	if cl := w.fixed.Get("Content-Length"); cl != "" {
		if v, err := strconv.ParseInt(cl, 10, 64); err == nil && v >= 0 && status != http.StatusNoContent && status >= 200 {
			w.length = v
		} else {
			w.fixed.Del("Content-Length")
		}
	}
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 {
		w.writeHeaderLocked(http.StatusOK)
	}
	if w.err != nil {
		return 0, w.err
	}
	if w.bare && w.req.Method != http.MethodHead {
		return 0, http.ErrBodyNotAllowed
	}
	if w.written += int64(len(p)); w.length >= 0 && w.written > w.length {
		w.written -= int64(len(p))
		return 0, http.ErrContentLength
	}
	if len(w.hold)+len(p) <= holdSize {
		w.hold = append(w.hold, p...)
		return len(p), nil
	}
	w.releaseLocked()
	w.frameLocked(p)
	return len(p), w.err
}

// Flush implements http.Flusher.
func (w *response) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *response) FlushError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 {
		w.writeHeaderLocked(http.StatusOK)
	}
	if w.err == nil {
		w.releaseLocked()
		w.keep(w.n.buf.out.Flush())
	}
	return w.err
}

// EnableFullDuplex is for http.ResponseController: without it, what is left of the request's body is read before the
// response begins, since many clients send all of it before they read.
func (w *response) EnableFullDuplex() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.duplex = true
	return nil
}

// fail answers with an error and the end of the connection.
func (w *response) fail(status int) {
	w.Header().Set("Connection", "close")
	http.Error(w, strconv.Itoa(status)+" "+http.StatusText(status), status)
}

// finish ends the response and reports whether another request may follow it.
func (w *response) finish() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 {
		w.writeHeaderLocked(http.StatusOK)
	}
	if !w.sent && w.err == nil {
		if w.length < 0 && (!w.bare || w.req.Method == http.MethodHead && w.written > 0) {
			w.length = w.written // all of it is in hold
			w.fixed.Set("Content-Length", strconv.FormatInt(w.length, 10))
		}
	}
	if w.err == nil {
		w.releaseLocked()
		if w.chunked {
			w.n.buf.out.WriteString("0\r\n\r\n")
		}
		w.keep(w.n.buf.out.Flush())
	}
	if w.length >= 0 && w.written < w.length && !w.bare {
		w.last = true // the handler broke its word, and the client waits for more: the end must tell it
	}
	if w.body != nil && !w.body.finish(w.last) {
		w.last = true
	}
	if w.req.MultipartForm != nil {
		_ = w.req.MultipartForm.RemoveAll()
	}
	next := w.err == nil && !w.last && !w.n.s.draining.Load()
	w.keep(errOver)
	return next
}

var errOver = errors.New("http: the handler has returned")

// abandon ends the response, on a connection that was cut off, also for those who still hold it.
func (w *response) abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keep(errOver)
	if w.body != nil {
		w.body.finish(true)
	}
}

// releaseLocked frames what was held back.
func (w *response) releaseLocked() {
	if !w.sent {
		w.sendHeaderLocked()
	}
	w.frameLocked(w.hold)
	w.hold = w.hold[:0]
}

// frameLocked moves a part of the body to out.
func (w *response) frameLocked(p []byte) {
	out := w.n.buf.out
	switch {
	case w.err != nil || w.bare || len(p) == 0:
	case w.chunked:
		out.WriteString(strconv.FormatInt(int64(len(p)), 16))
		out.WriteString("\r\n")
		out.Write(p)
		_, err := out.WriteString("\r\n") // a bufio.Writer keeps its first error
		w.keep(err)
	default:
		_, err := out.Write(p)
		w.keep(err)
	}
}

// keep notes the first error of the connection.
func (w *response) keep(err error) {
	if w.err == nil {
		w.err = err
	}
}

// sendHeaderLocked decides on the framing and writes the header to out.
func (w *response) sendHeaderLocked() {
	w.sent = true
	h := w.fixed
	if hasToken(h, "Connection", "close") || w.n.s.draining.Load() || w.status == http.StatusSwitchingProtocols {
		w.last = true
	}
	if !w.last && w.body != nil && !w.duplex && !w.body.discard() {
		w.last = true
	}
	h.Del("Transfer-Encoding")
	if !w.bare && w.length < 0 {
		if w.req.ProtoAtLeast(1, 1) {
			w.chunked = true
			h.Set("Transfer-Encoding", "chunked")
		} else {
			w.last = true
		}
	}
	switch {
	case w.last:
		h.Set("Connection", "close")
	case !w.req.ProtoAtLeast(1, 1):
		h.Set("Connection", "keep-alive")
	}
	if _, set := h["Content-Type"]; !set && len(w.hold) > 0 && h.Get("Content-Encoding") == "" {
		h.Set("Content-Type", http.DetectContentType(w.hold))
	}
	if _, set := h["Date"]; !set {
		h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	w.statusLine(w.status)
	h.Write(w.n.buf.out)
	_, err := w.n.buf.out.WriteString("\r\n")
	w.keep(err)
}

func (w *response) statusLine(status int) {
	text := http.StatusText(status)
	if text == "" {
		text = "status"
	}
	w.n.buf.out.WriteString("HTTP/1.1 " + strconv.Itoa(status) + " " + text + "\r\n")
}

// sendContinue asks for the body, unless the response has begun: its client does not wait any more.
func (w *response) sendContinue() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.wantsContinue || w.sent || w.err != nil {
		return
	}
	w.wantsContinue = false
	w.statusLine(http.StatusContinue)
	w.n.buf.out.WriteString("\r\n")
	w.keep(w.n.buf.out.Flush())
}

// A requestBody is what a handler reads. It ends with the request, also for those who still hold it then.
type requestBody struct {
	w    *response
	mu   sync.Mutex
	from io.ReadCloser // of http.ReadRequest
	eof  bool
	over bool
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	b.w.sendContinue()
	return b.read(p)
}

func (b *requestBody) read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return 0, http.ErrBodyReadAfterClose
	}
	got, err := b.from.Read(p)
	b.eof = b.eof || err == io.EOF
	return got, err
}

// Close implements io.Closer. What is unread is dealt with when the response is sent.
func (b *requestBody) Close() error { return nil }

// discard reads what the handler has left, and reports whether that was all. A client that was not asked for its body
// is not waited for.
func (b *requestBody) discard() bool {
	if !b.w.wantsContinue {
		_, _ = io.CopyN(io.Discard, readerFunc(b.read), discardMax)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.eof
}

// finish ends the body, and reports whether all of it was read. There is no need to if the connection closes anyway:
// its Close reads what is still coming, so that the response is not lost to a reset.
func (b *requestBody) finish(last bool) bool {
	whole := !last && b.discard()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	return whole
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// hasToken reports whether a header that is a list has token in it.
func hasToken(h http.Header, key, token string) bool {
	for _, v := range h[key] {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

func isNetError(err error) bool {
	var op *net.OpError
	return errors.As(err, &op)
}
