//go:build linux

package tcpio_test

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// opensslSession types lines into openssl s_client and expects those that are not its commands to be echoed. A line K is
// its command for a key update that asks the peer for one too (s_client(1)).
func opensslSession(t *testing.T, addr string, lines ...string) {
	t.Helper()
	cmd := exec.Command("openssl", "s_client", "-quiet", "-no_ign_eof", "-connect", addr, "-tls1_3")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	got := make(chan string, 100)
	go func() {
		defer close(got)
		for s := bufio.NewScanner(out); s.Scan(); {
			got <- s.Text()
		}
	}()
	for _, line := range lines {
		if _, err := io.WriteString(in, line); err != nil {
			t.Fatal(err)
		}
		want := strings.TrimSuffix(line, "\n")
		if want == "K" {
			want = "KEYUPDATE" // it says so, and drops what it has read together with the command
		}
		for limit := time.After(30 * time.Second); ; {
			select {
			case s, ok := <-got:
				if !ok {
					t.Fatalf("openssl ended, %q was not echoed", want)
				}
				if s == want {
					break
				}
				continue
			case <-limit:
				t.Fatalf("%q was not echoed", want)
			}
			break
		}
	}
}
