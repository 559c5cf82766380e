//go:build linux

// One file, over 500 lines: a single program seen from outside, with the scaffolding that all of
// its tests share.

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const limit = 60 * time.Second

// TestMain makes orphans ours: a server whose predecessor has ended can then be waited for.
func TestMain(m *testing.M) {
	const subreaper = 36 // PR_SET_CHILD_SUBREAPER
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, subreaper, 1, 0); errno != 0 {
		fmt.Fprintln(os.Stderr, "prctl:", errno)
		os.Exit(1)
	}
	var err error
	if built, err = os.MkdirTemp("", "restart"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(built)
	os.Exit(code)
}

var built string // the servers, by version

// build makes a server that says it is of that version. The file is the test's, to be replaced but
// not written to.
func build(t *testing.T, version string) string {
	t.Helper()
	from := filepath.Join(built, version)
	if _, err := os.Stat(from); err != nil {
		out, err := exec.Command("go", "build", "-ldflags", "-X main.version="+version, "-o", from, ".").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	bin := filepath.Join(t.TempDir(), "server")
	if err := os.Link(from, bin); err != nil {
		t.Fatal(err)
	}
	return bin
}

// lineLog is what the servers of one test print on stderr.
type lineLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lineLog) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), s)
}

// A generation is one process.
type generation struct {
	pid           int
	version, addr string
}

// servers is a line of servers, each the successor of the one before.
type servers struct {
	t      *testing.T
	lines  chan generation
	now    generation // the one that serves
	stderr lineLog
}

// start runs cmd, which becomes the first server. The last one must be ended by the test.
func start(t *testing.T, cmd *exec.Cmd) *servers {
	t.Helper()
	s := &servers{t: t, lines: make(chan generation, 10)}
	pipe := func(read func(io.Reader)) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); defer r.Close(); read(r) }() // until the last process has ended
		t.Cleanup(func() { <-done })
		return w
	}
	stdout := pipe(func(r io.Reader) {
		for {
			var g generation
			if _, err := fmt.Fscanf(r, "process %d version %s listening on %s\n", &g.pid, &g.version, &g.addr); err != nil {
				return
			}
			s.lines <- g
		}
	})
	stderr := pipe(func(r io.Reader) { _, _ = io.Copy(&s.stderr, r) })
	t.Cleanup(func() { // before the pipes' ends, whatever has failed
		if t.Failed() {
			s.stderr.mu.Lock()
			t.Logf("stderr:\n%s", s.stderr.buf.String())
			s.stderr.mu.Unlock()
		}
		for _, pid := range children(os.Getpid()) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			_, _ = syscall.Wait4(pid, nil, 0, nil)
			t.Errorf("process %d is left", pid)
		}
	})
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Start()
	stdout.Close()
	stderr.Close()
	if err != nil {
		t.Fatal(err)
	}
	s.now = s.next()
	return s
}

func (s *servers) next() generation {
	s.t.Helper()
	select {
	case g := <-s.lines:
		return g
	case <-time.After(limit):
		s.t.Fatal("no server gets ready")
	}
	return generation{}
}

// succeed replaces the server and returns the one before, which may still be draining.
func (s *servers) succeed() (before generation) {
	s.t.Helper()
	before = s.now
	s.signal(syscall.SIGHUP)
	s.now = s.next()
	if s.now.pid == before.pid || s.now.addr != before.addr {
		s.t.Fatalf("%v is succeeded by %v", before, s.now)
	}
	return before
}

func (s *servers) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(s.now.pid, sig); err != nil {
		s.t.Fatal(err)
	}
}

// ended waits for a server to end in order.
func (s *servers) ended(g generation) {
	s.t.Helper()
	done := make(chan error, 1)
	go func() {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(g.pid, &status, 0, nil)
		if err == nil && status != 0 {
			err = fmt.Errorf("status %#x", status)
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			s.t.Errorf("process %d: %v", g.pid, err)
		}
	case <-time.After(limit):
		s.t.Fatalf("process %d does not end", g.pid)
	}
}

// end ends the last server, and looks for others.
func (s *servers) end() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	s.ended(s.now)
}

// children lists the processes that are pid's, /proc/PID/task/TID/children.
func children(pid int) (pids []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		content, _ := os.ReadFile(f)
		for field := range strings.FieldsSeq(string(content)) {
			var n int
			if _, err := fmt.Sscan(field, &n); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", limit, what)
		}
	}
}

// A client makes one request after the other, over a connection of its own until an answer says
// that it was the last.
type client struct {
	addr, query string
	once        bool // a new connection for every request
	conn        net.Conn
	r           *bufio.Reader
}

