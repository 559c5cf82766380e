//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const limit = 60 * time.Second

// asProgram in the environment makes the test binary the program itself.
const asProgram = "ECHO_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// routes runs test against a server of each route, which ends when the test does.
func routes(t *testing.T, test func(t *testing.T, addr string, cancel func())) {
	for _, route := range []string{"stream", "mailbox", "actor", "legacy"} {
		t.Run(route, func(t *testing.T) {
			t.Parallel() // the four of them
			ctx, cancel := context.WithCancel(context.Background())
			r, w := io.Pipe()
			done := make(chan error, 1)
			go func() {
				err := run(ctx, w, "127.0.0.1:0", 0, route, "")
				w.CloseWithError(io.EOF)
				done <- err
			}()
			t.Cleanup(func() { // behind the clients' ends
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
			addr, err := bufio.NewReader(r).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			test(t, strings.TrimSpace(strings.TrimPrefix(addr, "listening on ")), cancel)
		})
	}
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func send(t *testing.T, c net.Conn, p []byte) {
	t.Helper()
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, c net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d of %d bytes came back, equal: %v, %v", n, len(want), bytes.Equal(got, want), err)
	}
}

func expectEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v, want the end", n, err)
	}
}

// random is n bytes in which a block that is lost, doubled or swapped shows.
func random(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

func TestEveryRouteEchoes(t *testing.T) {
	routes(t, func(t *testing.T, addr string, _ func()) {
		conns := make([]net.Conn, 10)
		for i := range conns {
			conns[i] = dial(t, addr)
		}
		for round := range 50 {
			for i, c := range conns {
				send(t, c, fmt.Appendf(nil, "%d of %d;", round, i))
			}
			for i, c := range conns {
				expect(t, c, fmt.Appendf(nil, "%d of %d;", round, i))
			}
		}
	})
}

func TestEightMegabytesGoBothWaysAtOnce(t *testing.T) {
	content := random(8 << 20)
	routes(t, func(t *testing.T, addr string, _ func()) {
		var wg sync.WaitGroup
		for range 3 {
			c := dial(t, addr)
			wg.Go(func() {
				if _, err := c.Write(content); err != nil {
					t.Error(err)
				}
				_ = c.CloseWrite()
			})
			wg.Go(func() {
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes came back, %v", len(got), err)
				}
			})
		}
		wg.Wait()
	})
}

// A client that sends and does not read is not read any more when its echo fills the buffers, and
// gets all of it when it reads at last.
func TestASlowReaderIsPaused(t *testing.T) {
	content := random(1 << 20)
	routes(t, func(t *testing.T, addr string, _ func()) {
		c := dial(t, addr)
		sent := 0
		for stalled := false; !stalled; {
			// A fifth of a second without room for a byte is a pause, or a slow machine; the rest holds
			// either way.
			_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			n, err := c.Write(content[sent%len(content):])
			sent += n
			stalled = errors.Is(err, os.ErrDeadlineExceeded)
			if err != nil && !stalled {
				t.Fatal(err)
			}
			if sent > 256<<20 {
				t.Fatalf("%d bytes were taken from a client that reads nothing", sent)
			}
		}
		_ = c.SetDeadline(time.Now().Add(limit))
		finished := make(chan error, 1)
		go func() { finished <- c.CloseWrite() }()
		for left := sent; left > 0; {
			n := min(left, len(content))
			expect(t, c, content[:n])
			left -= n
		}
		expectEOF(t, c)
		if err := <-finished; err != nil {
			t.Error(err)
		}
	})
}

func TestTheEchoOfAHalfClosedConnectionArrives(t *testing.T) {
	content := random(300000)
	routes(t, func(t *testing.T, addr string, _ func()) {
		c := dial(t, addr)
		send(t, c, content)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		expect(t, c, content)
		expectEOF(t, c)
	})
}

func TestTheEndOfTheContextDrains(t *testing.T) {
	content := random(2 << 20)
	routes(t, func(t *testing.T, addr string, cancel func()) {
		c, idle := dial(t, addr), dial(t, addr)
		send(t, idle, []byte("x"))
		expect(t, idle, []byte("x"))
		go c.Write(content)
		expect(t, c, content[:1000]) // the echo has begun
		cancel()
		expectEOF(t, idle)
		idle.Close()
		// What was echoed before the end still comes, in order, and then the end rather than a reset.
		got, err := io.ReadAll(c)
		if err != nil || !bytes.HasPrefix(content[1000:], got) {
			t.Errorf("%d bytes more, %v", len(got), err)
		}
		c.Close()
		for begin := time.Now(); ; time.Sleep(time.Millisecond) { // the loop that accepts may come to its end later
			c, err := net.Dial("tcp", addr)
			if err != nil {
				break
			}
			c.Close()
			if time.Since(begin) > 20*time.Second {
				t.Fatal("the server still accepts")
			}
		}
	})
}

func TestUnknownRoutesAreRefused(t *testing.T) {
	if err := run(context.Background(), io.Discard, "127.0.0.1:0", 0, "scenic", "127.0.0.1:0"); err == nil {
		t.Error("an unknown route was accepted")
	}
}

func TestSIGTERMEndsTheProgramInOrder(t *testing.T) {
	for _, route := range []string{"stream", "mailbox", "actor", "legacy"} {
		t.Run(route, func(t *testing.T) {
			prog := exec.Command(os.Args[0], "-addr", "127.0.0.1:0", "-route", route)
			prog.Env = append(os.Environ(), asProgram+"=1")
			prog.Stderr = os.Stderr
			stdout, err := prog.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := prog.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = prog.Process.Kill() }()
			var addr string
			if _, err := fmt.Fscanf(stdout, "listening on %s\n", &addr); err != nil {
				t.Fatal(err)
			}
			c := dial(t, addr)
			send(t, c, []byte("x"))
			expect(t, c, []byte("x"))
			if err := prog.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			expectEOF(t, c)
			c.Close()
			if err := prog.Wait(); err != nil {
				t.Fatalf("the program ended with %v", err)
			}
		})
	}
}
