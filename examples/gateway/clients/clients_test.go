//go:build linux

// Package clients tests the gateway with go-redis, which the gateway itself does not need.
package clients

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	_ "github.com/rabbit-backend/tcpio" // the gateway that is built is the one in this tree
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// patience bounds every wait.
const patience = time.Minute

// begin starts a program, and ends it with the test.
func begin(t *testing.T, name string, args ...string) (cmd *exec.Cmd, out *bufio.Reader) {
	t.Helper()
	cmd = exec.Command(name, args...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, bufio.NewReader(pipe)
}

// gateway starts Redis and a gateway, and returns their addresses.
func gateway(t *testing.T) (redisAddr, addr string) {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("SKIPPED: redis-server is not installed")
	}
	program := filepath.Join(t.TempDir(), "gateway")
	if out, err := exec.Command("go", "build", "-o", program, "github.com/rabbit-backend/tcpio/examples/gateway").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	redisAddr = testnet.FreeAddr(t)
	host, port, _ := net.SplitHostPort(redisAddr)
	begin(t, "redis-server", "--bind", host, "--port", port, "--save", "", "--dir", t.TempDir())
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", redisAddr); err == nil {
			c.Close()
			break
		}
		if time.Since(start) > patience {
			t.Fatal("Redis does not start")
		}
	}
	_, out := begin(t, program, "-listen", "127.0.0.1:0", "-to", redisAddr, "-conns", "8")
	line, err := out.ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("%q, %v", line, err)
	}
	return redisAddr, addr
}

func TestGoRedis(t *testing.T) {
	redisAddr, addr := gateway(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	direct := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer direct.Close()
	for _, protocol := range []int{2, 3} {
		t.Run(fmt.Sprint("protocol ", protocol), func(t *testing.T) {
			var limit syscall.Rlimit
			clients := 1000
			if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 4096 {
				clients = int(limit.Cur) / 4
			}
			c := redis.NewClient(&redis.Options{Addr: addr, Protocol: protocol, PoolSize: clients, PoolTimeout: patience, ReadTimeout: patience})
			defer c.Close()
			if err := c.FlushAll(ctx).Err(); err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			for i := range clients {
				all.Go(func() {
					if err := use(ctx, c, i); err != nil {
						t.Errorf("client %d: %v", i, err)
					}
				})
			}
			all.Wait()
			if n, err := c.Get(ctx, "sum").Int(); err != nil || n != clients {
				t.Errorf("the sum of all transactions is %d, %v, want %d", n, err, clients)
			}
			testnet.WaitFor(t, "few connections are left", func() bool {
				list, err := direct.ClientList(ctx).Result()
				if err != nil {
					t.Fatal(err)
				}
				return strings.Count(list, "id=") <= 100
			})
		})
	}
	t.Run("subscriptions", func(t *testing.T) {
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer c.Close()
		sub := c.Subscribe(ctx, "news")
		defer sub.Close()
		if _, err := sub.Receive(ctx); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Publish(ctx, "news", "hello").Result(); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if m, err := sub.ReceiveMessage(ctx); err != nil || m.Payload != "hello" {
			t.Errorf("%v, %v", m, err)
		}
	})
	t.Run("another database", func(t *testing.T) {
		c := redis.NewClient(&redis.Options{Addr: addr, DB: 3})
		defer c.Close()
		if err := c.Set(ctx, "only", "there", 0).Err(); err != nil {
			t.Fatal(err)
		}
		if err := direct.Get(ctx, "only").Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("in database 0: %v", err)
		}
		if v, err := c.Get(ctx, "only").Result(); v != "there" || err != nil {
			t.Error(v, err)
		}
	})
}

// use is what one of many goroutines does. It checks every reply.
func use(ctx context.Context, c *redis.Client, id int) error {
	key := fmt.Sprint("key:", id)
	for i := range 5 {
		word := fmt.Sprint(id, ".", i)
		if got, err := c.Echo(ctx, word).Result(); got != word || err != nil {
			return fmt.Errorf("ECHO %s: %q, %v", word, got, err)
		}
		cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Set(ctx, key, word, 0)
			p.Get(ctx, key)
			p.RPush(ctx, key+":l", word)
			p.Echo(ctx, word)
			return nil
		})
		if err != nil || cmds[1].(*redis.StringCmd).Val() != word || cmds[3].(*redis.StringCmd).Val() != word {
			return fmt.Errorf("a pipeline: %v, %v", cmds, err)
		}
		if got, err := c.BLPop(ctx, 10*time.Second, key+":l").Result(); err != nil || got[1] != word {
			return fmt.Errorf("BLPOP: %v, %v", got, err)
		}
	}
	tx, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, key, "tx", 0)
		p.Incr(ctx, "sum")
		p.Get(ctx, key)
		return nil
	})
	if err != nil || tx[2].(*redis.StringCmd).Val() != "tx" {
		return fmt.Errorf("a transaction: %v, %v", tx, err)
	}
	return nil
}