// get makes one request; there is no second try.
func (c *client) get() (g generation, err error) {
	if c.conn == nil {
		if c.conn, err = net.DialTimeout("tcp", c.addr, limit); err != nil {
			return g, err
		}
		_ = c.conn.SetDeadline(time.Now().Add(limit))
		c.r = bufio.NewReader(c.conn)
	}
	header := ""
	if c.once {
		header = "Connection: close\r\n"
	}
	if _, err := fmt.Fprintf(c.conn, "GET /%s HTTP/1.1\r\nHost: x\r\n%s\r\n", c.query, header); err != nil {
		return g, fmt.Errorf("write: %w", err)
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return g, fmt.Errorf("read: %w", err)
	}
	defer resp.Body.Close()
	if _, err := fmt.Fscanf(resp.Body, "process %d version %s\n", &g.pid, &g.version); err != nil || resp.StatusCode != http.StatusOK {
		return g, fmt.Errorf("%s: %v", resp.Status, err)
	}
	if resp.Close {
		if _, err := c.r.ReadByte(); err != io.EOF {
			return g, fmt.Errorf("behind the last answer: %w", err)
		}
		c.close()
	}
	return g, nil
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// load makes requests until stop, and counts the answers of each process.
type load struct {
	t      *testing.T
	wg     sync.WaitGroup
	stop   atomic.Bool
	mu     sync.Mutex
	by     map[int]int
	failed int
}

func (l *load) run(n int, c client) {
	for range n {
		l.wg.Go(func() {
			c := c
			defer c.close()
			for !l.stop.Load() {
				g, err := c.get()
				l.mu.Lock()
				if err != nil {
					if l.failed++; l.failed <= 10 {
						l.t.Errorf("a request failed: %v (%+v)", err, c)
					}
					c.close()
				} else {
					l.by[g.pid]++
				}
				l.mu.Unlock()
			}
		})
	}
}

func (l *load) answers(pid int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.by[pid]
}

// Long and short connections, requests that take their time, and a server that is replaced over and
// over, by another program too. Nobody tries twice. To see it fail: close at Draining, or answer
// after it without Connection: close.
func TestNotOneRequestFailsWhileServersAreReplaced(t *testing.T) {
	bin, other := build(t, "1"), build(t, "2")
	// No grace is long enough for a client that is held up by the machine. These are never idle, so it
	// costs nothing.
	s := start(t, exec.Command(bin, "-addr", "127.0.0.1:0", "-trial", "50ms", "-grace", "50s", "-drain-timeout", "60s"))
	l := &load{t: t, by: make(map[int]int)}
	l.run(8, client{addr: s.now.addr})
	l.run(8, client{addr: s.now.addr, once: true})
	l.run(8, client{addr: s.now.addr, query: "?pause=50ms"})
	l.run(8, client{addr: s.now.addr, query: "?pause=50ms", once: true})
	for i := range 5 {
		waitFor(t, "a hundred answers of this server", func() bool { return l.answers(s.now.pid) >= 100 })
		if i == 2 {
			if err := os.Rename(other, bin); err != nil {
				t.Fatal(err)
			}
		}
		before := s.succeed()
		s.ended(before)
	}
	waitFor(t, "a hundred answers of the last one", func() bool { return l.answers(s.now.pid) >= 100 })
	if s.now.version != "2" {
		t.Errorf("the last server is of version %s", s.now.version)
	}
	l.stop.Store(true)
	l.wg.Wait()
	s.end()
	total := 0
	for _, n := range l.by {
		total += n
	}
	if l.failed > 0 || len(l.by) != 6 {
		t.Errorf("%d requests failed, %d were answered, by %d servers", l.failed, total, len(l.by))
	}
	t.Logf("%d requests", total)
}

// An idle client is told the end in order, after the grace; a request within the grace is answered.
func TestIdleClientsAreToldTheEndInOrder(t *testing.T) {
	s := start(t, exec.Command(build(t, "1"), "-addr", "127.0.0.1:0", "-trial", "50ms", "-grace", "300ms"))
	c := &client{addr: s.now.addr}
	if _, err := c.get(); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Dial("tcp", s.now.addr) // has never said anything
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	_ = silent.SetDeadline(time.Now().Add(limit))
	// Behind the answer to one that has connected later, silent is this server's, and not left for its
	// successor.
	if _, err := (&client{addr: s.now.addr, once: true}).get(); err != nil {
		t.Fatal(err)
	}
	before := s.succeed()
	for _, conn := range []net.Conn{c.conn, silent} {
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("an idle client read %d bytes, %v, want the end", n, err)
		}
	}
	c.close()
	silent.Close()
	s.ended(before)
	s.end()
}

func TestARestartThatFailsChangesNothing(t *testing.T) {
	bin := build(t, "1")
	good, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	put := func(content []byte, mode os.FileMode) {
		t.Helper()
		err := errors.Join(os.WriteFile(bin+".new", content, mode), os.Rename(bin+".new", bin))
		if err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, exec.Command(bin, "-addr", "127.0.0.1:0", "-trial", "50ms", "-ready-timeout", "60s", "-grace", "1ms"))
	c := &client{addr: s.now.addr}
	defer c.close()
	for i, spoil := range []func(){
		func() { put([]byte("#!/bin/sh\nexit 3\n"), 0o700) },
		func() { put([]byte("#!/bin/sh\n"), 0o700) }, // ends in order without being ready
		func() { put([]byte("\x7fELF not really"), 0o700) },
		func() { put(good, 0o600) },
		func() { os.Remove(bin) },
	} {
		spoil()
		s.signal(syscall.SIGHUP)
		waitFor(t, "the server says that it failed", func() bool { return s.stderr.count("restart failed, going on") == i+1 })
		if g, err := c.get(); err != nil || g.pid != s.now.pid {
			t.Errorf("%d: process %d answers, want %d; %v", i, g.pid, s.now.pid, err)
		}
		if left := children(s.now.pid); left != nil {
			t.Errorf("%d: processes %v are left", i, left)
		}
	}
	c.close()
	put(good, 0o700)
	before := s.succeed()
	s.ended(before)
	s.end()
}
