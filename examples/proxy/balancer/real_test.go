//go:build linux && long

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// poolFile is a file with a listener and a pool "main" of these processes.
func poolFile(ps []*process, more string) string {
	var s strings.Builder
	s.WriteString("listeners:\n  main: {listen: '127.0.0.1:0', to: main}\npools:\n  main:\n    upstreams:\n")
	for _, p := range ps {
		fmt.Fprintf(&s, "      - addr: %s\n", p.addr)
	}
	return s.String() + more
}

// A large file comes whole, by splice too, and wrk sees no error. BALANCER_MIB is its size, 256 by
// default.
func TestNginxWithWrkAndCurl(t *testing.T) {
	need(t, "nginx", "wrk", "curl")
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	mib := 256
	if n, err := strconv.Atoi(os.Getenv("BALANCER_MIB")); err == nil {
		mib = n
	}
	// Sparse, but for a block in each MiB.
	large, err := os.Create(filepath.Join(folder, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if err := large.Truncate(int64(mib) << 20); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 8192)
	for i := range mib {
		rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(block)
		if _, err := large.WriteAt(block, int64(i)<<20+int64(i)*13); err != nil && i < mib-1 {
			t.Fatal(err)
		}
	}
	if err := large.Truncate(int64(mib) << 20); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "small"), []byte("small\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(large, 0, int64(mib)<<20)); err != nil {
		t.Fatal(err)
	}
	want := sum.Sum(nil)
	s := start(t, poolFile([]*process{nginx(t, folder), nginx(t, folder)}, "    connect_timeout: 30s\n    health: {timeout: 30s}\n"))
	base := "http://" + s.addrs["main"]

	for _, more := range [][]string{nil, {"--limit-rate", "300M"}} {
		cmd := exec.Command("curl", append(more, "-sS", "--fail", "--max-time", "120", base+"/large")...)
		sum.Reset()
		cmd.Stdout = sum
		begun := time.Now()
		if err := cmd.Run(); err != nil || !bytes.Equal(sum.Sum(nil), want) {
			t.Errorf("curl %v: %v; the file came whole: %v", more, err, bytes.Equal(sum.Sum(nil), want))
		}
		t.Logf("curl %v: %d MiB in %v", more, mib, time.Since(begun).Round(time.Millisecond))
	}
	out, err := output(t, "wrk", "-t1", "-c32", "-d3", "--timeout", "30", base+"/small")
	if err != nil || strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") || !strings.Contains(out, "Requests/sec") {
		t.Errorf("wrk: %v\n%s", err, out)
	}
	t.Log(regexp.MustCompile(`Requests/sec: +\S+`).FindString(out))
	if st := s.status(); st.Pools[0].NoUpstream != 0 || st.Pools[0].Retries != 0 {
		t.Errorf("%+v", st.Pools[0].poolCounts)
	}
}

