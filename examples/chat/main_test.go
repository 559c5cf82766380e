package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// limit is how long a test waits for what must come. Nothing takes that long unless it is broken.
const limit = 60 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv("CHAT_TEST_MAIN") != "" { // a test has started this binary as the server
		main()
		os.Exit(0)
	}
	testnet.MainOfProgram(m)
}

// startServer serves cfg on a free port until the test ends, and checks then that everything has
// stopped in order.
func startServer(t *testing.T, cfg config) (addr string, h *hub, stop func()) {
	t.Helper()
	cfg.addr = "127.0.0.1:0"
	cfg.log = slog.New(slog.NewTextHandler(t.Output(), nil))
	h = newHub(cfg.history)
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := serve(ctx, w, cfg, h)
		w.CloseWithError(errors.Join(errors.New("the server ended"), err))
		done <- err
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(limit):
			panic("serve does not return after the end of its context")
		}
		if len(h.names) != 0 || len(h.rooms) != 0 {
			t.Errorf("left behind: names %v, rooms %v", h.names, h.rooms)
		}
	}
	t.Cleanup(stop)
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("the server printed %q", line)
	}
	return addr, h, stop
}

// A client is one person at a terminal.
type client struct {
	t  *testing.T
	c  *net.TCPConn
	in *bufio.Reader
}

// dial connects, and reads the greeting.
func dial(t *testing.T, addr string) *client {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(limit))
	cl := &client{t, c.(*net.TCPConn), bufio.NewReader(c)}
	if line := cl.next(); !strings.HasPrefix(line, "* welcome, "+guest) {
		t.Fatalf("greeted with %q", line)
	}
	return cl
}

// enter connects, takes a name, and joins a room.
func enter(t *testing.T, addr, name, room string) *client {
	t.Helper()
	cl := dial(t, addr)
	cl.send("/nick "+name, "/join "+room)
	cl.want("* you are " + name)
	cl.until(fmt.Sprintf("[%s] * %s joined", room, name))
	return cl
}

func (cl *client) send(lines ...string) {
	cl.t.Helper()
	if _, err := io.WriteString(cl.c, strings.Join(lines, "\n")+"\n"); err != nil {
		cl.t.Fatal(err)
	}
}

func (cl *client) next() string {
	cl.t.Helper()
	line, err := cl.in.ReadString('\n')
	if err != nil {
		cl.t.Fatalf("read %q, then: %v", line, err)
	}
	return line[:len(line)-1]
}

// want reads the next lines, which must be these.
func (cl *client) want(lines ...string) {
	cl.t.Helper()
	for _, want := range lines {
		if got := cl.next(); got != want {
			cl.t.Fatalf("got %q, want %q", got, want)
		}
	}
}

// until reads up to a line.
func (cl *client) until(want string) {
	cl.t.Helper()
	for cl.next() != want {
	}
}

// wantEnd reads the server's orderly end of the stream.
func (cl *client) wantEnd() {
	cl.t.Helper()
	if rest, err := io.ReadAll(cl.in); len(rest) > 0 || err != nil {
		cl.t.Fatalf("read %q and %v, want the end", rest, err)
	}
}

func TestASignalStopsTheServerInOrder(t *testing.T) {
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-addr", "127.0.0.1:0")
			cmd.Env = append(os.Environ(), "CHAT_TEST_MAIN=1")
			cmd.Stderr = t.Output()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				cancel()
				t.Fatal(err, cmd.Wait())
			}
			ann := dial(t, strings.TrimSpace(strings.TrimPrefix(line, "listening on ")))
			if err := cmd.Process.Signal(sig); err != nil {
				t.Error(err)
			}
			ann.want("* the server is stopping, goodbye")
			ann.wantEnd()
			ann.c.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("the server exited with %v, want 0", err)
			}
		})
	}
}

func TestBadFlagsAreErrors(t *testing.T) {
	for _, cfg := range []config{
		{history: -1},
		{idleWarn: -1},
		{idleClose: -1},
		{idleWarn: time.Second},
		{idleWarn: time.Second, idleClose: time.Second},
	} {
		cfg.addr = "127.0.0.1:0"
		if err := run(t.Context(), io.Discard, cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}
