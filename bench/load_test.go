package main

import (
	"bytes"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// buildLoad compiles the load generator.
func buildLoad(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("no gcc: ", err)
	}
	bin := filepath.Join(t.TempDir(), "load")
	if out, err := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", bin, "load/load.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return bin
}

// serve answers each connection with what change makes of what it says; nil closes it. n counts
// what a connection said before.
func serve(t *testing.T, change func(p []byte, n int) []byte) (port string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				p := make([]byte, 64)
				for n := 0; ; n++ {
					if _, err := io.ReadFull(c, p); err != nil {
						return
					}
					answer := change(p, n)
					if answer == nil {
						return
					}
					if _, err := c.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func TestLoadChecksEveryByte(t *testing.T) {
	bin := buildLoad(t)
	first := make(chan []byte, 1)
	swapped := func(p []byte, n int) []byte {
		if n == 3 {
			select {
			case first <- bytes.Clone(p):
			case other := <-first:
				return other
			}
		}
		return p
	}
	after := func(f func(p []byte) []byte) func([]byte, int) []byte {
		return func(p []byte, n int) []byte {
			if n < 3 {
				return p
			}
			return f(p)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(p []byte, n int) []byte
		want   string // what it says; empty: it succeeds
	}{
		{"right", func(p []byte, _ int) []byte { return p }, ""},
		{"last byte", after(func(p []byte) []byte { p[63] ^= 1; return p }), "wrong byte"},
		{"lost byte", after(func(p []byte) []byte { return p[1:] }), "wrong byte"},
		{"doubled byte", after(func(p []byte) []byte { return append([]byte{p[0]}, p...) }), "wrong byte"},
		{"doubled answer", after(func(p []byte) []byte { return append(bytes.Clone(p), p...) }), "wrong byte"},
		{"other connection's", swapped, "wrong byte"},
		{"close", after(func([]byte) []byte { return nil }), "server closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seconds := "0.2"
			if tt.want != "" {
				seconds = "20" // it ends with what is wrong, however long the server takes for that
			}
			cmd := exec.Command(bin, "-p", serve(t, tt.change), "-c", "2", "-w", "0", "-t", seconds)
			stuck := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
			defer stuck.Stop()
			out, err := cmd.CombinedOutput()
			if (err == nil) != (tt.want == "") || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v, %q; want %q", err, out, tt.want)
			}
		})
	}
}
