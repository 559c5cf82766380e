package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"os/exec"
	"testing"
)

// needProgram returns the path of a program that a test needs, and skips the test if it is not
// installed. It comes before anything that the test starts. CI installs all of them.
func needProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed, and this server was not tried with it", name)
	}
	return path
}

// The package comment tells people to use nc, so nc is tried.
func TestTwoTalkWithNC(t *testing.T) {
	nc := needProgram(t, "nc")
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
