package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rabbit-backend/tcpio"
)

// server is what the sessions of one listener share.
type server struct {
	cfg      config
	handler  http.Handler
	draining atomic.Bool
	buffers  sync.Pool // of *buffers
}

// buffers is what a session needs while it has a request. A parked one has given them back.
type buffers struct {
	in   *bufio.Reader
	out  *bufio.Writer
	hold [holdSize]byte // see response
}

// serve runs the listener until ctx ends; then requests that are being served have drainTime to be answered.
func (s *server) serve(ctx context.Context, l *tcpio.Listener) error {
	serveCtx, stop := context.WithCancel(context.Background())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- l.Serve(serveCtx) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// A session gets its events one at a time, so the message finds it between two requests. Connections that are
	// accepted from now on are closed at Opened.
	s.draining.Store(true)
	for c := range l.Conns() {
		_ = c.Post(drain{}) // it fails if the connection has ended by itself
	}
	limit := time.NewTimer(drainTime)
	defer limit.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for waiting := true; waiting && l.Len() > 0; {
		select {
		case <-look.C:
		case <-limit.C:
			waiting = false
		}
	}
	stop()
	return <-served
}

// drain tells a session that the program ends.
type drain struct{}

// A session is one connection: an actor. The loop runs it when bytes arrive; it parses what there is, and a request that
// is only half there keeps its goroutine, from which the loop moves on to others, until the rest has come.
type session struct {
	s    *server
	idle bool // an idle limit is set

	// While a request is read. A parked session has nil and zero.
	c        *tcpio.Conn
	buf      *buffers
	park     bool // a read that finds nothing returns ErrWouldBlock
	header   int  // bytes that the header may still take; negative while none is read
	waited   bool // the header's time limit is running
	oversize bool // the header was too large
}

func (s *server) newSession(*tcpio.Conn) tcpio.Actor { return &session{s: s} }

// Receive implements tcpio.Actor.
func (n *session) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Opened:
		if n.s.draining.Load() {
			ev.Conn.Close()
		}
	case tcpio.Message:
		ev.Conn.Close() // the only message is drain
	case tcpio.Readable:
		n.c = ev.Conn
		if n.serve() {
			n.idle = true
			_ = n.c.SetIdleTimeout(n.s.cfg.idleTimeout) // it fails on a closed connection, which needs none
		} else {
			n.c.Close() // behind what was written
		}
		n.unload()
	}
	return nil
}

// serve answers requests until there is nothing more to read. It reports whether the connection stays open.
func (n *session) serve() bool {
	if n.idle {
		n.idle = false
		_ = n.c.SetIdleTimeout(0) // a handler may take its time
	}
	n.load()
	for {
		// Bytes of a pipelined request may be in the buffer already, and no event would tell of those: the session parks
		// only when buffer and socket are both empty.
		n.park, n.header = true, -1
		if _, err := n.buf.in.Peek(1); err != nil {
			return errors.Is(err, tcpio.ErrWouldBlock)
		}
		n.park, n.waited, n.oversize = false, false, false
		n.header = n.s.cfg.maxHeader
		req, err := http.ReadRequest(n.buf.in)
		n.header = -1
		if err != nil {
			n.refuse(err)
			return false
		}
		if !n.answer(req) {
			return false
		}
	}
}

// answer serves one request. It reports whether another one may follow on the connection.
func (n *session) answer(req *http.Request) bool {
	w := newResponse(n, req)
	defer func() {
		// ErrAbortHandler is how a handler cuts a response off; other panics are the library's to log.
		v := recover()
		if v == nil {
			return
		}
		n.c.Abort()
		w.abandon()
		if v != http.ErrAbortHandler {
			panic(v)
		}
	}()
	switch expect := req.Header.Get("Expect"); {
	case req.ProtoMajor != 1:
		w.fail(http.StatusHTTPVersionNotSupported)
	case req.ProtoAtLeast(1, 1) && req.Host == "" && req.Method != http.MethodConnect:
		w.fail(http.StatusBadRequest)
	case expect != "" && !strings.EqualFold(expect, "100-continue"):
		w.fail(http.StatusExpectationFailed)
	default:
		req.RemoteAddr = n.c.RemoteAddr().String()
		n.s.handler.ServeHTTP(w, req)
	}
	return w.finish()
}

// refuse answers a request that could not be read, if its sender can still be expected to listen.
func (n *session) refuse(err error) {
	status := http.StatusBadRequest
	switch {
	case n.oversize:
		status = http.StatusRequestHeaderFieldsTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		status = http.StatusRequestTimeout
	case errors.Is(err, io.EOF), isNetError(err):
		return // the peer has gone
	}
	req := &http.Request{Method: http.MethodGet, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}
	w := newResponse(n, req)
	w.fail(status)
	w.finish()
}

// Read reads from the connection, for the bufio.Reader: without blocking at first, which costs no timer, and then with a
// limit, so that a peer that sends a byte now and then does not keep the goroutine.
func (n *session) Read(p []byte) (int, error) {
	if n.header >= 0 {
		if n.header == 0 {
			n.oversize = true
			return 0, errOversize
		}
		p = p[:min(len(p), n.header)]
	}
	got, err := n.c.TryRead(p)
	if err == tcpio.ErrWouldBlock && !n.park {
		got, err = n.wait(p)
	}
	if n.header >= 0 {
		n.header -= got
	}
	return got, err
}

// wait reads with a limit: a header has one for all of it, a body one for each wait.
func (n *session) wait(p []byte) (int, error) {
	limit := n.s.cfg.stallTimeout
	if n.header >= 0 {
		limit = n.s.cfg.headerTimeout
	}
	if n.header < 0 || !n.waited {
		if err := n.c.SetReadDeadline(time.Now().Add(limit)); err != nil {
			return 0, err
		}
		n.waited = true
	}
	return n.c.Read(p)
}

var errOversize = errors.New("the request's header is too large")

// load takes buffers for the requests to come, unload gives them back.
func (n *session) load() {
	b, ok := n.s.buffers.Get().(*buffers)
	if !ok {
		b = &buffers{in: bufio.NewReaderSize(nil, 4<<10), out: bufio.NewWriterSize(nil, 4<<10)}
	}
	b.in.Reset(n)
	b.out.Reset(n.c)
	n.buf = b
}

func (n *session) unload() {
	b := n.buf
	b.in.Reset(nil)
	b.out.Reset(nil)
	n.s.buffers.Put(b)
	*n = session{s: n.s, idle: n.idle}
}