// Upstreams are killed, stopped and started under load: no answer has a wrong byte, errors are
// clean, and within the time of the checks everything goes elsewhere.
func TestUpstreamsFailUnderLoad(t *testing.T) {
	need(t, "nginx", "wrk", "curl")
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 300<<10)
	rand.NewChaCha8([32]byte{}).Read(body)
	if err := os.WriteFile(filepath.Join(folder, "f"), body, 0o644); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(folder, "large") // more than the buffers on the way take
	if err := errors.Join(os.WriteFile(large, nil, 0o644), os.Truncate(large, 1<<30)); err != nil {
		t.Fatal(err)
	}
	up := []*process{nginx(t, folder), nginx(t, folder), nginx(t, folder)}
	s := start(t, poolFile(up, `
    connect_timeout: 500ms
    when_down: reset
    health: {interval: 200ms, timeout: 1s, fall: 2, rise: 1, send: "GET /f HTTP/1.0\r\nRange: bytes=0-0\r\n\r\n", expect: "HTTP/1.1 206"}
`))

	var asked, failed, unclean atomic.Int64
	var mu sync.Mutex
	wrong := make(map[string]int)
	// Some keep their connections, on which net/http asks again by itself; the others do not.
	keeping := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}, Timeout: patience}
	defer keeping.CloseIdleConnections()
	single := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	get := func(client *http.Client) error {
		resp, err := client.Get("http://" + s.addrs["main"] + "/f")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if !bytes.HasPrefix(body, got) || err == nil && len(got) != len(body) || resp.StatusCode != http.StatusOK {
			mu.Lock()
			wrong[fmt.Sprint(resp.Status, len(got), err)]++
			mu.Unlock()
		}
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var load sync.WaitGroup
	for _, client := range []*http.Client{keeping, keeping, keeping, keeping, single, single, single, single} {
		load.Go(func() {
			for ctx.Err() == nil {
				asked.Add(1)
				err := get(client)
				if err == nil {
					continue
				}
				failed.Add(1)
				// What a client has to be ready for: the connection ended, and it did not look as if all had
				// come.
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) &&
					!errors.Is(err, syscall.EPIPE) {
					unclean.Add(1)
					t.Errorf("a client sees %v", err)
				}
			}
		})
	}
	state := func(p *process, want string) {
		t.Helper()
		begun := time.Now()
		s.when(p.addr+" is "+want, func(st *status) bool { return st.find(t, p.addr).State == want })
		// Two checks, of 200 ms and a second for the answer; the rest is for a machine that stands still.
		took := time.Since(begun)
		if t.Logf("%s after %v", want, took); took > 10*time.Second {
			t.Errorf("it took %v until %s was %s", took, p.addr, want)
		}
	}
	// calm waits until many requests in a row succeed.
	calm := func() {
		t.Helper()
		for end := time.Now().Add(patience); ; {
			a, f := asked.Load(), failed.Load()
			for asked.Load() < a+100 && time.Now().Before(end) {
				time.Sleep(time.Millisecond)
			}
			if failed.Load() == f {
				return
			}
			if time.Now().After(end) {
				t.Fatal("requests go on failing")
			}
		}
	}
	calm()
	// wrk connects anew where it has been cut off; what it gets is never another answer.
	load.Go(func() {
		out, err := output(t, "wrk", "-t1", "-c8", "-d2", "http://"+s.addrs["main"]+"/f")
		if err != nil || strings.Contains(out, "Non-2xx") || !strings.Contains(out, "Requests/sec") {
			t.Errorf("wrk: %v\n%s", err, out)
		}
	})
	// A download that is cut off does not look whole. Wherever these are, each upstream fails behind
	// their beginning.
	for range up {
		cmd := exec.Command("curl", "-sS", "--fail", "--limit-rate", "10M", "http://"+s.addrs["main"]+"/large")
		begun := make(firstByte)
		cmd.Stdout = begun
		load.Go(func() {
			if err := cmd.Run(); err == nil {
				t.Error("curl takes a part of the file for all of it")
			}
			_, _ = begun.Write(nil) // it may have been cut off before
		})
		testnet.AwaitClosed(t, "a download's first byte", begun)
	}
	up[0].kill()
	state(up[0], "down")
	calm()
	up[0].start()
	state(up[0], "up")
	calm()
	before := s.status().find(t, up[1].addr)
	up[1].signal(syscall.SIGSTOP)
	state(up[1], "down")
	calm()
	s.when("its connections are reset", func(st *status) bool {
		u := st.find(t, up[1].addr)
		return u.Conns == 0 && u.Resets > before.Resets
	})
	up[2].kill() // one is left
	state(up[2], "down")
	calm()
	up[1].signal(syscall.SIGCONT)
	state(up[1], "up")
	up[2].start()
	state(up[2], "up")
	calm()
	stop()
	load.Wait()
	if len(wrong) > 0 {
		t.Errorf("wrong answers: %v", wrong)
	}
	t.Logf("%d requests, %d failed", asked.Load(), failed.Load())
	for _, p := range up {
		state(p, "up")
		if u := s.status().find(t, p.addr); u.Attempts == 0 {
			t.Errorf("%+v", u)
		}
	}
}

