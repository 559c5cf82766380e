//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// TestMain runs the tests, or the program itself, for a test that starts it.
func TestMain(m *testing.M) {
	if os.Getenv("WEBCHAT_PROGRAM") != "" {
		main()
		os.Exit(0)
	}
	testnet.MainOfProgram(m)
}

// program is a command that runs the program in a process of its own.
func program(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), "WEBCHAT_PROGRAM=1")
	return cmd
}

// limit bounds each wait.
const limit = 30 * time.Second

// testPing is longer than any test.
const testPing = time.Hour

// A served is a running server.
type served struct {
	t      testing.TB
	page   string // http://host:port/
	nc     string // host:port
	stop   func() // may be called twice
	cancel context.CancelFunc
}

// addr is the page's host and port.
func (s *served) addr() string { return strings.TrimSuffix(strings.TrimPrefix(s.page, "http://"), "/") }

func start(t testing.TB, cfg config) *served {
	t.Helper()
	for _, at := range []*string{&cfg.addr, &cfg.nc} {
		if *at == "" {
			*at = testnet.Host() + ":0" // where another may listen when this one is gone
		}
	}
	if cfg.history == 0 {
		cfg.history = 300
	}
	if cfg.grace == 0 {
		cfg.grace = time.Hour
	}
	if cfg.ping == 0 {
		cfg.ping = testPing
	}
	cfg.log = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, in, cfg)
		in.CloseWithError(err)
		ended <- err
	}()
	s := &served{t: t, cancel: cancel}
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(limit):
			t.Error("run does not end")
		}
	})
	t.Cleanup(s.stop)
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	second, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	s.page = strings.TrimSpace(first)
	s.nc = strings.TrimPrefix(strings.TrimSpace(second), "for nc: ")
	return s
}

// A peer is a page's connection as a test has it.
type peer struct {
	t    testing.TB
	late error // of the wait that took longer than limit
	c    *websocket.Conn
	got  []line // that lines has not returned
	here int    // how many are there, by the last message that says so
	last uint64 // number of the line that nextLine returned
}

func (s *served) dial() *peer { return dialTo(s.t, s.addr(), nil) }

// small connects with a receive buffer of 64 KiB, so that the kernel holds little.
var small = &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10) })
}}

// dialSmall connects by small.
func (s *served) dialSmall() *peer {
	return dialTo(s.t, s.addr(), &websocket.DialOptions{HTTPClient: &http.Client{Transport: &http.Transport{DialContext: small.DialContext}}})
}

func dialTo(t testing.TB, addr string, opts *websocket.DialOptions) *peer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws://"+addr+"/ws", opts)
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadLimit(1 << 20)
	t.Cleanup(func() { c.CloseNow() })
	return &peer{t: t, c: c}
}

func token(name string) string { return (name + strings.Repeat("-", 16))[:max(16, len(name))] }

func (p *peer) write(q request) error {
	b, _ := json.Marshal(q)
	return p.writeRaw(websocket.MessageText, b)
}

func (p *peer) writeRaw(kind websocket.MessageType, b []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return p.c.Write(ctx, kind, b)
}

func (p *peer) send(q request) {
	p.t.Helper()
	if err := p.write(q); err != nil {
		p.t.Fatal(err)
	}
}

// next returns the next message.
func (p *peer) next() answer {
	p.t.Helper()
	a, err := p.read()
	if err != nil {
		p.t.Fatal(err)
	}
	if a.T == "here" {
		p.here = a.Count
	}
	return a
}

func (p *peer) read() (a answer, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, b, err := p.c.Read(ctx)
	if p.late = ctx.Err(); err == nil {
		err = json.Unmarshal(b, &a)
	}
	return a, err
}

// until returns the next message of a kind; lines that come before it wait for line.
func (p *peer) until(kind string) answer {
	p.t.Helper()
	for {
		a := p.next()
		if a.T == kind {
			return a
		}
		p.got = append(p.got, a.Lines...)
	}
}

// people waits until the page was told that so many are there.
func (p *peer) people(n int) {
	p.t.Helper()
	for p.here != n {
		p.got = append(p.got, p.next().Lines...)
	}
}

// line returns the next line of the room as kind, name and text.
func (p *peer) line() string {
	p.t.Helper()
	l := p.nextLine()
	return strings.TrimSpace(fmt.Sprintln(l.Kind, l.Name, l.Text))
}

func (p *peer) nextLine() line {
	p.t.Helper()
	for len(p.got) == 0 {
		p.got = p.next().Lines
	}
	l := p.got[0]
	p.got = p.got[1:]
	p.last = l.Seq
	return l
}

