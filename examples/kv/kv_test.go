package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	// The runtime keeps descriptors of its own from the first use of the network on.
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	goroutines, files := runtime.NumGoroutine(), openFiles()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // Go's fuzzing keeps goroutines of its own.
	}
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > goroutines || len(openFiles()) > len(files) {
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "the tests left %d goroutines for %d, and the files\n%q for\n%q\n",
				runtime.NumGoroutine(), goroutines, openFiles(), files)
			_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			code = 1
			break
		}
		runtime.Gosched()
	}
	os.Exit(code)
}

// openFiles says what this process has open.
func openFiles() []string {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, entry := range entries {
		// The directory itself is among the entries, and gone by now.
		if name, err := os.Readlink(dir + "/" + entry.Name()); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// startWith runs a server with this clock and these ticks until the test ends, and returns its
// address.
func startWith(t testing.TB, now func() time.Time, tick <-chan time.Time) string {
	t.Helper()
	l, err := listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l, newServer(newStore(now), slog.New(slog.DiscardHandler)), tick) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("serve did not return")
		}
	})
	return l.Addr().String()
}

// start runs a server as the program does.
func start(t testing.TB) string {
	t.Helper()
	ticker := time.NewTicker(sweepEvery)
	addr := startWith(t, time.Now, ticker.C)
	t.Cleanup(ticker.Stop)
	return addr
}

// Each script is inline commands and their replies, but for space at the end.
func TestCommands(t *testing.T) {
	for name, script := range map[string]string{
		"connection": `
			ping                    => +PONG
			PiNg hello              => hello
			ping a b                => -ERR wrong number of arguments for 'ping' command
			echo "a b"              => a b
			echo                    => -ERR wrong number of arguments for 'echo' command
			select 0                => +OK
			select 1                => -ERR DB index is out of range
			select x                => -ERR value is not an integer or out of range
			nosuch                  => -ERR unknown command 'nosuch', with args beginning with:
			nosuch a "b\r\n+OK"     => -ERR unknown command 'nosuch', with args beginning with: 'a' 'b  +OK'
			averyveryverylongname   => -ERR unknown command 'averyveryverylongname', with args beginning with:
			auth x                  => -ERR unknown command 'auth', with args beginning with: 'x'`,
		"strings": `
			get a                   => nil
			set a 1                 => +OK
			get a                   => 1
			GET a b                 => -ERR wrong number of arguments for 'get' command
			set a                   => -ERR wrong number of arguments for 'set' command
			set a 2 nx              => nil
			set b 2 NX              => +OK
			set c 3 xx              => nil
			set b 3 XX              => +OK
			set b 3 nx xx           => -ERR syntax error
			set b 3 whatever        => -ERR syntax error
			mget a b c              => [1 3 nil]
			mset a 5 b 6            => +OK
			mset a 5 b              => -ERR wrong number of arguments for 'mset' command
			mget a b                => [5 6]
			mset d 1 d 2            => +OK
			get d                   => 2
			exists a a nosuch       => :2
			del a a nosuch          => :1
			exists a                => :0
			dbsize                  => :2
			flushall async          => +OK
			flushall now            => -ERR syntax error
			dbsize                  => :0`,
		"numbers": `
			incr n                  => :1
			incr n                  => :2
			decr n                  => :1
			incrby n -11            => :-10
			incrby n x              => -ERR value is not an integer or out of range
			set n " 1"              => +OK
			incr n                  => -ERR value is not an integer or out of range
			set n 1.0               => +OK
			incr n                  => -ERR value is not an integer or out of range
			set n 9223372036854775807 => +OK
			incr n                  => -ERR increment or decrement would overflow
			get n                   => 9223372036854775807
			set n -9223372036854775808 => +OK
			decr n                  => -ERR increment or decrement would overflow
			incr n 1                => -ERR wrong number of arguments for 'incr' command`,
		"expiry": `
			set k v ex 100          => +OK
			ttl k                   => :100
			set k v keepttl         => +OK
			ttl k                   => :100
			set k v px 1500000      => +OK
			ttl k                   => :1500
			set k v                 => +OK
			ttl k                   => :-1
			ttl nosuch              => :-2
			pttl nosuch             => :-2
			expire k 10             => :1
			ttl k                   => :10
			incr k                  => -ERR value is not an integer or out of range
			mset k 1                => +OK
			pttl k                  => :-1
			expire nosuch 10        => :0
			expire k -1             => :1
			exists k                => :0
			expire k x              => -ERR value is not an integer or out of range
			expire k 9223372036854775807 => -ERR invalid expire time in 'expire' command
			set k v ex 0            => -ERR invalid expire time in 'set' command
			set k v px -1           => -ERR invalid expire time in 'set' command
			set k v ex 9223372036854775807 => -ERR invalid expire time in 'set' command
			set k v px 9223372036854775807 => -ERR invalid expire time in 'set' command
			set k v ex              => -ERR syntax error
			set k v ex x            => -ERR value is not an integer or out of range
			set k v ex 1 px 1       => -ERR syntax error
			set k v ex 1 keepttl    => -ERR syntax error
			exists k                => :0`,
		"administration": `
			command count           => :28
			command docs            => []
			command nosuch          => -ERR unknown subcommand 'nosuch'. Try COMMAND HELP.
			config get save         => [save ]
			CONFIG GET appendonly   => [appendonly no]
			config get SAVE append* => [appendonly no save ]
			config get nosuch       => []
			config get              => -ERR wrong number of arguments for 'config|get' command
			config set save x       => -ERR unknown subcommand 'set'. Try CONFIG HELP.
			client getname          => nil
			client setname me       => +OK
			client getname          => me
			client setname "a b"    => -ERR Client names cannot contain spaces, newlines or special characters.
			client setinfo lib-name x => +OK
			client id x             => -ERR wrong number of arguments for 'client|id' command
			client kill 1           => -ERR unknown subcommand 'kill'. Try CLIENT HELP.
			client                  => -ERR wrong number of arguments for 'client' command`,
	} {
		t.Run(name, func(t *testing.T) {
			p := dial(t, startWith(t, new(fakeClock).now, nil))
			for line := range strings.Lines(strings.TrimSpace(script)) {
				request, want, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=>")
				request, want = strings.TrimSpace(request), strings.TrimSpace(want)
				p.send([]byte(request + "\r\n"))
				if got := strings.TrimSpace(p.reply()); got != want {
					t.Errorf("%s: %q, want %q", request, got, want)
				}
			}
		})
	}
}

