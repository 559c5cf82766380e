//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// TestMain runs the tests, or the program itself, for a test that starts it.
func TestMain(m *testing.M) {
	if os.Getenv("BALANCER_PROGRAM") != "" {
		main()
		os.Exit(0)
	}
	testnet.MainOfProgram(m)
}

// patience bounds each wait.
const patience = 30 * time.Second

// A served is a running balancer.
type served struct {
	t     testing.TB
	file  string
	addrs map[string]string // of the listeners, by their names
	page  string            // http://host:port
	stop  func()            // what SIGTERM does, and waits for the end; may be called again
	end   context.CancelFunc
	ended chan struct{} // closed at the end
	hup   chan os.Signal
	log   *lines
}

// lines is a log that tests can wait for.
type lines struct {
	t    testing.TB
	mu   sync.Mutex
	cond *sync.Cond
	text strings.Builder
}

func newLines(t testing.TB) *lines {
	l := &lines{t: t}
	l.cond = sync.NewCond(&l.mu)
	return l
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cond.Broadcast()
	return l.text.Write(p)
}

// await waits until a part of the log matches, and returns its groups.
func (l *lines) await(pattern string) []string {
	l.t.Helper()
	expr := regexp.MustCompile(pattern)
	end := time.Now().Add(patience)
	wake := time.AfterFunc(patience, func() { l.cond.Broadcast() })
	defer wake.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if m := expr.FindStringSubmatch(l.text.String()); m != nil {
			return m
		}
		if time.Now().After(end) {
			l.t.Fatalf("no line of the log matches %s:\n%s", pattern, l.text.String())
		}
		l.cond.Wait()
	}
}

// start runs a balancer with that file. $NAME in it is the value of vars; an address to listen on
// should have the port 0.
func start(t testing.TB, yaml string) *served {
	t.Helper()
	s := &served{
		t: t, file: filepath.Join(t.TempDir(), "balancer.yaml"), addrs: make(map[string]string),
		ended: make(chan struct{}), hup: make(chan os.Signal, 1), log: newLines(t),
	}
	s.write(yaml)
	ctx, cancel := context.WithCancel(context.Background())
	s.end = cancel
	var err error
	go func() {
		defer close(s.ended)
		err = command(ctx, []string{"-config", s.file, "-admin", ":0"}, io.Discard, s.log, s.hup)
	}()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case <-s.ended:
			if err != nil {
				t.Errorf("the balancer ends with: %v", err)
			}
		case <-time.After(2 * patience):
			t.Error("the balancer does not end")
		}
	})
	t.Cleanup(s.stop)
	select {
	case <-s.ended:
		t.Fatalf("the balancer does not run: %v", err)
	case <-s.whenLogged(`url=(http://\S+)`):
	}
	s.page = strings.TrimSuffix(s.log.await(`url=(http://\S+)`)[1], "/")
	for _, l := range s.status().Listeners {
		s.addrs[l.Name] = l.Addr
	}
	return s
}

func (s *served) whenLogged(pattern string) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for expr := regexp.MustCompile(pattern); ; time.Sleep(time.Millisecond) {
			s.log.mu.Lock()
			found := expr.MatchString(s.log.text.String())
			s.log.mu.Unlock()
			select {
			case <-s.ended:
				return
			default:
			}
			if found {
				return
			}
		}
	}()
	return done
}