// A firstByte is closed when a program has written something.
type firstByte chan struct{}

// Write implements io.Writer, for one writer.
func (f firstByte) Write(p []byte) (int, error) {
	select {
	case <-f:
	default:
		close(f)
	}
	return len(p), nil
}

func TestRedisBenchmark(t *testing.T) {
	need(t, "redis-server", "redis-benchmark", "redis-cli")
	up := []*process{redis(t), redis(t)}
	s := start(t, poolFile(up, `
    balance: least_conns
    when_down: reset
    health: {interval: 200ms, timeout: 1s, rise: 1, send: "PING\r\n", expect: "+PONG\r\n"}
`))
	host, port, _ := net.SplitHostPort(s.addrs["main"])
	for _, more := range [][]string{{"-n", "10000", "-c", "50"}, {"-n", "40000", "-c", "20", "-P", "16"}, {"-n", "1000", "-c", "20", "-k", "0"}} {
		out, err := output(t, "redis-benchmark", append(more, "-h", host, "-p", port, "-t", "set,get,lrange_100", "-d", "100", "-q")...)
		if err != nil || strings.Contains(strings.ToLower(out), "err") {
			t.Errorf("redis-benchmark %v: %v\n%s", more, err, out)
		}
	}
	// One is stopped in the middle of a run, so that the run ends; the next one is served by the
	// other.
	cmd := exec.Command("redis-benchmark", "-h", host, "-p", port, "-t", "get", "-n", "100000000", "-c", "20", "-q")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s.when("the run has its connections", func(st *status) bool { return st.find(t, up[0].addr).Conns > 5 })
	up[0].signal(syscall.SIGSTOP)
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the run has not noticed")
		}
	case <-time.After(patience):
		t.Error("the run hangs")
		_ = cmd.Process.Kill()
		<-ended
	}
	if out, err := output(t, "redis-benchmark", "-h", host, "-p", port, "-t", "get", "-n", "5000", "-c", "20", "-q"); err != nil {
		t.Errorf("while one is stopped: %v\n%s", err, out)
	}
	up[0].signal(syscall.SIGCONT)
	s.when("it is up again", func(st *status) bool { return st.find(t, up[0].addr).State == "up" })
	if out, err := output(t, "redis-cli", "-h", host, "-p", port, "PING"); err != nil || strings.TrimSpace(out) != "PONG" {
		t.Errorf("%q, %v", out, err)
	}
}

