package park

import (
	"io"
	"net/http"
	"sync"
	"time"
)

// LimitStalls returns a handler that ends a request whose body makes no progress for limit while h,
// or the http.Server behind it, waits for it: h's read fails with an error that matches
// os.ErrDeadlineExceeded, and the connection ends behind the answer. Unlike http.Server.ReadTimeout
// it lets a large body take its time. It works on every listener.
//
// A body that h does not read is limited from h's beginning on until h returns, so an answer that
// comes later than limit without a read may be the connection's last one.
func LimitStalls(h http.Handler, limit time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody {
			h.ServeHTTP(w, r)
			return
		}
		if r.Trailer == nil {
			r.Trailer = make(http.Header) // one map for both: it is filled when the body has been read
		}
		limited := new(http.Request) // the server goes on with r, which it knows by its Body
		*limited = *r
		b := &stallBody{ReadCloser: r.Body, ctl: http.NewResponseController(w), limit: limit}
		b.renew()
		limited.Body = b
		defer func() {
			r.MultipartForm = limited.MultipartForm // whose files the server removes
			b.end()
		}()
		h.ServeHTTP(w, limited)
	})
}

// A stallBody is a request's body with a limit for each read.
type stallBody struct {
	io.ReadCloser
	ctl   *http.ResponseController
	limit time.Duration

	mu sync.Mutex
	// Guarded by mu.
	ended bool // by EOF or an error: the deadline is not ours any more
	over  bool // the handler has returned
}

// Read implements io.Reader.
func (b *stallBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return 0, http.ErrBodyReadAfterClose
	}
	if !b.ended {
		b.renew()
	}
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF && !b.ended {
		_ = b.ctl.SetReadDeadline(time.Time{}) // a client that waits for its answer does not stall
	}
	b.ended = b.ended || err != nil
	return n, err
}

// renew fails on a connection that has ended, which needs no deadline.
func (b *stallBody) renew() { _ = b.ctl.SetReadDeadline(time.Now().Add(b.limit)) }

// end is for the server, which reads a rest of the body. It waits for a goroutine that the handler
// has left in Read.
func (b *stallBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over = true; !b.ended {
		b.renew()
	}
}
