//go:build linux && long

package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
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

// The same with wrk, which counts what fails.
func TestWrkSeesNoErrorWhileServersAreReplaced(t *testing.T) {
	wrk := needProgram(t, "wrk")
	s := start(t, exec.Command(build(t, "1"), "-addr", "127.0.0.1:0", "-trial", "50ms", "-grace", "50s", "-drain-timeout", "60s"))
	for _, args := range [][]string{{"-c", "64"}, {"-c", "16", "-H", "Connection: close"}} {
		var out bytes.Buffer
		cmd := exec.Command(wrk, append(append([]string{"-t", "2", "-d", "1s", "--timeout", "30s"}, args...), "http://"+s.now.addr+"/")...)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		var old []generation
		for running := true; running; {
			old = append(old, s.succeed())
			select {
			case err := <-done:
				if running = false; err != nil {
					t.Errorf("wrk: %v", err)
				}
			case <-time.After(300 * time.Millisecond): // so often within wrk's time
			}
		}
		for _, g := range old {
			s.ended(g)
		}
		var requests int
		if i := strings.Index(out.String(), " requests in"); i > 0 {
			line := out.String()[:i]
			_, _ = fmt.Sscan(line[strings.LastIndexByte(line, '\n')+1:], &requests)
		}
		if strings.Contains(out.String(), "Socket errors") || strings.Contains(out.String(), "Non-2xx") || requests == 0 {
			t.Errorf("%d restarts:\n%s", len(old), out.String())
		}
	}
	s.end()
}