// pgbench's transactions add to four tables; in a server that has lost or doubled a byte the sums
// differ.
func TestPgbench(t *testing.T) {
	up := postgres(t, 2)
	s := start(t, poolFile(up, `
    balance: least_conns
    when_down: reset
    health: {interval: 200ms, timeout: 1s, rise: 1, send: "hex:00000008 04d2162f", expect: N}
`))
	_, port, _ := net.SplitHostPort(s.addrs["main"])
	bench := func(args ...string) *exec.Cmd {
		return exec.Command("pgbench", append(args, "-n", "-h", "127.0.0.1", "-p", port, "-U", "bench", "postgres")...)
	}
	sums := func() {
		t.Helper()
		for _, p := range up {
			out, err := output(t, "psql", "-h", testnet.Host(), "-p", portOf(p.addr), "-U", "bench", "-At", "postgres", "-c",
				`select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
				 (select sum(tbalance) from pgbench_tellers), coalesce((select sum(delta) from pgbench_history), 0)`)
			part := strings.Split(strings.TrimSpace(out), "|")
			if err != nil || len(part) != 4 || part[0] != part[1] || part[1] != part[2] || part[2] != part[3] {
				t.Errorf("%s: the sums are %q, %v", p.addr, out, err)
			}
		}
	}
	for _, args := range [][]string{{"-c", "8", "-j", "2", "-t", "100"}, {"-c", "4", "-t", "50", "-C", "-S"}, {"-c", "4", "-t", "200", "-M", "prepared", "-S"}} {
		if out, err := bench(args...).CombinedOutput(); err != nil || !strings.Contains(string(out), "number of failed transactions: 0 ") {
			t.Errorf("pgbench %v: %v\n%s", args, err, out)
		}
	}
	sums()
	// One is stopped, goes on, is killed and comes back, while runs go on. A client of pgbench ends
	// with its connection, so there are many runs.
	ctx, stop := context.WithCancel(context.Background())
	var said safeBuffer
	var load sync.WaitGroup
	for range 2 {
		load.Go(func() {
			for ctx.Err() == nil {
				cmd := bench("-c", "2", "-t", "40", "-C")
				cmd.Stdout, cmd.Stderr = &said, &said
				_ = cmd.Run()
			}
		})
	}
	moves := func(p *process) {
		t.Helper()
		was := s.status().find(t, p.addr).Attempts
		s.when("connections go to "+p.addr, func(st *status) bool { return st.find(t, p.addr).Attempts > was+5 })
	}
	is := func(p *process, state string) {
		t.Helper()
		s.when(p.addr+" is "+state, func(st *status) bool { return st.find(t, p.addr).State == state })
	}
	moves(up[0])
	moves(up[1])
	up[1].signal(syscall.SIGSTOP)
	is(up[1], "down")
	moves(up[0])
	up[1].signal(syscall.SIGCONT)
	is(up[1], "up")
	moves(up[1])
	up[1].kill()
	is(up[1], "down")
	moves(up[0])
	up[1].start()
	is(up[1], "up")
	moves(up[1])
	stop()
	load.Wait()
	ready(t, up[1])
	for _, line := range strings.Split(said.String(), "\n") {
		// A client of a server that has gone says so; anything else would be a byte too few or too many.
		if strings.Contains(line, "error:") && !strings.Contains(line, "onnection") && !strings.Contains(line, "aborted") {
			t.Errorf("pgbench said: %s", line)
		}
	}
	sums()
}

// 20,000 connections, or as many as 15 s take. With BALANCER_CONNECTIONS it is that many, however
// long they take.
func TestManyShortConnections(t *testing.T) {
	most, until := int64(20000), time.Now().Add(15*time.Second)
	if v, err := strconv.Atoi(os.Getenv("BALANCER_CONNECTIONS")); err == nil {
		most, until = int64(v), time.Now().Add(24*time.Hour)
	}
	bs := named(t, "a", "b", "c", "d")
	s := start(t, onePool(bs, "    balance: least_conns\n"))
	before := descriptors(t)
	var next, done atomic.Int64
	var wg sync.WaitGroup
	begun := time.Now()
	for w := range 32 {
		wg.Go(func() {
			from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(w+1))}, Timeout: patience}
			for {
				i := next.Add(1)
				if i > most || t.Failed() || time.Now().After(until) {
					return
				}
				done.Add(1)
				if err := short(from, s.addrs["main"], i); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	took, n := time.Since(begun), uint64(done.Load())
	s.when("all have ended", func(st *status) bool {
		total := uint64(0)
		for _, k := range st.ends() {
			total += k
		}
		return st.Listeners[0].Open == 0 && total == n
	})
	st := s.status()
	if e := st.ends(); e["refused"] != 0 || e["upstream_failed"] != 0 || st.Pools[0].Retries != 0 {
		t.Errorf("%v, %+v", e, st.Pools[0].poolCounts)
	}
	for _, b := range bs {
		if u := st.find(t, b.addr()); u.Conns != 0 || u.Attempts < n/8 {
			t.Errorf("%+v", u)
		}
	}
	for end := time.Now().Add(patience); descriptors(t) > before+20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors, and %d before", descriptors(t), before)
		}
	}
	t.Logf("%d connections in %v, %v", n, took.Round(time.Millisecond), st.ends())
}
