package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

// asProgram in the environment makes the test binary the program itself, for the tests of the whole process.
const asProgram = "KV_TEST_PROGRAM"

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

// startWith runs a server with this clock and these ticks until the test ends, and returns its address.
func startWith(t *testing.T, now func() time.Time, tick <-chan time.Time) string {
	t.Helper()
	l, err := listen("127.0.0.1:0")
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
func start(t *testing.T) string {
	t.Helper()
	ticker := time.NewTicker(sweepEvery)
	addr := startWith(t, time.Now, ticker.C)
	t.Cleanup(ticker.Stop)
	return addr
}

// peer is a client of the server under test.
type peer struct {
	*net.TCPConn
	t testing.TB
	r *bufio.Reader
}

func dial(t testing.TB, addr string) *peer {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &peer{c.(*net.TCPConn), t, bufio.NewReader(c)}
}

// send writes b in one call.
func (p *peer) send(b []byte) {
	p.t.Helper()
	if _, err := p.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// reply reads one reply, in the notation of the scripts below.
func (p *peer) reply() string {
	p.t.Helper()
	s, err := readReply(p.r)
	if err != nil {
		p.t.Fatalf("reading a reply: %v", err)
	}
	return s
}

// do sends one request and returns the reply.
func (p *peer) do(args ...string) string {
	p.t.Helper()
	p.send(encode(args...))
	return p.reply()
}

// output asks how many bytes wait in the server for q to read, and whether q is paused.
func (p *peer) output(q *peer) (waiting int, paused bool) {
	p.t.Helper()
	for line := range strings.Lines(p.do("CLIENT", "LIST")) {
		if strings.Contains(line, " addr="+q.LocalAddr().String()+" ") {
			_, omem, _ := strings.Cut(strings.TrimSpace(line), " omem=")
			waiting, err := strconv.Atoi(omem)
			if err != nil {
				p.t.Fatalf("%v in %q", err, line)
			}
			return waiting, strings.Contains(line, " flags=P ")
		}
	}
	p.t.Fatalf("%v is not listed", q.LocalAddr())
	return 0, false
}

// wantEnd fails unless the server closes in order, with nothing before that.
func (p *peer) wantEnd() {
	p.t.Helper()
	if rest, err := io.ReadAll(p.r); len(rest) > 0 || err != nil {
		p.t.Errorf("%.100q, %v instead of the end", rest, err)
	}
}

// readReply reads one reply: +OK, -ERR text, :1, nil, bulk strings as they are, arrays as [a b].
func readReply(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line, ok := strings.CutSuffix(line, "\r\n")
	if !ok || line == "" {
		return "", fmt.Errorf("malformed reply %q", line)
	}
	switch line[0] {
	case '+', '-', ':':
		return line, nil
	case '$', '*':
	default:
		return "", fmt.Errorf("malformed reply %q", line)
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil {
		return "", err
	}
	if line == "$-1" {
		return "nil", nil
	}
	if line[0] == '*' {
		elements := make([]string, n)
		for i := range elements {
			if elements[i], err = readReply(r); err != nil {
				return "", err
			}
		}
		return "[" + strings.Join(elements, " ") + "]", nil
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	s, ok := strings.CutSuffix(string(b), "\r\n")
	if !ok {
		return "", fmt.Errorf("malformed reply %q", b)
	}
	return s, nil
}

// eventually calls f until it is true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
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
			hello 3                 => -ERR unknown command 'hello', with args beginning with: '3'`,
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
			command count           => :22
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
	for _, want := range []string{"# Server\r\n", "\r\nconnected_clients:1\r\n", "\r\ntotal_commands_processed:2\r\n", "db0:keys=1,expires=1\r\n"} {
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

// Ten thousand commands are sent without waiting, in pieces that end anywhere; every reply comes, in order.
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

// A pipeline that arrives at once is answered by one write: one read of the client has all of it.
func TestRepliesOfABatchAreOneWrite(t *testing.T) {
	p := dial(t, start(t))
	const n = 1000
	p.send(bytes.Repeat([]byte("PING\r\n"), n))
	buf := make([]byte, 64<<10)
	got, err := p.Read(buf)
	if want := strings.Repeat("+PONG\r\n", n); string(buf[:got]) != want {
		t.Errorf("the first read returned %d of %d bytes, %v", got, len(want), err)
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

// liveHeap is what is alive in this process, in bytes.
func liveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Declared lengths cost nothing until the bytes are there: a hundred connections that have each declared the most that
// is allowed, and a hundred that declare far more and are refused.
func TestDeclaredLengthsTakeNoMemory(t *testing.T) {
	addr := start(t)
	dial(t, addr).do("PING")
	before := liveHeap()
	var waiting []*peer
	for range 50 {
		for _, in := range []string{"PING\r\n*600000\r\n", "PING\r\n*2\r\n$3\r\nGET\r\n$1048576\r\n"} {
			p := dial(t, addr)
			p.send([]byte(in))
			waiting = append(waiting, p)
		}
		for _, in := range []string{"PING\r\n*2000000000\r\n", "PING\r\n*1\r\n$2000000000\r\n"} {
			p := dial(t, addr)
			p.send([]byte(in))
			p.reply()
			if got := p.reply(); !strings.HasPrefix(got, "-ERR Protocol error: invalid ") {
				t.Errorf("%q", got)
			}
			p.wantEnd()
		}
	}
	for _, p := range waiting {
		if got := p.reply(); got != "+PONG" {
			t.Errorf("%q", got)
		}
	}
	if grown := liveHeap() - before; grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	runtime.KeepAlive(waiting)
}

// A connection that is idle again holds none of the buffers that its requests went through.
func TestIdleConnectionsHoldNoBuffers(t *testing.T) {
	addr := start(t)
	const n, size = 200, 60 << 10
	value := strings.Repeat("x", size)
	dial(t, addr).do("ECHO", value)
	before := liveHeap()
	var idle []net.Conn
	for range n {
		p := dial(t, addr)
		p.do("ECHO", value)
		p.r = nil
		idle = append(idle, p)
	}
	if grown := liveHeap() - before; grown > n*size/4 {
		t.Errorf("%d bytes for each of %d idle connections", grown/n, n)
	}
	runtime.KeepAlive(idle)
}

// A peer that does not read is paused with bounded output, while others are served; when it reads, everything comes.
func TestSlowReaderIsPausedAndResumed(t *testing.T) {
	addr := start(t)
	slow, other := dial(t, addr), dial(t, addr)
	value := strings.Repeat("v", maxBulk)
	slow.do("SET", "long", value)
	slow.do("SET", "n", "0")
	before := liveHeap()

	const n = 64
	var requests []byte
	for range n {
		requests = append(requests, encode("GET", "long")...)
		requests = append(requests, encode("INCR", "n")...)
	}
	slow.send(requests)
	eventually(t, "the slow reader is paused", func() bool { _, paused := other.output(slow); return paused })
	executed, err := strconv.Atoi(other.do("GET", "n"))
	if err != nil || executed >= n-1 {
		t.Errorf("%d of %d requests were executed before the pause, %v", executed, n, err)
	}
	// What waits: a queue that took one long reply while it was empty, and a batch.
	if waiting, _ := other.output(slow); waiting > 2*maxBulk+2*flushAt {
		t.Errorf("%d bytes wait", waiting)
	}
	// The sockets' buffers are the kernel's; here there is the reply that is waiting, and the pool.
	if grown := liveHeap() - before; grown > 8*maxBulk {
		t.Errorf("the heap grew by %d bytes", grown)
	}

	for i := range n {
		if got := slow.reply(); got != value {
			t.Fatalf("value %d: %d bytes, the same: %v", i, len(got), got == value)
		}
		if got, want := slow.reply(), fmt.Sprint(":", i+1); got != want {
			t.Fatalf("count %d: %q", i, got)
		}
	}
	if got := slow.do("PING"); got != "+PONG" {
		t.Errorf("behind it all: %q", got)
	}
	if waiting, paused := other.output(slow); waiting != 0 || paused {
		t.Errorf("%d bytes wait, paused: %v", waiting, paused)
	}
}

// A peer that sends for ever and never reads is held back by TCP, and costs nothing when it has gone.
func TestPeerThatNeverReadsIsHeldBack(t *testing.T) {
	addr := start(t)
	rude, other := dial(t, addr), dial(t, addr)
	other.do("SET", "long", strings.Repeat("v", maxBulk))
	before := liveHeap()
	paused := func() bool { _, paused := other.output(rude); return paused }
	requests := bytes.Repeat(encode("GET", "long"), 1000)
	sent := 0
	for {
		if err := rude.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := rude.Write(requests[sent%len(requests):])
		sent += n
		// A second without room for a byte is the proof, while the server answers others and says that it does not
		// read. If it did, it would take this much in no time.
		if errors.Is(err, os.ErrDeadlineExceeded) && n == 0 && paused() {
			break
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if sent > 256<<20 {
			t.Fatalf("%d bytes were taken", sent)
		}
		if got := other.do("PING"); got != "+PONG" {
			t.Fatalf("%q", got)
		}
	}
	if grown := liveHeap() - before; grown > 8*maxBulk {
		t.Errorf("the heap grew by %d bytes after %d were sent", grown, sent)
	}
	if err := rude.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	rude.Close() // with a reset, while the server waits for room
	eventually(t, "a peer that reset while paused is forgotten", func() bool {
		return strings.Count(other.do("CLIENT", "LIST"), "\n") == 1
	})
}

// A peer that sends its requests and shuts down its side gets every reply, though it is slow, and then the end.
func TestHalfCloseGetsEveryReply(t *testing.T) {
	addr := start(t)
	p, other := dial(t, addr), dial(t, addr)
	value := strings.Repeat("v", maxBulk)
	p.do("SET", "long", value)
	const n = 32
	p.send(append(bytes.Repeat(encode("GET", "long"), n), "PING\r\n*2\r\n$3\r\nGE"...)) // cut off
	if err := p.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the slow reader is paused", func() bool { _, paused := other.output(p); return paused })
	for i := range n {
		if got := p.reply(); got != value {
			t.Fatalf("value %d: %d bytes", i, len(got))
		}
	}
	if got := p.reply(); got != "+PONG" {
		t.Errorf("the last reply is %q", got)
	}
	p.wantEnd()
}

// The last request and the end arrive together, and the reply finds no room: it comes all the same.
func TestLastReplyWaitsForRoom(t *testing.T) {
	addr := start(t)
	const size = 60 << 10 // short of flushAt, so that the server looks for more behind the last request
	value := strings.Repeat("v", size)
	other := dial(t, addr)
	other.do("SET", "k", value)
	var p *peer
	n := 0
	for attempt := 0; ; attempt++ {
		if attempt == 20 {
			t.Fatal("the last reply always found room")
		}
		p, n = dial(t, addr), 1
		p.do("PING")
		for waiting := 0; waiting+size <= writeBuffer; n++ {
			p.send(encode("GET", "k"))
			other.do("PING") // The server had its turn with p.
			waiting, _ = other.output(p)
		}
		// While the server works on this, the request and the end both arrive.
		other.send(encode(append([]string{"EXISTS"}, make([]string, 200_000)...)...))
		p.send(encode("GET", "k"))
		if err := p.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		other.reply()
		if _, paused := other.output(p); paused {
			break
		}
		p.Close()
	}
	// The library's own way with a peer that has ended, were it not told to leave that to the server, takes 250 ms.
	<-time.After(500 * time.Millisecond)
	for i := range n {
		if got := p.reply(); got != value {
			t.Fatalf("value %d of %d: %d bytes", i, n, len(got))
		}
	}
	p.wantEnd()
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

// program starts the whole program in a process of its own, and returns its address.
func program(t *testing.T) (cmd *exec.Cmd, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, os.Args[0], "-addr", "127.0.0.1:0")
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

// On SIGTERM and SIGINT the program gives every peer what it has been answered and then the end, and exits with 0.
func TestProgramDrainsOnSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd, addr := program(t)
			idle, busy := dial(t, addr), dial(t, addr)
			idle.do("PING")
			// More than the queue holds: all of it was accepted when the next command is answered, and most of it is
			// still in the server, for busy has not read.
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
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !bytes.Contains(out, []byte("address already in use")) {
		t.Errorf("%v: %s", err, out)
	}
}

// tool runs one of the redis-tools against addr and returns what it printed.
func tool(t *testing.T, name, addr, stdin string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: redis-tools not installed: %s IS NOT TESTED AGAINST THIS SERVER (apt-get install redis-tools)", name)
	}
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
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestRedisCLI(t *testing.T) {
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
		if got := tool(t, "redis-cli", addr, tt.stdin, strings.Fields(tt.args)...); got != tt.want {
			t.Errorf("redis-cli %s: %q, want %q", tt.args, got, tt.want)
		}
	}
	var commands strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&commands, "SET mass%d %d\r\n", i, i)
	}
	if got := tool(t, "redis-cli", addr, commands.String(), "--pipe"); !strings.Contains(got, "errors: 0, replies: 10000") {
		t.Errorf("redis-cli --pipe: %q", got)
	}
	if got := tool(t, "redis-cli", addr, "", "get", "mass9999"); got != "9999\n" {
		t.Errorf("behind redis-cli --pipe: %q", got)
	}
}

func TestRedisBenchmark(t *testing.T) {
	for _, pipeline := range []string{"1", "16"} {
		t.Run("pipeline "+pipeline, func(t *testing.T) {
			addr := start(t)
			out := tool(t, "redis-benchmark", addr, "", "-t", "ping,set,get,incr,mset", "-n", "5000", "-c", "20", "-P", pipeline,
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