func TestCommandTable(t *testing.T) {
	p := dial(t, start(t))
	if got := p.do("COMMAND"); !strings.Contains(got, " [get :2 [] :1 :1 :1] ") {
		t.Errorf("%q", got)
	}
	for name, cmd := range newCommands() {
		if name != cmd.name || len(name) > maxCommandName || strings.ToLower(name) != name {
			t.Errorf("%q cannot be found as %q", cmd.name, name)
		}
	}
}

func TestInfo(t *testing.T) {
	p := dial(t, start(t))
	p.do("SET", "a", "1", "EX", "100")
	got := p.do("INFO")
	for _, want := range []string{
		"# Server\r\n", "\r\nconnected_clients:1\r\n", "\r\ntotal_commands_processed:2\r\n", "db0:keys=1,expires=1\r\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if got := p.do("INFO", "keyspace"); got != "# Keyspace\r\ndb0:keys=1,expires=1\r\n" {
		t.Errorf("%q", got)
	}
}

func TestClientList(t *testing.T) {
	addr := start(t)
	a, b := dial(t, addr), dial(t, addr)
	a.do("CLIENT", "SETNAME", "first")
	b.do("PING")
	list := a.do("CLIENT", "LIST")
	for _, p := range []*peer{a, b} {
		if !strings.Contains(list, " addr="+p.LocalAddr().String()+" ") {
			t.Errorf("no %v in %q", p.LocalAddr(), list)
		}
	}
	if mine := a.do("CLIENT", "INFO"); !strings.Contains(mine, " name=first ") || !strings.Contains(list, mine) {
		t.Errorf("INFO %q, LIST %q", mine, list)
	}
	b.Close()
	eventually(t, "a closed connection is not listed", func() bool {
		return strings.Count(a.do("CLIENT", "LIST"), "\n") == 1
	})
}

