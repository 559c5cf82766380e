//go:build linux

package main

import (
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestAClientThatGoesEarlyHarmsNobody(t *testing.T) {
	entered, left := make(chan struct{}, 8), make(chan error, 8)
	mux := newMux()
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		_, err := io.Copy(w, new(letters))
		left <- err
	})
	mux.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		_, err := io.Copy(io.Discard, r.Body)
		left <- err
	})
	servers(t, testConfig(), mux, func(t *testing.T, addr string) {
		for _, request := range []string{
			"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n",
			"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
			"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
		} {
			for _, reset := range []bool{false, true} {
				c := dial(t, addr)
				c.send(request)
				<-entered
				if reset {
					_ = c.c.SetLinger(0)
				}
				c.c.Close()
				select {
				case err := <-left:
					if err == nil {
						t.Errorf("%.40q: the handler saw no error", request)
					}
				case <-time.After(limit):
					t.Fatalf("%.40q: the handler goes on", request)
				}
			}
		}
		half := dial(t, addr)
		half.send("GET / HT")
		half.c.Close()
		// A client may end its side behind its request.
		c := dial(t, addr)
		c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = c.c.CloseWrite()
		if _, body := c.response("GET"); body != "hello\n" {
			t.Errorf("the answer behind the client's end: %q", body)
		}
		c.wantEnd()
	})
}

func TestAHandlersAbortCutsTheResponseOff(t *testing.T) {
	mux := newMux()
	mux.HandleFunc("/abort", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat("x", 10000))
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/short", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		io.WriteString(w, "short")
	})
	mux.HandleFunc("/long", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "4")
		io.WriteString(w, "long")
		if _, err := io.WriteString(w, "er"); err != http.ErrContentLength {
			t.Errorf("writing more than was declared: %v", err)
		}
	})
	servers(t, testConfig(), mux, func(t *testing.T, addr string) {
		for _, path := range []string{"/abort", "/short"} {
			c := dial(t, addr)
			c.send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(c.R, nil)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			if err == nil {
				t.Errorf("%s: the response looks whole", path)
			}
		}
		c := dial(t, addr)
		c.send("GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
		if line, err := c.ReadLine(); err == nil && line != "HTTP/1.1 200 OK" {
			t.Errorf("too much was written: %q", line)
		}
	})
}

func TestASlowHeaderIsCutOff(t *testing.T) {
	cfg := testConfig()
	cfg.headerTimeout = 100 * time.Millisecond
	servers(t, cfg, newMux(), func(t *testing.T, addr string) {
		slow := make([]*client, 20)
		for i := range slow {
			slow[i] = dial(t, addr)
			slow[i].want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
			slow[i].send("GET / HTTP/1.1\r\nHost:")
		}
		for _, c := range slow {
			for { // a byte now and then does not help
				if _, err := io.WriteString(c.c, "x"); isTimeout(err) {
					t.Fatal("a slow header is not cut off")
				} else if err != nil {
					break
				}
				_ = c.c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				if _, err := c.R.ReadByte(); err != nil && !isTimeout(err) {
					break
				}
			}
		}
	})
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestIdleConnectionsEndAfterTheirTime(t *testing.T) {
	cfg := testConfig()
	cfg.idleTimeout = 100 * time.Millisecond
	mux := newMux()
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		<-time.After(3 * cfg.idleTimeout) // a handler's time is not idle
		io.WriteString(w, "done\n")
	})
	servers(t, cfg, mux, func(t *testing.T, addr string) {
		c := dial(t, addr)
		c.want("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", 200, "done\n")
		c.want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
		if _, err := c.R.ReadByte(); err == nil || isTimeout(err) {
			t.Fatalf("the idle connection: %v", err)
		}
	})
}

func TestRequestsUnderWayAreAnsweredAtTheEnd(t *testing.T) {
	for _, name := range []string{"net", "actor"} {
		t.Run(name, func(t *testing.T) {
			entered, release := make(chan struct{}), make(chan struct{})
			mux := newMux()
			mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
				close(entered)
				<-release
				io.WriteString(w, "done\n")
			})
			cfg := testConfig()
			if name == "net" {
				cfg.listenNet = "127.0.0.1:0"
			} else {
				cfg.listenActor = "127.0.0.1:0"
			}
			addr, stop := start(t, cfg, mux)
			idle, busy := dial(t, addr), dial(t, addr)
			idle.want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
			busy.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
			<-entered
			stopped := make(chan struct{})
			go func() { stop(); close(stopped) }()
			idle.wantEnd() // so the end has begun
			close(release)
			if resp, body := busy.response("GET"); body != "done\n" || !resp.Close {
				t.Errorf("the request under way: %+v, %q", resp, body)
			}
			busy.wantEnd()
			idle.c.Close() // the server's Close waits for the peers', for a while
			busy.c.Close()
			<-stopped
		})
	}
}

func TestIdleKeepAliveConnectionsHaveNoGoroutine(t *testing.T) {
	cfg := testConfig()
	cfg.listenActor = "127.0.0.1:0"
	addr, stop := start(t, cfg, newMux())
	t.Cleanup(stop)
	const n = 500
	before := runtime.NumGoroutine()
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = dial(t, addr)
		clients[i].want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
	}
	for end := time.Now().Add(limit); runtime.NumGoroutine() > before+n/10; {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines for %d idle connections", runtime.NumGoroutine()-before, n)
		}
		<-time.After(time.Millisecond)
	}
	for _, c := range clients {
		c.want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
	}
}

func TestAHalfSentRequestDoesNotHoldUpOthers(t *testing.T) {
	servers(t, testConfig(), newMux(), func(t *testing.T, addr string) {
		for range 200 {
			dial(t, addr).send("POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
		}
		c := dial(t, addr)
		for range 200 {
			c.want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
		}
	})
}
