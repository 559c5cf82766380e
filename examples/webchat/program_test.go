//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// SIGTERM sends 1001 to pages and a goodbye to nc, and the program ends with status 0.
func TestProgram(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := program(ctx, "-addr", "127.0.0.1:0", "-nc", "127.0.0.1:0")
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
		err := terminal(t.Context(), in, out, remote{pages: "http://" + net.addr() + "/", name: "term", room: "lobby", ping: testPing})
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
	net.set(true)
	s.stop() // and another server in its place
	s = start(t, config{addr: s.addr()})
	ann = s.dial()
	ann.join("ann", "lobby")
	ann.expect("came ann")
	net.set(false) // not before: the terminal tries again all the time
	ann.expect("came term")
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
	if err := terminal(t.Context(), strings.NewReader(in.String()), &out, remote{pages: s.page, name: "term", room: "lobby", ping: testPing}); err != nil {
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
	if err := terminal(t.Context(), in, io.Discard, remote{pages: s.page, name: "ann", room: "lobby", ping: testPing}); err == nil || !strings.Contains(err.Error(), "taken") {
		t.Error(err)
	}
	if err := terminal(t.Context(), in, io.Discard, remote{pages: "ftp://127.0.0.1/", name: "ann", room: "lobby", ping: testPing}); err == nil {
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

// Over TLS the terminal client takes part as it does without, if it is told whom to trust; if not, it
// says what is wrong, once.
func TestTerminalByTLS(t *testing.T) {
	cert, key := testnet.CertificateFiles(t)
	s := start(t, config{addr: "127.0.0.1:0", cert: cert, key: key})
	if !strings.HasPrefix(s.page, "https://127.0.0.1:") {
		t.Error(s.page)
	}
	var out strings.Builder
	r := remote{pages: s.page, ca: cert, name: "term", room: "lobby", ping: testPing}
	if err := terminal(t.Context(), strings.NewReader("hidden from the wire\n"), &out, r); err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), " term: hidden from the wire\n") || strings.Contains(out.String(), "connect") {
		t.Errorf("shown is\n%s", out.String())
	}

	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan bool)
	go func() {
		defer close(served)
		defer ln.Close()
		for range 3 {
			if c, err := ln.Accept(); err == nil {
				_ = c.(*tls.Conn).Handshake() // it fails
				c.Close()
			}
		}
		stop()
	}()
	in, typed := io.Pipe()
	defer typed.Close()
	out.Reset()
	r.ca, r.pages = "", "https://"+ln.Addr().String()+"/"
	if err := terminal(ctx, in, &out, r); err != nil {
		t.Error(err)
	}
	<-served
	if all := out.String(); strings.Count(all, "\n") != 1 || !strings.Contains(all, "cannot connect to wss://") || !strings.Contains(all, "certificate") {
		t.Errorf("behind three attempts is shown\n%s", all)
	}
}

// A bad value is an error that names its flag.
func TestFlags(t *testing.T) {
	cert, _ := testnet.CertificateFiles(t)
	good := config{addr: "127.0.0.1:0", history: 1, ping: testPing}
	for want, spoil := range map[string]func(*config){
		"-history":    func(c *config) { c.history = 0 },
		"-grace":      func(c *config) { c.grace = -1 },
		"-ping":       func(c *config) { c.ping = time.Microsecond },
		"-rate":       func(c *config) { c.rate = -1 },
		"-nats":       func(c *config) { c.cluster, c.nats = "x", "y" },
		"-key":        func(c *config) { c.cert = cert },
		"-cert, -key": func(c *config) { c.cert, c.key = cert, cert },
	} {
		cfg := good
		spoil(&cfg)
		if err := run(t.Context(), io.Discard, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for want, r := range map[string]remote{
		"-connect: ": {pages: "127.0.0.1:7030", ping: testPing},
		"-connect":   {pages: "http:///", ping: testPing},
		"-ca: open":  {pages: "http://x/", ping: testPing, ca: filepath.Join(t.TempDir(), "none")},
		"-ca":        {pages: "http://x/", ping: testPing, ca: os.Args[0]},
		"-ping":      {pages: "http://x/"},
	} {
		if err := terminal(t.Context(), strings.NewReader(""), io.Discard, r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// The terminal client notices by its own pings that the network has lost it, and loses no line.
func TestTerminalIsLostWithoutAWord(t *testing.T) {
	t.Parallel()
	s := start(t, config{})
	relay := newCutter(t, s.addr())
	ann := s.dial()
	ann.join("ann", "lobby")
	ann.expect("came ann")
	in, typed := io.Pipe()
	shown, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := terminal(t.Context(), in, out, remote{pages: "http://" + relay.addr() + "/", name: "term", room: "lobby", ping: 2 * time.Second}) // which it is not late for
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