func (p *peer) expect(want ...string) {
	p.t.Helper()
	for _, w := range want {
		if got := p.line(); got != w {
			p.t.Fatalf("got line %q, want %q", got, w)
		}
	}
}

// join says hello under a name, whose token follows from it, and returns the welcome.
func (p *peer) join(name, room string) answer {
	p.t.Helper()
	p.send(request{T: "hello", Token: token(name), Name: name, Room: room})
	return p.until("welcome")
}

func (p *peer) say(n uint64, text string) {
	p.t.Helper()
	p.send(request{T: "say", N: n, Text: text})
}

// closed waits for the end and returns its code.
func (p *peer) closed() websocket.StatusCode {
	p.t.Helper()
	for {
		if _, err := p.read(); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

// A terminal talks to the port for nc.
type ncPeer struct {
	t testing.TB
	net.Conn
	in *bufio.Reader
}

func (s *served) netcat() *ncPeer {
	s.t.Helper()
	c, err := small.Dial("tcp", s.nc)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(limit))
	n := &ncPeer{s.t, c, bufio.NewReader(c)}
	if got := n.line(); !strings.HasPrefix(got, "* welcome, guest-") {
		s.t.Fatal(got)
	}
	return n
}

func (n *ncPeer) line() string {
	n.t.Helper()
	_ = n.SetDeadline(time.Now().Add(limit))
	s, err := n.in.ReadString('\n')
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.TrimSuffix(s, "\n")
}

func (n *ncPeer) say(lines ...string) {
	n.t.Helper()
	if _, err := io.WriteString(n, strings.Join(lines, "\n")+"\n"); err != nil {
		n.t.Fatal(err)
	}
}

func (n *ncPeer) expect(want ...string) {
	n.t.Helper()
	for _, w := range want {
		if got := n.line(); got != w {
			n.t.Fatalf("nc got %q, want %q", got, w)
		}
	}
}

// A cutter is a TCP proxy whose connections can be cut, or lost without a word to either end.
type cutter struct {
	ln net.Listener

	mu    sync.Mutex
	to    string
	conns map[net.Conn]bool
	down  bool
	lost  chan bool // closed to lose the connections of now
}

func newCutter(t testing.TB, to string) *cutter {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &cutter{ln: ln, to: to, conns: make(map[net.Conn]bool), lost: make(chan bool)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.carry(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); p.set(true); wg.Wait() })
	return p
}

func (p *cutter) addr() string { return p.ln.Addr().String() }

// set cuts all connections and refuses new ones, or lets them pass again.
func (p *cutter) set(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down = down; down {
		for c := range p.conns {
			_ = c.(*net.TCPConn).SetLinger(0) // a reset, so that what is under way is lost
			c.Close()
		}
	}
}

// lose makes the network lose all that is sent over the connections of now, in both directions. No
// end is told, and new connections pass.
func (p *cutter) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.lost)
	p.lost = make(chan bool)
}

// pass copies what it reads from src to dst, until one of them ends, or lost is closed: from then
// on it throws away what it reads, and hides src's end.
func (p *cutter) pass(dst, src net.Conn, lost <-chan bool) {
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		select {
		case <-lost:
			if err == nil {
				continue
			}
			p.mu.Lock()
			for !p.down { // so that dst sees nothing of it
				p.mu.Unlock()
				time.Sleep(time.Millisecond)
				p.mu.Lock()
			}
			p.mu.Unlock()
			return
		default:
		}
		if err == nil {
			_, err = dst.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// add notes c, and reports false while the network is down.
func (p *cutter) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.down {
		p.conns[c] = true
	}
	return !p.down
}

func (p *cutter) carry(c net.Conn) {
	defer c.Close()
	p.mu.Lock()
	to := p.to
	p.mu.Unlock()
	d, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer d.Close()
	if !p.add(c) || !p.add(d) {
		return
	}
	p.mu.Lock()
	lost := p.lost
	p.mu.Unlock()
	done := make(chan bool)
	go func() {
		p.pass(d, c, lost)
		d.Close()
		close(done)
	}()
	p.pass(c, d, lost)
	c.Close()
	<-done
	p.mu.Lock()
	delete(p.conns, c)
	delete(p.conns, d)
	p.mu.Unlock()
}

// until reads to a line with that end.
func (n *ncPeer) until(end string) {
	n.t.Helper()
	for !strings.HasSuffix(n.line(), end) {
	}
}
