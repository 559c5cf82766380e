//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"
)

const limit = 60 * time.Second

// servers starts the program's two servers and calls test for each.
func servers(t *testing.T, cfg config, h http.Handler, test func(t *testing.T, addr string)) {
	t.Helper()
	for _, name := range []string{"net", "actor"} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			if name == "net" {
				cfg.listenNet = "127.0.0.1:0"
			} else {
				cfg.listenActor = "127.0.0.1:0"
			}
			addr, stop := start(t, cfg, h)
			t.Cleanup(stop) // behind the clients' ends
			test(t, addr)
		})
	}
}

func testConfig() config {
	return config{headerTimeout: limit, idleTimeout: limit, stallTimeout: limit, maxHeader: 64 << 10}
}

// start runs one server; stop ends it in order and waits.
func start(t testing.TB, cfg config, h http.Handler) (addr string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, w, cfg, h)
		w.CloseWithError(io.EOF)
		done <- err
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatalf("the server did not start: %v", <-done)
	}
	go io.Copy(io.Discard, r)
	fields := strings.Fields(line)
	return fields[len(fields)-1], sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(limit):
			t.Error("run does not end")
		}
	})
}

// A client speaks HTTP by hand.
type client struct {
	*textproto.Conn
	c *net.TCPConn
	t *testing.T
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(limit))
	t.Cleanup(func() { c.Close() })
	return &client{textproto.NewConn(c), c.(*net.TCPConn), t}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.c, s); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// response reads a response to a request of that method, with its body.
func (c *client) response(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.R, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("reading the response: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("reading the response's body: %v", err)
	}
	return resp, string(body)
}

// want sends a request and checks status and body of the response.
func (c *client) want(request string, status int, body string) *http.Response {
	c.t.Helper()
	c.send(request)
	method, _, _ := strings.Cut(request, " ")
	resp, got := c.response(method)
	if resp.StatusCode != status || body != "*" && got != body {
		c.t.Fatalf("%.60q: %s, %.80q, want %d, %.80q", request, resp.Status, got, status, body)
	}
	return resp
}

func (c *client) wantEnd() {
	c.t.Helper()
	if b, err := c.R.ReadByte(); err != io.EOF {
		c.t.Fatalf("read %q, %v, want the end of the connection", b, err)
	}
}

func newHTTPClient(t *testing.T) *http.Client {
	tr := &http.Transport{ExpectContinueTimeout: limit}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: limit}
}

func lettersOf(n int) []byte {
	return bytes.Repeat([]byte("abcdefghijklmnopqrstuvwxyz"), n/26+1)[:n]
}

func TestKeepAliveServesManyRequestsOnAConnection(t *testing.T) {
	servers(t, testConfig(), newMux(), func(t *testing.T, addr string) {
		c := dial(t, addr)
		for range 100 {
			resp := c.want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
			if resp.ContentLength != 6 || resp.Close || resp.Header.Get("Date") == "" || resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
				t.Fatalf("the response: %+v", resp)
			}
		}
		// A request that arrives byte by byte is one, too.
		for _, b := range []byte("GET / HTTP/1.1\r\nHost: x\r\n\r") {
			c.send(string(b))
		}
		c.want("\n", 200, "hello\n")
		c.want("GET /none HTTP/1.1\r\nHost: x\r\n\r\n", 404, "404 page not found\n")
		c.want("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200, "hello\n")
		c.wantEnd()
	})
}

