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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	until(r.t, "Redis answers", func() bool {
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

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for start := time.Now(); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatalf("still not after %v: %s", patience, what)
		}
	}
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

// Thousands of clients on eight connections: every reply is the one to its request, in order, also beside transactions,
// blocking commands, and the other version of the protocol.
func TestEveryReplyIsTheOneToItsRequest(t *testing.T) {
	redis := startRedis(t)
	addr, _ := start(t, config{to: redis.addr(), private: 4000})
	clients, rounds := 2000, 5
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 5000 {
		clients = int(limit.Cur) / 4
	}
	var all sync.WaitGroup
	var most atomic.Int64
	errs := make(chan error, clients)
	for i := range clients {
		all.Go(func() { errs <- talk(addr, i, rounds) })
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for range 5 {
			most.Store(max(most.Load(), int64(redis.connections())))
			time.Sleep(20 * time.Millisecond)
		}
	}()
	all.Wait()
	<-watched
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	// Eight for each protocol, and those of transactions and blocking commands that run at the same time.
	if n := redis.connections(); n > 2*8+mostIdle*2 {
		t.Errorf("%d connections to Redis for %d clients", n, clients)
	}
	t.Logf("%d connections to Redis at most", most.Load())
}

// talk is one client's conversation. Each reply is checked.
func talk(addr string, id, rounds int) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(2 * patience))
	c := &conn{Conn: nc, r: bufio.NewReader(nc)}
	var send []byte
	var want []string
	ask := func(reply string, args ...string) {
		send = append(send, encode(args...)...)
		want = append(want, reply)
	}
	bulk := func(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }
	rnd := rand.New(rand.NewPCG(uint64(id), 1))
	if id%4 == 0 {
		nc.Write(encode("HELLO", "3"))
		if reply, err := c.read(); err != nil || reply[0] != '%' {
			return fmt.Errorf("HELLO 3: %q, %v", reply, err)
		}
	}
	key := fmt.Sprint("key:", id)
	for round := range rounds {
		send, want = send[:0], want[:0]
		for i := range 1 + rnd.IntN(20) {
			word := fmt.Sprintf("%d-%d-%d %s", id, round, i, strings.Repeat("x", rnd.IntN(300)))
			switch n := rnd.IntN(100); {
			case n < 60:
				ask(bulk(word), "ECHO", word)
			case n < 80:
				ask("+OK\r\n", "SET", key, word)
				ask(bulk(word), "GET", key)
			case n < 90:
				ask(":1\r\n", "RPUSH", key+":list", word)
				ask("*1\r\n"+bulk(word), "LRANGE", key+":list", "0", "-1")
				ask(bulk(word), "LPOP", key+":list")
			case n < 95:
				ask("+PONG\r\n", "PING")
			case n < 97:
				ask("+OK\r\n", "MULTI")
				ask("+QUEUED\r\n", "SET", key, word)
				ask("+QUEUED\r\n", "GET", key)
				ask("*2\r\n+OK\r\n"+bulk(word), "EXEC")
			case n < 99:
				ask(":1\r\n", "RPUSH", key+":q", word)
				ask("*2\r\n"+bulk(key+":q")+bulk(word), "BLPOP", key+":q", "10")
			default:
				ask("+OK\r\n", "CLIENT", "SETINFO", "LIB-NAME", "test")
			}
		}
		if _, err := nc.Write(send); err != nil {
			return err
		}
		for i, w := range want {
			if got, err := c.read(); err != nil || got != w {
				return fmt.Errorf("client %d, round %d, reply %d: %.200q (%v), want %.200q", id, round, i, got, err, w)
			}
		}
	}
	return nil
}

