//go:build linux

package main

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// The program's own text, with another address in it, is built against the library under its import
// path and run: it answers, sees the end of a connection as io.EOF, and goes on.
func TestTheOriginalProgramRunsUnchanged(t *testing.T) {
	text, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	addr := testnet.FreeAddr(t)
	moved := strings.Replace(string(text), `":8080"`, `"`+addr+`"`, 1)
	if moved == string(text) {
		t.Fatal("the program does not listen on :8080 any more")
	}
	// Inside the module, so that the import path means this library; the name keeps it out of ./...
	dir, err := os.MkdirTemp(".", "_original")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(moved), 0o644); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "original")
	if out, err := exec.Command("go", "build", "-o", bin, "./"+dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	prog := exec.Command(bin)
	stdout, err := prog.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	prog.Stderr = os.Stderr
	if err := prog.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = prog.Process.Kill()
		_ = prog.Wait()
	}()
	lines := make(chan string, 10)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			lines <- s.Text()
		}
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got, ok := <-lines:
			if !ok || got != want {
				t.Fatalf("the program printed %q, want %q", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the program did not print %q", want)
		}
	}
	for _, word := range []string{"hello", "again"} {
		c := dial(t, addr)
		if _, err := c.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		if word == "again" { // and ends at once, as nc -N does: the answer comes, and then the end
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		r := bufio.NewReader(c)
		if reply, err := r.ReadString('\n'); err != nil || reply != "OK\n" {
			t.Fatalf("the reply is %q, %v", reply, err)
		}
		if word == "again" {
			if _, err := r.ReadByte(); err != io.EOF {
				t.Fatalf("%v, want the end", err)
			}
		}
		expect("Received: " + word)
		c.Close()
		expect("Error: EOF")
	}
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			return c
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
}
