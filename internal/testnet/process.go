//go:build linux

package testnet

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// CPU is the processor time that this process has used.
func CPU(t testing.TB) time.Duration {
	t.Helper()
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// WaitIdle waits until the process uses less than most of processor time in a window of time. What
// it did before, or a collection of garbage, may disturb a window or two; a loop that spins
// disturbs them all.
func WaitIdle(t testing.TB, what string, window, most time.Duration) {
	t.Helper()
	var used time.Duration
	for range 20 {
		before := CPU(t)
		time.Sleep(window)
		if used = CPU(t) - before; used < most {
			return
		}
	}
	t.Errorf("%s: %v of processor time in %v", what, used, window)
}

// Goroutines counts the goroutines in whose stack part occurs.
func Goroutines(part string) int {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	n := 0
	for g := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(g, part) {
			n++
		}
	}
	return n
}

// Status is a number of bytes from /proc/self/status: VmHWM, the most memory that this process has
// had, or VmRSS, what it has.
func Status(t testing.TB, field string) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		kib := 0
		if _, err := fmt.Sscanf(line, field+": %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatalf("no %s in /proc/self/status", field)
	return 0
}

// A Child is a process of this test program that runs one test, and answers on its standard output
// what the parent says on its standard input.
type Child struct {
	t     testing.TB
	in    io.WriteCloser
	lines *bufio.Scanner
	said  []string
}

// StartChild runs the named test in a child with env, until the test ends. The child must end by
// itself, without failing, when its standard input ends.
func StartChild(t testing.TB, test string, env ...string) *Child {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.timeout=10m")
	cmd.Env = append(append(os.Environ(), "GOCOVERDIR="+t.TempDir()), env...)
	cmd.Stderr = os.Stderr
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
	c := &Child{t: t, in: in, lines: bufio.NewScanner(out)}
	t.Cleanup(func() {
		in.Close()
		stuck := time.AfterFunc(Limit, func() { _ = cmd.Process.Kill() })
		defer stuck.Stop()
		for c.lines.Scan() {
			c.said = append(c.said, c.lines.Text())
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the child process: %v\n%s", err, strings.Join(c.said, "\n"))
		}
	})
	return c
}

// Say writes a line to the child's standard input.
func (c *Child) Say(line string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		c.t.Fatalf("the child process does not listen: %v", err)
	}
}

// Line reads up to the child's next line that begins with prefix, and returns the rest of that.
func (c *Child) Line(prefix string) string {
	c.t.Helper()
	for c.lines.Scan() {
		c.said = append(c.said, c.lines.Text())
		if rest, ok := strings.CutPrefix(c.lines.Text(), prefix); ok {
			return rest
		}
	}
	c.t.Fatalf("the child process has ended, its last words: %q", c.said)
	return ""
}