// Redis is killed, stopped and started while clients talk: each gets its own reply or an error, none another's.
func TestLossOfRedisIsAnsweredByErrors(t *testing.T) {
	for name, disturb := range map[string]func(*redisServer){
		"kill": func(r *redisServer) {
			r.kill()
			time.Sleep(100 * time.Millisecond)
			r.start()
		},
		"stop": func(r *redisServer) {
			r.signal(syscall.SIGSTOP)
			time.Sleep(700 * time.Millisecond)
			r.signal(syscall.SIGCONT)
		},
	} {
		t.Run(name, func(t *testing.T) {
			redis := startRedis(t)
			addr, _ := start(t, config{to: redis.addr(), timeout: 300 * time.Millisecond})
			over := make(chan struct{})
			var good, lost, good2 atomic.Int64
			var again atomic.Bool // Redis is back
			var all sync.WaitGroup
			for id := range 50 {
				c := connect(t, addr)
				all.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-over:
							return
						default:
						}
						word := fmt.Sprint(id, " ", i)
						if _, err := c.Write(append(encode("ECHO", word), encode("ECHO", word+"!")...)); err != nil {
							t.Error(err)
							return
						}
						for _, w := range []string{word, word + "!"} {
							got, err := c.read()
							switch {
							case err != nil:
								t.Errorf("client %d: %v", id, err)
								return
							case got == fmt.Sprintf("$%d\r\n%s\r\n", len(w), w):
								if good.Add(1); again.Load() {
									good2.Add(1)
								}
							case strings.HasPrefix(got, "-ERR upstream lost"):
								lost.Add(1)
								time.Sleep(5 * time.Millisecond)
							default:
								t.Errorf("client %d: %q, want %q", id, got, w)
								return
							}
						}
					}
				})
			}
			until(t, "replies", func() bool { return good.Load() > 1000 })
			disturb(redis)
			until(t, "errors", func() bool { return lost.Load() > 0 })
			again.Store(true)
			until(t, "replies again", func() bool { return good2.Load() > 1000 })
			close(over)
			all.Wait()
			t.Logf("%d replies, %d errors", good.Load(), lost.Load())
		})
	}
}

// A reply that has begun cannot be followed by an error: its client is reset, the others get errors.
func TestLossWithinAReplyResetsItsClientAlone(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	both := make(chan struct{})
	go func() { // it answers HELLO, half of the first GET, and ends when both clients have asked
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				r := bufio.NewReader(nc)
				for gets := 0; ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					switch strings.TrimSpace(line) {
					case "HELLO":
						fmt.Fprint(nc, "*0\r\n")
					case "GET":
						if gets++; gets == 1 {
							fmt.Fprint(nc, "$10\r\nhalf ")
						} else {
							<-both
							return
						}
					}
				}
			}()
		}
	}()
	addr, _ := start(t, config{to: ln.Addr().String(), conns: 1})
	first, second := connect(t, addr), connect(t, addr)
	first.Write(encode("GET", "a"))
	if b, err := first.r.Peek(10); err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	second.Write(encode("GET", "b"))
	close(both)
	if got, err := second.read(); !strings.HasPrefix(got, "-ERR upstream lost") {
		t.Errorf("the other client: %q, %v", got, err)
	}
	if got, err := first.read(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client of the half reply: %q, %v", got, err)
	}
}

// What one client does slowly, or wrongly, is nobody else's.
func TestOneClientDoesNotStallTheOthers(t *testing.T) {
	redis := startRedis(t)
	addr, _ := start(t, config{to: redis.addr(), conns: 1, clientBuffer: 1 << 20})
	other := connect(t, addr)
	other.expect("+OK\r\n", "SET", "big", strings.Repeat("b", 512<<10))

	slow := connect(t, addr) // it asks, and does not read
	for range 100 {
		if _, err := slow.Write(encode("GET", "big")); err != nil {
			break
		}
	}
	blocked := connect(t, addr)
	blocked.Write(encode("BLPOP", "nothing", "0"))
	piece := connect(t, addr)
	piece.Write([]byte("*2\r\n$4\r\nECHO\r\n$100\r\nhalf of a request"))
	for i := range 1000 {
		other.expect("$"+strconv.Itoa(len(strconv.Itoa(i)))+"\r\n"+strconv.Itoa(i)+"\r\n", "ECHO", strconv.Itoa(i))
	}
	until(t, "the slow client is cut off", func() bool {
		_, err := slow.Write([]byte("x"))
		return err != nil
	})
	other.expect(":1\r\n", "RPUSH", "nothing", "now")
	if got, err := blocked.read(); got != "*2\r\n$7\r\nnothing\r\n$3\r\nnow\r\n" {
		t.Errorf("%q, %v", got, err)
	}

	wrong := connect(t, addr)
	wrong.Write([]byte("PING\r\n*1\r\n:1\r\nPING\r\n"))
	if all, err := io.ReadAll(wrong.r); err != nil || string(all) != "+PONG\r\n-ERR Protocol error: expected '$', got ':'\r\n" {
		t.Errorf("%q, %v", all, err)
	}
	other.expect("+PONG\r\n", "PING")
}

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
	until(t, "an open transaction goes with its client", func() bool { return redis.connections() == 1 })
	for range 3 {
		waiting := connect(t, addr)
		waiting.Write(encode("BLPOP", "nothing", "0"))
	}
	until(t, "three have one", func() bool { return redis.connections() == 4 })
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
	until(t, "it waits", func() bool { return redis.connections() > 8 })
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
	ctx, cancel := context.WithTimeout(context.Background(), patience)
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
	if n := redis.connections(); n > 16+1 {
		t.Errorf("%d connections to Redis", n)
	}
}