func (s *served) write(yaml string) {
	s.t.Helper()
	if err := os.WriteFile(s.file, []byte(yaml), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// reload writes another file, has it read, and waits until that is done.
func (s *served) reload(yaml string) {
	s.t.Helper()
	before := s.status()
	s.write(yaml)
	s.hup <- syscall.SIGHUP
	s.when("the reload", func(now *status) bool {
		return now.Loaded != before.Loaded || now.Problem != before.Problem
	})
	for _, l := range s.status().Listeners {
		if !l.Leaving {
			s.addrs[l.Name] = l.Addr
		}
	}
}

func (s *served) status() *status {
	s.t.Helper()
	resp, err := http.Get(s.page + "/status.json")
	if err != nil {
		s.t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	st := new(status)
	if err := json.NewDecoder(resp.Body).Decode(st); err != nil {
		s.t.Fatal(err)
	}
	return st
}

// when waits until the status is as f wants it.
func (s *served) when(what string, f func(*status) bool) *status {
	s.t.Helper()
	var st *status
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if st = s.status(); f(st) {
			return st
		}
	}
	text, _ := json.MarshalIndent(st, "", " ")
	s.t.Fatalf("%s does not come: %s", what, text)
	return nil
}

// find returns an upstream's status; it fails the test if there is none.
func (st *status) find(t testing.TB, addr string) upstreamStatus {
	t.Helper()
	for _, p := range st.Pools {
		for _, u := range p.Upstreams {
			if u.Addr == addr {
				return u
			}
		}
	}
	t.Fatalf("there is no upstream %s", addr)
	return upstreamStatus{}
}

func (st *status) ends() map[string]uint64 {
	m := make(map[string]uint64)
	for _, l := range st.Listeners {
		for _, e := range l.Ends {
			m[e.Name] += e.N
		}
	}
	return m
}

func (s *served) drain(pool, upstream string, on bool) {
	s.t.Helper()
	form := url.Values{"pool": {pool}, "upstream": {upstream}, "on": {fmt.Sprint(on)}}
	resp, err := http.PostForm(s.page+"/drain", form)
	if err != nil {
		s.t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		s.t.Fatalf("drain: %s", resp.Status)
	}
}

// A client is a connection to a listener. Every wait on it ends.
type client struct {
	t testing.TB
	*net.TCPConn
	in *bufio.Reader
}

func (s *served) dial(listener string) *client {
	s.t.Helper()
	return dialTo(s.t, s.addrs[listener])
}

func dialTo(t testing.TB, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &client{t, c.(*net.TCPConn), bufio.NewReader(c)}
}

// ask sends a line and returns the answer, a line too.
func (c *client) ask(line string) string {
	c.t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		c.t.Fatal(err)
	}
	return c.line()
}

func (c *client) line() string {
	c.t.Helper()
	s, err := c.in.ReadString('\n')
	if err != nil {
		c.t.Fatalf("after %q: %v", s, err)
	}
	return strings.TrimSuffix(s, "\n")
}

// expectReset waits for a reset.
func (c *client) expectReset() {
	c.t.Helper()
	if n, err := io.Copy(io.Discard, c.in); !errors.Is(err, syscall.ECONNRESET) {
		c.t.Errorf("%d bytes and %v, want a reset", n, err)
	}
}

// short is a connection with one question. Each second one ends by a reset.
func short(from *net.Dialer, to string, i int64) error {
	c, err := from.Dial("tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	word := fmt.Sprintf("%d\n", i)
	if _, err := io.WriteString(c, word); err != nil {
		return err
	}
	got := make([]byte, len(word)+2) // "a " comes before it
	if _, err := io.ReadFull(c, got); err != nil || string(got[2:]) != word {
		return fmt.Errorf("%q, %w", got, err)
	}
	if i%2 == 0 {
		_ = c.(*net.TCPConn).SetLinger(0)
	}
	return nil
}

// A backend is an upstream in this process: it answers each line with its name and the line.
type backend struct {
	t    testing.TB
	name string
	ln   net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	total int
}

// newBackend listens on addr, or where nobody has listened before if that is empty.
func newBackend(t testing.TB, name, addr string, serve func(*backend, net.Conn)) *backend {
	t.Helper()
	if addr == "" {
		addr = testnet.FreeAddr(t)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{t: t, name: name, ln: ln, conns: make(map[net.Conn]bool)}
	b.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conns[c] = true
			b.total++
			b.mu.Unlock()
			b.wg.Go(func() {
				defer func() {
					c.Close()
					b.mu.Lock()
					delete(b.conns, c)
					b.mu.Unlock()
				}()
				serve(b, c)
			})
		}
	})
	t.Cleanup(b.stop)
	return b
}

// named starts backends that answer with their names.
func named(t testing.TB, names ...string) []*backend {
	t.Helper()
	var bs []*backend
	for _, n := range names {
		bs = append(bs, newBackend(t, n, "", answer))
	}
	return bs
}

func answer(b *backend, c net.Conn) {
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, b.name+" "+line); err != nil {
			return
		}
	}
}

func (b *backend) addr() string { return b.ln.Addr().String() }

// stop closes the port and resets the connections.
func (b *backend) stop() {
	b.ln.Close()
	b.mu.Lock()
	for c := range b.conns {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
		c.Close()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

func (b *backend) accepted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}

// quiet is a logger for units.
var quiet = slog.New(slog.DiscardHandler)

// upstreams is the part of a file that names them.
func upstreams(bs []*backend) string {
	var s strings.Builder
	s.WriteString("    upstreams:\n")
	for _, b := range bs {
		fmt.Fprintf(&s, "      - addr: %s\n", b.addr())
	}
	return s.String()
}

// onePool is a file with a listener "main" and a pool "main"; more stands in the pool.
func onePool(bs []*backend, more string) string {
	return "listeners:\n  main: {listen: '127.0.0.1:0', to: main}\npools:\n  main:\n" + upstreams(bs) + more
}
