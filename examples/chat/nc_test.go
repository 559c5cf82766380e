package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"os/exec"
	"testing"
)

// The package comment tells people to use nc, so nc is tried.
func TestTwoTalkWithNC(t *testing.T) {
	nc, err := exec.LookPath("nc")
	if err != nil {
		t.Skip("NOT TESTED: the chat server with the real nc, which is not installed here:", err)
	}
	addr, _, _ := startServer(t, config{history: 2})
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()

	type person struct {
		cmd *exec.Cmd
		in  io.WriteCloser
		out *bufio.Scanner
	}
	start := func() person {
		cmd := exec.CommandContext(ctx, nc, host, port)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return person{cmd, in, bufio.NewScanner(out)}
	}
	until := func(p person, want string) {
		t.Helper()
		for p.out.Scan() {
			if p.out.Text() == want {
				return
			}
		}
		t.Fatalf("%q did not come, but: %v", want, p.out.Err())
	}
	say := func(p person, lines string) {
		t.Helper()
		if _, err := io.WriteString(p.in, lines); err != nil {
			t.Fatal(err)
		}
	}

	ann, bob := start(), start()
	say(ann, "/nick ann\n/join go\nhello, everybody\n")
	until(ann, "[go] ann: hello, everybody")
	say(bob, "/nick bob\n/join go\nhello, \x1b[5mann\n/who\n")
	until(bob, "[go] ann: hello, everybody")
	until(bob, "* 2 in go: ann bob")
	until(ann, "[go] bob: hello, \ufffd[5mann")
	say(ann, "/quit\n")
	until(ann, "* goodbye")
	until(bob, "[go] * ann left")
	say(bob, "/quit\n")
	until(bob, "* goodbye")
	for _, p := range []person{ann, bob} {
		p.in.Close()
		for p.out.Scan() {
			t.Errorf("after the goodbye: %q", p.out.Text())
		}
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("nc: %v", err)
		}
	}
}
