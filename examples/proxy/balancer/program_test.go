//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The program, with signals: SIGHUP reads the file anew, SIGTERM ends it once its connections have
// ended.
func TestTheProgramObeysSignals(t *testing.T) {
	bs := named(t, "a", "b")
	file := filepath.Join(t.TempDir(), "balancer.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(onePool(bs[:1], ""))
	cmd := exec.Command(os.Args[0], "-config", file)
	cmd.Env = append(os.Environ(), "BALANCER_PROGRAM=1")
	log := newLines(t)
	cmd.Stderr, cmd.Stdout = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	at := log.await(`msg=listening listener=main addr=(\S+)`)[1]
	signal := func(s syscall.Signal) {
		if err := cmd.Process.Signal(s); err != nil {
			t.Error(err)
		}
	}
	c := dialTo(t, at)
	if got := c.ask("hello"); got != "a hello" {
		t.Error(got)
	}
	write("listeners: {}\npols: {}\n")
	signal(syscall.SIGHUP)
	log.await(`the configuration before this one holds.*balancer.yaml:2:1: unknown field`)
	write(onePool(bs[1:], ""))
	signal(syscall.SIGHUP)
	log.await(`configuration loaded`)
	if got := dialTo(t, at).ask("hello"); got != "b hello" {
		t.Error(got)
	}
	signal(syscall.SIGTERM)
	log.await(`msg=ending`)
	if got := c.ask("still here"); got != "a still here" {
		t.Error(got)
	}
	c.Close()
	// The other connection is still open: another SIGTERM does not wait for it.
	for deadline := time.After(patience); ; {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(err.Error(), "terminated") {
				t.Errorf("it ended with %v", err)
			}
			return
		case <-deadline:
			t.Fatal("it does not end")
		case <-time.After(20 * time.Millisecond):
		}
	}
}
