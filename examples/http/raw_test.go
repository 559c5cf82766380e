//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rawRequests are ways to ask that servers have taken for different things: each in the places
// where it matters.
func rawRequests() (all []string) {
	add := func(in ...string) { all = append(all, in...) }
	// Lines of a header, each beside a good one.
	for _, line := range []string{
		"Content-Length : 46", "Content-Length: +4", "Content-Length: 4, 4", "Content-Length: 4,5", "Content-Length:4\r\nContent-Length:4",
		"Content-Length:4\r\nContent-Length:5", "Content-Length: -1", "Content-Length: 0x4", "Content-Length: 4 4", "Content-Length:",
		"Content-Length: 99999999999999999999", "Content-Length: 04", "content-length: 4", "Content-Length:\t4", "Content-Length: 4\t",
		"Content\x00-Length: 4", "Content_Length: 4", " Content-Length: 4", "Content-Length\t: 4", "Content-Length: 4\x00", "Content-Length: 4\x0b",
		"Transfer-Encoding : chunked", "Transfer-Encoding: chunked", "Transfer-Encoding:chunked\r\nContent-Length:4", "Content-Length:4\r\nTransfer-Encoding:chunked",
		"Transfer-Encoding: identity", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding: xchunked",
		"Transfer-Encoding: Chunked", "Transfer-Encoding:\tchunked", "Transfer-Encoding:\x0bchunked", "Transfer-Encoding: \"chunked\"", "Transfer-Encoding:",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
		"Transfer-Encoding:\r\n chunked", "X: y\r\n\tTransfer-Encoding: chunked", "Transfer\xc3\xa9-Encoding: chunked", "Transfer-Encoding\x00: chunked",
		"X: y\rTransfer-Encoding: chunked", "X: y\nTransfer-Encoding: chunked", "X: y\n\nGET /inner HTTP/1.1", "X: y\r\r", "X: y\x00z", "X: y\x7f", "X: \xff\xfe",
		"X\x01: y", "X(y): z", "X y: z", ": empty", "no colon", "X:", "X: " + strings.Repeat("y", 3000), "\xe2\x82\xac: y",
		"Host: second", "Host : x", "Expect: 100-continue", "Expect: 100-Continue", "Expect: magic", "Expect: 100-continue\r\nContent-Length: 4",
		"Connection: close", "Connection: keep-alive", "Connection: Close, X", "Connection: x,close", "Connection: closed", "Proxy-Connection: close",
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
		"Connection: upgrade\r\nUpgrade: websocket", "Trailer: X\r\nTransfer-Encoding: chunked", "Trailer: Content-Length\r\nTransfer-Encoding: chunked",
	} {
		for _, path := range []string{"/", "/ignore"} {
			add("POST " + path + " HTTP/1.1\r\nHost: x\r\n" + line + "\r\n\r\n4\r\nabcd\r\n0\r\n\r\n")
		}
		add("GET / HTTP/1.1\r\n"+line+"\r\nHost: x\r\n\r\n", "POST / HTTP/1.0\r\n"+line+"\r\n\r\nabcd")
	}
	for _, host := range []string{"", " ", "x y", "x/y", "x@y", "a\x00b", "[::1]:80", "x:80", "x\ty", "\xff", "x,y", "<x>", "x\\y", "x?y", "x#y", "%41"} {
		add("GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n", "GET http://z/ HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	}
	for _, line := range []string{
		"GET / HTTP/1.1", "GET / HTTP/1.0", "GET / HTTP/0.9", "GET / HTTP/1.2", "GET / HTTP/2.0", "GET / HTTP/3.0", "GET / HTTP/1.10", "GET / HTTP/01.1", "GET / http/1.1",
		"GET / HTTP/1", "GET / HTTP/1.", "GET / HTTP/1.1 ", "GET  / HTTP/1.1", "GET /  HTTP/1.1", "GET\t/ HTTP/1.1", " GET / HTTP/1.1", "GET / HTTP/1.1\x00", "GET /",
		"GET", "", "GET / x HTTP/1.1", "GET /\x00 HTTP/1.1", "GET /\xff HTTP/1.1", "GET /%zz HTTP/1.1", "GET /%00 HTTP/1.1", "GET //x/ HTTP/1.1", "GET x HTTP/1.1", "GET ?x HTTP/1.1",
		"GET http://y/ HTTP/1.1", "GET http://y:z/ HTTP/1.1", "GET http:/// HTTP/1.1", "GET * HTTP/1.1", "OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.0", "OPTIONS / HTTP/1.1",
		"CONNECT x:80 HTTP/1.1", "CONNECT / HTTP/1.1", "CONNECT x HTTP/1.0", "HEAD / HTTP/1.1", "HEAD / HTTP/1.0", "TRACE / HTTP/1.1", "G(T / HTTP/1.1", "g / HTTP/1.1",
		"GET / HTTP/1.1\rX", "\r\nGET / HTTP/1.1", "\nGET / HTTP/1.1", "PRI * HTTP/2.0", "GET /a#b HTTP/1.1", "GET /none HTTP/1.1", "GET /close HTTP/1.1", "GET /long HTTP/1.1",
		"GET /abort HTTP/1.1", "GET /flush HTTP/1.0", "\x16\x03\x01\x02",
	} {
		add(line+"\r\nHost: x\r\n\r\n", line+"\r\n\r\n", line+"\nHost: x\n\n")
	}
	// Bodies in chunks.
	for _, body := range []string{
		"0\r\n\r\n", "4\r\nabcd\r\n0\r\n\r\n", "4;x=y\r\nabcd\r\n0\r\n\r\n", "4;" + strings.Repeat("x", 5000) + "\r\nabcd\r\n0\r\n\r\n", "4 \r\nabcd\r\n0\r\n\r\n", " 4\r\nabcd\r\n0\r\n\r\n",
		"4\nabcd\n0\n\n", "4\r\nabcd0\r\n\r\n", "4\r\nabcde\r\n0\r\n\r\n", "0x4\r\nabcd\r\n0\r\n\r\n", "+4\r\nabcd\r\n0\r\n\r\n", "-1\r\n\r\n", "\r\n0\r\n\r\n", "FFFFFFFFFFFFFFFFF\r\n", "fffffffffffffffe\r\nab",
		"00000000000000000004\r\nabcd\r\n0\r\n\r\n", "4\r\nabcd\r\n0\r\nX: y\r\n\r\n", "4\r\nabcd\r\n0\r\nContent-Length: 9\r\n\r\n", "4\r\nabcd\r\n0\r\nX y\r\n\r\n", "4\r\nabcd\r\n0\r\nX : y\r\n\r\n",
		"4\r\nabcd\r\n0\r\nX: y\n\n", "4\r\nabcd\r\n0\r\n", "4\r\nab", "4\rabcd\r0\r\r", "4;x=\"\r\n\"\r\nabcd\r\n0\r\n\r\n", "4;\n\r\nabcd\r\n0\r\n\r\n", "1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
		strings.Repeat("1\r\na\r\n", 300) + "0\r\n\r\n", "4\r\nabcd\r\n0\r\n" + strings.Repeat("X: y\r\n", 2000) + "\r\n",
	} {
		for _, path := range []string{"/", "/ignore", "/some", "/flush"} {
			add("POST " + path + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
		}
	}
	// Several requests, and what is between them.
	const get, post = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd"
	for _, between := range []string{"", "\r\n", "\n", "\r", "\r\n\r\n", "\r\n\r\n\r\n", " ", "\r\nG", "x", "xy\r\n", "\x00", "\n\n\n\n\n"} {
		for _, first := range []string{get, post, strings.Replace(get, "GET", "HEAD", 1), post + "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", post + get} {
			add(first+between+get, first+between)
		}
	}
	for _, path := range []string{"/ignore", "/some", "/close", "/none", "/flush", "/abort"} {
		for _, length := range []int{0, 4, 5, 40, 300 << 10} {
			add(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nabcd", path, length))
		}
		add("GET "+path+" HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"+get, "GET "+path+" HTTP/1.0\r\n\r\n"+get)
	}
	for n := 4 << 10; n <= 9<<10; n += 333 {
		add("GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("y", n)+"\r\n\r\n", "GET /"+strings.Repeat("y", n)+" HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	return all
}

// The actor's answers are those of net/http, and its connections end when net/http's do, whatever a
// client sends.
func TestRawRequestsAreAnsweredAsByNetHTTP(t *testing.T) {
	w := startTwins(t)
	requests := rawRequests()
	for i, in := range requests {
		w.compare(t, []byte(in), i%7+1)
	}
	t.Logf("%d requests", len(requests))
}

// A connection that was parked goes on as if it had not been. To see it fail: return got from
// loan.begin at once.
func TestAParkedConnectionGoesOnAsByNetHTTP(t *testing.T) {
	w := startTwins(t)
	const get, post = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd"
	const options = "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, first := range [][]string{{get}, {post}, {post, get}, {post, options}, {get, post}} {
		for _, then := range []string{
			get, "\r\n" + get, "\n" + get, "\r\n\r\n" + get, "\r\n\r\n\r\n" + get, "\r\n", "\r", "G", "GET", "GET ", "xyz", "x\r\n", "\r\n\r\n", "\n\n\n\n\n", "", "\r\nGE",
		} {
			for _, apart := range []bool{false, true} {
				var said [2]string
				for i, addr := range []string{w.plain, w.actor} {
					c := dial(t, addr)
					for _, in := range first {
						c.want(in, 200, "*")
					}
					for k, b := range []byte(then) {
						if _, err := c.c.Write([]byte{b}); err != nil {
							break // the server has ended it
						}
						if apart && k < 6 {
							<-time.After(100 * time.Microsecond) // not too late for the server to have it alone, nor does it matter
						}
					}
					_ = c.c.CloseWrite()
					out, err := io.ReadAll(c.R)
					if err != nil && !errors.Is(err, syscall.ECONNRESET) {
						t.Fatal(err)
					}
					said[i] = string(date.ReplaceAll(out, []byte("\r\n")))
				}
				if said[0] != said[1] {
					t.Errorf("behind %q, %q: the actor says\n%q\nnet/http says\n%q", first, then, said[1], said[0])
				}
			}
		}
	}
}

// What else net/http gives a handler is there on an actor too.
func TestHijackAndContextWork(t *testing.T) {
	over := make(chan struct{}, 1)
	mux := newMux()
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, rw)
		}()
	})
	mux.HandleFunc("/wait", func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		over <- struct{}{}
	})
	servers(t, testConfig(), mux, func(t *testing.T, addr string) {
		for _, before := range []string{"", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
			c := dial(t, addr)
			if before != "" {
				c.want(before, 200, "hello\n")
			}
			c.send("GET /hijack HTTP/1.1\r\nHost: x\r\n\r\necho")
			got := make([]byte, 4)
			for range 10 {
				if _, err := io.ReadFull(c.R, got); err != nil || string(got) != "echo" {
					t.Fatalf("%q, %v", got, err)
				}
				c.send("echo")
			}
			_ = c.c.CloseWrite()
			if rest, err := io.ReadAll(c.R); err != nil || string(rest) != "echo" {
				t.Fatalf("%q, %v", rest, err)
			}
			c = dial(t, addr)
			c.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
			c.c.Close()
			select {
			case <-over:
			case <-time.After(limit):
				t.Fatal("the request's context does not end with the client")
			}
		}
	})
}
