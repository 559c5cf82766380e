//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// twins are a plain http.Server on a plain listener and the example's actor, with one handler that
// tells what it was given.
type twins struct{ plain, actor string }

func startTwins(t testing.TB) twins {
	cfg := testConfig()
	cfg.maxHeader = 4 << 10
	cfg.listenActor = "127.0.0.1:0"
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body []byte
		err := error(nil)
		switch r.URL.Path {
		case "/ignore":
		case "/some":
			body = make([]byte, 3)
			_, err = r.Body.Read(body[:1])
		case "/flush":
			_ = http.NewResponseController(w).Flush()
			fallthrough
		default:
			body, err = io.ReadAll(r.Body)
		}
		switch r.URL.Path {
		case "/close":
			w.Header().Set("Connection", "close")
		case "/abort":
			io.WriteString(w, strings.Repeat("x", 10000))
			panic(http.ErrAbortHandler)
		case "/long":
			w.Header().Set("Content-Length", "3")
		case "/none":
			w.WriteHeader(http.StatusNoContent)
			return
		}
		fmt.Fprintf(w, "%s %q %q %q %q %q %d %t: %d bytes, %08x, %t, %q\n", r.Proto, r.Method, r.RequestURI, r.Host, r.Header,
			r.TransferEncoding, r.ContentLength, r.Close, len(body), crc32.ChecksumIEEE(body), err == nil || err == io.EOF, r.Trailer)
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := newServer(cfg, nil)
	srv.Handler = h
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	addr, stop := start(t, cfg, h)
	t.Cleanup(func() {
		stop()
		srv.Close()
		if err := <-served; err != http.ErrServerClosed {
			t.Errorf("http.Server: %v", err)
		}
	})
	return twins{ln.Addr().String(), addr}
}

var date = regexp.MustCompile(`\r\nDate: [^\r]*\r\n`)

// probe is sent behind everything, to see whether the connection takes another request.
const probe = "GET /probe HTTP/1.1\r\nHost: probe\r\n\r\n"

var talks atomic.Uint32

// talk sends in and the probe in pieces of size, then FIN, and returns all that came back, without
// dates.
func talk(t *testing.T, addr string, in []byte, size int) []byte {
	// From many addresses, since each has ports for some 28,000 connections a minute.
	n := talks.Add(1)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(os.Getpid()), byte(1+n%250))}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	go func() { // the server may end first, so a failure is no news
		for rest := append(bytes.Clone(in), probe...); len(rest) > 0; {
			n := min(size, len(rest))
			if _, err := c.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	out, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) { // the end, with something unread
		t.Fatalf("%.100q, then %v", out, err)
	}
	return date.ReplaceAll(out, []byte("\r\n"))
}

// compare holds the actor against net/http: byte for byte the same answers, and the same end.
func (w twins) compare(t *testing.T, in []byte, size int) {
	t.Helper()
	want := talk(t, w.plain, in, len(in)+len(probe))
	same := bytes.Equal
	if len(in)+len(probe) > 4<<10 {
		// A header that is both too large and malformed is refused for either, as the bytes arrive.
		same = func(a, b []byte) bool { return bytes.Equal(refused(a), refused(b)) }
	}
	for _, n := range []int{len(in) + len(probe), size} {
		if got := talk(t, w.actor, in, n); !same(got, want) {
			common := 0
			for common < min(len(got), len(want)) && got[common] == want[common] {
				common++
			}
			t.Errorf("%.1000q\nin pieces of %d, after %d bytes the actor says\n%.1000q\nnet/http says\n%.1000q", in, n, common, got[common:], want[common:])
		}
	}
}

// refused makes one answer of two.
func refused(out []byte) []byte {
	for _, status := range []string{"HTTP/1.1 431 ", "HTTP/1.1 400 "} {
		if i := bytes.LastIndex(out, []byte(status)); i >= 0 {
			return append(bytes.Clone(out[:i]), "refused"...)
		}
	}
	return out
}

// FuzzTheActorAnswersAsNetHTTP sends any bytes to both, whatever pieces they arrive in.
func FuzzTheActorAnswersAsNetHTTP(f *testing.F) {
	for i, in := range rawRequests() {
		if i%10 == 0 { // TestRawRequestsAreAnsweredAsByNetHTTP has them all
			f.Add([]byte(in), uint16(6))
		}
	}
	w := startTwins(f)
	f.Fuzz(func(t *testing.T, in []byte, size uint16) { w.compare(t, in, int(size)%1000+1) })
}
