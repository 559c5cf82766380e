package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// Thousands of clients on eight connections: every reply is the one to its request, in order, also
// beside transactions, blocking commands, and the other version of the protocol.
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
	// Eight for each protocol, and those of transactions and blocking commands that run at the same
	// time.
	testnet.WaitFor(t, "few connections are left", func() bool { return redis.connections() <= 2*8+mostIdle*2 })
	t.Logf("%d connections to Redis at most", most.Load())
}

// talk is one client's conversation. Each reply is checked.
func talk(addr string, id, rounds int) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	more := func() { _ = nc.SetDeadline(time.Now().Add(2 * patience)) } // there are many, and one round of each is much
	more()
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
		more()
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

// Redis is killed, stopped and started while clients talk: each gets its own reply or an error,
// none another's.
func TestLossOfRedisIsAnsweredByErrors(t *testing.T) {
	for name, disturb := range map[string]func(r *redisServer, noticed func()){
		"kill": func(r *redisServer, noticed func()) {
			r.kill()
			noticed()
			r.start()
		},
		"stop": func(r *redisServer, noticed func()) {
			r.signal(syscall.SIGSTOP)
			noticed()
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
						_ = c.SetDeadline(time.Now().Add(patience))
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
			testnet.WaitFor(t, "replies", func() bool { return good.Load() > 1000 })
			before := lost.Load()
			disturb(redis, func() {
				testnet.WaitFor(t, "errors", func() bool { return lost.Load() > before })
			})
			again.Store(true)
			testnet.WaitFor(t, "replies again", func() bool { return good2.Load() > 1000 })
			close(over)
			all.Wait()
			t.Logf("%d replies, %d errors", good.Load(), lost.Load())
		})
	}
}

// A reply that has begun cannot be followed by an error: its client is reset, the others get
// errors.
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
	testnet.WaitFor(t, "the slow client is cut off", func() bool {
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
