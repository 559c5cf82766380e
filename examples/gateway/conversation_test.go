package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// A client that has sent its last byte gets all its replies, and then the end.
func TestHalfClosedClientGetsAllReplies(t *testing.T) {
	redis := startRedis(t)
	addr, _ := start(t, config{to: redis.addr()})
	c := connect(t, addr)
	c.expect("+OK\r\n", "SET", "k", strings.Repeat("v", 10000))
	var send, want bytes.Buffer
	for i := range 3000 {
		send.Write(encode("GET", "k"))
		fmt.Fprintf(&want, "$10000\r\n%s\r\n", strings.Repeat("v", 10000))
		if i%500 == 0 {
			send.Write(encode("MULTI"))
			send.Write(encode("GET", "none"))
			send.Write(encode("EXEC"))
			want.WriteString("+OK\r\n+QUEUED\r\n*1\r\n$-1\r\n")
		}
	}
	send.Write(encode("BLPOP", "nothing", "0")) // which is given up, as Redis does
	go func() {
		_, _ = c.Write(send.Bytes())
		_ = c.Conn.(*net.TCPConn).CloseWrite()
	}()
	all, err := io.ReadAll(c.r)
	if err != nil || !bytes.Equal(all, want.Bytes()) {
		t.Errorf("%d bytes, %v, want %d", len(all), err, want.Len())
	}
}

// script is a conversation whose replies do not depend on who passes it on.
const script = "PING\r\nset a 'b c'\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\nget\r\nnonsense\r\nMULTI\r\nincr n\r\nget a\r\nEXEC\r\nexec\r\nwatch a\r\n" +
	"multi\r\nset a 1\r\nexec\r\nblpop none 0.01\r\nselect 1\r\nget a\r\nset a other\r\nget a\r\nsubscribe ch\r\nping\r\nunsubscribe ch\r\n" +
	"get a\r\nmulti\r\ndiscard\r\nquit\r\n"

func TestConversationIsThatOfRedis(t *testing.T) {
	redis := startRedis(t)
	addr, _ := start(t, config{to: redis.addr()})
	ask := func(addr string, piece int) string {
		c := connect(t, addr)
		if piece < len(script) {
			_ = c.Conn.(*net.TCPConn).SetNoDelay(true)
		}
		for at := 0; at < len(script); at += piece {
			if _, err := c.Write([]byte(script[at:min(at+piece, len(script))])); err != nil {
				t.Fatal(err)
			}
		}
		all, err := io.ReadAll(c.r)
		if err != nil {
			t.Fatalf("%q, %v", all, err)
		}
		return string(all)
	}
	admin := connect(t, redis.addr())
	admin.do("FLUSHALL")
	want := ask(redis.addr(), len(script))
	for _, piece := range []int{1, 3, 50, len(script)} {
		admin.do("FLUSHALL")
		if got := ask(addr, piece); got != want {
			t.Errorf("by %d bytes:\n%q, want\n%q", piece, got, want)
		}
	}
}

