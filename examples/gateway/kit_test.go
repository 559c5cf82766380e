package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.MainOfProgram(m) }

// patience bounds every wait: nothing takes as long on a machine that works.
const patience = 30 * time.Second

// A redisServer is a real Redis, on an address of its own: a connection that other tests begin from
// 127.0.0.1 cannot have taken the port before Redis has it, nor while it is down.
type redisServer struct {
	t    testing.TB
	port string
	cmd  *exec.Cmd
}

const redisHost = "127.0.0.2"

func startRedis(t testing.TB) *redisServer {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("SKIPPED: redis-server is not installed")
	}
	ln, err := net.Listen("tcp", redisHost+":0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	ln.Close()
	r := &redisServer{t: t, port: port}
	r.start()
	t.Cleanup(r.kill)
	return r
}

func (r *redisServer) addr() string { return redisHost + ":" + r.port }

func (r *redisServer) start() {
	r.t.Helper()
	r.cmd = exec.Command("redis-server", "--bind", redisHost, "--port", r.port, "--save", "", "--appendonly", "no", "--maxclients", "9000", "--dir", r.t.TempDir())
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	testnet.WaitFor(r.t, "Redis answers", func() bool {
		c, err := net.Dial("tcp", r.addr())
		if err != nil {
			return false
		}
		defer c.Close()
		fmt.Fprint(c, "PING\r\n")
		line, _ := bufio.NewReader(c).ReadString('\n')
		return line == "+PONG\r\n"
	})
}

func (r *redisServer) signal(sig syscall.Signal) { _ = r.cmd.Process.Signal(sig) }

func (r *redisServer) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// connections is how many connections Redis has, without that which asks.
func (r *redisServer) connections() int {
	c := connect(r.t, r.addr())
	defer c.Close()
	return strings.Count(c.do("CLIENT", "LIST"), "id=") - 1
}

// start runs a gateway until the test ends, and returns its address.
func start(t testing.TB, cfg config) (addr string, stop func()) {
	t.Helper()
	full := config{listen: "127.0.0.1:0", conns: 8, private: 1000, timeout: patience, maxRequest: 16 << 20,
		clientBuffer: 32 << 20, maxBuffered: 1 << 30, maxClients: 10000, drain: patience, user: "default"}
	full.to, full.password = cfg.to, cfg.password
	if cfg.conns > 0 {
		full.conns = cfg.conns
	}
	if cfg.timeout > 0 {
		full.timeout = cfg.timeout
	}
	if cfg.clientBuffer > 0 {
		full.clientBuffer = cfg.clientBuffer
	}
	if cfg.private > 0 {
		full.private = cfg.private
	}
	if err := full.check(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(ctx, in, io.Discard, full) }()
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatal(line, err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience + 10*time.Second):
				t.Error("the gateway does not end")
			}
		})
	}
	t.Cleanup(stop)
	return addr, stop
}

// A conn is a client's connection.
type conn struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func connect(t testing.TB, addr string) *conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return &conn{c, t, bufio.NewReader(c)}
}

func encode(args ...string) []byte {
	b := make([][]byte, len(args))
	for i, a := range args {
		b[i] = []byte(a)
	}
	return appendRequest(nil, b...)
}

// read reads one reply, as it is on the wire.
func (c *conn) read() (string, error) {
	var s scanner
	var all []byte
	for {
		b, err := c.r.ReadByte()
		if err != nil {
			return string(all), err
		}
		all = append(all, b)
		if _, whole, err := s.next([]byte{b}); err != nil || whole {
			return string(all), err
		}
		if m := min(s.skip, 1<<20); m > 0 { // the rest of a string at once
			rest := make([]byte, m)
			if _, err := io.ReadFull(c.r, rest); err != nil {
				return string(all), err
			}
			all = append(all, rest...)
			if _, whole, err := s.next(rest); err != nil || whole {
				return string(all), err
			}
		}
	}
}

func (c *conn) do(args ...string) string {
	c.t.Helper()
	if _, err := c.Write(encode(args...)); err != nil {
		c.t.Fatal(err)
	}
	reply, err := c.read()
	if err != nil {
		c.t.Fatalf("%v: %q, %v", args, reply, err)
	}
	return reply
}

func (c *conn) expect(want string, args ...string) {
	c.t.Helper()
	if got := c.do(args...); got != want {
		c.t.Fatalf("%v: %q, want %q", args, got, want)
	}
}
