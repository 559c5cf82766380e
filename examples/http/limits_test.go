//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
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

// wantCut waits for the end of a connection whatever is sent on it: drip a byte now and then, or
// nothing if it is empty.
func (c *client) wantCut(drip string) {
	c.t.Helper()
	for {
		if drip != "" {
			if _, err := io.WriteString(c.c, drip); isTimeout(err) {
				c.t.Fatal("the connection does not end")
			} else if err != nil {
				return
			}
			_ = c.c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		}
		if _, err := c.R.ReadByte(); err != nil && !isTimeout(err) {
			return
		} else if err != nil && drip == "" {
			c.t.Fatal("the connection does not end")
		}
	}
}

func TestASlowHeaderIsCutOff(t *testing.T) {
	cfg := testConfig()
	cfg.headerTimeout = 2 * time.Second // in which a whole request comes
	servers(t, cfg, newMux(), func(t *testing.T, addr string) {
		t.Parallel()
		slow := make([]*client, 20)
		for i := range slow {
			slow[i] = dial(t, addr)
			if i%2 == 0 { // a connection's first request, or a later one
				slow[i].want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
			}
			slow[i].send([]string{"GET / HTTP/1.1\r\nHost:", "GET "}[i/2%2])
		}
		for i, c := range slow {
			c.wantCut([]string{"x", ""}[i/4%2])
		}
	})
}

func TestAClientThatSaysNothingIsCutOff(t *testing.T) {
	cfg := testConfig()
	cfg.headerTimeout = 100 * time.Millisecond
	servers(t, cfg, newMux(), func(t *testing.T, addr string) {
		for range 5 {
			defer dial(t, addr).wantCut("")
		}
	})
}

// bodies are beginnings of requests whose body does not come.
func bodies(path string) []string {
	head := "POST " + path + " HTTP/1.1\r\nHost: x\r\n"
	return []string{
		head + "Content-Length: 100\r\n\r\nhalf", head + "Content-Length: 100\r\n\r\n",
		head + "Transfer-Encoding: chunked\r\n\r\n64\r\nhalf", head + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	}
}

func TestABodyThatStallsIsEnded(t *testing.T) {
	cfg := testConfig()
	cfg.stallTimeout = 100 * time.Millisecond
	ended := make(chan error, 10)
	mux := newMux()
	mux.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		ended <- err
	})
	mux.HandleFunc("/ignore", func(w http.ResponseWriter, r *http.Request) {})
	mux.HandleFunc("/early", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush() // net/http reads the body before it
		_, _ = io.Copy(io.Discard, r.Body)
	})
	mux.HandleFunc("/late", func(w http.ResponseWriter, r *http.Request) {
		go func() { _, _ = io.Copy(io.Discard, r.Body) }() // and leaves it behind
	})
	servers(t, cfg, mux, func(t *testing.T, addr string) {
		var cut []*client
		for _, path := range []string{"/read", "/ignore", "/early", "/late", "/upload", "/echo"} {
			for _, in := range bodies(path) {
				c := dial(t, addr)
				c.send(in)
				cut = append(cut, c)
			}
		}
		for _, c := range cut {
			c.wantCut("")
		}
		for range bodies("/read") {
			if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the handler read to %v", err)
			}
		}
	})
}

func TestAHandlersTimeIsNoStall(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.stallTimeout = time.Second // a pause of the machine's within a read is no stall
	mux := http.NewServeMux()
	wait := func(r *http.Request) string {
		select {
		case <-r.Context().Done():
			return "the context has ended"
		case <-time.After(cfg.stallTimeout * 3 / 2):
			return "done"
		}
	}
	mux.HandleFunc("/before", func(w http.ResponseWriter, r *http.Request) {
		how := wait(r)
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, how, n, err)
	})
	mux.HandleFunc("/behind", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, wait(r), n, err)
	})
	mux.HandleFunc("/unread", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, wait(r), 4, nil) })
	servers(t, cfg, mux, func(t *testing.T, addr string) {
		t.Parallel()
		for _, path := range []string{"/before", "/behind", "/unread"} {
			t.Run(path[1:], func(t *testing.T) {
				t.Parallel()
				c := dial(t, addr)
				for range 2 {
					c.want("POST "+path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", 200, "done4 <nil>")
				}
			})
		}
	})
}

func TestASlowBodyThatGoesOnIsTaken(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.stallTimeout = 4 * time.Second // a pause of the machine's is no stall
	servers(t, cfg, newMux(), func(t *testing.T, addr string) {
		t.Parallel()
		c := dial(t, addr)
		c.send("POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n")
		for range 20 {
			<-time.After(cfg.stallTimeout / 18) // together more than stallTimeout
			c.send("x")
		}
		c.want("", 200, fmt.Sprintf("20 %x\n", sha256.Sum256(bytes.Repeat([]byte("x"), 20))))
		c.want("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "hello\n")
	})
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestIdleConnectionsEndAfterTheirTime(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.idleTimeout = 2 * time.Second // in which the next request comes
	mux := newMux()
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		<-time.After(cfg.idleTimeout * 3 / 2) // a handler's time is not idle
		io.WriteString(w, "done\n")
	})
	servers(t, cfg, mux, func(t *testing.T, addr string) {
		t.Parallel()
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
