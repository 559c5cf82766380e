package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A calls is the system calls of one server under one workload, counted in a run of its own.
type calls struct {
	Mode, Workload, Server string
	PerRequest             float64
	With                   string // perf or strace
}

// count counts the system calls that a server makes between two moments at which its load generator
// pauses. perf counts a tracepoint of the kernel, which hardly slows the server; strace stops it at
// every call, so that its batches are larger than they would be.
func (o *options) count(res *results, mode string, w *workload, s *server) error {
	if w.idle > 0 {
		return nil
	}
	p, err := o.start(mode, w, s, s.loops(mode))
	if err != nil {
		return err
	}
	defer p.stop()
	c, err := o.client(mode, p.port, append([]string{"-x", "-k", "-w", "0", "-t", "0.5"}, w.load...)...)
	if err != nil {
		return err
	}
	if err := c.await("ready"); err != nil {
		return err
	}
	stop, with, err := countCalls(p.Process.Pid)
	if err != nil {
		return err
	}
	_, _ = c.in.Write([]byte("x"))
	var r run
	if err = c.await("warm"); err == nil {
		if c.lines.Scan() {
			err = json.Unmarshal(c.lines.Bytes(), &r)
		} else {
			err = c.Wait()
		}
	}
	n, stopErr := stop()
	_, _ = c.in.Write([]byte("x"))
	if err != nil || stopErr != nil || r.Requests == 0 {
		fmt.Fprintf(os.Stderr, "%s %s %s: no system calls counted: %v, %v\n", mode, w.name, s.name, err, stopErr)
		return nil
	}
	per := n / float64(r.Requests)
	fmt.Fprintf(os.Stderr, "%-6s %-8s %-12s %6.3f system calls/request (%s)\n", mode, w.name, s.name, per, with)
	res.Calls = append(res.Calls, calls{mode, w.name, s.name, per, with})
	return c.Wait()
}

// countCalls begins to count pid's system calls; stop returns their number.
func countCalls(pid int) (stop func() (float64, error), with string, err error) {
	with = "perf"
	argv := []string{"perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", strconv.Itoa(pid)}
	if exec.Command("perf", "stat", "-e", "raw_syscalls:sys_enter", "true").Run() != nil {
		with = "strace"
		argv = []string{"strace", "-c", "-f", "-p", strconv.Itoa(pid)}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	out, err := cmd.StderrPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", fmt.Errorf("neither perf nor strace can be used: %w", err)
	}
	time.Sleep(300 * time.Millisecond) // neither says reliably when it has attached to all threads
	return func() (n float64, err error) {
		_ = cmd.Process.Signal(unix.SIGINT)
		err = fmt.Errorf("%s printed no total", with)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			line := lines.Text()
			if f := strings.Split(line, ","); with == "perf" && len(f) > 2 {
				n, err = strconv.ParseFloat(f[0], 64)
			}
			if f := strings.Fields(line); with == "strace" && len(f) > 3 && f[len(f)-1] == "total" {
				n, err = strconv.ParseFloat(f[3], 64)
			}
		}
		_ = cmd.Wait() // it was interrupted, which it calls a failure
		return n, err
	}, with, nil
}
