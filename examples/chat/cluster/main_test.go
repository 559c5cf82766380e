//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/examples/chat/cluster/rooms"
	"github.com/rabbit-backend/tcpio/internal/testnet"
)

func TestMain(m *testing.M) { testnet.MainOfProgram(m) }

// limit bounds each wait.
const limit = 30 * time.Second

// start runs a node and returns its address and what ends it.
func start(t *testing.T, dir string, grace time.Duration) (addr string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, in, config{"127.0.0.1:0", rooms.Config{
			Dir: dir, History: 50, Grace: grace, Log: slog.New(slog.DiscardHandler)}})
		in.CloseWithError(err)
		ended <- err
	}()
	over := false
	stop = func() {
		if over {
			return
		}
		over = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(limit):
			t.Error("run does not end")
		}
	}
	t.Cleanup(stop)
	if _, err := fmt.Fscanf(bufio.NewReader(out), "listening on %s\n", &addr); err != nil {
		t.Fatal(err)
	}
	return addr, stop
}

// A terminal is nc.
type terminal struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, addr string, say ...string) *terminal {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	n := &terminal{t, c, bufio.NewReader(c)}
	n.say(say...)
	return n
}

func (n *terminal) say(lines ...string) {
	n.t.Helper()
	_ = n.SetDeadline(time.Now().Add(limit))
	for _, l := range lines {
		if _, err := io.WriteString(n, l+"\n"); err != nil {
			n.t.Fatal(err)
		}
	}
}

// until reads to a line with that end, and returns those before it.
func (n *terminal) until(end string) (before []string) {
	n.t.Helper()
	_ = n.SetDeadline(time.Now().Add(limit))
	for {
		l, err := n.in.ReadString('\n')
		if err != nil {
			n.t.Fatalf("waiting for %q: %v; got %q", end, err, before)
		}
		if l = strings.TrimSuffix(l, "\n"); strings.HasSuffix(l, end) {
			return before
		}
		before = append(before, l)
	}
}

// who asks until the answer is want: presence takes milliseconds from node to node.
func (n *terminal) who(want string) {
	n.t.Helper()
	got := ""
	for end := time.Now().Add(limit); got != want; {
		if time.Now().After(end) {
			n.t.Fatalf("the last answer is %q, want %q", got, want)
		}
		n.say("/who")
		for {
			l, err := n.in.ReadString('\n')
			if err != nil {
				n.t.Fatalf("waiting for %q: %v; got %q", want, err, got)
			}
			if got = strings.TrimSuffix(l, "\n"); strings.HasPrefix(got, "* ") {
				break
			}
		}
	}
}

// Two nodes are one chat: rooms, names, who is there, what was said, and its order.
func TestNodesAreOneChat(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "nodes")
	here, _ := start(t, dir, time.Hour)
	there, stop := start(t, dir, time.Hour)
	ann := dial(t, here, "/nick ann", "/join go")
	ann.until("ann joined")
	bob := dial(t, there, "/nick Ann")
	bob.until("* Ann is taken")
	bob.say("/nick bob", "/join GO", "hello from there")
	ann.until("* bob joined")
	ann.until("bob: hello from there")
	ann.say("hello from here")
	ann.who("* 2 in go: ann bob")
	bob.until("ann: hello from here")
	const each = 50
	for n := range each {
		ann.say(fmt.Sprint("a", n))
		bob.say(fmt.Sprint("b", n))
	}
	ann.say("/leave")
	bob.until("* ann left")
	bob.who("* 1 in GO: bob")
	// Who comes sees what was said, on whichever node. The order is one for all, and that of each one.
	cy, dot := dial(t, here, "/nick cy", "/join go"), dial(t, there, "/nick dot", "/join go")
	one, two := cy.until("cy joined"), dot.until("cy joined")
	said := func(lines []string) (text []string) {
		for _, l := range lines {
			if _, l, ok := strings.Cut(l, "] "); ok && !strings.HasPrefix(l, "*") {
				text = append(text, l)
			}
		}
		return text
	}
	a, b := said(one), said(two)
	if len(a) < 40 || len(b) < 40 {
		t.Fatalf("of the last 50 lines they see %q and %q", a, b)
	}
	if end := len(a) - 40; strings.Join(a[end:], "\n") != strings.Join(b[len(b)-40:], "\n") {
		t.Errorf("they see\n%q\n%q", a, b)
	}
	bob.say("/nick robert")
	cy.until("* bob is now robert")
	ann.say("/nick bob")
	ann.until("* you are bob") // it is free
	// A node that stops says goodbye; the other goes on with what is stored.
	stop()
	cy.until("* robert left")
	cy.say("still here")
	cy.until("cy: still here") // it comes by the stream, answers do not: neither waits for the other
	cy.say("/nick robert")
	cy.until("* you are robert")
}

// A node that cannot be one says why.
func TestWithoutStore(t *testing.T) {
	for _, cfg := range []config{
		{},
		{Config: rooms.Config{Dir: "x", URL: "y", History: 1}},
		{Config: rooms.Config{URL: "nats://127.0.0.1:1", History: 1}},
	} {
		if err := run(t.Context(), io.Discard, cfg); err == nil {
			t.Errorf("%+v is no error", cfg)
		}
	}
}