func TestPipelinedRequestsAreAllAnsweredInOrder(t *testing.T) {
	servers(t, testConfig(), newMux(), func(t *testing.T, addr string) {
		c := dial(t, addr)
		// More than the buffers hold, bodies between them, and the last one cut in two.
		var all strings.Builder
		const n = 500
		for i := range n {
			body := strings.Repeat("x", i)
			fmt.Fprintf(&all, "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
		all.WriteString("GET / HTTP/1.1\r\nHo")
		go io.WriteString(c.c, all.String())
		for i := range n {
			_, got := c.response("POST")
			if want := fmt.Sprintf("%d %x\n", i, sha256.Sum256(bytes.Repeat([]byte("x"), i))); got != want {
				t.Fatalf("response %d: %q", i, got)
			}
		}
		c.want("st: x\r\n\r\n", 200, "hello\n")
	})
}

func TestChunkedBodiesGoBothWays(t *testing.T) {
	servers(t, testConfig(), newMux(), func(t *testing.T, addr string) {
		c := dial(t, addr)
		for range 3 {
			resp := c.want("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n7;ext=1\r\n second\r\n0\r\nTrailer: t\r\n\r\n", 200, "first second")
			if len(resp.TransferEncoding) != 1 {
				t.Fatalf("the response has no chunks: %v", resp.Header)
			}
		}
		// Each part comes back while the request goes on.
		c.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
		c.send("4\r\nping\r\n")
		resp, err := http.ReadResponse(c.R, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		for i := range 10 {
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != "ping" {
				t.Fatalf("part %d: %q, %v", i, got, err)
			}
			c.send("4\r\nping\r\n")
		}
		c.send("0\r\n\r\n")
		if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "ping" {
			t.Fatalf("the rest: %q, %v", rest, err)
		}
		c.want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
	})
}

func TestExpectContinueIsAnsweredWhenTheBodyIsRead(t *testing.T) {
	mux := newMux()
	mux.HandleFunc("/refuse", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusForbidden) })
	servers(t, testConfig(), mux, func(t *testing.T, addr string) {
		c := dial(t, addr)
		const head = " HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
		for range 3 {
			c.send("PUT /upload" + head)
			if line, err := c.ReadLine(); err != nil || line != "HTTP/1.1 100 Continue" {
				t.Fatalf("%q, %v", line, err)
			}
			if line, err := c.ReadLine(); err != nil || line != "" {
				t.Fatalf("%q, %v", line, err)
			}
			c.want("body", 200, fmt.Sprintf("4 %x\n", sha256.Sum256([]byte("body"))))
		}
		// Who does not want the body says so at once, and the connection ends since the body may come or
		// not.
		if resp := c.want("PUT /refuse"+head, 403, "no\n"); !resp.Close {
			t.Error("the connection was to be kept")
		}
		_ = c.c.CloseWrite() // net/http waits for the body, or the client's end
		c.wantEnd()
		c = dial(t, addr)
		c.want("PUT /upload HTTP/1.1\r\nHost: x\r\nExpect: magic\r\nContent-Length: 4\r\n\r\n", 417, "*")
	})
}

func TestHEADHasTheHeaderAndNoBody(t *testing.T) {
	servers(t, testConfig(), newMux(), func(t *testing.T, addr string) {
		c := dial(t, addr)
		for range 2 {
			if resp := c.want("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", 200, ""); resp.ContentLength != 6 {
				t.Fatalf("the length is %d", resp.ContentLength)
			}
			if resp := c.want("HEAD /download?size=1000 HTTP/1.1\r\nHost: x\r\n\r\n", 200, ""); resp.ContentLength != 1000 {
				t.Fatalf("the length is %d", resp.ContentLength)
			}
		}
		c.want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
	})
}

func TestBodilessStatusesKeepTheFraming(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/{code}", func(w http.ResponseWriter, r *http.Request) {
		switch r.PathValue("code") {
		case "204":
			w.WriteHeader(http.StatusNoContent)
		case "304":
			w.WriteHeader(http.StatusNotModified)
		case "early":
			w.Header().Set("Link", "</style.css>")
			w.WriteHeader(http.StatusEarlyHints)
		case "empty":
			return
		}
		if _, err := io.WriteString(w, "body"); err != nil && !errors.Is(err, http.ErrBodyNotAllowed) {
			t.Error(err)
		}
	})
	servers(t, testConfig(), mux, func(t *testing.T, addr string) {
		c := dial(t, addr)
		for range 2 {
			c.want("GET /204 HTTP/1.1\r\nHost: x\r\n\r\n", 204, "")
			c.want("GET /304 HTTP/1.1\r\nHost: x\r\n\r\n", 304, "")
			c.want("GET /empty HTTP/1.1\r\nHost: x\r\n\r\n", 200, "")
			c.want("GET /early HTTP/1.1\r\nHost: x\r\n\r\n", 103, "")
			c.want("", 200, "body")
		}
	})
}

