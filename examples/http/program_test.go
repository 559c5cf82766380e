//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestCurlWorksAgainstBoth(t *testing.T) {
	t.Parallel()
	curl := needProgram(t, "curl")
	const size = 16 << 20
	content := lettersOf(size)
	file := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(t.TempDir(), "small")
	if err := os.WriteFile(small, content[:100000], 0o600); err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("%d %x\n", size, sha256.Sum256(content))
	servers(t, testConfig(), newMux(), func(t *testing.T, addr string) {
		run := func(args ...string) string {
			t.Helper()
			return output(t, curl, append([]string{"-sS", "--fail", "--max-time", "60"}, args...)...)
		}
		u := "http://" + addr
		// Two requests on one connection: %{num_connects} counts new ones.
		if got := run("-w", "%{num_connects} ", u+"/", u+"/"); got != "hello\n1 hello\n0 " {
			t.Errorf("keep-alive: %q", got)
		}
		if got := run("-I", u+"/"); !strings.HasPrefix(got, "HTTP/1.1 200 OK") || !strings.Contains(got, "Content-Length: 6") {
			t.Errorf("HEAD: %q", got)
		}
		if got := run("--http1.0", u+"/"); got != "hello\n" {
			t.Errorf("HTTP/1.0: %q", got)
		}
		if got := run("-H", "Expect: 100-continue", "--expect100-timeout", "60", "-T", file, u+"/upload"); got != sum {
			t.Errorf("upload: %q, want %q", got, sum)
		}
		if got := run("-H", "Transfer-Encoding: chunked", "-H", "Expect:", "-T", file, u+"/upload"); got != sum {
			t.Errorf("chunked upload: %q, want %q", got, sum)
		}
		if got := run("-H", "Transfer-Encoding: chunked", "--data-binary", "@"+small, u+"/echo"); got != string(content[:100000]) {
			t.Errorf("echo: %d bytes", len(got))
		}
		for _, query := range []string{"", "&chunked=1"} {
			to := filepath.Join(t.TempDir(), "download")
			run("-o", to, fmt.Sprintf("%s/download?size=%d%s", u, size, query))
			if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, content) {
				t.Errorf("download%s: %d bytes of %d, %v", query, len(got), size, err)
			}
		}
	})
}

// Both servers come from one program, and a signal ends both in order.
func TestTheProgramServesBothUntilASignal(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "http")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	prog := exec.Command(bin, "-listen-net", "127.0.0.1:0", "-listen-actor", "127.0.0.1:0")
	prog.Stderr = os.Stderr
	stdout, err := prog.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := prog.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = prog.Process.Kill() }()
	for _, name := range []string{"net/http", "actor"} {
		var addr string
		if _, err := fmt.Fscanf(stdout, name+" listening on %s\n", &addr); err != nil {
			t.Fatalf("where %s listens: %v", name, err)
		}
		hc := newHTTPClient(t)
		resp, err := hc.Get("http://" + addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", name, resp.Status)
		}
		hc.CloseIdleConnections()
	}
	if err := prog.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := prog.Wait(); err != nil {
		t.Fatalf("the program ended with %v", err)
	}
}
