// Package proc starts processes of a test program that the test may kill and stop, and waits for what
// JetStream does.
package proc

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio/internal/testnet"
)

// Patience is how long a test waits for what needs a leader of JetStream: on a busy machine an
// election may take several rounds, of up to 9 s.
const Patience = 4 * testnet.Limit

// Eventually is testnet.WaitFor with Patience.
func Eventually(t testnet.T, what string, cond func() bool) {
	t.Helper()
	testnet.WaitForUpTo(t, Patience, what, cond)
}

// role is the environment variable that tells a process that it is a child, and which.
const role = "TCPIO_CLUSTER_TEST_ROLE"

// Main runs the function of this process's role and reports true, or reports false in the test
// itself. It comes first in TestMain. A child ends when its standard input does.
func Main(roles map[string]func(in *bufio.Scanner) error) (child bool) {
	name := os.Getenv(role)
	if name == "" {
		return false
	}
	if err := roles[name](bufio.NewScanner(os.Stdin)); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	return true
}

// A Child is a process of this test program.
type Child struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	over chan struct{} // closed when its output has ended

	// Guarded by mu.
	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed and made anew at each line
	ended bool
	taken int
}

// Start starts a child in that role, with env besides the test's own. It is killed when the test
// ends.
func Start(t testing.TB, name string, env ...string) *Child {
	t.Helper()
	return StartCommand(t, exec.Command(os.Args[0]), append(env, role+"="+name)...)
}

// StartCommand starts any command as a child.
func StartCommand(t testing.TB, cmd *exec.Cmd, env ...string) *Child {
	t.Helper()
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	c := &Child{t: t, cmd: cmd, in: in, more: make(chan struct{}), over: make(chan struct{})}
	go func() {
		defer close(c.over)
		defer out.Close()
		s := bufio.NewScanner(out)
		for s.Scan() {
			c.add(s.Text(), false)
		}
		c.add("", true)
	}()
	t.Cleanup(func() {
		c.Kill()
		<-c.over
	})
	return c
}

func (c *Child) add(line string, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if end {
		c.ended = true
	} else {
		c.lines = append(c.lines, line)
	}
	close(c.more)
	c.more = make(chan struct{})
}

// Say writes a line to the child. A child that has ended does not hear it.
func (c *Child) Say(format string, args ...any) {
	_, _ = fmt.Fprintf(c.in, format+"\n", args...)
}

// Line waits for the child's next line that begins with prefix, and returns the rest of that. The
// test fails when the child ends before, or after Patience.
func (c *Child) Line(prefix string) string {
	c.t.Helper()
	limit := time.NewTimer(Patience)
	defer limit.Stop()
	for {
		c.mu.Lock()
		for c.taken < len(c.lines) {
			line := c.lines[c.taken]
			c.taken++
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				c.mu.Unlock()
				return strings.TrimSpace(rest)
			}
		}
		more, ended := c.more, c.ended
		c.mu.Unlock()
		if ended {
			c.t.Fatalf("the child has ended without %q: %q", prefix, c.Lines())
		}
		select {
		case <-more:
		case <-limit.C:
			_ = c.cmd.Process.Signal(syscall.SIGQUIT) // it says what every goroutine does
			<-c.over
			c.t.Fatalf("after %v no %q from the child:\n%s", Patience, prefix, strings.Join(c.Lines(), "\n"))
		}
	}
}

// Lines returns what the child has said so far.
func (c *Child) Lines() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.lines)
}

// Signal sends the child a signal.
func (c *Child) Signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) }

// Kill ends the child as kill -9 does, and waits until it has ended.
func (c *Child) Kill() {
	_ = c.cmd.Process.Kill()
	c.wait()
}

// End ends the child's standard input, and fails the test unless the child then ends without
// failing.
func (c *Child) End() {
	c.t.Helper()
	c.in.Close()
	stuck := time.AfterFunc(testnet.Limit, func() { _ = c.cmd.Process.Kill() })
	defer stuck.Stop()
	if err := c.wait(); err != nil {
		c.t.Errorf("the child: %v: %q", err, c.Lines())
	}
}

func (c *Child) wait() error {
	err := c.cmd.Wait()
	if err != nil && strings.Contains(err.Error(), "Wait was already called") {
		return nil
	}
	return err
}