// Ten thousand commands are sent without waiting, in pieces that end anywhere; every reply comes,
// in order.
func TestPipelining(t *testing.T) {
	const n = 10_000
	p := dial(t, start(t))
	var requests []byte
	var want []string
	for i := range n {
		switch i % 4 {
		case 0:
			requests = append(requests, encode("SET", fmt.Sprint("k", i), fmt.Sprint("v", i))...)
			want = append(want, "+OK")
		case 1:
			requests = fmt.Appendf(requests, "GET k%d\r\n", i-1)
			want = append(want, fmt.Sprint("v", i-1))
		case 2:
			requests = append(requests, encode("INCR", "n")...)
			want = append(want, fmt.Sprint(":", i/4+1))
		case 3:
			requests = fmt.Appendf(requests, "nosuch %d\n", i)
			want = append(want, fmt.Sprintf("-ERR unknown command 'nosuch', with args beginning with: '%d' ", i))
		}
	}
	sent := make(chan error, 1)
	go func() {
		for piece := range slices.Chunk(requests, 1009) {
			if _, err := p.Write(piece); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for i := range want {
		if got := p.reply(); got != want[i] {
			t.Fatalf("reply %d: %q, want %q", i, got, want[i])
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestRequestByteByByte(t *testing.T) {
	p := dial(t, start(t))
	for i, b := range bytes.Repeat(encode("SET", "key", strings.Repeat("v", 500)), 3) {
		if _, err := p.Write([]byte{b}); err != nil {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for range 3 {
		if got := p.reply(); got != "+OK" {
			t.Fatalf("%q", got)
		}
	}
	if got := p.do("GET", "key"); got != strings.Repeat("v", 500) {
		t.Errorf("%q", got)
	}
}

// The longest value goes in and comes out; one byte more is refused.
func TestLongestValue(t *testing.T) {
	addr := start(t)
	p := dial(t, addr)
	long := strings.Repeat("0123456789abcdef", maxBulk/16)
	if got := p.do("SET", "long", long); got != "+OK" {
		t.Fatalf("%q", got)
	}
	if got := p.do("GET", "long"); got != long {
		t.Errorf("%d bytes came back, the same: %v", len(got), got == long)
	}
	if got := p.do("MGET", "long", "long", "long"); len(got) != 3*maxBulk+4 {
		t.Errorf("MGET: %d bytes", len(got))
	}
	if got := p.do("MGET", "long", "long", "long", "long"); got != "-"+string(errBigReply) {
		t.Errorf("MGET of more than maxReply: %.100q", got)
	}
	p.send([]byte("*2\r\n$4\r\nECHO\r\n$1048577\r\n"))
	if got := p.reply(); got != "-ERR Protocol error: invalid bulk length" {
		t.Errorf("%q", got)
	}
	p.wantEnd()
}

func TestMalformedRequests(t *testing.T) {
	addr := start(t)
	for _, tt := range malformed {
		t.Run(tt.name, func(t *testing.T) {
			p := dial(t, addr)
			// The replies to what came before it are not lost, what comes behind it is not executed.
			p.send([]byte("PING\r\n" + tt.in + "\r\nPING\r\n"))
			if got := p.reply(); got != "+PONG" {
				t.Errorf("before it: %q", got)
			}
			if got := p.reply(); got != "-ERR "+tt.want.Error() {
				t.Errorf("%q", got)
			}
			p.wantEnd()
		})
	}
}

func TestQuit(t *testing.T) {
	addr := start(t)
	p := dial(t, addr)
	p.send([]byte("SET a 1\r\nQUIT\r\nSET a 2\r\n"))
	for range 2 {
		if got := p.reply(); got != "+OK" {
			t.Errorf("%q", got)
		}
	}
	p.wantEnd()
	if got := dial(t, addr).do("GET", "a"); got != "1" {
		t.Errorf("what came behind QUIT was executed: %q", got)
	}
}

// The ticker's sweep removes what nobody asks for. The clock and the ticks are the test's.
func TestSweepOnTick(t *testing.T) {
	var clock fakeClock
	tick := make(chan time.Time)
	p := dial(t, startWith(t, clock.now, tick))
	p.do("SET", "short", "x", "PX", "10")
	p.do("SET", "long", "x", "EX", "10")
	clock.advance(10 * time.Millisecond)
	if got := p.do("DBSIZE"); got != ":2" {
		t.Fatalf("without a tick: %q", got)
	}
	tick <- time.Time{}
	if got := p.do("DBSIZE"); got != ":1" {
		t.Errorf("behind the tick: %q", got)
	}
	clock.advance(10 * time.Second)
	if got := p.do("GET", "long"); got != "nil" {
		t.Errorf("an expired key is %q without a tick", got)
	}
}

// The same with the clock and the ticker that the program has.
func TestSweepInTime(t *testing.T) {
	p := dial(t, start(t))
	for i := range 1000 {
		p.send(encode("SET", fmt.Sprint("k", i), "x", "PX", "1"))
	}
	for range 1000 {
		p.reply()
	}
	eventually(t, "nothing is left", func() bool { return p.do("DBSIZE") == ":0" })
	if got := p.do("INFO", "stats"); !strings.Contains(got, "expired_keys:1000\r\n") {
		t.Errorf("%q", got)
	}
}