func TestHTTP10IsServed(t *testing.T) {
	servers(t, testConfig(), newMux(), func(t *testing.T, addr string) {
		c := dial(t, addr)
		c.want("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, "hello\n")
		c.want("GET / HTTP/1.0\r\n\r\n", 200, "hello\n")
		c.wantEnd()
		// Without a length the end of the connection is the end of the body, whatever the client has
		// asked for.
		c = dial(t, addr)
		resp := c.want("GET /download?size=5000&chunked=1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, string(lettersOf(5000)))
		if resp.ContentLength != -1 || len(resp.TransferEncoding) != 0 {
			t.Fatalf("the response: %+v", resp)
		}
		c.wantEnd()
	})
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	servers(t, testConfig(), newMux(), func(t *testing.T, addr string) {
		t.Parallel()
		for request, status := range map[string]int{
			"nonsense\r\n\r\n":                              400,
			"GET / HTTP/1.1\r\n\r\n":                        400, // no Host
			"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n":  400,
			"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n": 400,
			"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n":     400,
			"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n":                         400,
			"GET / HTTP/3.0\r\nHost: x\r\n\r\n":                                                      505,
			"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot a number\r\n": 400,
			"GET / HTTP/1.1\r\nHost: x\r\nBig: " + strings.Repeat("x", 200<<10) + "\r\n\r\n":         431,
		} {
			c := dial(t, addr)
			go io.WriteString(c.c, request) // of the large one the server does not read the end
			if resp, body := c.response("GET"); resp.StatusCode != status {
				t.Errorf("%.80q: %s, %.80q, want %d", request, resp.Status, body, status)
			} else if !resp.Close {
				t.Errorf("%.80q: the connection was to be kept", request)
			}
		}
		dial(t, addr).want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
	})
}

func TestAnUnreadBodyDoesNotBecomeARequest(t *testing.T) {
	mux := newMux()
	mux.HandleFunc("/ignore", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ignored\n") })
	servers(t, testConfig(), mux, func(t *testing.T, addr string) {
		t.Parallel()
		c := dial(t, addr)
		const smuggled = "GET /download?size=1 HTTP/1.1\r\nHost: x\r\n\r\n"
		for range 2 {
			c.want(fmt.Sprintf("POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(smuggled), smuggled), 200, "ignored\n")
			c.want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
		}
		// One too large to be read for nothing costs the connection, not the answer.
		go io.WriteString(c.c, "POST /ignore HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"+strings.Repeat("x", 1000000))
		if resp, body := c.response("POST"); resp.StatusCode != 200 || body != "ignored\n" || !resp.Close {
			t.Fatalf("%+v, %q", resp, body)
		}
	})
}

func TestGosClientMoves64MiBBothWays(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	content := lettersOf(size)
	sum := sha256.Sum256(content)
	want := fmt.Sprintf("%d %x\n", size, sum)
	servers(t, testConfig(), newMux(), func(t *testing.T, addr string) {
		hc := newHTTPClient(t)
		for _, chunked := range []bool{false, true} {
			var body io.Reader = bytes.NewReader(content)
			if chunked {
				body = struct{ io.Reader }{body}
			}
			req, err := http.NewRequest("PUT", "http://"+addr+"/upload", body)
			if err != nil {
				t.Fatal(err)
			}
			if chunked {
				req.Header.Set("Expect", "100-continue")
			}
			resp, err := hc.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(got) != want {
				t.Fatalf("upload: %q, %v", got, err)
			}
			url := fmt.Sprintf("http://%s/download?size=%d", addr, size)
			if chunked {
				url += "&chunked=1"
			}
			resp, err = hc.Get(url)
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			n, err := io.Copy(h, resp.Body)
			resp.Body.Close()
			if n != size || err != nil || [32]byte(h.Sum(nil)) != sum || chunked != (resp.ContentLength == -1) {
				t.Fatalf("download: %d bytes of %d, %v", n, resp.ContentLength, err)
			}
		}
	})
}
