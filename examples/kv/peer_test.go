package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

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

// commands asks how many commands the server has run, this one included.
func (p *peer) commands() int {
	p.t.Helper()
	info := p.do("INFO", "stats")
	_, n, _ := strings.Cut(info, "total_commands_processed:")
	n, _, _ = strings.Cut(n, "\r\n")
	run, err := strconv.Atoi(n)
	if err != nil {
		p.t.Fatalf("%v in %q", err, info)
	}
	return run
}

// wantEnd fails unless the server closes in order, with nothing before that.
func (p *peer) wantEnd() {
	p.t.Helper()
	if rest, err := io.ReadAll(p.r); len(rest) > 0 || err != nil {
		p.t.Errorf("%.100q, %v instead of the end", rest, err)
	}
}

// readReply reads one reply: +OK, -ERR text, :1, nil, bulk strings as they are, arrays, sets and
// maps as [a b].
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
	case '_':
		return "nil", nil
	case '$', '*', '%', '~', '=':
	default:
		return "", fmt.Errorf("malformed reply %q", line)
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil {
		return "", err
	}
	if line == "$-1" || line == "*-1" {
		return "nil", nil
	}
	if line[0] == '%' {
		n *= 2
	}
	if line[0] == '*' || line[0] == '~' || line[0] == '%' {
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
