//go:build linux

package main

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"regexp"
	"testing"
	"time"
)

// FuzzSession sends any bytes to the actor, and FIN: what comes back is a sequence of responses, the same whatever pieces
// the bytes arrive in.
func FuzzSession(f *testing.F) {
	for _, in := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"POST /u HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloHEAD / HTTP/1.0\r\n\r\n",
		"POST /u HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: x\r\n\r\nPUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\ncut",
		"GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\r\n\r\n\x16\x03\x01\x02", "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		f.Add([]byte(in), uint16(6))
	}
	cfg := testConfig()
	cfg.maxHeader = 4 << 10
	cfg.listenActor = "127.0.0.1:0"
	addr, stop := start(f, cfg, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%q %q: %d bytes, %08x, %t\n", r.Method, r.URL, len(body), crc32.ChecksumIEEE(body), err == nil)
	}))
	f.Cleanup(stop)
	date := regexp.MustCompile(`\r\nDate: [^\r]*\r\n`)
	talk := func(t *testing.T, in []byte, size int) []byte {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(limit))
		go func() { // the server may end first, so a failure is no news
			for len(in) > 0 {
				n := min(size, len(in))
				if _, err := c.Write(in[:n]); err != nil {
					return
				}
				in = in[n:]
			}
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		out, err := io.ReadAll(c)
		if err != nil {
			t.Fatalf("%.100q, then %v", out, err)
		}
		return date.ReplaceAll(out, []byte("\r\n"))
	}
	f.Fuzz(func(t *testing.T, in []byte, size uint16) {
		if bytes.Contains(bytes.ToLower(in), []byte("100-continue")) {
			t.Skip() // whether there is a 100 depends on how much of the body is there already
		}
		whole := talk(t, in, len(in)+1)
		if len(whole) > 0 && !bytes.HasPrefix(whole, []byte("HTTP/1.")) || len(whole) > 1000*(1+len(in)) {
			t.Errorf("%.200q", whole)
		}
		if pieces := talk(t, in, int(size)%1000+1); !bytes.Equal(refused(pieces), refused(whole)) {
			t.Errorf("in pieces of %d:\n%.500q\nwhole:\n%.500q", int(size)%1000+1, pieces, whole)
		}
	})
}

// refused makes one answer of two: which of its faults a header that is both too large and malformed is refused for depends
// on how much of it has arrived.
func refused(out []byte) []byte {
	for _, status := range []string{"HTTP/1.1 431 ", "HTTP/1.1 400 "} {
		if i := bytes.LastIndex(out, []byte(status)); i >= 0 {
			return append(bytes.Clone(out[:i]), "refused"...)
		}
	}
	return out
}
