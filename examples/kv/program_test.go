package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// asProgram in the environment makes the test binary the program itself, for the tests of the whole
// process.
const asProgram = "KV_TEST_PROGRAM"

// program starts the whole program in a process of its own, and returns its address.
func program(t *testing.T, flags ...string) (cmd *exec.Cmd, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, os.Args[0], append(flags, "-addr", "127.0.0.1:0")...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil { // The test ended early.
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok || err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	return cmd, addr
}

// On SIGTERM and SIGINT the program gives every peer what it has been answered and then the end,
// and exits with 0.
func TestProgramDrainsOnSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd, addr := program(t)
			idle, busy := dial(t, addr), dial(t, addr)
			idle.do("PING")
			// More than the queue holds: all of it was accepted when the next command is answered, and most
			// of it is still in the server, for busy has not read.
			value := strings.Repeat("v", maxBulk)
			busy.do("SET", "long", value)
			busy.send(encode("MGET", "long", "long", "long"))
			eventually(t, "the reply is on its way", func() bool {
				_, err := busy.r.Peek(1)
				return err == nil
			})
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			idle.wantEnd()
			idle.Close()
			if got := busy.reply(); len(got) != 3*maxBulk+4 {
				t.Errorf("%d bytes", len(got))
			}
			busy.wantEnd()
			busy.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("exit: %v", err)
			}
		})
	}
}

func TestProgramWithoutItsAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-addr", l.Addr().String())
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	ok := errors.As(err, &exit)
	if !ok || exit.ExitCode() != 1 || !bytes.Contains(out, []byte("address already in use")) {
		t.Errorf("%v: %s", err, out)
	}
}

// needProgram returns the path of a program that a test needs, and skips the test if it is not
// installed. It comes before anything that the test starts. CI installs all of them.
func needProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed, and this server was not tried with it", name)
	}
	return path
}

// tool runs one of the redis-tools, of which needProgram returned the path, against addr and
// returns what it printed.
func tool(t *testing.T, path, addr, stdin string, args ...string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{"-h", host, "-p", port}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", path, args, err, out)
	}
	return string(out)
}

func TestRedisCLI(t *testing.T) {
	cli := needProgram(t, "redis-cli")
	addr := start(t)
	for _, tt := range []struct{ stdin, args, want string }{
		{"", "ping", "PONG\n"},
		{"", "set greeting hello EX 100", "OK\n"},
		{"", "get greeting", "hello\n"},
		{"", "get nosuch", "\n"},
		{"", "mset a 1 b 2", "OK\n"},
		{"", "mget a b nosuch", "1\n2\n\n"},
		{"", "-n 0 incr a", "2\n"},
		{"", "nosuch", "ERR unknown command 'nosuch', with args beginning with: \n\n"},
		{"value of stdin", "-x set from", "OK\n"},
		{"", "get from", "value of stdin\n"},
		{"set c 3\nget c\ndel c\n", "", "OK\n3\n1\n"},
	} {
		if got := tool(t, cli, addr, tt.stdin, strings.Fields(tt.args)...); got != tt.want {
			t.Errorf("redis-cli %s: %q, want %q", tt.args, got, tt.want)
		}
	}
	var commands strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&commands, "SET mass%d %d\r\n", i, i)
	}
	if got := tool(t, cli, addr, commands.String(), "--pipe"); !strings.Contains(got, "errors: 0, replies: 10000") {
		t.Errorf("redis-cli --pipe: %q", got)
	}
	if got := tool(t, cli, addr, "", "get", "mass9999"); got != "9999\n" {
		t.Errorf("behind redis-cli --pipe: %q", got)
	}
}

func TestRedisBenchmark(t *testing.T) {
	benchmark := needProgram(t, "redis-benchmark")
	for _, pipeline := range []string{"1", "16"} {
		t.Run("pipeline "+pipeline, func(t *testing.T) {
			addr := start(t)
			out := tool(t, benchmark, addr, "", "-t", "ping,set,get,incr,mset", "-n", "5000", "-c", "20", "-P", pipeline,
				"-d", "100", "-r", "1000", "--csv")
			for _, test := range []string{"PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "MSET (10 keys)"} {
				if !strings.Contains(out, `"`+test+`","`) {
					t.Errorf("no result for %s", test)
				}
			}
			if strings.Contains(out, "WARNING") || strings.Contains(out, "rror") || t.Failed() {
				t.Errorf("it printed\n%s", out)
			}
		})
	}
}
