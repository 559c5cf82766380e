//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// SIGTERM sends 1001 to pages and a goodbye to nc, and the program ends with status 0.
func TestProgram(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "webchat")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "-addr", "127.0.0.1:0", "-nc", "127.0.0.1:0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &served{t: t}
	if _, err := fmt.Fscanf(bufio.NewReader(out), "%s\nfor nc: %s\n", &s.page, &s.nc); err != nil {
		t.Fatal(err)
	}
	ann, nc := s.dial(), s.netcat()
	ann.join("ann", "lobby")
	ann.expect("came ann")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	nc.expect("* the server is stopping, goodbye")
	nc.Close() // it would be waited for
	if code := ann.closed(); code != 1001 {
		t.Errorf("closed with %v", code)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// The terminal client says each line once, in order, however often its connection is cut, and over
// a restart of the server; it ends with its input.
func TestTerminal(t *testing.T) {
	s := start(t, config{})
	net := newCutter(t, s.addr())
	ann := s.dial()
	ann.join("ann", "lobby")
	ann.expect("came ann")
	in, typed := io.Pipe()
	shown, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := terminal(t.Context(), in, out, "http://"+net.addr()+"/", "term", "lobby", testPing)
		out.Close()
		ended <- err
	}()
	screen := make(chan string, 10_000) // so that the client never waits for the test
	go func() {
		defer close(screen)
		for lines := bufio.NewScanner(shown); lines.Scan(); {
			screen <- lines.Text()
		}
	}()
	until := func(end string) {
		t.Helper()
		for l := range screen {
			if strings.HasSuffix(l, end) {
				return
			}
		}
		t.Fatal("the client has ended before it showed ", end)
	}
	until("term came")
	ann.expect("came term")
	for n := 1; n <= 40; n++ {
		fmt.Fprintln(typed, "line", n)
		if n%10 == 5 {
			net.set(true)
			until("the connection is lost")
			ann.say(uint64(n), fmt.Sprint("while away ", n))
			net.set(false)
			until(fmt.Sprint("ann: while away ", n))
		}
	}
	for n := 1; n <= 40; {
		l := ann.line()
		if !strings.HasPrefix(l, "say term ") {
			continue
		}
		if l != fmt.Sprint("say term line ", n) {
			t.Fatalf("%q, want line %d", l, n)
		}
		n++
	}
	until("term: line 40")
	ann.c.CloseNow()
	s.stop() // and another server in its place
	s = start(t, config{addr: s.addr()})
	ann = s.dial()
	ann.join("ann", "lobby")
	ann.expect("came ann", "came term")
	fmt.Fprintln(typed, "line 41")
	typed.Close()
	ann.expect("say term line 41", "left term left")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Many lines at once are sent at a pace that the server takes: the connection is not lost.
func TestTerminalKeepsThePace(t *testing.T) {
	const total = 400
	s := start(t, config{rate: 200})
	var in, out strings.Builder
	for n := range total {
		fmt.Fprintln(&in, "line", n)
	}
	if err := terminal(t.Context(), strings.NewReader(in.String()), &out, s.page, "term", "lobby", testPing); err != nil {
		t.Error(err)
	}
	at := 0
	for n := range total {
		i := strings.Index(out.String()[at:], fmt.Sprintf(" term: line %d\n", n))
		if i < 0 {
			t.Fatalf("line %d was not said:\n%.2000s", n, out.String()[at:])
		}
		at += i
	}
	if strings.Contains(out.String(), "the connection is lost") {
		t.Error("the connection was lost")
	}
}

// A name that is taken ends the terminal client with the reason.
func TestTerminalIsRefused(t *testing.T) {
	s := start(t, config{})
	s.dial().join("ann", "lobby")
	in, typed := io.Pipe()
	defer typed.Close()
	if err := terminal(t.Context(), in, io.Discard, s.page, "ann", "lobby", testPing); err == nil || !strings.Contains(err.Error(), "taken") {
		t.Error(err)
	}
	if err := terminal(t.Context(), in, io.Discard, "ftp://127.0.0.1/", "ann", "lobby", testPing); err == nil {
		t.Error("ftp is taken")
	}
	// A port that is taken is an error, and nothing is left over.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, cfg := range []config{{addr: ln.Addr().String(), nc: "127.0.0.1:0"}, {addr: "127.0.0.1:0", nc: ln.Addr().String()}, {}} {
		if cfg.addr != "" {
			cfg.history, cfg.ping = 1, testPing
		}
		if err := run(t.Context(), io.Discard, cfg); err == nil {
			t.Errorf("%+v is no error", cfg)
		}
	}
}

// The terminal client notices by its own pings that the network has lost it, and loses no line.
func TestTerminalIsLostWithoutAWord(t *testing.T) {
	s := start(t, config{})
	relay := newCutter(t, s.addr())
	ann := s.dial()
	ann.join("ann", "lobby")
	ann.expect("came ann")
	in, typed := io.Pipe()
	shown, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := terminal(t.Context(), in, out, "http://"+relay.addr()+"/", "term", "lobby", 200*time.Millisecond)
		out.Close()
		ended <- err
	}()
	var screen []string
	read := make(chan bool)
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(shown); lines.Scan(); {
			screen = append(screen, lines.Text())
		}
	}()
	ann.expect("came term")
	fmt.Fprintln(typed, "one")
	ann.expect("say term one")
	relay.lose()
	fmt.Fprintln(typed, "two")
	ann.say(1, "can you read this?")
	ann.expect("say ann can you read this?", "say term two")
	fmt.Fprintln(typed, "three")
	typed.Close()
	ann.expect("say term three", "left term left")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-read
	all := strings.Join(screen, "\n")
	for _, want := range []string{"ann: can you read this?", "term: two", "term: three", "the connection is lost"} {
		if strings.Count(all, want) != 1 {
			t.Errorf("%q is shown %d times:\n%s", want, strings.Count(all, want), all)
		}
	}
}