// A client's own connection goes with it, unless it has left it as it was.
func TestConnectionsOfTheirOwnComeAndGo(t *testing.T) {
	redis := startRedis(t)
	addr, _ := start(t, config{to: redis.addr(), conns: 1, private: 3})
	c := connect(t, addr)
	c.expect("+PONG\r\n", "PING")
	if n := redis.connections(); n != 1 {
		t.Fatalf("%d connections, want 1", n)
	}
	c.expect("+OK\r\n", "MULTI")
	if n := redis.connections(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	c.expect("*0\r\n", "EXEC")
	other := connect(t, addr)
	other.expect("+OK\r\n", "WATCH", "k") // it has the one that the first client has left
	if n := redis.connections(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	c.expect("+OK\r\n", "SET", "k", "1")
	other.expect("+OK\r\n", "MULTI")
	other.expect("+QUEUED\r\n", "GET", "k")
	other.expect("*-1\r\n", "EXEC") // what it watched has changed
	other.expect("+OK\r\n", "MULTI")
	other.Close()
	testnet.WaitFor(t, "an open transaction goes with its client", func() bool { return redis.connections() == 1 })
	for range 3 {
		waiting := connect(t, addr)
		waiting.Write(encode("BLPOP", "nothing", "0"))
	}
	testnet.WaitFor(t, "three have one", func() bool { return redis.connections() == 4 })
	if got := c.do("BLPOP", "nothing", "0"); !strings.HasPrefix(got, "-ERR too many") {
		t.Errorf("a fourth: %q", got)
	}
	c.expect("-ERR WAIT is not possible through the gateway\r\n", "WAIT", "1", "1")
	c.expect("+OK\r\n", "QUIT")
	if _, err := c.read(); err != io.EOF {
		t.Errorf("behind QUIT: %v", err)
	}
}

// A Redis that reads nothing holds its clients back, and then they get errors.
func TestRedisThatDoesNotReadHoldsClientsBack(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			fmt.Fprint(nc, "*0\r\n") // to HELLO
		}
	}()
	addr, _ := start(t, config{to: ln.Addr().String(), conns: 1, timeout: 2 * time.Second, clientBuffer: 256 << 10})
	c := connect(t, addr)
	sent := 0
	request := encode("SET", "k", strings.Repeat("v", 64<<10))
	for {
		_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Write(request)
		if sent += n; err != nil {
			break
		}
		if sent > 64<<20 {
			t.Fatalf("it takes %d bytes that Redis does not", sent)
		}
	}
	if got, err := c.read(); !strings.HasPrefix(got, "-ERR upstream lost: no reply within 2s") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestWithoutRedisClientsGetErrors(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	syscall.CloseOnExec(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd) // nobody listens there, and nobody else gets the port
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := start(t, config{to: fmt.Sprint("127.0.0.1:", sa.(*syscall.SockaddrInet4).Port)})
	c := connect(t, addr)
	for range 3 {
		for _, args := range [][]string{{"GET", "a"}, {"MULTI"}, {"HELLO", "3"}, {"SUBSCRIBE", "x"}} {
			if got := c.do(args...); !strings.HasPrefix(got, "-ERR upstream lost") || !strings.Contains(got, "refused") {
				t.Errorf("%v: %q", args, got)
			}
		}
	}
}

// At the end replies that are owed come first.
func TestStopWaitsForReplies(t *testing.T) {
	redis := startRedis(t)
	addr, stop := start(t, config{to: redis.addr()})
	c, idle := connect(t, addr), connect(t, addr)
	idle.expect("+PONG\r\n", "PING")
	c.Write(encode("BLPOP", "list", "0"))
	testnet.WaitFor(t, "it waits", func() bool { return redis.connections() > 8 })
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	if _, err := idle.read(); err != io.EOF {
		t.Errorf("the idle client: %v", err)
	}
	connect(t, redis.addr()).expect(":1\r\n", "RPUSH", "list", "x")
	if got, err := c.read(); got != "*2\r\n$4\r\nlist\r\n$1\r\nx\r\n" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.read(); err != io.EOF {
		t.Errorf("behind the last reply: %v", err)
	}
	<-stopped
}

func TestRedisWithAPassword(t *testing.T) {
	redis := startRedis(t)
	connect(t, redis.addr()).expect("+OK\r\n", "CONFIG", "SET", "requirepass", "secret")
	addr, _ := start(t, config{to: redis.addr(), password: "secret"})
	c := connect(t, addr)
	c.expect("+OK\r\n", "SET", "a", "1")
	c.expect("+OK\r\n", "AUTH", "secret") // on a connection of its own
	c.expect("$1\r\n1\r\n", "GET", "a")
	without, _ := start(t, config{to: redis.addr()})
	if got := connect(t, without).do("GET", "a"); !strings.Contains(got, "NOAUTH") {
		t.Errorf("without a password: %q", got)
	}
}

// The programs of Redis itself.
func TestRedisProgramsWork(t *testing.T) {
	redis := startRedis(t)
	addr, _ := start(t, config{to: redis.addr()})
	_, port, _ := net.SplitHostPort(addr)
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience) // for 100,000 requests, and more
	defer cancel()
	output := func(name string, args ...string) string {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %s is not installed", name)
		}
		cmd := exec.CommandContext(ctx, name, append([]string{"-h", "127.0.0.1", "-p", port}, args...)...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	for _, p := range []string{"-2", "-3"} {
		if got := output("redis-cli", p, "set", "k", "v"); got != "OK" {
			t.Errorf("redis-cli %s: %q", p, got)
		}
		if got := output("redis-cli", p, "-n", "5", "get", "k"); got != "" {
			t.Errorf("redis-cli %s of another database: %q", p, got)
		}
	}
	if got := output("redis-benchmark", "-n", "20000", "-c", "200", "-P", "8", "-t", "set,get,lpush,lpop,mset", "--csv"); strings.Count(got, "\n") < 5 {
		t.Errorf("redis-benchmark: %s", got)
	}
	testnet.WaitFor(t, "no connection of a program is left", func() bool { return redis.connections() <= 16+1 })
}
